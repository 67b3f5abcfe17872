"""Training continues on another mesh: ten steps after a restore equal the ten without it.

A state is saved from eight devices after two steps, and loaded lazily onto the same devices in
another arrangement. The state that is not restored is moved there by `jax.device_put` at that
moment, so that both compute with the same shardings; on the same mesh nothing is moved. Bits are
compared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
import safejax.equinox
import safejax.flax
from tests.support.effort import LARGE
from tests.support.leaves import arrays_of, bits, is_key
from tests.support.training import (
    BATCHES,
    OPTIMIZER,
    equinox_start,
    equinox_step,
    linen_start,
    linen_step,
    nnx_start,
    nnx_update,
)

MESHES = {
    "2x4 to 4x2": ((2, 4), (4, 2)),
    "4x2 to 8x1": ((4, 2), (8, 1)),
    "2x4 stays": ((2, 4), (2, 4)),
}


def mesh_of(shape: tuple[int, int]) -> Mesh:
    return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def chosen(mesh: Mesh, name: str, aval: Any) -> NamedSharding:
    """Split features over the model axis where it divides them, and keys over the data axis."""
    if is_key(aval):
        return NamedSharding(mesh, P("data") if aval.ndim else P())
    for axis in reversed(range(aval.ndim)):
        if aval.shape[axis] % mesh.shape["model"] == 0:
            return NamedSharding(mesh, P(*[None] * axis, "model"))
    return NamedSharding(mesh, P())


def moved(tree: Any, mesh: Mesh) -> Any:
    def move(leaf: Any) -> Any:
        is_array = isinstance(leaf, jax.Array)
        return jax.device_put(leaf, chosen(mesh, "", leaf)) if is_array else leaf

    return jax.tree.map(move, tree)


@dataclass(frozen=True)
class Training:
    """How a framework trains, and how its state is saved and restored lazily."""

    start: Callable[[int], Any]
    step: Callable[[Any, Any, Any], tuple[Any, Any]]
    save: Callable[[Any, Path], Any]
    restore: Callable[[Path, Any], Any]
    """From the path, with this for `sharding=`."""
    values: Callable[[Any], Any] = lambda state: state
    move: Callable[[Any, Mesh], Any] = moved


def check(training: Training, before: Mesh, after: Mesh, path: Path) -> None:
    state = training.move(training.start(0), before)
    for x, y in BATCHES[:2]:
        state, _ = training.step(state, *on(before, x, y))
    training.save(state, path)
    assert any(not leaf.is_fully_replicated for leaf in arrays_of(training.values(state)))
    if before == after:
        own = {
            name: leaf.sharding
            for name, leaf in safejax.flatten(training.values(state)).items()
            if isinstance(leaf, jax.Array)
        }
        restored = training.restore(path, lambda name, aval: own[name])
    else:
        state = training.move(state, after)
        restored = training.restore(path, partial(chosen, after))

    lazy = arrays_of(training.values(restored))
    assert len(lazy) == len(arrays_of(training.values(state))) > 5
    for leaf, other in zip(lazy, arrays_of(training.values(state)), strict=True):
        assert isinstance(leaf, safejax.LazyArray)
        assert not leaf.is_placed
        assert leaf.sharding.is_equivalent_to(other.sharding, leaf.ndim)

    start = bits(training.values(state))
    losses: list[bytes] = []
    for x, y in BATCHES[2:]:
        state, loss = training.step(state, *on(after, x, y))
        restored, same = training.step(restored, *on(after, x, y))
        assert np.asarray(same).tobytes() == np.asarray(loss).tobytes()
        assert np.isfinite(loss)
        losses.append(np.asarray(loss).tobytes())
    assert len(set(losses)) == 10
    assert bits(training.values(restored)) == bits(training.values(state)) != start


def on(mesh: Mesh, *batch: Any) -> Any:
    return jax.device_put(batch, NamedSharding(mesh, P("data")))


# ---- flax


LINEN = Training(
    linen_start,
    linen_step,
    safejax.save,
    lambda path, sharding: safejax.load(
        path, like=jax.eval_shape(linen_start, 1), sharding=sharding
    ),
)


# ---- NNX


def nnx_restore(path: Path, sharding: Any) -> Any:
    abstract = nnx.eval_shape(lambda: nnx_start(1))
    safejax.flax.load_into(abstract, path, sharding=sharding)
    return abstract


def nnx_moved(state: Any, mesh: Mesh) -> Any:
    nnx.update(state, moved(nnx.state(state), mesh))
    return state


NNX = Training(
    nnx_start,
    lambda state, x, y: (state, nnx_update(*state, x, y)),
    lambda state, path: safejax.flax.serialize(state, filename=path),
    nnx_restore,
    lambda state: nnx.to_pure_dict(nnx.state(state)),
    nnx_moved,
)


# ---- equinox


EQUINOX = Training(
    equinox_start,
    equinox_step,
    lambda state, path: safejax.equinox.serialize(state, filename=path),
    lambda path, sharding: safejax.equinox.deserialize(
        path, like=eqx.filter_eval_shape(equinox_start, 1), sharding=sharding
    ),
)


# ---- a chex dataclass, with a key for each example that is not of JAX's default implementation


@chex.dataclass
class Chexed:
    params: dict[str, jax.Array]
    average: dict[str, jax.Array]
    moments: optax.OptState
    keys: jax.Array
    step: jax.Array


def weights(seed: int, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    one, other = jax.random.split(jax.random.key(seed))
    return {
        "hidden": jax.random.normal(one, (4, 8)),
        "bias": jnp.zeros(8),
        "out": jax.random.normal(other, (8, 1), dtype),
    }


def mse(params: dict[str, jax.Array], x: Any, y: Any, keep: Any = 1) -> jax.Array:
    hidden = jax.nn.relu(x @ params["hidden"] + params["bias"]) * keep
    return ((hidden @ params["out"] - y) ** 2).mean()


def chex_start(seed: int) -> Chexed:
    params = weights(seed, jnp.bfloat16)
    return Chexed(
        params=params,
        average=jax.tree.map(jnp.copy, params),
        moments=OPTIMIZER.init(params),
        keys=jax.random.split(jax.random.key(seed, impl="rbg"), 16),
        step=jnp.asarray(0),
    )


@jax.jit
def chex_step(state: Chexed, x: Any, y: Any) -> tuple[Chexed, Any]:
    keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.step)
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (8,)))(keys)
    value, gradients = jax.value_and_grad(mse)(state.params, x, y, keep)
    updates, moments = OPTIMIZER.update(gradients, state.moments, state.params)
    params = optax.apply_updates(state.params, updates)
    average = optax.incremental_update(params, state.average, 0.1)
    return Chexed(
        params=params, average=average, moments=moments, keys=keys, step=state.step + 1
    ), value


CHEX = Training(
    chex_start,
    chex_step,
    safejax.save,
    lambda path, sharding: safejax.load(
        path, like=jax.eval_shape(chex_start, 1), sharding=sharding
    ),
)


STATES = {"linen": LINEN, "nnx": NNX, "equinox": EQUINOX, "chex": CHEX}


@pytest.mark.parametrize("meshes", MESHES if LARGE else list(MESHES)[:1])
@pytest.mark.parametrize("state", STATES)
def test_training_continues_from_a_file(state: str, meshes: str, tmp_path: Path) -> None:
    before, after = map(mesh_of, MESHES[meshes])
    check(STATES[state], before, after, tmp_path / "state.safetensors")


# ---- optax


def labels(params: dict[str, Any]) -> dict[str, str]:
    return {name: "bias" if name == "bias" else "kernel" for name in params}


OPTIMIZERS: dict[str, optax.GradientTransformation] = {
    "sgd with momentum": optax.sgd(1e-2, momentum=0.9),
    "adafactor": optax.adafactor(1e-2, min_dim_size_to_factor=4),
    "masked": optax.masked(optax.adam(1e-2), {"hidden": True, "bias": False, "out": True}),
    "partitioned": optax.partition({"bias": optax.sgd(1e-2), "kernel": optax.lion(1e-3)}, labels),
    "injected": optax.inject_hyperparams(optax.adamw)(optax.cosine_decay_schedule(1e-1, 20)),
    "accumulating": optax.MultiSteps(optax.adam(1e-2), 3).gradient_transformation(),
    "noisy": optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.adam(1e-2)),
    "finite": optax.apply_if_finite(optax.rmsprop(1e-2), 3),
    "schedule-free": optax.contrib.schedule_free_adamw(1e-2, warmup_steps=4),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_an_optimizer_comes_back_with_like(name: str, tmp_path: Path) -> None:
    optimizer = OPTIMIZERS[name]

    def start(seed: int) -> Any:
        params = weights(seed)
        return params, optimizer.init(params)

    @jax.jit
    def step(state: Any, x: Any, y: Any) -> Any:
        params, moments = state
        value, gradients = jax.value_and_grad(mse)(params, x, y)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    def restore(path: Path, sharding: Any) -> Any:
        like = jax.eval_shape(start, 1)
        restored = safejax.load(path, like=like, sharding=sharding)
        assert jax.tree.structure(restored) == jax.tree.structure(like)
        return restored

    training = Training(start, step, safejax.save, restore)
    check(training, mesh_of((2, 4)), mesh_of((4, 2)), tmp_path / "state.safetensors")


# ---- only the parameters


PARAMS = safejax.chain(safejax.select("params.*"), safejax.prefix("params").inverse)
FRESH = jax.eval_shape(linen_start, 1)


@pytest.mark.parametrize(
    "read",
    [
        lambda path, sharding: safejax.load(
            path, transform=safejax.select("params.*"), sharding=sharding
        )["params"],
        lambda path, sharding: safejax.load(path, transform=PARAMS, sharding=sharding),
        lambda path, sharding: safejax.load(
            path, transform=PARAMS, like=FRESH.params, sharding=sharding
        ),
        lambda path, sharding: safejax.flax.deserialize(
            path, transform=PARAMS, like=FRESH.params, sharding=sharding
        ),
    ],
    ids=["select", "without prefix", "like", "flax"],
)
def test_a_new_training_starts_from_the_parameters_of_a_saved_state(
    read: Callable[[Path, Any], Any], tmp_path: Path
) -> None:
    before, after = mesh_of((2, 4)), mesh_of((4, 2))
    path = tmp_path / "state.safetensors"
    state, _ = linen_step(moved(linen_start(0), before), *on(before, *BATCHES[0]))
    safejax.save(state, path)
    with safejax.observe_reads() as log:
        params = safejax.materialize(read(path, partial(chosen, after)))
    assert log.nbytes == sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))

    tuned = moved(linen_start(5), after)
    expected = tuned.replace(params=moved(state.params, after))
    tuned = tuned.replace(params=params)
    assert jax.tree.structure(tuned) == jax.tree.structure(expected)
    for x, y in BATCHES[2:]:
        tuned, loss = linen_step(tuned, *on(after, x, y))
        expected, same = linen_step(expected, *on(after, x, y))
        assert np.asarray(loss).tobytes() == np.asarray(same).tobytes()
    assert bits(tuned) == bits(expected)
