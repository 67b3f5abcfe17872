"""Checkpoints: Leaves to the bytes of one or several safetensors files, and back."""
