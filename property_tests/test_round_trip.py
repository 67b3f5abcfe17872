"""Names and containers: the laws that `test_laws` does not cover.

Trees are built from names alone, from a part of their leaves, from renamed leaves and from forged
records; trees of shardings and reports of `like` are checked. Leaves are mostly numbers, so that
trees can be large and irregular.
"""

import json
import struct
from collections import OrderedDict
from typing import Any

import jax
import numpy as np
import pytest
import safetensors
from hypothesis import assume, example, given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import safejax
from safejax import (
    EMPTY,
    InvalidFileError,
    Leaves,
    MismatchError,
    TransformError,
    decode,
    encode,
    flatten,
    unflatten,
)
from safejax._src.format.record import RECORD_KEY
from safejax._src.leaves.shardings import resolve
from safejax._src.pytrees.structure import Structure
from safejax.testing import assert_same_bits, pytrees, scalars
from safejax.testing.strategies import Pair
from tests.support.files import header_of, with_header

# ---- trees

texts = st.sampled_from(
    ["", ".", "..", "a", "b", "a.b", "a.b.c", "a~1", "a~2", "a.b~1", "~", "~1", "__metadata__", "0",
     "1", "01", "-1", "True", "None", "\x00", "é", "🦎", "\ud800", "\\ud800", "[", '["a"]', "a/b"]
) | st.text(st.characters(), max_size=3)  # fmt: skip
sorts_of_keys = [
    texts,
    st.integers(-3, 3) | st.integers(),
    st.booleans(),
    st.floats(allow_nan=False),
    st.binary(max_size=2),
    st.tuples(st.integers(0, 2), texts),
    st.none(),
]
# JAX 0.8 has no None among the keys of an OrderedDict.
any_key = st.one_of(sorts_of_keys[:-1])
values = st.integers(0, 99) | scalars() | st.none()


def containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    pairs = st.lists(st.tuples(any_key, children), max_size=4)
    return st.one_of(
        *(st.dictionaries(keys, children, max_size=4) for keys in sorts_of_keys),
        pairs.map(OrderedDict),
        st.lists(children, max_size=4),
        st.lists(children, max_size=3).map(tuple),
        st.builds(Pair, children, children),
    )


wild_trees = st.recursive(values, containers, max_leaves=15)


def as_stored(tree: Any) -> Any:
    """The tree with the containers that a file rebuilds without `like`: a namedtuple is a dict."""
    if isinstance(tree, Pair):
        return {"first": as_stored(tree.first), "second": as_stored(tree.second)}
    if isinstance(tree, dict):
        return type(tree)((key, as_stored(child)) for key, child in tree.items())
    if isinstance(tree, list | tuple):
        return type(tree)(as_stored(child) for child in tree)
    return tree


def form(tree: Any) -> Any:
    """A form that is equal if node types, keys, order where it matters, and every bit are equal."""
    if isinstance(tree, OrderedDict):
        return ("ordered", [(form(key), form(child)) for key, child in tree.items()])
    if isinstance(tree, dict):
        return ("dict", {repr(form(key)): form(child) for key, child in tree.items()})
    if isinstance(tree, list | tuple):
        return (type(tree).__name__, [form(child) for child in tree])
    if isinstance(tree, float):
        return ("float", struct.pack(">d", tree))
    if isinstance(tree, complex):
        return ("complex", struct.pack(">dd", tree.real, tree.imag))
    return (type(tree).__name__, tree)


@given(tree=wild_trees)
@example(tree=OrderedDict([(1, 0), ("1", 1), (True, 2)]))
@example(tree={"x": 0, "x~1": 1, "": {"": 2}})
@example(tree={"a": {"b": 0}, "a.b": {"c": 1}, "a.b.c": 2})
@example(tree=OrderedDict([("a.b", 1), ("a", {"b": 2}), ("", {})]))
@example(tree={"\ud800": 0, "\\ud800": 1, "é\udfff": {"x": [None]}})
def test_a_tree_comes_back_from_its_bytes_without_like(tree: Any) -> None:
    assert form(unflatten(flatten(tree))) == form(tree)
    data = encode(flatten(tree))
    assert form(unflatten(decode(data))) == form(as_stored(tree))
    assert encode(decode(data)) == data
    # With `like` it is the same tree in every node type.
    assert form(unflatten(decode(data), like=tree)) == form(tree)


few_strings = st.dictionaries(st.text(max_size=3), st.text(max_size=5), max_size=3)


