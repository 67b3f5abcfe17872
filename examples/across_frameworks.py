"""From Haiku to Equinox: one file, with other names and transposed kernels."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

import safejax.equinox
import safejax.haiku
from safejax import chain, decode, encode, rename, transpose

network = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([16, 4])(x)))
x = jnp.ones((3, 8))
params = network.init(jax.random.key(0), x)
encoded = safejax.haiku.serialize(params)

# Haiku computes x @ w, Equinox weight @ x.
to_equinox = chain(
    rename({"mlp/~/linear_{i}.w": "layers.{i}.weight", "mlp/~/linear_{i}.b": "layers.{i}.bias"}),
    transpose("layers.*.weight"),
)
skeleton = eqx.filter_eval_shape(eqx.nn.MLP, 8, 4, 16, 1, key=jax.random.key(0))
model = safejax.equinox.deserialize(encoded, like=skeleton, transform=to_equinox)

close = np.allclose(jax.vmap(model)(x), network.apply(params, x), rtol=1e-6, atol=1e-6)
print(f"the Equinox model gives the outputs of the Haiku network: {close}")

# The inverse of the same description exports the model again.
there_and_back = chain(decode, to_equinox, to_equinox.inverse, encode)
print(f"and back, with every byte of the file equal: {there_and_back(encoded) == encoded}")
