"""Leaves: the mapping, and which values it accepts."""

import copy
import datetime
import decimal
import enum
import pickle
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from safejax import flatten, unflatten
from safejax._src.leaves.leaf import aval_of, check_leaf, content_at, describe, is_array, is_scalar
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import step
from safejax._src.pytrees.structure import EMPTY, Kind, Structure
from safejax._src.reading.log import observe_reads
from safejax.errors import LeafError, TransformError
from safejax.testing import assert_trees_identical
from tests.support.leaves import lazy


def test_leaves_are_a_mapping_in_order() -> None:
    leaves = Leaves({"b": 1, "a": None, "c": EMPTY})
    assert list(leaves) == ["b", "a", "c"]
    assert len(leaves) == 3
    assert leaves["b"] == 1
    assert "a" in leaves
    assert "x" not in leaves
    assert dict(leaves) == {"b": 1, "a": None, "c": EMPTY}
    with pytest.raises(KeyError):
        leaves["x"]


def test_notebooks_show_names_and_leaves_without_a_read() -> None:
    entries = {"<b>&": lazy(jnp.ones((2, 3)), "w"), "n": 3, "host": np.ones(2), "none": None}
    leaves = Leaves(entries, metadata={"k": "<script>"})
    with observe_reads() as log:
        page = leaves._repr_html_()
    assert not log.reads
    root = ElementTree.fromstring(f"<div>{page}</div>")
    assert [[cell.text or "" for cell in row] for row in root.iter("tr")] == [
        ["name", "leaf", ""],
        ["<b>&", "float32[2,3]", "unread"],
        ["n", "int 3", "int"],
        ["host", "float64[2]", "ndarray"],
        ["none", "None", "NoneType"],
    ]
    assert [part.text for part in root.iter("p")] == ["Leaves: 4", "metadata k: <script>"]
    many = Leaves({f"x{number}": number for number in range(1000)})._repr_html_()
    assert "… 940 more" in many
    assert many.count("<tr>") == 61


def test_leaves_copy_the_mappings_that_they_are_made_from() -> None:
    entries, metadata = {"a": 1}, {"k": "v"}
    leaves = Leaves(entries, metadata=metadata)
    entries["b"] = 2
    metadata["l"] = "w"
    assert dict(leaves) == {"a": 1}
    assert dict(leaves.metadata) == {"k": "v"}


@pytest.mark.parametrize("attribute", ["metadata", "structure", "_entries", "other"])
def test_leaves_are_immutable(attribute: str) -> None:
    leaves = Leaves({"a": 1}, metadata={"k": "v"})
    with pytest.raises(AttributeError, match="immutable"):
        setattr(leaves, attribute, {})
    with pytest.raises(TypeError):
        leaves.metadata["k"] = "w"  # type: ignore[index]
    with pytest.raises(TypeError):
        leaves["a"] = 2  # type: ignore[index]


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda leaves: pickle.loads(pickle.dumps(leaves))]
)
def test_leaves_can_be_copied_and_pickled(again: Callable[[Leaves], Leaves]) -> None:
    tree = {"a": [jnp.arange(3), 2.0, None], "b": {1: np.ones(2)}, "c": {}}
    leaves = flatten(tree).replace(metadata={"step": "3"})
    found = again(leaves)
    assert type(found) is Leaves
    assert list(found) == list(leaves)
    assert found["c"] is EMPTY
    assert found.metadata == {"step": "3"}
    assert_trees_identical(unflatten(found), tree)


def test_replace_keeps_the_rest() -> None:
    structure = Structure({"": Kind("list")})
    leaves = Leaves({"0": 1}, structure, {"k": "v"})
    other = leaves.replace({"1": 2})
    assert (dict(other), other.structure, dict(other.metadata)) == ({"1": 2}, structure, {"k": "v"})
    other = leaves.replace(metadata={"l": "w"})
    assert (dict(other), other.structure, dict(other.metadata)) == ({"0": 1}, structure, {"l": "w"})
    assert dict(leaves.replace({}, {}).metadata) == {}
    assert (dict(leaves), dict(leaves.metadata)) == ({"0": 1}, {"k": "v"})


