"""What does not match `like`: one report, with a remedy that works (S3, S11, R13, R14).

Each remedy is taken from the message and applied: what it says must load.
"""

import collections
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import safejax
from safejax import MismatchError, PartialLoadWarning
from safejax.testing import assert_trees_identical

W, B = jnp.ones((3, 2)), jnp.zeros(2)
MODEL = {"dense": {"kernel": W, "bias": B}, "norm": {"scale": B + 1}}
KEY = jax.random.key(0)


def many(count: int) -> dict[str, Any]:
    return {f"layer{number}": {"w": W + number} for number in range(count)}


def arguments_in(message: str) -> dict[str, Any]:
    """The arguments that a message says to pass, as a user would write them."""
    told = re.search(r"pass ((?:transform|strict)=.*?)(?:, which leaves|;|:\n|\n|$)", message)
    assert told is not None, message
    names = {name: getattr(safejax, name) for name in safejax.__all__}
    return eval(f"dict({told[1]})", names)


# tree that is stored, like, and what the message must say
REMEDIES: dict[str, tuple[Any, Any, str]] = {
    "a prefix in the file": ({"model": MODEL}, MODEL, "transform=prefix('model').inverse"),
    "a prefix of two names": ({"a": {"b": MODEL}}, MODEL, "transform=prefix('a.b').inverse"),
    "params beside others": (
        {"params": MODEL, "step": 3, "opt": [B]}, MODEL,
        "transform=chain(select('params.*'), prefix('params').inverse)",
    ),
    "a prefix in like": (MODEL, {"params": MODEL}, "transform=prefix('params')"),
    "boxed in the file": (
        jax.tree.map(lambda leaf: {"value": leaf}, MODEL), MODEL,
        "transform=rename({'*.value': '*'})",
    ),
    "boxed in like": (
        MODEL, jax.tree.map(lambda leaf: {"value": leaf}, MODEL),
        "transform=rename({'*': '*.value'})",
    ),
    "one dtype": (MODEL, jax.tree.map(lambda leaf: leaf.astype("bfloat16"), MODEL),
                  "transform=cast('bfloat16')"),
    "ints to floats": (
        {"w": W.astype("int32"), "v": B.astype("int32")}, {"w": W, "v": B},
        "transform=cast('float32', source='int32')",
    ),
    "one dtype of several": (
        {"w": W.astype("bfloat16"), "v": W.astype("bfloat16"), "b": B.astype("float16")},
        {"w": W, "v": W, "b": B.astype("float16")},
        "transform=cast('float32', source='bfloat16')",
    ),
    "two thousand leaves": (
        jax.tree.map(lambda leaf: leaf.astype("bfloat16"), many(2000)), many(2000),
        "transform=cast('float32')",
    ),
    "two thousand names": ({"model": many(2000)}, many(2000), "transform=prefix('model').inverse"),
    "a leaf with braces": ({"{a}": W.astype("float16")}, {"{a}": W},
                           "transform=cast('float32', where='{{a}}')"),
    "raw keys": ({"rng": jax.random.PRNGKey(0), "w": W}, {"rng": KEY, "w": W},
                 "transform=keys('rng')"),
    "raw keys of rbg": (
        {"rng": jax.random.key_data(jax.random.split(jax.random.key(0, impl="rbg"), 3))},
        {"rng": jax.random.split(jax.random.key(1, impl="rbg"), 3)},
        "transform=keys('rng', impl='rbg')",
    ),
    "typed keys": ({"rng": KEY}, {"rng": jax.random.PRNGKey(0)}, "transform=keys('rng').inverse"),
    "another name": ({"kernel": W, "bias": B}, {"kernels": W, "bias": B},
                     "transform=rename({'kernel': 'kernels'})"),
    "a head of another size": (
        {**MODEL, "head": jnp.ones((2, 10))}, {**MODEL, "head": jnp.ones((2, 3))},
        "transform=drop('head'), strict=False",
    ),
    "a string for an array": ({"w": "text", "b": B}, {"w": W, "b": B},
                              "transform=drop('w'), strict=False"),
}  # fmt: skip


@pytest.mark.parametrize("case", REMEDIES)
@pytest.mark.filterwarnings("ignore::safejax.PartialLoadWarning")
def test_the_remedy_in_the_message_works(case: str) -> None:
    stored, like, remedy = REMEDIES[case]
    data = safejax.serialize(stored)
    with pytest.raises(MismatchError) as caught:
        safejax.deserialize(data, like=like)
    message = str(caught.value)
    assert remedy in message
    assert len(message) < 4000
    assert len(message.splitlines()) <= 22
    if case == "another name":
        message = message.replace(" if that is it, or strict=False", ";")
    loaded = safejax.deserialize(data, like=like, **arguments_in(message))
    assert jax.tree.structure(loaded) == jax.tree.structure(like)
    for found, expected in zip(jax.tree.leaves(loaded), jax.tree.leaves(like), strict=True):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


def test_the_error_has_all_and_the_message_some() -> None:
    data = safejax.serialize({**many(50), "same": B, "other": W})
    like = {f"layer{number}": {"v": W} for number in range(40)} | {"same": B, "other": B}
    with pytest.raises(MismatchError) as caught:
        safejax.deserialize(data, like=like)
    error = caught.value
    assert set(error.missing) == {f"layer{number}.v" for number in range(40)}
    assert set(error.unexpected) == {f"layer{number}.w" for number in range(50)}
    assert error.mismatched == ("other",)
    lines = str(error).splitlines()
    assert "91 leaves do not match like, which has 42" in lines[0]
    assert len(lines) == 22
    assert lines[-1].endswith("… 71 more, in the error's attributes")
    for kind in ("mismatched 'other'", "missing 'layer", "unexpected 'layer"):
        assert any(line.strip().startswith(kind) for line in lines)


