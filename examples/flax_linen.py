"""Flax linen: variables to a file and back, in the same container."""

import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

from safejax.flax import deserialize, serialize


class MLP(nn.Module):
    """Two layers with a normalization between them."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(32)(x))
        return nn.Dense(10)(nn.relu(x))


model = MLP()
x = jnp.ones((4, 8))
params = model.init(jax.random.key(0), x)

encoded = serialize(params)  # bytes
path = Path(tempfile.mkdtemp()) / "params.safetensors"
serialize(params, filename=path)  # or a file

for decoded in (deserialize(encoded), deserialize(path)):
    equal = bool((model.apply(decoded, x) == model.apply(params, x)).all())
    print(f"{type(decoded).__name__} of {sorted(decoded)}: outputs equal: {equal}")
