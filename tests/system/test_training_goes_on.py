"""Training goes on: five steps after a restore are the five steps without it, bit for bit.

Each model has BatchNorm and Dropout, so that statistics and random numbers count, and each
optimizer has moments and a schedule, so that its state counts. Everything is saved after two
steps and restored, lazily, into a fresh start of another seed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import objax
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import safejax
import safejax.equinox
import safejax.flax
import safejax.haiku
import safejax.objax

_RNG = np.random.default_rng(0)
BATCHES = [
    (_RNG.normal(size=(16, 4)).astype(np.float32), _RNG.normal(size=(16, 1)).astype(np.float32))
    for _ in range(7)
]
OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1e-1, 1e-3, 6))
)


def bits(tree: Any) -> list[tuple[str, bytes]]:
    def of(leaf: Any) -> tuple[str, bytes]:
        leaf = jnp.asarray(leaf)
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return str(leaf.dtype), np.asarray(jax.random.key_data(leaf) if key else leaf).tobytes()

    return [of(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array_like))]


def check(
    start: Callable[[int], Any],
    step: Callable[[Any, Any, Any], tuple[Any, Any]],
    restore: Callable[[Any, Any], Any],
    values: Callable[[Any], Any] = lambda training: training,
) -> None:
    """`restore(training, fresh)` is `training` once more, by way of a file; `values` are all."""
    training = start(0)
    for x, y in BATCHES[:2]:
        training, _ = step(training, x, y)
    restored = restore(training, start(1))
    lazy = [x for x in jax.tree.leaves(values(restored)) if isinstance(x, safejax.LazyArray)]
    assert lazy
    assert not any(leaf.is_placed for leaf in lazy)
    assert bits(values(restored)) == bits(values(training)) != bits(values(start(1)))
    losses: list[Any] = []
    for x, y in BATCHES[2:]:
        before = bits(values(training))
        training, loss = step(training, x, y)
        restored, same = step(restored, x, y)
        assert np.asarray(same).tobytes() == np.asarray(loss).tobytes()
        assert bits(values(restored)) == bits(values(training)) != before
        losses.append(float(loss))
    assert len(set(losses)) == 5
    assert np.isfinite(losses).all()


# ---- flax


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.BatchNorm(use_running_average=False, momentum=0.9)(nn.Dense(8)(x))
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=False)(nn.relu(x)))


class FullState(TrainState):
    batch_stats: Any
    key: jax.Array


def test_flax(tmp_path: Path) -> None:
    net = LinenNet()
    init = jax.jit(net.init)

    def start(seed: int) -> FullState:
        keys = {"params": jax.random.key(seed), "dropout": jax.random.key(1)}
        variables = init(keys, BATCHES[0][0])
        return FullState.create(
            apply_fn=net.apply,
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            tx=OPTIMIZER,
            key=jax.random.key(seed + 7),
        )

    @jax.jit
    def step(state: FullState, x: Any, y: Any) -> tuple[FullState, Any]:
        key, dropout = jax.random.split(state.key)

        def loss(params: Any) -> Any:
            out, updated = net.apply(
                {"params": params, "batch_stats": state.batch_stats},
                x,
                rngs={"dropout": dropout},
                mutable=["batch_stats"],
            )
            return ((out - y) ** 2).mean(), updated["batch_stats"]

        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        state = state.apply_gradients(grads=gradients)
        return state.replace(batch_stats=stats, key=key), value

    def restore(state: FullState, fresh: FullState) -> FullState:
        path = safejax.flax.serialize(state, filename=tmp_path / "state.safetensors")
        # The functions of a TrainState are static, and part of what jit compiles for.
        like = fresh.replace(tx=state.tx, apply_fn=state.apply_fn)
        return safejax.flax.deserialize(path, like=like)

    check(start, step, restore)


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


@pytest.mark.parametrize("abstract", [False, True])
def test_nnx(abstract: bool, tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"

    def make(seed: int) -> tuple[NnxNet, nnx.Optimizer]:
        model = NnxNet(seed)
        return model, nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param)

    @nnx.jit
    def update(model: NnxNet, optimizer: nnx.Optimizer, x: Any, y: Any) -> Any:
        value, gradients = nnx.value_and_grad(lambda model: ((model(x) - y) ** 2).mean())(model)
        optimizer.update(model, gradients)
        return value

    def step(training: Any, x: Any, y: Any) -> tuple[Any, Any]:
        return training, update(*training, x, y)

    def restore(training: Any, fresh: Any) -> Any:
        safejax.flax.serialize(training, filename=path)
        target = nnx.eval_shape(lambda: make(1)) if abstract else fresh
        safejax.flax.load_into(target, path)
        return target

    check(make, step, restore, nnx.state)


# ---- haiku


def test_haiku(tmp_path: Path) -> None:
    def forward(x: Any) -> Any:
        x = hk.BatchNorm(True, True, 0.9)(hk.Linear(8)(x), is_training=True)
        x = hk.dropout(hk.next_rng_key(), 0.5, jax.nn.relu(x))
        return hk.Linear(1)(x)

    net = hk.transform_with_state(forward)
    init = jax.jit(net.init)

    def start(seed: int) -> dict[str, Any]:
        params, state = init(jax.random.key(seed), BATCHES[0][0])
        return {
            "params": params,
            "state": state,
            "optimizer": OPTIMIZER.init(params),
            "key": jax.random.key(seed + 7),
        }

    @jax.jit
    def step(all_of_it: dict[str, Any], x: Any, y: Any) -> tuple[dict[str, Any], Any]:
        key, dropout = jax.random.split(all_of_it["key"])

        def loss(params: Any) -> Any:
            out, state = net.apply(params, all_of_it["state"], dropout, x)
            return ((out - y) ** 2).mean(), state

        (value, state), gradients = jax.value_and_grad(loss, has_aux=True)(all_of_it["params"])
        updates, optimizer = OPTIMIZER.update(
            gradients, all_of_it["optimizer"], all_of_it["params"]
        )
        params = optax.apply_updates(all_of_it["params"], updates)
        return {"params": params, "state": state, "optimizer": optimizer, "key": key}, value

    def restore(all_of_it: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
        path = safejax.haiku.serialize(all_of_it, filename=tmp_path / "training.safetensors")
        # Parameters and state need no like; optax's own node types do.
        assert jax.tree.structure(safejax.haiku.deserialize(path)["params"]) == (
            jax.tree.structure(fresh["params"])
        )
        return safejax.haiku.deserialize(path, like=fresh)

    check(start, step, restore)


# ---- equinox


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


def test_equinox(tmp_path: Path) -> None:
    def start(seed: int) -> Any:
        model, state = eqx.nn.make_with_state(EquinoxNet)(jax.random.key(seed))
        moments = OPTIMIZER.init(eqx.filter(model, eqx.is_inexact_array))
        return model, state, moments, jax.random.key(seed + 7)

    @eqx.filter_jit
    def step(training: Any, x: Any, y: Any) -> tuple[Any, Any]:
        model, state, moments, key = training
        key, *dropout = jax.random.split(key, 1 + len(x))

        @eqx.filter_value_and_grad(has_aux=True)
        def loss(model: Any) -> Any:
            out, updated = jax.vmap(
                model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None)
            )(x, state, jnp.stack(dropout))
            return ((out - y) ** 2).mean(), updated

        (value, state), gradients = loss(model)
        updates, moments = OPTIMIZER.update(
            gradients, moments, eqx.filter(model, eqx.is_inexact_array)
        )
        return (eqx.apply_updates(model, updates), state, moments, key), value

    def restore(training: Any, fresh: Any) -> Any:
        path = safejax.equinox.serialize(training, filename=tmp_path / "training.safetensors")
        return safejax.equinox.deserialize(path, like=fresh)

    check(start, step, restore)


# ---- objax


class ObjaxNet(objax.Module):
    def __init__(self) -> None:
        self.generator = objax.random.Generator(0)
        self.hidden = objax.nn.Linear(4, 8)
        self.norm = objax.nn.BatchNorm0D(8, momentum=0.9)
        self.dropout = objax.nn.Dropout(0.5, generator=self.generator)
        self.out = objax.nn.Linear(8, 1)

    def __call__(self, x: Any) -> Any:
        x = objax.functional.relu(self.norm(self.hidden(x), training=True))
        return self.out(self.dropout(x, training=True))


def objax_training(seed: int) -> tuple[ObjaxNet, Any, objax.VarCollection]:
    """A model and its optimizer, of values that are the seed's alone."""
    model = ObjaxNet()
    optimizer = objax.optimizer.Adam(model.vars())
    model.generator.seed(seed)
    model.generator()
    rng = np.random.default_rng(seed)
    for variable in model.vars():
        if isinstance(variable, objax.TrainVar):
            value = jnp.asarray(rng.normal(size=variable.shape).astype(np.float32))
            variable.assign(value, check=False)
    return model, optimizer, model.vars() + optimizer.vars("optimizer")


