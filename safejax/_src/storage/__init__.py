"""Storage: the places that hold files, local or remote. It knows neither safetensors nor JAX."""
