"""Equinox: arrays from the file, everything else from `like`, and its filtered transformations."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax.equinox import deserialize, serialize
from tests.support.leaves import bits, is_unread

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)


class Net(eqx.Module):
    """A module with lists, static fields, functions, scalars, NumPy arrays, keys, and None."""

    layers: list[eqx.nn.Linear]
    activation: Callable[[jax.Array], jax.Array]
    scale: float
    steps: int
    table: np.ndarray
    key: jax.Array
    nothing: None
    label: str
    width: int = eqx.field(static=True)

    def __init__(self, seed: int, activation: Any = jax.nn.softplus, width: int = 8) -> None:
        keys = jax.random.split(jax.random.key(seed), 3)
        self.layers = [eqx.nn.Linear(3, width, key=keys[0]), eqx.nn.Linear(width, 3, key=keys[1])]
        self.activation = activation
        self.scale = 0.5 + seed
        self.steps = seed
        self.table = np.arange(3, dtype=np.int32) + np.int32(seed)
        self.key = keys[2]
        self.nothing = None
        self.label = f"made from {seed}"
        self.width = width

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = self.activation(layer(x))
        return x * self.scale + jax.random.normal(self.key, x.shape)


def scalars(net: Net) -> tuple[Any, ...]:
    return type(net.scale), net.scale, type(net.steps), net.steps


def unread(tree: Any) -> bool:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf)]
    return leaves != [] and all(map(is_unread, leaves))


# ---- models


def test_arrays_and_scalars_are_stored_under_their_paths() -> None:
    data = serialize(Net(0))
    arrays = {f"layers.{i}.{name}" for i in range(2) for name in ("weight", "bias")}
    assert set(safetensors.numpy.load(data)) == arrays | {"table", "key"}
    assert set(safejax.decode(data)) == arrays | {"table", "key", "scale", "steps"}
    # As with equinox.tree_serialise_leaves, functions and strings are not stored.
    assert b"made from" not in data


@pytest.mark.parametrize("abstract", [False, True])
def test_static_parts_come_from_like(abstract: bool, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    net = Net(1)
    serialize(net, filename=path)

    def make() -> Net:
        return Net(2, jnp.tanh)

    like = eqx.filter_eval_shape(make) if abstract else make()
    own = None if abstract else bits(like)
    with safejax.observe_reads() as log:
        loaded = deserialize(path, like=like)
        # NumPy's stays NumPy's, as with equinox.tree_deserialise_leaves.
        assert log.nbytes == (0 if abstract else net.table.nbytes)
        assert isinstance(loaded.table, safejax.LazyArray if abstract else np.ndarray)
        assert unread(eqx.tree_at(lambda m: m.table, loaded, None))
    assert type(loaded) is Net
    assert loaded.activation is like.activation is not net.activation
    assert (loaded.label, loaded.width, loaded.nothing) == ("made from 2", 8, None)
    assert scalars(loaded) == scalars(net)
    assert bits(loaded) == bits(net)
    # like has not changed.
    assert own is None or bits(like) == own != bits(net)
    same = eqx.tree_at(lambda m: (m.label, m.activation), loaded, (net.label, net.activation))
    twin = eqx.tree_at(lambda m: m.table, net, jnp.asarray(net.table))
    assert eqx.tree_equal(safejax.materialize(same), twin)


def test_a_loaded_model_can_be_like() -> None:
    first = deserialize(serialize(Net(1)), like=Net(2))
    second = deserialize(serialize(first), like=first)
    assert bits(second) == bits(Net(1))
    assert serialize(first) == serialize(second)


def test_filter_jit_and_vmap() -> None:
    net, loaded = Net(1), deserialize(serialize(Net(1)), like=Net(2))

    @eqx.filter_jit
    def run(net: Net, x: Any) -> Any:
        return jax.vmap(net)(x)

    with safejax.observe_reads() as log:
        lowered = run.lower(loaded, X)
        assert log.nbytes == 0
        after = run(loaded, X)
    assert lowered.as_text() == run.lower(net, X).as_text()
    assert after.tobytes() == run(net, X).tobytes()


def test_filter_grad() -> None:
    net, loaded = Net(1), deserialize(serialize(Net(1)), like=Net(2))

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(layers: Any, net: Net, x: Any) -> Any:
        return (jax.vmap(eqx.tree_at(lambda net: net.layers, net, layers))(x) ** 2).mean()

    after, before = loss(loaded.layers, loaded, X), loss(net.layers, net, X)
    assert bits(after) == bits(before)
    assert len(bits(before)) == 5
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(before))


def test_filter_vmap_over_an_ensemble() -> None:
    ensemble = eqx.filter_vmap(lambda key: eqx.nn.MLP(3, 2, 4, 1, key=key))(
        jax.random.split(jax.random.key(0), 5)
    )
    like = eqx.filter_eval_shape(lambda: ensemble)
    loaded = deserialize(serialize(ensemble), like=like)
    run = eqx.filter_vmap(lambda net, x: net(x), in_axes=(eqx.if_array(0), None))
    assert run(loaded, X[0]).tobytes() == run(ensemble, X[0]).tobytes()
    assert run(loaded, X[0]).shape == (5, 2)


def test_update_and_surgery_on_a_loaded_model() -> None:
    net = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    loaded = deserialize(serialize(net), like=eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(1)))
    arrays, static = eqx.partition(loaded, eqx.is_array)
    assert len(jax.tree.leaves(arrays)) == 4
    assert bits(eqx.combine(arrays, static)) == bits(net)
    halved = eqx.apply_updates(loaded, jax.tree.map(lambda w: -w / 2, arrays))
    expected = eqx.apply_updates(net, jax.tree.map(lambda w: -w / 2, eqx.filter(net, eqx.is_array)))
    assert bits(halved) == bits(expected)


# ---- state


def batch_norm() -> tuple[Any, eqx.nn.State]:
    class Normed(eqx.Module):
        norms: list[eqx.nn.BatchNorm]

        def __init__(self) -> None:
            self.norms = [
                eqx.nn.BatchNorm(3, axis_name="batch", mode=mode) for mode in ("batch", "ema")
            ]

        def __call__(self, x: Any, state: Any) -> tuple[Any, Any]:
            for norm in self.norms:
                x, state = norm(x, state)
            return x, state

    return eqx.nn.make_with_state(Normed)()


@eqx.filter_jit
def apply(model: Any, state: Any, x: Any) -> tuple[Any, Any]:
    return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)


@pytest.mark.parametrize("abstract", [False, True])
def test_batch_norm_with_its_state(abstract: bool) -> None:
    model, state = batch_norm()
    _, state = apply(model, state, X)
    like = eqx.filter_eval_shape(batch_norm) if abstract else batch_norm()
    loaded, loaded_state = deserialize(serialize((model, state)), like=like)
    assert type(loaded_state) is eqx.nn.State
    assert unread((loaded, loaded_state))
    assert bits(loaded_state) == bits(state) != bits(batch_norm()[1])
    after = apply(loaded, loaded_state, X)
    before = apply(model, state, X)
    assert bits(after) == bits(before)
    inference = [eqx.nn.inference_mode(m) for m in (loaded, model)]
    assert bits(apply(inference[0], after[1], X)) == bits(apply(inference[1], before[1], X))


def test_an_optimizer_state_next_to_the_model() -> None:
    net = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    optimizer = optax.adamw(1e-3)

    def start(net: Any) -> Any:
        return net, optimizer.init(eqx.filter(net, eqx.is_inexact_array)), jax.random.key(3)

    data = serialize(start(net))
    loaded = deserialize(data, like=start(eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(1))))
    assert bits(loaded) == bits(start(net))
    assert jax.tree.structure(loaded) == jax.tree.structure(start(net))


# ---- like, and mismatches


def test_one_report_names_every_mismatch() -> None:
    with pytest.raises(safejax.MismatchError) as report:
        deserialize(
            serialize(Net(1)),
            like=eqx.tree_at(
                lambda m: (m.layers, m.steps, m.table),
                Net(2, width=9),
                ([*Net(2, width=9).layers, eqx.nn.Linear(3, 3, key=jax.random.key(0))], 1.5, None),
                is_leaf=_is_none,
            ),
        )
    for part in (
        "mismatched 'layers.0.weight': expected float32[9,3] from like, got float32[8,3]",
        "missing 'layers.2.weight'",
        "mismatched 'steps': expected float 1.5 from like, got int 1",
        "mismatched 'table': expected None from like, got int32[3]",
    ):
        assert part in str(report.value)


def test_like_is_required() -> None:
    with pytest.raises(TypeError, match="like"):
        deserialize(serialize(Net(1)))  # pyright: ignore[reportCallIssue]


def test_sharding_of_an_abstract_like() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P("x"))

    def make() -> Any:
        return eqx.nn.Linear(3, 16, key=jax.random.key(0))

    like = eqx.filter_eval_shape(make)
    like = eqx.tree_at(
        lambda m: m.weight, like, jax.ShapeDtypeStruct((16, 3), np.float32, sharding=rows)
    )
    loaded = deserialize(serialize(make()), like=like)
    assert loaded.weight.sharding == rows
    assert not loaded.bias.committed
    with safejax.observe_reads() as log:
        assert loaded.weight.addressable_shards[2].data.shape == (2, 3)
    assert log.nbytes == 16 * 3 * 4
    by_prefix = deserialize(
        serialize(make()), like=make(), sharding=jax.tree.map(lambda _: rows, make())
    )
    assert by_prefix.bias.sharding == rows


def test_a_plain_dataclass_pytree_is_supported() -> None:
    """`like` may be any pytree that contains modules."""

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Pair:
        one: eqx.nn.Linear
        two: eqx.nn.Linear

    pair = Pair(*(eqx.nn.Linear(2, 2, key=jax.random.key(k)) for k in (0, 1)))
    loaded = deserialize(serialize(pair), like=pair)
    assert type(loaded) is Pair
    assert bits(loaded) == bits(pair)


def _is_none(node: Any) -> bool:
    return node is None
