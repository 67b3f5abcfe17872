"""Agreements of several processes, by the service through which JAX's processes find each other."""
