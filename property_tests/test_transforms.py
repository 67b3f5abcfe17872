"""Transforms against models: NumPy for values, and a plain matcher for names.

`test_laws` tests each step by itself; this file tests long chains, all pairs of dtypes, and
unusual templates.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from hypothesis import assume, example, given
from hypothesis import strategies as st

from safejax import (
    LazyArray,
    Leaves,
    TransformError,
    cast,
    chain,
    decode,
    deserialize,
    encode,
    observe_reads,
    rename,
    serialize,
    transpose,
)
from safejax.testing import ALL_DTYPES, arrays, assert_same_bits, indices, shardings
from safejax.testing.strategies import shapes

# ---- chains of casts and transposes

FLOATS = ["float32", "bfloat16", "float16", "float8_e5m2", "float64", "float8_e4m3fn"]


def converted(array: Any, dtype: str) -> Any:
    with np.errstate(all="ignore"):
        return array.astype(np.dtype(dtype))


@st.composite
def chains(draw: st.DrawFn, dtype: str, axes: int) -> tuple[Any, Callable[[Any], Any]]:
    """A chain of up to five transforms of the leaf `w`, and what does the same with NumPy."""
    steps: list[Any] = []
    model: list[Callable[[Any], Any]] = []
    for _ in range(draw(st.integers(0, 5))):
        match draw(st.sampled_from(["cast", "cast with source", "swap", "permute"])):
            case "cast":
                dtype = draw(st.sampled_from(FLOATS))
                steps.append(cast(dtype))
                model.append(lambda array, to=dtype: converted(array, to))
            case "cast with source":
                target = draw(st.sampled_from(FLOATS))
                steps.append(cast(target, source=dtype, where="w"))
                model.append(lambda array, to=target: converted(array, to))
                dtype = target
            case "swap":
                if axes >= 2:
                    last = (*range(axes - 2), axes - 1, axes - 2)
                    steps.append(transpose("w", axes=None if axes == 2 else last))
                    model.append(lambda array: np.swapaxes(array, -1, -2))
            case "permute":
                order = tuple(draw(st.permutations(range(axes)))) if axes else None
                if order is not None:
                    steps.append(transpose(lambda name: name == "w", axes=order))
                    model.append(lambda array, order=order: array.transpose(order))

    def reference(array: Any) -> Any:
        for function in model:
            array = function(array)
        return array

    return chain(*steps), reference


@st.composite
def leaf_and_chain(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    dtype = draw(st.sampled_from(FLOATS))
    shape = draw(shapes())
    array = np.asarray(draw(arrays(np.dtype(dtype), shape)))
    step, reference = draw(chains(dtype, len(shape)))
    return array, step, reference(array)


@given(case=leaf_and_chain(), data=st.data())
def test_a_part_after_a_long_chain_equals_numpys_and_reads_only_its_own_bytes(
    case: tuple[Any, Any, Any], data: st.DataObject
) -> None:
    array, step, expected = case
    leaf = step(decode(encode(Leaves({"w": array}))))["w"]
    # Each index is taken of the result of the one before: windows do not pile up.
    for _ in range(data.draw(st.integers(0, 2))):
        index = data.draw(indices(expected.shape))
        closed = index if ... in index else (*index, ...)
        leaf, expected = leaf[index], expected[closed]
        assert isinstance(leaf, LazyArray)
    with observe_reads() as log:
        read = np.asarray(leaf)
        assert log.nbytes == expected.size * array.itemsize
    assert_same_bits(read, np.asarray(expected))


@given(case=leaf_and_chain(), data=st.data())
def test_shards_after_a_long_chain_equal_numpys_and_are_read_once(
    case: tuple[Any, Any, Any], data: st.DataObject
) -> None:
    array, step, expected = case
    sharding = data.draw(shardings(expected.shape))
    with jax.enable_x64(True):
        leaf = deserialize(serialize({"w": array}), transform=step, sharding=sharding)["w"]
        with observe_reads() as log:
            placed = leaf.placed()
        blocks = set(map(str, sharding.addressable_devices_indices_map(expected.shape).values()))
        assert log.nbytes == array.nbytes
        assert len(log.reads) == (len(blocks) if expected.size else 0)
        assert_same_bits(placed, expected)
        for shard in placed.addressable_shards:
            assert_same_bits(shard.data, np.asarray(expected[shard.index]))


@given(case=leaf_and_chain())
def test_a_transformed_leaf_is_stored_with_the_values_that_it_shows(
    case: tuple[Any, Any, Any],
) -> None:
    array, step, expected = case
    leaves = step(decode(encode(Leaves({"w": array}))))
    assert_same_bits(decode(encode(leaves))["w"], np.asarray(expected))
    # Leaves from arrays in memory give the same.
    assert encode(step(Leaves({"w": array}))) == encode(leaves)


# ---- casts between all dtypes

pairs = st.tuples(st.sampled_from(ALL_DTYPES), st.sampled_from(ALL_DTYPES))


@given(pair=pairs, data=st.data())
def test_any_cast_gives_what_numpy_gives_or_is_refused_before_reading(
    pair: tuple[Any, Any], data: st.DataObject
) -> None:
    source, target = pair
    assume(not (source.kind == "c" and target.kind in "iufV"))  # NumPy warns about these
    array = np.asarray(data.draw(arrays(source)))
    leaves = decode(encode(Leaves({"w": array})))
    try:
        expected = converted(array, target.name)
    except TypeError:
        expected = None
    step = cast(target, source=source)
    with observe_reads() as log:
        try:
            leaf = step(leaves)["w"]
        except TransformError:
            leaf = None
        assert not log.reads
    assert (leaf is None) == (expected is None)
    if leaf is not None:
        assert_same_bits(np.asarray(leaf), expected)


# ---- names

segments = st.sampled_from(["a", "b", "", "0", "1", "é"])
names = st.lists(segments, min_size=1, max_size=4).map(".".join)
parts = st.sampled_from(["a", "b", ".", ".", "{i}", "{j}", "*", "0", "{{", "é"])
templates = st.lists(parts, max_size=5).map("".join)


def matcher(template: str) -> Any:
    """Another matcher, by a regular expression: `(.*?)` for a star, `([^.]+?)` for a segment."""
    pattern = ""
    seen: set[str] = set()
    for part in re.findall(r"\{\{|\{\w\}|\*|[^{*]", template):
        if part == "{{":
            pattern += r"\{"
        elif part == "*":
            pattern += r".*?"
        elif part.startswith("{"):
            name = part[1]
            pattern += f"(?P={name})" if name in seen else f"(?P<{name}>[^.]+?)"
            seen.add(name)
        else:
            pattern += re.escape(part)
    return re.compile(pattern, re.DOTALL)


@st.composite
def renames(draw: st.DrawFn) -> dict[str, str]:
    return draw(st.dictionaries(templates, templates, min_size=1, max_size=3))


@st.composite
def sensible_renames(draw: st.DrawFn) -> dict[str, str]:
    """Templates whose new names have the placeholders of the old ones in any order."""
    rules: dict[str, str] = {}
    for old in draw(st.lists(templates, min_size=1, max_size=3, unique=True)):
        held = re.findall(r"\{\w\}|\*", old)
        shuffled = draw(st.permutations(held))
        separator = draw(st.sampled_from([".", "/", "-", ".x."]))
        lead = draw(st.sampled_from(["", "new.", "a."]))
        rules[old] = lead + separator.join(shuffled) if held else lead + draw(names)
    return rules


@given(
    rules=renames() | sensible_renames(),
    entries=st.lists(names, unique=True, min_size=1, max_size=6),
    strict=st.booleans(),
)
@example(rules={"{i}.{j}": "{j}.{i}"}, entries=["a.b", "b.a", "a.a"], strict=True)
@example(rules={"a": "b", "b": "a"}, entries=["a", "b"], strict=True)
@example(rules={"*.a": "a.*"}, entries=[".a", "a.a", "b.a"], strict=False)
def test_a_rename_can_be_undone_or_is_an_error_with_the_reason(
    rules: dict[str, str], entries: list[str], strict: bool
) -> None:
    leaves = Leaves({name: number for number, name in enumerate(entries)})
    try:
        step = rename(rules, strict=strict, must_match=False)
        renamed = step(leaves)
    except TransformError as error:
        # The message is a sentence with what was expected and what was found.
        message = str(error)
        assert "expected" in message
        return
    assert list(renamed.values()) == list(leaves.values())
    back = step.inverse(renamed)
    assert list(back.items()) == list(leaves.items())
    assert list(step(back).items()) == list(renamed.items())
    matchers = [matcher(old) for old in rules]
    for old, new in zip(leaves, renamed, strict=True):
        if not any(match.fullmatch(old) for match in matchers):
            assert old == new
            assert not strict


@given(name=names, template=templates)
def test_a_pattern_matches_what_the_model_matches(name: str, template: str) -> None:
    try:
        step = cast("float16", where=template, must_match=False)
    except TransformError:
        return
    leaf = np.zeros(1, np.float32)
    matched = step(Leaves({name: leaf}))[name] is not leaf
    assert matched == (matcher(template).fullmatch(name) is not None)


# ---- size


@given(count=st.integers(1, 200), data=st.data())
def test_slices_of_slices_do_not_pile_up(count: int, data: st.DataObject) -> None:
    array = np.arange(240, dtype=np.int32).reshape(4, 6, 10)
    leaf, expected = decode(encode(Leaves({"w": array})))["w"], array
    for number in range(count):
        if number % 3 == 0:
            leaf = transpose("w", axes=(2, 0, 1))(Leaves({"w": leaf}))["w"]
            expected = expected.transpose(2, 0, 1)
        else:
            leaf, expected = leaf[::-1], expected[::-1]
    # There is only one window: the depth of views does not grow with the chain.
    assert len(repr(leaf.content.view)) < 400
    assert math.prod(leaf.shape) == 240
    assert_same_bits(np.asarray(leaf), np.ascontiguousarray(expected))
