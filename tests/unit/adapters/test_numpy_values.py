"""Values of NumPy in the containers of each framework come back as NumPy's, exactly (R10)."""

from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import objax
import optax
import pytest
from flax import nnx
from flax.core import freeze

import safejax.equinox
import safejax.flax
import safejax.haiku
import safejax.objax
from safejax import LazyArray, MismatchError

MANY = 5_000_000_000


class Counting(nnx.Module):
    def __init__(self, seen: int = 0) -> None:
        self.linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.table = nnx.Variable(np.arange(3) + seen)
        self.seen = nnx.Variable(np.int64(seen))


def raw(variable: Any) -> Any:
    return variable.get_raw_value() if hasattr(variable, "get_raw_value") else variable.raw_value


@pytest.mark.parametrize("boxed", [False, True])
def test_variables_of_nnx(boxed: bool) -> None:
    model = Counting(MANY)
    data = safejax.serialize(model) if boxed else safejax.flax.serialize(model)
    loaded = Counting()
    safejax.flax.load_into(loaded, data)
    for found in (loaded, safejax.flax.deserialize(data, like=Counting())):
        assert type(raw(found.seen)) is np.int64
        assert raw(found.seen) == MANY
        assert type(raw(found.table)) is np.ndarray
        assert raw(found.table).tolist() == [MANY, MANY + 1, MANY + 2]
        assert isinstance(raw(found.linear.kernel), LazyArray)
    # Abstract variables are JAX's, whatever they were made of.
    abstract = nnx.eval_shape(Counting)
    small = safejax.flax.serialize(Counting(7))
    safejax.flax.load_into(abstract, small)
    assert isinstance(raw(abstract.seen), LazyArray)
    assert raw(abstract.seen) == 7


def test_a_module_is_unchanged_if_a_value_of_numpy_does_not_match() -> None:
    model = Counting()
    before = raw(model.linear.kernel)
    other = Counting(MANY)
    other.table = nnx.Variable(np.arange(3, dtype=np.int32))
    with pytest.raises(MismatchError, match=r"expected int64\[3\] from like, got int32\[3\]"):
        safejax.flax.load_into(model, safejax.flax.serialize(other))
    assert raw(model.linear.kernel) is before


def test_variables_of_objax_shared_ones_too() -> None:
    def make(seen: int) -> objax.VarCollection:
        state = objax.StateVar(np.arange(2) + seen)
        return objax.VarCollection({"w": objax.TrainVar(jnp.ones(3)), "a": state, "b": state})

    data = safejax.objax.serialize(make(MANY))
    assigned = make(0)
    safejax.objax.deserialize_with_assignment(data, assigned)
    for found in (assigned, safejax.objax.deserialize(data, like=make(0))):
        assert type(found["a"].value) is np.ndarray
        assert found["a"].value.tolist() == [MANY, MANY + 1]
        assert found["b"] is found["a"]
        assert isinstance(found["w"].value, LazyArray)


def test_parameters_of_linen_haiku_and_optax() -> None:
    params = {"layer": {"w": np.ones((2, 3), np.float32), "seen": np.int64(MANY)}}
    like = {"layer": {"w": np.zeros((2, 3), np.float32), "seen": np.int64(0)}}
    state = optax.sgd(0.1, momentum=0.9).init({"w": np.ones(3, np.float32)}), np.int64(MANY)
    for data, wanted in (
        (safejax.flax.serialize(freeze({"params": params})), freeze({"params": like})),
        (safejax.flax.serialize({"params": params}), like),
        (safejax.haiku.serialize(hk.data_structures.to_immutable_dict(params)), like),
        (safejax.serialize(state), jax.tree.map(np.asarray, state)),
    ):
        module = safejax.haiku if wanted is like else safejax.flax
        found = module.deserialize(data, like=wanted)
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        leaves = jax.tree.leaves(found)
        assert [type(leaf) for leaf in leaves] == [type(leaf) for leaf in jax.tree.leaves(wanted)]
        assert any(leaf.shape == () and leaf == MANY for leaf in leaves)
    # And what is computed from them is what it is with arrays of NumPy.
    assert jax.jit(lambda tree: tree["w"] + 1)({"w": found[0][0].trace["w"]}).tolist() == [1, 1, 1]


def test_a_model_of_equinox_as_with_its_own_function(tmp_path: Any) -> None:
    class Net(eqx.Module):
        w: jax.Array
        table: np.ndarray
        seen: Any

    net = Net(jnp.ones(3), np.arange(3) + MANY, np.int64(MANY))
    like = Net(jnp.zeros(3), np.zeros(3, np.int64), np.int64(0))
    eqx.tree_serialise_leaves(tmp_path / "m.eqx", net)
    theirs = eqx.tree_deserialise_leaves(tmp_path / "m.eqx", like)
    ours = safejax.equinox.deserialize(safejax.equinox.serialize(net), like=like)
    assert type(ours.table) is type(theirs.table) is np.ndarray
    assert type(ours.seen) is type(theirs.seen) is np.int64
    assert eqx.tree_equal(safejax.materialize(ours), theirs)