def test_one_leaf_is_one_line() -> None:
    with pytest.raises(MismatchError, match=r"1 leaf does not match like, which has 1") as caught:
        safejax.deserialize(safejax.serialize({"w": W}), like={"w": B})
    assert len(str(caught.value).splitlines()) == 2


def test_no_remedy_is_claimed_where_none_helps() -> None:
    with pytest.raises(MismatchError) as caught:
        safejax.deserialize(
            safejax.serialize({"a": W, "b": {"c": B}}), like={"x": B, "y": {"z": W}}
        )
    assert str(caught.value).splitlines()[0].endswith("4 leaves do not match like, which has 2:")


# ---- empty containers, and nothing at all in common


def test_an_empty_container_in_the_file_is_no_loss() -> None:
    """(R13)"""
    state = {"params": MODEL, "opt": (optax.EmptyState(), {"x": B}), "none": None, "list": []}
    like = {"params": MODEL, "opt": ((), {"x": B})}
    del like["opt"]
    like["opt"] = {"1": {"x": B}}
    loaded = safejax.deserialize(safejax.serialize(state), like=like)
    assert_trees_identical(loaded, like)


def test_nothing_in_common_is_an_error_without_strict_too() -> None:
    """(S11)"""
    data = safejax.serialize(jax.tree.map(lambda leaf: {"value": leaf}, MODEL))
    with pytest.raises(MismatchError, match=r"pass transform=rename\(\{'\*.value': '\*'\}\)"):
        safejax.deserialize(data, like=MODEL, strict=False)
    with pytest.raises(MismatchError) as caught:
        safejax.deserialize(safejax.serialize({"v": B}), like={"w": W}, strict=False)
    first, *lines = str(caught.value).splitlines()
    assert "2 leaves do not match like, which has 1; strict=False would load none of them" in first
    for line, remedy in zip(
        lines, ("gives a leaf this name, or correct like", "gives a name of like"), strict=True
    ):
        assert line.endswith(remedy)
        assert "strict" not in line
    with pytest.warns(PartialLoadWarning, match="3 missing, taken from like"):
        loaded = safejax.deserialize(safejax.serialize({}), like=MODEL, strict=False)
    assert_trees_identical(loaded, MODEL)


# ---- classes: an optimizer's state at another place


class Count(NamedTuple):
    count: Any


class Other(NamedTuple):
    count: Any


def adam_states(clip: bool) -> Any:
    parts = [optax.scale_by_adam(), optax.scale_by_schedule(lambda step: 1e-3 * step)]
    chain = optax.chain(*([optax.clip(1.0)] if clip else []), *parts)
    state = chain.init({"w": W})
    for _ in range(3):
        _, state = chain.update({"w": W}, state)
    return state


def test_states_of_other_optimizers_are_not_mixed() -> None:
    """(S3)"""
    stored, like = adam_states(clip=False), adam_states(clip=True)
    fresh = jax.tree.map(jnp.zeros_like, like)
    data = safejax.serialize({"opt": stored, "w": W})
    with pytest.warns(PartialLoadWarning) as caught:
        loaded = safejax.deserialize(data, like={"opt": fresh, "w": W - 1}, strict=False)
    assert_trees_identical(safejax.materialize(loaded), {"opt": fresh, "w": W})
    (warned,) = caught
    arguments = arguments_in(str(warned.message))
    assert "rename({'opt.0.*': 'opt.1.*', 'opt.1.*': 'opt.2.*'})" in str(warned.message)
    right = safejax.deserialize(data, like={"opt": fresh, "w": W}, **arguments)
    assert_trees_identical(safejax.materialize(right), {"opt": like, "w": W})
    with pytest.raises(MismatchError, match=r"pass transform=rename\(\{'opt.0"):
        safejax.deserialize(data, like={"opt": fresh, "w": W})


def test_a_transform_that_changes_nothing_is_no_remedy() -> None:
    """All names are there, but in a container of another class (S3)."""
    data = safejax.serialize({"a": Count(B), "b": W})
    with pytest.warns(PartialLoadWarning, match="1 missing.*1 unexpected") as caught:
        loaded = safejax.deserialize(data, like={"a": Other(B + 5), "b": W}, strict=False)
    assert "pass" not in str(caught[0].message)
    np.testing.assert_array_equal(loaded["a"].count, B + 5)


def test_a_class_that_moved_to_another_module_is_the_same() -> None:
    moved = collections.namedtuple("Count", ["count"])
    moved.__module__ = "elsewhere"
    data = safejax.serialize({"a": Count(B), "b": W})
    with pytest.warns(PartialLoadWarning, match="1 missing"):
        loaded = safejax.deserialize(data, like={"a": moved(B + 5), "c": W}, strict=False)
    np.testing.assert_array_equal(loaded["a"].count, B)


def test_another_class_with_every_name_and_shape_is_taken_if_strict() -> None:
    data = safejax.serialize({"a": Count(B)})
    loaded = safejax.deserialize(data, like={"a": Other(B + 5)})
    np.testing.assert_array_equal(loaded["a"].count, B)
    assert isinstance(loaded["a"], Other)
