"""Haiku: the parameters and state of a ResNet in one file."""

import tempfile
from pathlib import Path

import haiku as hk
import jax
import jax.numpy as jnp

from safejax.haiku import deserialize, serialize


def forward(images, is_training):
    return hk.nets.ResNet18(10)(images, is_training)


model = hk.transform_with_state(forward)
images = jnp.ones((1, 32, 32, 3))
params, state = jax.jit(model.init, static_argnums=2)(jax.random.key(0), images, True)

path = Path(tempfile.mkdtemp()) / "resnet.safetensors"
serialize({"params": params, "state": state}, filename=path)

decoded = deserialize(path)
run = jax.jit(model.apply, static_argnums=4)
before, _ = run(params, state, None, images, False)
after, _ = run(decoded["params"], decoded["state"], None, images, False)
print(f"{sorted(decoded.keys())} of {len(params)} modules, the first: {min(params)}")
print(f"outputs equal: {bool((before == after).all())}")
