"""Steps: composition, inverses, equality and how they print."""

import functools
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import safejax
from safejax import (
    LazyArray,
    Leaves,
    NotInvertibleError,
    Step,
    TransformError,
    cast,
    chain,
    decode,
    encode,
    flatten,
    rename,
    step,
    transpose,
    unflatten,
)
from safejax._src.leaves.steps import Chain, apply
from safejax._src.reading.log import observe_reads
from safejax.errors import LeafError


def double(x: int) -> int:
    return 2 * x


def halve(x: int) -> int:
    return x // 2


def increment(x: int) -> int:
    return x + 1


class Callable2:
    def __call__(self, x: int) -> int:
        return x

    def __repr__(self) -> str:
        return "Callable2()"


TREE = {"mlp": {"w": jnp.ones((4, 2))}, "n": 3}

# Every step, and the call that makes it.
STEPS: dict[str, Step[Any, Any]] = {
    "flatten": flatten,
    "unflatten": unflatten,
    "unflatten(like=dict of 2 leaves)": unflatten(like=TREE),
    "encode": encode,
    "decode": decode,
    "step(double)": step(double),
    "step(double, halve)": step(double, halve),
    "step(Callable2())": step(Callable2()),
    "cast('bfloat16')": cast("bfloat16"),
    "cast('bfloat16', source='float32')": cast("bfloat16", source="float32"),
    "cast('int8', source='float32', where='*.w')": cast("int8", source="float32", where="*.w"),
    "cast('float16', where='a', must_match=False)": cast("float16", where="a", must_match=False),
    "cast('float16', where=double)": cast("float16", where=double),
    "rename({'a.{i}': 'b.{i}', '*.w': '*.kernel'})": rename({"a.{i}": "b.{i}", "*.w": "*.kernel"}),
    "rename({'a': 'b'}, strict=True)": rename({"a": "b"}, strict=True),
    "rename({'a': 'b'}, must_match=False)": rename({"a": "b"}, must_match=False),
    "transpose('*.w')": transpose("*.w"),
    "transpose('*.w', axes=(2, 0, 1))": transpose("*.w", axes=[2, 0, 1]),
    "transpose('*.w', must_match=False)": transpose("*.w", must_match=False),
    "chain()": chain(),
    "chain(flatten, cast('bfloat16', source='float32'), encode)": chain(
        flatten, cast("bfloat16", source="float32"), encode
    ),
    "chain(step(double), step(halve))": chain(double, halve),
}


@pytest.mark.parametrize("call", STEPS)
def test_a_step_prints_as_the_call_that_made_it(call: str) -> None:
    assert repr(STEPS[call]) == call
    if "like" not in call:
        namespace = {
            **{name: getattr(safejax, name) for name in safejax.__all__},
            "double": double,
            "halve": halve,
            "Callable2": Callable2,
        }
        again = eval(call, namespace)
        assert repr(again) == call
        if "Callable2" not in call:
            assert again == STEPS[call]
            assert hash(again) == hash(STEPS[call])


def test_steps_are_equal_only_to_themselves() -> None:
    steps = list(STEPS.values())
    for i, one in enumerate(steps):
        for j, other in enumerate(steps):
            assert (one == other) == (i == j)


@pytest.mark.parametrize("call", STEPS)
def test_steps_are_values(call: str) -> None:
    fields = [field for cls in type(STEPS[call]).__mro__ for field in getattr(cls, "__slots__", ())]
    for attribute in [*fields, "other"]:
        with pytest.raises((AttributeError, TypeError)):
            setattr(STEPS[call], attribute, None)


def test_chain_applies_the_first_first() -> None:
    assert chain(double, increment)(5) == 11
    assert chain(increment, double)(5) == 12
    assert chain()(5) == 5


def test_the_inverse_of_a_chain_is_reversed() -> None:
    there = chain(step(double, halve), step(increment, lambda x: x - 1))
    assert there(5) == 11
    assert there.inverse(11) == 5
    assert there.inverse.inverse == there
    assert chain().inverse == chain()


def test_nested_chains_are_flattened() -> None:
    a, b, c = step(double), step(halve), step(increment)
    assert chain(chain(a, b), c) == chain(a, chain(b, c)) == chain(a, b, c) == Chain((a, b, c))
    assert chain(chain(chain())) == chain()


def test_a_long_chain_does_not_recurse() -> None:
    assert chain(*[increment] * 50_000)(0) == 50_000


