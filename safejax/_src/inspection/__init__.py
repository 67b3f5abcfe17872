"""Inspection: what is in files and trees, how two of them differ, and whether a file is whole."""
