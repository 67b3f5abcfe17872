"""Reading: which bytes a leaf needs, and where they come from. NumPy only, no JAX."""
