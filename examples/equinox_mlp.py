"""Equinox: a model's arrays in a file; its functions and static fields come from `like`."""

import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp

from safejax.equinox import deserialize, serialize


def make(seed):
    return eqx.nn.MLP(8, 4, width_size=32, depth=2, key=jax.random.key(seed))


model = make(0)
path = Path(tempfile.mkdtemp()) / "model.safetensors"
serialize(model, filename=path)

skeleton = eqx.filter_eval_shape(make, 1)  # makes no arrays
decoded = deserialize(path, like=skeleton)


@eqx.filter_jit
def run(model, x):
    return jax.vmap(model)(x)


x = jnp.ones((4, 8))
print(f"{type(decoded).__name__}: outputs equal: {bool((run(decoded, x) == run(model, x)).all())}")
