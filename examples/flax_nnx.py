"""Flax NNX: a module's variables in a file, and in another module that has no values yet."""

import tempfile
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from safejax.flax import load_into, serialize


class Net(nnx.Module):
    """A linear layer, batch statistics, and dropout with its own random state."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(8, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.linear(x)))


model = Net(nnx.Rngs(0))
path = Path(tempfile.mkdtemp()) / "model.safetensors"
serialize(model, filename=path)

abstract = nnx.eval_shape(lambda: Net(nnx.Rngs(1)))  # only shapes, no parameters
load_into(abstract, path)  # lazy leaves: only one copy exists

x = jnp.ones((4, 8))
equal = bool((abstract(x) == model(x)).all())  # parameters, statistics and random state
print(f"a {type(abstract).__name__} without values was filled: outputs equal: {equal}")

tuned = Net(nnx.Rngs(2))
load_into(tuned, path, only=nnx.Param)  # statistics and random state are kept
print(f"kernel loaded: {bool((tuned.linear.kernel[...] == model.linear.kernel[...]).all())}")
