"""Arrays: the lazy `jax.Array`, what it holds, and how it is placed on its devices."""
