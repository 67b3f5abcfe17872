"""Pytrees and names: a path to each leaf, and the tree back. No arrays, no files."""