def test_map_applies_to_arrays_only() -> None:
    array = np.ones(2)
    leaves = Leaves({"a": array, "b": 1, "c": "x", "d": None, "e": EMPTY})
    seen: list[Any] = []

    def function(name: str, leaf: Any) -> Any:
        seen.append((name, leaf is array))
        return leaf * 2

    mapped = leaves.map(function)
    assert seen == [("a", True)]
    assert mapped["a"].tolist() == [2, 2]
    assert {name: mapped[name] for name in "bcde"} == {"b": 1, "c": "x", "d": None, "e": EMPTY}


def test_printing_reads_nothing_and_stays_short() -> None:
    leaves = Leaves({f"layers.{i}.w": lazy(np.ones((4, 3), np.float32)) for i in range(12)})
    with observe_reads() as log:
        text = repr(leaves)
        assert not log.reads
    assert text.startswith("Leaves({'layers.0.w': float32[4,3], ")
    assert text.endswith("… 4 more})")


# ---- names

BAD_NAMES = [1, None, b"a", ("a",), "__metadata__", "\ud800", "a.\udfff"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_no_header_holds(name: Any) -> None:
    with pytest.raises(TransformError, match="name"):
        Leaves({name: 1})
    with pytest.raises(TransformError, match="name"):
        Leaves({"a": 1}).replace({name: 1})


@pytest.mark.parametrize("name", ["", ".", "\x00", "safejax", "é🦎", "a" * 100_000])
def test_names_that_any_header_holds(name: str) -> None:
    assert list(Leaves({name: 1})) == [name]


BAD_METADATA: list[tuple[Any, str]] = [
    ({"k": 1}, "metadata 'k': expected strings to strings, got int 1"),
    ({1: "v"}, "metadata 1: expected strings to strings"),
    ({"k": None}, "metadata 'k'"),
    ({"k": b"v"}, "metadata 'k'"),
    ({"safejax": "v"}, "metadata 'safejax': expected another key"),
    ([("k", "v")], "metadata: expected a mapping of strings to strings, got list"),
    ("kv", "metadata: expected a mapping"),
]


@pytest.mark.parametrize(("metadata", "message"), BAD_METADATA)
def test_metadata_maps_strings_to_strings(metadata: Any, message: str) -> None:
    with pytest.raises(LeafError, match=message):
        Leaves({}, metadata=metadata)


# ---- which values are leaves


class Torchlike:
    """A class with the attributes that duck typing would look for."""

    shape, dtype = (2,), np.dtype(np.float32)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.zeros(2, np.float32)


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


REFUSED: list[Any] = [
    object(), b"bytes", bytearray(b"x"), memoryview(b"x"), Torchlike(), Torchlike, Colour.RED,
    Text("x"), np.str_("x"), np.bytes_(b"x"), np.datetime64("2020"), np.timedelta64(1, "s"),
    np.longdouble(1), np.array(["a"]), np.array([b"a"]), np.array([object()]), np.array([None]),
    np.array(["2020"], "M8[D]"), np.zeros(2, [("x", "f4")]), np.void(b"xy"), np.clongdouble(1),
    np.ma.masked_array([1.0, 2.0], [True, False]), np.zeros(2, jax.dtypes.float0),
    decimal.Decimal(1), datetime.date(2020, 1, 1), len, lambda: 0, range(3), {1}, frozenset(),
    np.dtype(np.float32), np.float32, jnp.float32, NotImplemented, ..., Leaves({}),
]  # fmt: skip


@pytest.mark.parametrize("leaf", REFUSED, ids=lambda leaf: type(leaf).__name__)
def test_other_values_are_no_leaves(leaf: Any) -> None:
    with pytest.raises(
        LeafError, match=r"^leaf 'a\.b': expected an array.*, got .*: (store|leave|make) "
    ):
        check_leaf("a.b", leaf)


ARRAYS: dict[str, tuple[Callable[[], Any], str, str]] = {
    # The leaf, how messages describe it, and its dtype and shape once placed.
    "jax": (lambda: jnp.ones((4, 3)), "float32[4,3]", "float32[4,3]"),
    "numpy": (lambda: np.ones(3, np.int16), "int16[3]", "int16[3]"),
    "64 bits": (lambda: np.ones((2, 0)), "float64[2,0]", "float32[2,0]"),
    "big-endian": (lambda: np.ones(3, ">f4"), "float32[3]", "float32[3]"),
    "generic": (lambda: np.float64(1), "float64[]", "float32[]"),
    "bfloat16": (lambda: ml_dtypes.bfloat16(1), "bfloat16[]", "bfloat16[]"),
    "lazy": (lambda: lazy(np.ones(3)), "float32[3]", "float32[3]"),
    "abstract": (lambda: jax.ShapeDtypeStruct((1,), "int4"), "int4[1]", "int4[1]"),
    "key": (lambda: jax.random.key(1), "key<fry>[]", "key<fry>[]"),
    "lazy keys": (lambda: lazy(jax.random.split(jax.random.key(1), 3)), "key<fry>[3]",
                  "key<fry>[3]"),
    "abstract key": (lambda: jax.ShapeDtypeStruct((2,), jax.random.key(1).dtype), "key<fry>[2]",
                     "key<fry>[2]"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_are_leaves_whose_facts_are_known_unread(case: str) -> None:
    make, described, placed = ARRAYS[case]
    leaf = make()
    with observe_reads() as log:
        check_leaf("w", leaf)
        assert is_array(leaf)
        assert not is_scalar(leaf)
        assert describe(leaf) == described
        assert describe(aval_of(leaf)) == placed
        assert not log.reads
    assert content_at("w", leaf).shape == aval_of(leaf).shape


SCALARS: list[tuple[Any, str]] = [
    (True, "bool True"),
    (3, "int 3"),
    (2**200, "int 0x1" + "0" * 50),
    (-(2**200), "int -0x1" + "0" * 50),
    (10**5000, "int 0x31e2"),
    (-0.0, "float -0.0"),
    (float("nan"), "float nan"),
    (1j, "complex 1j"),
    ("relu", "str 'relu'"),
    ("x" * 10_000, "str 'xxx"),
]


@pytest.mark.parametrize(("leaf", "described"), SCALARS, ids=range(len(SCALARS)))
def test_scalars_are_leaves(leaf: Any, described: str) -> None:
    check_leaf("w", leaf)
    assert is_scalar(leaf)
    assert not is_array(leaf)
    assert describe(leaf).startswith(described)
    assert len(describe(leaf)) < 100


@pytest.mark.parametrize(("leaf", "described"), [(None, "None"), (EMPTY, "an empty container")])
def test_none_is_a_leaf(leaf: Any, described: str) -> None:
    check_leaf("w", leaf)
    assert not is_scalar(leaf)
    assert not is_array(leaf)
    assert describe(leaf) == described


def test_tracers_are_no_leaves() -> None:
    def function(x: jax.Array) -> jax.Array:
        for call in (check_leaf, content_at):
            with pytest.raises(LeafError, match=r"leaf 'w': .* got a tracer.* inside jit"):
                call("w", x)
        return x

    jax.jit(function)(jnp.ones(2))
    jax.grad(lambda x: function(x).sum())(jnp.ones(2))
    jax.vmap(function)(jnp.ones(2))


def test_aval_follows_x64() -> None:
    with jax.enable_x64(True):
        assert describe(aval_of(np.ones(2))) == "float64[2]"


def test_map_names_the_leaf_for_which_the_function_fails() -> None:
    """NumPy's own error says only the dtype."""
    leaves = Leaves({"a": np.ones(2, np.float32), "mask": np.ones(2, bool)})
    negate = step(lambda leaves: leaves.map(lambda name, leaf: np.negative(leaf)))
    with pytest.raises(TransformError, match=r"leaf 'mask': .* bool\[2\], it raised Type"):
        negate(leaves)

    def refuses(name: str, leaf: object) -> object:
        raise LeafError("as it is")

    with pytest.raises(LeafError, match=r"^as it is$"):
        leaves.map(refuses)
