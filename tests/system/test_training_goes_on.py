"""Five steps of training after a restore equal the five steps without one, bit for bit.

Everything is saved after two steps and restored lazily into a new start from another seed.
`tests.support.training` has most of the models.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import objax
import optax
import pytest
from flax import nnx

import safejax
import safejax.equinox
import safejax.flax
import safejax.haiku
import safejax.objax
from tests.support.leaves import bits, is_unread
from tests.support.training import (
    BATCHES,
    OPTIMIZER,
    FullState,
    equinox_start,
    equinox_step,
    linen_start,
    linen_step,
    nnx_start,
    nnx_update,
)


def check(
    start: Callable[[int], Any],
    step: Callable[[Any, Any, Any], tuple[Any, Any]],
    restore: Callable[[Any, Any], Any],
    values: Callable[[Any], Any] = lambda training: training,
) -> None:
    """Check that `restore(training, fresh)` goes on as `training` does, in all its `values`."""
    training = start(0)
    for x, y in BATCHES[:2]:
        training, _ = step(training, x, y)
    restored = restore(training, start(1))
    lazy = [x for x in jax.tree.leaves(values(restored)) if isinstance(x, safejax.LazyArray)]
    assert lazy
    assert all(map(is_unread, lazy))
    assert bits(values(restored)) == bits(values(training)) != bits(values(start(1)))
    losses: list[Any] = []
    for x, y in BATCHES[2:7]:
        before = bits(values(training))
        training, loss = step(training, x, y)
        restored, same = step(restored, x, y)
        assert np.asarray(same).tobytes() == np.asarray(loss).tobytes()
        assert bits(values(restored)) == bits(values(training)) != before
        losses.append(float(loss))
    assert len(set(losses)) == 5
    assert np.isfinite(losses).all()


# ---- flax


def test_flax(tmp_path: Path) -> None:
    def restore(state: FullState, fresh: FullState) -> FullState:
        path = safejax.flax.serialize(state, filename=tmp_path / "state.safetensors")
        # The functions of a TrainState are static, so that jit would compile again for other ones.
        like = fresh.replace(tx=state.tx, apply_fn=state.apply_fn)
        return safejax.flax.deserialize(path, like=like)

    check(linen_start, linen_step, restore)


# ---- NNX


@pytest.mark.parametrize("abstract", [False, True])
def test_nnx(abstract: bool, tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"

    def step(training: Any, x: Any, y: Any) -> tuple[Any, Any]:
        return training, nnx_update(*training, x, y)

    def restore(training: Any, fresh: Any) -> Any:
        safejax.flax.serialize(training, filename=path)
        target = nnx.eval_shape(lambda: nnx_start(1)) if abstract else fresh
        safejax.flax.load_into(target, path)
        return target

    check(nnx_start, step, restore, nnx.state)


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
        # Parameters and state do not need `like`, but the node types of optax do.
        assert jax.tree.structure(safejax.haiku.deserialize(path)["params"]) == (
            jax.tree.structure(fresh["params"])
        )
        return safejax.haiku.deserialize(path, like=fresh)

    check(start, step, restore)


# ---- equinox


def test_equinox(tmp_path: Path) -> None:
    def restore(training: Any, fresh: Any) -> Any:
        path = safejax.equinox.serialize(training, filename=tmp_path / "training.safetensors")
        return safejax.equinox.deserialize(path, like=fresh)

    check(equinox_start, equinox_step, restore)


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
    """A model and its optimizer, with values that depend only on the seed."""
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
    """With any JAX, models of objax work in pure functions, with gradient steps by hand."""
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
