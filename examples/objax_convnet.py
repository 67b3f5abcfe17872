"""Objax: a model's variables, with their types, in a file and in another model."""

import tempfile
from pathlib import Path

import jax.numpy as jnp
import objax

from safejax.objax import deserialize, deserialize_with_assignment, serialize


def make():
    return objax.nn.Sequential(
        [
            objax.nn.Conv2D(3, 8, k=3),
            objax.functional.relu,
            objax.nn.Conv2D(8, 4, k=3),
        ]
    )


model = make()
path = Path(tempfile.mkdtemp()) / "params.safetensors"
serialize(params=model.vars(), filename=path)

decoded = deserialize(path)  # a VarCollection
for name in decoded.keys():  # noqa: SIM118 - iterating over a VarCollection yields its variables
    print(f"{name}: {type(decoded[name]).__name__}{list(decoded[name].shape)}")

other = make()
deserialize_with_assignment(filename=path, model_vars=other.vars())

images = jnp.ones((1, 3, 8, 8))
print(f"outputs equal: {bool((other(images) == model(images)).all())}")