@pytest.mark.skipif(
    not hasattr(jax.sharding, "PmapSharding"), reason="objax's own Jit fails on JAX 0.10"
)
def test_objax_with_its_own_jit_and_optimizer(tmp_path: Path) -> None:
    def start(seed: int) -> tuple[Any, objax.VarCollection]:
        model, optimizer, variables = objax_training(seed)
        gradients = objax.GradValues(lambda x, y: ((model(x) - y) ** 2).mean(), model.vars())

        def train(x: Any, y: Any) -> Any:
            found, (value,) = gradients(x, y)
            optimizer(1e-2, found)
            return value

        return objax.Jit(train, gradients.vars() + variables), variables

    def step(training: Any, x: Any, y: Any) -> tuple[Any, Any]:
        return training, training[0](jnp.asarray(x), jnp.asarray(y))

    def restore(training: Any, fresh: Any) -> Any:
        path = safejax.objax.serialize(training[1], filename=tmp_path / "training.safetensors")
        safejax.objax.deserialize_with_assignment(path, fresh[1])
        return fresh

    check(start, step, restore, lambda training: training[1].tensors())


def test_objax_with_jax_jit(tmp_path: Path) -> None:
    """On any JAX: objax's models within pure functions, and gradient steps by hand."""
    model, _, _ = objax_training(0)
    own = model.vars()
    trained = [name for name, variable in own.items() if isinstance(variable, objax.TrainVar)]

    def start(seed: int) -> objax.VarCollection:
        variables = objax_training(seed)[0].vars()
        for name in trained:
            variables[f"moment of {name}"] = objax.StateVar(jnp.zeros(variables[name].shape))
        return variables

    @jax.jit
    def train(values: dict[str, Any], x: Any, y: Any) -> Any:
        def loss(params: dict[str, Any]) -> Any:
            for name, variable in own.items():
                variable.assign(params.get(name, values[name]), check=False)
            out = ((model(x) - y) ** 2).mean()
            return out, {name: variable.value for name, variable in own.items()}

        params = {name: values[name] for name in trained}
        (value, after), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        for name in trained:
            moment = 0.9 * values[f"moment of {name}"] + gradients[name]
            after |= {name: params[name] - 1e-2 * moment, f"moment of {name}": moment}
        return after, value

    def step(variables: Any, x: Any, y: Any) -> tuple[Any, Any]:
        values = {name: variable.value for name, variable in variables.items()}
        after, value = train(values, x, y)
        for name, variable in variables.items():
            variable.assign(after[name], check=False)
        return variables, value

    def restore(variables: Any, fresh: Any) -> Any:
        path = safejax.objax.serialize(variables, filename=tmp_path / "training.safetensors")
        safejax.objax.deserialize_with_assignment(path, fresh)
        return fresh

    check(start, step, restore, objax.VarCollection.tensors)