@pytest.mark.parametrize(
    "without",
    [
        step(double),
        chain(flatten, double),
        cast("bfloat16"),
        chain(flatten, cast("bfloat16"), encode),
    ],
    ids=repr,
)
def test_a_step_without_an_inverse_is_an_error_that_says_so(without: Step[Any, Any]) -> None:
    with pytest.raises(
        NotInvertibleError, match=r"^expected a .*; in (step\(double\)|cast\('bfloat16'\))$"
    ):
        _ = without.inverse


@pytest.mark.parametrize("wrong", [None, 3, "cast", {"a": "b"}])
def test_anything_but_a_function_is_refused_as_a_step(wrong: Any) -> None:
    with pytest.raises(TransformError, match="expected a function"):
        step(wrong)
    with pytest.raises(TransformError, match="expected a function"):
        chain(flatten, wrong)
    if wrong is not None:
        with pytest.raises(TransformError, match="expected a function"):
            step(double, wrong)
        with pytest.raises(TransformError, match="expected a function"):
            apply(wrong, Leaves({}))


def test_a_transform_returns_leaves() -> None:
    leaves = Leaves({"a": 1})
    assert apply(None, leaves) is leaves
    assert dict(apply(lambda leaves: leaves.replace({"b": 2}), leaves)) == {"b": 2}
    with pytest.raises(
        TransformError, match=r"<lambda>.*expected it to return Leaves, got dict: end"
    ):
        apply(lambda leaves: dict(leaves), leaves)
    with pytest.raises(TransformError, match="got NoneType"):
        apply(functools.partial(lambda _: None), leaves)
    with pytest.raises(ZeroDivisionError):
        apply(lambda leaves: 1 / 0, leaves)


def test_an_error_of_a_function_names_the_step() -> None:
    def fold(leaves: Leaves) -> Leaves:
        return leaves.replace({k: np.asarray(v).reshape(3, 2) for k, v in leaves.items()})

    def fold_each(leaves: Leaves) -> Leaves:
        return leaves.map(lambda name, leaf: np.asarray(leaf).reshape(3, 2))

    leaves = Leaves({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)})
    data = encode(leaves)
    note = r"while applying step\(.*fold.*\) to Leaves: in leaves\.map\(function\), an error names"
    steps: list[Any] = [fold, step(fold), chain(cast("bfloat16"), fold), step(double, fold).inverse]
    for transform in steps:
        for call in (
            lambda transform=transform: apply(transform, leaves),
            lambda transform=transform: safejax.deserialize(data, transform=transform),
            lambda transform=transform: safejax.serialize(leaves, transform=transform),
        ):
            with pytest.raises(ValueError, match="cannot reshape array of size 4") as caught:
                call()
            (found,) = caught.value.__notes__
            assert re.match(note, found)
    # And what the note advises.
    with pytest.raises(TransformError, match=r"leaf 'b': .*cannot reshape array of size 4") as told:
        apply(fold_each, leaves)
    assert not hasattr(told.value, "__notes__")
    with pytest.raises(TypeError) as caught_other:
        chain(increment, step(len))(3)
    assert caught_other.value.__notes__ == ["while applying step(len)"]


def test_results_of_numpy_become_jax_arrays() -> None:
    wide = np.array([2**40])
    leaves = apply(lambda leaves: leaves.replace({"w": wide, "n": 1}), Leaves({}))
    assert isinstance(leaves["w"], LazyArray)
    assert np.asarray(leaves["w"]).tolist() == [2**40]
    assert leaves["n"] == 1
    with pytest.raises(LeafError, match="leaf 'w'"):
        apply(lambda leaves: leaves.replace({"w": np.array(["x"])}), Leaves({}))


def test_building_and_chaining_read_nothing() -> None:
    tree = safejax.deserialize(safejax.serialize(TREE))
    with observe_reads() as log:
        pipeline = chain(flatten, cast("bfloat16", source="float32"), transpose("*.w"))
        repr(pipeline), hash(pipeline), pipeline == chain(flatten), pipeline.inverse
        leaves = pipeline(tree)
        repr(leaves)
        again = pipeline.inverse(leaves)
        repr(again)
        assert not log.reads
    assert again["mlp"]["w"].shape == (4, 2)


def test_a_users_step() -> None:
    class Upper(safejax.Transform):
        def __call__(self, leaves: Leaves, /) -> Leaves:
            return leaves.replace({name.upper(): leaf for name, leaf in leaves.items()})

    assert chain(flatten, Upper(), encode)({"a": 1}) == encode(Leaves({"A": 1}))
    with pytest.raises(NotInvertibleError, match="Upper"):
        _ = Upper().inverse
