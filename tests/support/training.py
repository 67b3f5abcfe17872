"""Small trainings of each framework, for the tests that save one and go on with it.

Each model has BatchNorm and Dropout, so that statistics and random numbers count, and the
optimizer has moments and a schedule, so that its state counts.
"""

from typing import Any, Final

import equinox as eqx
import flax.linen as nn
import jax
import numpy as np
import optax
from flax import nnx
from flax.training.train_state import TrainState

_RNG: Final = np.random.default_rng(0)
BATCHES: Final = [
    (_RNG.normal(size=(16, 4)).astype(np.float32), _RNG.normal(size=(16, 1)).astype(np.float32))
    for _ in range(12)
]
OPTIMIZER: Final = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1e-1, 1e-3, 6))
)


# ---- flax


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.BatchNorm(use_running_average=False, momentum=0.9)(nn.Dense(8)(x))
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=False)(nn.relu(x)))


class FullState(TrainState):
    batch_stats: Any
    key: jax.Array


NET: Final = LinenNet()


def linen_start(seed: int) -> FullState:
    keys = {"params": jax.random.key(seed), "dropout": jax.random.key(1)}
    variables = jax.jit(NET.init)(keys, BATCHES[0][0])
    return FullState.create(
        apply_fn=NET.apply,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        tx=OPTIMIZER,
        key=jax.random.key(seed + 7),
    )


@jax.jit
def linen_step(state: FullState, x: Any, y: Any) -> tuple[FullState, Any]:
    key, dropout = jax.random.split(state.key)

    def loss(params: Any) -> Any:
        variables = {"params": params, "batch_stats": state.batch_stats}
        out, updated = NET.apply(variables, x, rngs={"dropout": dropout}, mutable=["batch_stats"])
        return ((out - y) ** 2).mean(), updated["batch_stats"]

    (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=gradients).replace(batch_stats=stats, key=key), value


# ---- NNX


class NnxNet(nnx.Module):
    def __init__(self, seed: int) -> None:
        rngs = nnx.Rngs(seed)
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def nnx_start(seed: int) -> tuple[NnxNet, nnx.Optimizer]:
    model = NnxNet(seed)
    return model, nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param)


@nnx.jit
def nnx_update(model: NnxNet, optimizer: nnx.Optimizer, x: Any, y: Any) -> Any:
    """Change the model and its optimizer by one step, and return the loss."""
    value, gradients = nnx.value_and_grad(lambda model: ((model(x) - y) ** 2).mean())(model)
    optimizer.update(model, gradients)
    return value


# ---- Equinox


class EquinoxNet(eqx.Module):
    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    out: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        keys = jax.random.split(key)
        self.hidden = eqx.nn.Linear(4, 8, key=keys[0])
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", momentum=0.9, mode="ema")
        self.dropout = eqx.nn.Dropout(0.5)
        self.out = eqx.nn.Linear(8, 1, key=keys[1])

    def __call__(self, x: Any, state: Any, key: Any) -> tuple[Any, Any]:
        x, state = self.norm(self.hidden(x), state)
        return self.out(self.dropout(jax.nn.relu(x), key=key)), state


def equinox_start(seed: int) -> Any:
    model, statistics = eqx.nn.make_with_state(EquinoxNet)(jax.random.key(seed))
    moments = OPTIMIZER.init(eqx.filter(model, eqx.is_inexact_array))
    return model, statistics, moments, jax.random.key(seed + 7)


@eqx.filter_jit
def equinox_step(state: Any, x: Any, y: Any) -> tuple[Any, Any]:
    model, statistics, moments, key = state
    key, dropout = jax.random.split(key)

    @eqx.filter_value_and_grad(has_aux=True)
    def loss(model: Any) -> Any:
        run = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
        out, updated = run(x, statistics, jax.random.split(dropout, len(x)))
        return ((out - y) ** 2).mean(), updated

    (value, statistics), gradients = loss(model)
    trained = eqx.filter(model, eqx.is_inexact_array)
    updates, moments = OPTIMIZER.update(gradients, moments, trained)
    return (eqx.apply_updates(model, updates), statistics, moments, key), value
