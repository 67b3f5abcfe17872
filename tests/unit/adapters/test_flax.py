"""Flax linen: unchanged programs of safejax 0.5, containers, training states, old files."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict, freeze
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax.flax import deserialize, serialize
from tests.support.files import written_by_safejax_0_5
from tests.support.leaves import bits

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(8, name="hidden.layer")(x))
        return nn.Dense(2)(nn.relu(x))


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.jit(Net().init)(jax.random.key(0), X)


# ---- the programs in the README of safejax 0.5


def test_program_in_memory(params: Any) -> None:
    model = Net()

    encoded_bytes = serialize(params)
    decoded_params = deserialize(encoded_bytes)

    assert bits(model.apply(decoded_params, X)) == bits(model.apply(params, X))
    assert type(encoded_bytes) is bytes


def test_program_with_a_file(params: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = Net()

    encoded_bytes = serialize(params, filename="./params.safetensors")
    decoded_params = deserialize("./params.safetensors")

    assert bits(model.apply(decoded_params, X)) == bits(model.apply(params, X))
    assert encoded_bytes == "./params.safetensors"


def test_file_of_safejax_0_5() -> None:
    params = {"params": {"Dense_0": {"kernel": X, "bias": X[0]}}, "batch_stats": {"mean": X[1]}}
    for given in (params, freeze(params)):
        decoded = deserialize(written_by_safejax_0_5(given))
        assert type(decoded) is FrozenDict
        assert jax.tree.structure(decoded) == jax.tree.structure(freeze(params))
        assert bits(decoded) == bits(params)


# ---- containers


@pytest.mark.parametrize(
    "tree",
    [
        {"params": {"w": X}},
        freeze({"params": {"w": X}}),
        {"params": freeze({"w": X}), "batch_stats": {"mean": X[0]}},
        freeze({"params": {"layers": [{"w": X}, {"w": X + 1}], "pair": (X, X[0])}}),
        {"params": {"a.b": {"w": X}, "a": {"b.w": X + 1}}},
        freeze({"params": {"0": {"w": X}, "1": {"w": X}}, "empty": {}}),
        {"params": {0: X, 1: X + 1}},
        {},
        freeze({}),
        {"w": X},
        freeze({"w.q": X, "w": X + 1}),
        [X, {"w": X}],
        X,
    ],
    ids=lambda tree: f"{type(tree).__name__}-{jax.tree.structure(tree).num_leaves}",
)
def test_the_container_that_was_saved_comes_back(tree: Any) -> None:
    decoded = deserialize(serialize(tree))
    assert jax.tree.structure(decoded) == jax.tree.structure(tree)
    assert type(decoded) is (safejax.LazyArray if tree is X else type(tree))
    if isinstance(tree, dict) and "batch_stats" in tree:
        assert [type(decoded[key]) for key in tree] == [FrozenDict, dict]
    assert bits(decoded) == bits(tree)


def test_a_bare_array_is_an_error() -> None:
    assert serialize(X) == safejax.serialize(X)


def test_a_frozen_dict_is_immutable_and_applies_under_jit(params: Any) -> None:
    decoded = deserialize(serialize(freeze(params)))
    assert type(decoded) is FrozenDict
    with pytest.raises(ValueError, match="immutable"):
        decoded["params"] = {}
    run = jax.jit(Net().apply)
    with safejax.observe_reads() as log:
        lowered = run.lower(decoded, X)
        assert log.nbytes == 0
        after = run(decoded, X)
        assert log.nbytes == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert lowered.as_text() == run.lower(freeze(params), X).as_text()
    assert bits(after) == bits(run(freeze(params), X))


def test_a_transform_sees_names_below_the_root() -> None:
    data = written_by_safejax_0_5({"params": {"w": X}})
    decoded = deserialize(data, transform=safejax.rename({"params.w": "params.kernel"}))
    assert type(decoded) is FrozenDict
    assert bits(decoded["params"]["kernel"]) == bits(X)


# ---- training states


def make_state(params: Any) -> TrainState:
    return TrainState.create(apply_fn=Net().apply, params=params["params"], tx=optax.adamw(1e-3))


def test_train_state(params: Any) -> None:
    state = make_state(params)
    state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))
    like = make_state(params)
    decoded = deserialize(serialize(state), like=like)
    assert type(decoded) is TrainState
    assert decoded.apply_fn is like.apply_fn
    assert decoded.tx is like.tx
    assert jax.tree.structure(decoded.opt_state) == jax.tree.structure(state.opt_state)
    assert (bits(decoded), int(decoded.step)) == (bits(state), 1)
    assert bits(deserialize(serialize(state))["params"]) == bits(state.params)


def test_train_state_from_abstract_like(params: Any) -> None:
    state = make_state(params)
    data = serialize(state)
    with safejax.observe_reads() as log:
        decoded = deserialize(data, like=jax.eval_shape(make_state, params))
        assert log.nbytes == 0
    assert bits(decoded.opt_state) == bits(state.opt_state)


def test_partitioned_parameters_with_the_shardings_named_on_them() -> None:
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    model = nn.Dense(8, kernel_init=kernel_init)
    params = jax.jit(model.init)(jax.random.key(0), X)
    like = jax.eval_shape(model.init, jax.random.key(0), X)
    shardings = nn.get_sharding(like, mesh)
    decoded = deserialize(serialize(params), like=like, sharding=shardings)
    kernel = decoded["params"]["kernel"]
    assert isinstance(kernel, nn.Partitioned)
    assert kernel.names == (None, "model")
    assert kernel.value.sharding == NamedSharding(mesh, P(None, "model"))
    assert bits(decoded) == bits(params)