@given(tree=pytrees(), metadata=few_strings)
def test_a_tree_of_arrays_comes_back_from_a_file(
    tmp_path_factory: pytest.TempPathFactory, tree: Any, metadata: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("m") / "m.safetensors"
    assume(not isinstance(tree, str))  # It could be a path, and `save` refuses it.
    safejax.save(tree, path, metadata=metadata)
    again = safejax.load(path)
    expected = jax.tree.leaves(as_stored(tree))
    assert jax.tree.structure(again) == jax.tree.structure(as_stored(tree))
    for leaf, wanted in zip(jax.tree.leaves(again), expected, strict=True):
        assert_same_bits(leaf, wanted)
    assert safejax.metadata(path) == metadata
    # The names that another reader sees are those of the arrays.
    with safetensors.safe_open(path, "np") as file:
        arrays = [leaf for leaf in expected if hasattr(leaf, "dtype")]
        assert len(file.keys()) == len(arrays)


# ---- what transforms do to names


@given(tree=wild_trees, data=st.data(), in_process=st.booleans())
def test_any_part_of_a_tree_is_a_tree(tree: Any, data: st.DataObject, in_process: bool) -> None:
    leaves = flatten(tree) if in_process else decode(encode(flatten(tree)))
    kept = data.draw(st.lists(st.sampled_from(list(leaves)), unique=True))
    part = leaves.replace({name: leaves[name] for name in kept})
    again = unflatten(part)
    assert sorted(map(repr, jax.tree.leaves(again))) == sorted(
        repr(leaf) for leaf in part.values() if leaf is not None and leaf is not EMPTY
    )


@given(tree=wild_trees, data=st.data())
def test_leaves_under_other_names_are_a_tree_or_an_error(tree: Any, data: st.DataObject) -> None:
    leaves = flatten(tree)
    others = st.lists(texts | st.sampled_from(list(leaves)), min_size=len(leaves), unique=True)
    names = data.draw(others.map(lambda drawn: drawn[: len(leaves)]))
    try:
        renamed = leaves.replace(dict(zip(names, leaves.values(), strict=True)))
        again = unflatten(renamed)
    except TransformError:
        return
    assert sorted(map(repr, jax.tree.leaves(again))) == sorted(
        repr(leaf) for leaf in renamed.values() if leaf is not None and leaf is not EMPTY
    )
    # It can be stored again as it was built.
    assert form(unflatten(decode(encode(renamed)))) == form(as_stored(again))


@given(names=st.lists(texts, unique=True, max_size=8))
@example(names=["w", "w.a", "w.a.b", "w-", ""])
def test_names_without_a_record_are_a_tree_or_an_error(names: list[str]) -> None:
    try:
        leaves = Leaves({name: number for number, name in enumerate(names)})
    except TransformError:
        return
    tree = unflatten(leaves)
    assert sorted(jax.tree.leaves(tree)) == list(range(len(names)))
    # When the tree is flattened again, each leaf has its old name, except for suffixes.
    again = {leaf: name for name, leaf in flatten(tree).items()}
    for name, number in leaves.items():
        assert again[number] == name or again[number].startswith(f"{name}~")


# ---- trees of shardings

MESH = Mesh(np.asarray(jax.devices()), ("x",))
SHARDINGS = [
    NamedSharding(MESH, PartitionSpec(), memory_kind=kind)
    for kind in (None, jax.devices()[0].default_memory().kind)
] + [jax.sharding.SingleDeviceSharding(device) for device in jax.devices()]


@st.composite
def prefixes(draw: st.DrawFn, tree: Any) -> tuple[Any, list[Any]]:
    """A prefix tree, and the sharding of each leaf of `tree` in JAX's order."""
    if draw(st.booleans()) or not isinstance(tree, dict | list | tuple):
        sharding = draw(st.sampled_from(SHARDINGS) | st.none())
        return sharding, [sharding] * len(jax.tree.leaves(tree))
    if isinstance(tree, list | tuple):
        parts = [draw(prefixes(child)) for child in tree]
        prefix: Any = [part for part, _ in parts]
        if isinstance(tree, Pair):
            prefix = Pair(*prefix)
        elif isinstance(tree, tuple):
            prefix = tuple(prefix)
        return prefix, [sharding for _, given in parts for sharding in given]
    keys = list(tree) if isinstance(tree, OrderedDict) else sorted(tree)
    of_key = {key: draw(prefixes(tree[key])) for key in keys}
    prefix = type(tree)((key, part) for key, (part, _) in of_key.items())
    return prefix, [sharding for _, given in of_key.values() for sharding in given]


@given(tree=st.recursive(st.just(np.zeros(8)) | st.none(), containers, max_leaves=10),
       data=st.data(), in_process=st.booleans())  # fmt: skip
def test_a_prefix_tree_gives_each_leaf_the_sharding_above_it(
    tree: Any, data: st.DataObject, in_process: bool
) -> None:
    try:
        leaves = flatten(tree)
    except safejax.LeafError:
        # An OrderedDict may have keys of different types, since JAX does not sort them.
        return
    prefix, expected = data.draw(prefixes(tree))
    if not in_process:
        leaves = Leaves(leaves, Structure(leaves.structure.kinds, leaves.structure.paths))
    given = resolve(prefix, {}, leaves, "f")
    names = [name for name, leaf in leaves.items() if leaf is not None and leaf is not EMPTY]
    assert [given.get(name) for name in names] == expected


# ---- like

shapes = st.sampled_from([(), (1,), (2,), (2, 3)])
dtypes = st.sampled_from(["float32", "bfloat16", "int8"])
avals = st.builds(lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype), shapes, dtypes)
named_avals = st.dictionaries(
    st.sampled_from("abcdefgh"), avals | st.dictionaries(st.sampled_from("xyz"), avals, min_size=1)
)


