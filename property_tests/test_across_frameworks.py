"""Laws of the adapters, over generated parameters, states and models of every framework."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import objax
import safetensors.numpy
from flax import nnx
from flax.core import FrozenDict
from hypothesis import given
from hypothesis import strategies as st

import safejax
import safejax.equinox
import safejax.flax
import safejax.haiku
import safejax.objax
from safejax._src.leaves.leaf import aval_of
from safejax.testing import (
    arrays,
    assert_same_bits,
    assert_trees_identical,
    equinox_models,
    flax_params,
    haiku_params,
    nnx_states,
    objax_variables,
    optax_states,
)
from tests.support.files import written_by_safejax_0_5

KEYS = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="."), min_size=1, max_size=6
).filter(lambda key: key != "__metadata__")
ARRAYS = st.sampled_from(["float32", "bfloat16", "int8"]).flatmap(arrays)
TWO_LEVELS = st.dictionaries(
    KEYS, st.dictionaries(KEYS, ARRAYS, min_size=1, max_size=3), min_size=1, max_size=3
)
"""Haiku's parameters have this form, and a linen collection may have it."""


def values(variables: objax.VarCollection) -> dict[str, Any]:
    return {name: variable.value for name, variable in variables.items()}


# ---- each framework's container comes back, and is stored as the same bytes again


@given(flax_params() | optax_states())
def test_linen(params: Any) -> None:
    data = safejax.flax.serialize(params)
    decoded = safejax.flax.deserialize(data, like=None if _is_dict(params) else params)
    assert type(decoded) is type(params)
    assert_trees_identical(decoded, params)
    assert safejax.flax.serialize(decoded) == data


@given(haiku_params())
def test_haiku(params: Any) -> None:
    data = safejax.haiku.serialize(params)
    decoded = safejax.haiku.deserialize(data)
    assert type(decoded) is dict
    assert_trees_identical(decoded, params)
    assert safejax.haiku.serialize(decoded) == data


@given(nnx_states())
def test_nnx(state: Any) -> None:
    data = safejax.flax.serialize(state)
    like = jax.tree.map(aval_of, state)
    for expected in (state, like):
        decoded = safejax.flax.deserialize(data, like=expected)
        assert type(decoded) is nnx.State
        assert_trees_identical(decoded, state)
    assert safejax.flax.serialize(decoded) == data
    assert_trees_identical(safejax.flax.deserialize(data), nnx.to_pure_dict(state))


@given(objax_variables())
def test_objax(variables: objax.VarCollection) -> None:
    data = safejax.objax.serialize(variables)
    decoded = safejax.objax.deserialize(data)
    assert list(decoded.keys()) == list(variables.keys())
    assert [type(variable) for variable in decoded.values()] == [
        type(variable) for variable in variables.values()
    ]
    assert_trees_identical(values(decoded), values(variables))
    # The names that share a variable, or refer to one, are the same again, and no others.
    pairs = [(name, other) for name in variables.keys() for other in variables.keys()]  # noqa: SIM118
    for name, other in pairs:
        assert (target(decoded[name]) is target(decoded[other])) == (
            target(variables[name]) is target(variables[other])
        )
    assert safejax.objax.serialize(decoded) == data
    safejax.objax.deserialize_with_assignment(data, variables)
    assert_trees_identical(values(variables), values(decoded))


def target(variable: Any) -> Any:
    return variable.ref if isinstance(variable, objax.TrainRef) else variable


@given(equinox_models())
def test_equinox(model: Any) -> None:
    data = safejax.equinox.serialize(model)
    like = eqx.filter_eval_shape(lambda: model)
    decoded = safejax.equinox.deserialize(data, like=like)
    assert_trees_identical(decoded, model)
    assert safejax.equinox.serialize(decoded) == data


# ---- every adapter reads the files of every other one


SAVED = (
    flax_params().map(safejax.flax.serialize)
    | haiku_params().map(safejax.haiku.serialize)
    | nnx_states().map(safejax.flax.serialize)
    | equinox_models().map(safejax.equinox.serialize)
)


@given(SAVED)
def test_every_adapter_reads_what_another_one_wrote(data: bytes) -> None:
    """The arrays and their names are the same, in the container that each adapter builds."""
    stored = safejax.decode(data)
    oracle = safetensors.numpy.load(data)
    assert oracle.keys() == {name for name, leaf in stored.items() if isinstance(leaf, jax.Array)}
    like = objax.VarCollection({name: objax.StateVar(leaf) for name, leaf in stored.items()})
    for tree in (
        safejax.deserialize(data),
        safejax.flax.deserialize(data),
        safejax.haiku.deserialize(data),
        safejax.equinox.deserialize(data, like=safejax.deserialize(data)),
        values(safejax.objax.deserialize(data, like=like)),
    ):
        leaves = safejax.flatten(tree)
        assert leaves.keys() == stored.keys()
        for name, leaf in stored.items():
            assert_same_bits(leaves[name], leaf, name)


@given(TWO_LEVELS)
def test_files_of_safejax_0_5(params: Any) -> None:
    # Weak types are in no file of 0.5.
    params = jax.tree.map(
        lambda leaf: leaf.astype(leaf.dtype) if aval_of(leaf).weak_type else leaf, params
    )
    data = written_by_safejax_0_5(params)
    assert_trees_identical(safejax.haiku.deserialize(data), params)
    frozen = safejax.flax.deserialize(data)
    assert type(frozen) is FrozenDict
    assert_trees_identical(frozen.unfreeze(), params)
    assert_trees_identical(safejax.equinox.deserialize(data, like=params), params)
    state = nnx.State(
        {m: {n: nnx.Param(v) for n, v in inner.items()} for m, inner in params.items()}
    )
    decoded = safejax.flax.deserialize(data, like=state)
    assert_trees_identical(nnx.to_pure_dict(decoded), params)


@given(TWO_LEVELS, st.booleans())
def test_objax_files_of_safejax_0_5(params: Any, shared: bool) -> None:
    """The kinds of variables are suffixes, and a variable with two names was stored twice."""
    kinds = (objax.TrainVar, objax.StateVar)
    named = [
        (f"({module}).{name}", value)
        for module, inner in params.items()
        for name, value in inner.items()
    ]
    variables = objax.VarCollection(
        (name, kinds[number % 2](jnp.asarray(value))) for number, (name, value) in enumerate(named)
    )
    if shared:
        variables["(tied).w"] = variables[named[0][0]]
    data = safetensors.numpy.save(
        {
            f"{name}::{type(variable).__name__}": np.array(variable.value, order="C")
            for name, variable in variables.items()
        }
    )
    decoded = safejax.objax.deserialize(data)
    assert dict.keys(decoded) == dict.keys(variables)
    for name, variable in variables.items():
        assert type(decoded[name]) is type(variable)
        assert_same_bits(decoded[name].value, variable.value, name)
    again = safejax.objax.deserialize(data, like=variables)
    assert not shared or again["(tied).w"] is again[named[0][0]]


def _is_dict(params: Any) -> bool:
    return isinstance(params, dict | FrozenDict)