@given(stored=named_avals, like=named_avals)
def test_a_report_names_every_difference_and_nothing_else(stored: Any, like: Any) -> None:
    found, wanted = flatten(stored), flatten(like)
    expected = {f"missing {name!r}" for name, leaf in wanted.items()
                if name not in found and leaf is not EMPTY}  # fmt: skip
    expected |= {f"unexpected {name!r}" for name, leaf in found.items()
                 if name not in wanted and leaf is not None and leaf is not EMPTY}  # fmt: skip
    expected |= {f"mismatched {name!r}" for name in found
                 if name in wanted and found[name] != wanted[name]}  # fmt: skip
    if not expected:
        assert unflatten(found, like=like) == like
        return
    with pytest.raises(MismatchError) as caught:
        unflatten(found, like=like)
    first, *lines = str(caught.value).split("\n  ")
    count = "1 leaf does" if len(expected) == 1 else f"{len(expected)} leaves do"
    assert first.startswith(f"leaves: {count} not match like, which has {len(wanted)}")
    error = caught.value
    assert {
        *(f"missing {name!r}" for name in error.missing),
        *(f"unexpected {name!r}" for name in error.unexpected),
        *(f"mismatched {name!r}" for name in error.mismatched),
    } == expected
    if len(expected) > 20:
        assert lines.pop() == f"… {len(expected) - 20} more, in the error's attributes"
    shown = {line.partition(":")[0] for line in lines}
    assert len(lines) == len(shown) == min(len(expected), 20)
    assert shown <= expected


# ---- forged records

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=5)
    | st.sampled_from(["list", "tuple", "os.system", "int", "default", "dict", "", "a", "[", "é"]),
    lambda children: st.lists(children, max_size=3)
    | st.dictionaries(texts | st.sampled_from(["type", "keys", "order", "flat", "aliases", "bytes",
                                              "int", "float", "complex", "empty"]),
                      children, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(item: Any) -> list[Any]:
    """Every place in a JSON value, as the keys that lead to it."""
    if not isinstance(item, dict | list):
        return [()]
    inner = item.items() if isinstance(item, dict) else enumerate(item)
    return [(), *((key, *place) for key, child in inner for place in places(child))]


def changed(item: Any, place: Any, new: Any) -> Any:
    if not place:
        return new
    copy = item.copy()
    copy[place[0]] = changed(item[place[0]], place[1:], new)
    return copy


RECORDED = {
    "list": [np.int8(1), 2, None],
    "a.b": {"flat.x": np.int8(3), "flat.y": np.int8(4)},
    "ordered": OrderedDict([(1, {}), ("1", float("nan"))]),
    "wide": np.ones(2, np.complex128),
    "key": jax.random.key(1),
    "a": {"b": {"\ud800": 1j, "big": 2**70}},
}


@given(data=st.data())
def test_a_forged_record_gives_a_tree_or_an_error(data: st.DataObject) -> None:
    blob = encode(flatten(RECORDED))
    header = header_of(blob)
    record = json.loads(header["__metadata__"][RECORD_KEY])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(record)))
        record = changed(record, place, data.draw(json_values))
    header["__metadata__"][RECORD_KEY] = json.dumps(record)
    forged = with_header(blob, header)
    fault = None
    try:
        leaves = decode(forged)
        tree = unflatten(leaves)
    except (InvalidFileError, TransformError) as error:
        fault = str(error)
    if fault is not None:
        assert fault.startswith(("<bytes>: ", "leaves: "))
        return
    # Every tensor is there, and the accepted record can be stored and read again.
    try:
        found = jax.tree.leaves(tree)
    except TypeError:  # JAX 0.8 cannot flatten an OrderedDict that has the key None.
        assert jax.__version_info__ < (0, 9)
        found = list(leaves.values())
    assert sum(hasattr(leaf, "dtype") for leaf in found) == 5
    assert encode(decode(encode(leaves))) == encode(leaves)
