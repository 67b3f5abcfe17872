"""Trees become names and are rebuilt, with strings and numbers in place of arrays."""

import enum
import json
import time
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import safejax
from safejax._src.pytrees.building import build, register_container
from safejax._src.pytrees.structure import (
    EMPTY,
    MAX_DEPTH,
    Kind,
    Structure,
    container_key,
    container_segments,
    paths_of,
)
from safejax._src.pytrees.walk import walk
from safejax.errors import LeafError, TransformError

Pair = namedtuple("Pair", ["first", "second"])


class Keyless:
    """A node without keys that JAX knows."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keyless) and self.items == other.items

    __hash__ = None  # type: ignore[assignment]


class Twice:
    """A node whose two children have the same key."""

    def __init__(self, items: Any) -> None:
        self.items = tuple(items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Twice) and self.items == other.items

    __hash__ = None  # type: ignore[assignment]


jax.tree_util.register_pytree_node(
    Keyless, lambda node: (node.items, None), lambda _, items: Keyless(*items)
)
jax.tree_util.register_pytree_with_keys(
    Twice,
    lambda node: ([(jax.tree_util.GetAttrKey("x"), item) for item in node.items], None),
    lambda _, items: Twice(items),
)


def deep(depth: int, leaf: Any = 7) -> Any:
    for _ in range(depth):
        leaf = {"k": leaf}
    return leaf


def same(actual: Any, expected: Any) -> bool:
    """Whether two trees agree in node types, keys, their order where it matters, and leaves."""
    return (
        jax.tree.structure(actual) == jax.tree.structure(expected)
        and jax.tree.leaves(actual) == jax.tree.leaves(expected)
        and list(map(type, jax.tree.leaves(actual))) == list(map(type, jax.tree.leaves(expected)))
    )


# The tree, its names in order, and the tree that is built from the names alone if it differs.
SAME = object()
TREES: dict[str, tuple[Any, list[str], Any]] = {
    "bare leaf": (5, [""], SAME),
    "bare string": ("x", [""], SAME),
    "none": (None, [""], SAME),
    "empty dict": ({}, [""], SAME),
    "empty list": ([], [""], SAME),
    "empty tuple": ((), [""], SAME),
    "empty ordered": (OrderedDict(), [""], SAME),
    "nested": ({"a": {"b": 1, "c": 2}, "d": 3}, ["a.b", "a.c", "d"], SAME),
    "lists": ({"l": [1, (2, [3])]}, ["l.0", "l.1.0", "l.1.1.0"], SAME),
    "empties within": ({"a": [], "b": {}, "c": (), "d": None, "e": [None]},
                       ["a", "b", "c", "d", "e.0"], SAME),
    "flat dict of names": ({"m.l.0.w": 1, "m.l.1.w": 2}, ["m.l.0.w", "m.l.1.w"], SAME),
    "flat within": ({"p": {"m.l.0.w": 1, "x": 2}, "q": {"x.y": {"z": 3}}},
                    ["p.m.l.0.w", "p.x", "q.x.y.z"], SAME),
    "flat in a list": ([{"a.b": 1}, {"a.b": 2}], ["0.a.b", "1.a.b"], SAME),
    "flat below a dotted key": ({"a.b": {"c.d": 1}, "a": {"b": {"c.d.e": 2}}},
                                ["a.b.c.d.e", "a.b.c.d"], SAME),
    "dots that collide": ({"a": {"b": 1}, "a.b": 2}, ["a.b", "a.b~1"], SAME),
    "collides with the suffix too": ({"a": {"b": 1}, "a.b": 2, "a.b~1": 3},
                                     ["a.b", "a.b~1", "a.b~1~1"], SAME),
    "name extends a name": ({"w": 1, "w.absmax": 2}, ["w", "w.absmax"], SAME),
    "empty keys": ({"": {"": 1, ".": 2}, ".": 3, "..": 4}, [".", "..", ".~1", "..~1"], SAME),
    "empty key": ({"": 1}, [""], SAME),
    "empty key and its container": ({"a": {"": 1}, "a.": 2}, ["a.", "a.~1"], SAME),
    "metadata": ({"__metadata__": 1}, ["__metadata__~1"], SAME),
    "metadata below": ({"x": {"__metadata__": 1}}, ["x.__metadata__"], SAME),
    "tilde": ({"x~1": 1, "x": 2}, ["x", "x~1"], SAME),
    "slashes": ({"net/~/linear": {"w": 1}}, ["net/~/linear.w"], SAME),
    "brackets": ({'["a"]': {"b": 1}, "[": {"c": 2}}, ["[.c", '["a"].b'], SAME),
    "nul and emoji": ({"\x00": 1, "🦎é": 2}, ["\x00", "🦎é"], SAME),
    "half a pair": ({"\ud800": 1, "\\ud800": 2}, ["\\ud800", "\\ud800~1"], SAME),
    "ints": ({0: 1, -3: 2, 10: 3}, ["-3", "0", "10"], SAME),
    "ints within": ({"a": {1: {2: 3}}}, ["a.1.2"], SAME),
    "digits": ({"0": 1, "1": 2}, ["0", "1"], SAME),
    "bools": ({True: 1, False: 2}, ["False", "True"], SAME),
    "floats": ({1.5: 1, 2.0: 2, float("inf"): 3}, ["1.5", "2.0", "inf"], SAME),
    "bytes": ({b"\xff": 1}, ["b'\\xff'"], SAME),
    "none key": ({None: 1}, ["None"], SAME),
    "tuples": ({("a", 1): 1, ("a", 2): {"x": 2}}, ["('a', 1)", "('a', 2).x"], SAME),
    "ordered": (OrderedDict(b=1, a=2), ["b", "a"], SAME),
    "ordered 1 and '1'": (OrderedDict([("1", 1), (1, 2)]), ["1", "1~1"], SAME),
    "ordered '1' and 1": (OrderedDict([(1, 1), ("1", 2)]), ["1", "1~1"], SAME),
    "ordered dots": (OrderedDict([("b.c", 1), ("a", 2)]), ["b.c", "a"], SAME),
    "defaultdict": (defaultdict(int, {"b": 1, "a": 2}), ["a", "b"], {"a": 2, "b": 1}),
    "namedtuple": ({"s": Pair(1, [2])}, ["s.first", "s.second.0"],
                   {"s": {"first": 1, "second": [2]}}),
    "keyless": (Keyless(1, {"a": 2}), ["0", "1.a"], {"0": 1, "1": {"a": 2}}),
    "one key twice": (Twice([1, 2, 3]), ["x", "x~1", "x~2"], {"x": 1, "x~1": 2, "x~2": 3}),
    "deep": (deep(MAX_DEPTH), [".".join("k" * MAX_DEPTH)], SAME),
}  # fmt: skip


@pytest.mark.parametrize("case", TREES)
def test_names_of_a_tree(case: str) -> None:
    tree, names, _ = TREES[case]
    assert list(walk(tree).entries) == names


@pytest.mark.parametrize("case", TREES)
def test_a_tree_comes_back_unchanged_in_the_same_process(case: str) -> None:
    tree, _, _ = TREES[case]
    walked = walk(tree)
    assert same(build(walked.entries, walked.structure, "f"), tree)


@pytest.mark.parametrize("case", TREES)
def test_a_tree_comes_back_from_names_kinds_and_paths(case: str) -> None:
    tree, _, expected = TREES[case]
    walked = walk(tree)
    stored = Structure(walked.structure.kinds, walked.structure.paths)
    # In a file, the order of the entries is that of their data.
    for entries in (walked.entries, dict(reversed(walked.entries.items()))):
        built = build(entries, stored, "f")
        assert same(built, tree if expected is SAME else expected)
        if isinstance(tree, dict) and expected is SAME:
            assert built == tree
            assert type(built) is type(tree)


@pytest.mark.parametrize("case", TREES)
def test_paths_are_the_keys_that_lead_to_leaves(case: str) -> None:
    tree, names, _ = TREES[case]
    walked = walk(tree)
    paths = paths_of(walked.entries, walked.structure, "f")
    assert len(set(paths.values())) == len(names)
    stored = paths_of(names, Structure(walked.structure.kinds, walked.structure.paths), "f")
    assert stored == paths


def test_names_of_hugging_face_need_one_kind_and_no_paths() -> None:
    structure = walk({f"model.layers.{i}.w": i for i in range(100)}).structure
    assert structure.kinds == {"": Kind(flat=True)}
    assert structure.paths == {}


def test_plain_trees_need_no_record() -> None:
    structure = walk({"a": {"b": 1, "1": 2}, "c": {"d": {"e": 3}}}).structure
    assert (structure.kinds, structure.paths) == ({}, {})


def test_integer_keys_are_recorded_in_one_word() -> None:
    assert walk({i: i for i in range(100)}).structure.kinds == {"": Kind(keys="int")}


# ---- names without a record

FOREIGN: dict[str, tuple[list[str], Any]] = {
    "dots": (["a.b", "a.c.d"], {"a": {"b": 0, "c": {"d": 1}}}),
    "digits stay strings": (["l.0", "l.1"], {"l": {"0": 0, "1": 1}}),
    "an extended name": (["w", "w.absmax"], {"w": 0, "w.absmax": 1}),
    "the longer one first": (["w.absmax", "w"], {"w": 1, "w.absmax": 0}),
    "extended twice": (["x.w", "x.w.a", "x.w.a.b"], {"x": {"w": 0, "w.a": 1, "w.a.b": 2}}),
    "a neighbour that sorts between": (["w", "w-", "w.a"], {"w": 0, "w-": 1, "w.a": 2}),
    "the root is no name": (["", "a"], {"": 0, "a": 1}),
    "an empty name extended": (["", ".a"], {"": 0, ".a": 1}),
    "only dots": ([".", ".."], {"": {"": 0, ".": 1}}),
    "double dots": (["a..b"], {"a": {"": {"b": 0}}}),
    "nothing": ([], {}),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_names_without_a_record_split_at_their_dots(case: str) -> None:
    names, expected = FOREIGN[case]
    entries = {name: number for number, name in enumerate(names)}
    assert build(entries, Structure(), "f") == expected


CONTRADICTIONS: dict[str, tuple[list[str], Structure]] = {
    "one place for two": (["a", "b"], Structure(paths={"b": ("a",)})),
    "a leaf within a leaf": (["a", "b"], Structure(paths={"a": ("x",), "b": ("x",)})),
    "the whole tree among others": (["", "a"], Structure(paths={"": ()})),
    "two whole trees": (["", "~1"], Structure(paths={"": (), "~1": ()})),
    "too deep": ([".".join("k" * (MAX_DEPTH + 1))], Structure()),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_names_that_contradict_each_other(case: str) -> None:
    names, structure = CONTRADICTIONS[case]
    with pytest.raises(TransformError, match=r"^m\.safetensors: leaf .*rename"):
        build(dict.fromkeys(names, 0), structure, "m.safetensors")


@pytest.mark.parametrize("flat", [False, True])
def test_a_million_dots_are_refused_at_once(flat: bool) -> None:
    structure = Structure({"x": Kind(flat=flat)})
    begin = time.process_time()
    with pytest.raises(TransformError, match="at most 500 nested containers"):
        build({"." * 1_000_000: 0}, structure, "f")
    assert time.process_time() - begin < 10


# ---- after a transform

Entries = dict[str, Any]


def without(*names: str) -> Callable[[Entries], Entries]:
    return lambda entries: {name: leaf for name, leaf in entries.items() if name not in names}


def renamed(old: str, new: str) -> Callable[[Entries], Entries]:
    return lambda entries: {new if name == old else name: leaf for name, leaf in entries.items()}


def set_to(**changes: Any) -> Callable[[Entries], Entries]:
    return lambda entries: {**entries, **changes}


CHANGED: dict[str, tuple[Any, Callable[[Entries], Entries], Any]] = {
    "list, first gone": ([1, 2], without("0"), {"1": 2}),
    "list, last gone": ([1, 2], without("1"), [1]),
    "list, one more": ((1, 2), set_to(**{"2": 3}), (1, 2, 3)),
    "list, a name among it": ([1], set_to(x=2), {"0": 1, "x": 2}),
    "list, all gone": ({"a": [1], "b": 2}, without("a.0"), {"b": 2}),
    "namedtuple, a field gone": (Pair(1, 2), without("second"), {"first": 1}),
    "ordered, one gone": (OrderedDict(c=1, b=2, a=3), without("b"), OrderedDict(c=1, a=3)),
    "ordered, more": (OrderedDict(c=1, b=2), set_to(x=3, a=4), OrderedDict(c=1, b=2, a=4, x=3)),
    "tuple keys, one gone": ({("a", 1): 1, ("b", 2): 2}, without("('a', 1)"), {("b", 2): 2}),
    "int keys, one gone": ({1: 1, 2: 2}, without("1"), {2: 2}),
    "int keys, one more": ({1: 1, 2: 2}, set_to(**{"7": 3}), {1: 1, 2: 2, 7: 3}),
    "int keys, a name among them": ({1: 1}, set_to(x=2), {"1": 1, "x": 2}),
    "bool keys, a name among them": ({True: 1}, set_to(x=2), {"True": 1, "x": 2}),
    "ordered mixed keys, a name": (OrderedDict([(1, 1)]), set_to(x=2),
                                   OrderedDict([(1, 1), ("x", 2)])),
    "swapped by name": ({"a": 1, "b": 2}, lambda e: {"b": e["a"], "a": e["b"]}, {"a": 2, "b": 1}),
    "none becomes a leaf": ([None, 1], set_to(**{"0": 5}), [5, 1]),
    "a leaf becomes none": ([None, 1], set_to(**{"1": None}), [None, None]),
    "a leaf becomes empty": ([3, 1], set_to(**{"0": EMPTY}), [{}, 1]),
    "none and a leaf change places": ([None, 1], set_to(**{"0": 1, "1": None}), [1, None]),
    "none becomes empty": ([None, 1], set_to(**{"0": EMPTY}), [{}, 1]),
    "an empty tuple becomes none": ([(), 1], set_to(**{"0": None}), [None, 1]),
    "renamed into a container": ([1, 2], renamed("1", "1.x"), [1, {"x": 2}]),
    "renamed out of its path": ({"a": {"b": 1}, "a.b": 2}, renamed("a.b~1", "c"),
                                {"a": {"b": 1}, "c": 2}),
    "a leaf where a container was": ({"a": [1]}, lambda e: {"a": 2}, {"a": 2}),
    "all gone": ({"a": 1}, lambda e: {}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGED)
@pytest.mark.parametrize("in_process", [True, False])
def test_kinds_are_used_where_the_children_fit(case: str, in_process: bool) -> None:
    tree, change, expected = CHANGED[case]
    walked = walk(tree)
    structure = walked.structure
    if not in_process:
        structure = Structure(structure.kinds, structure.paths)
    built = build(change(dict(walked.entries)), structure, "f")
    assert same(built, expected)
    assert built == expected
    assert type(built) is type(expected)
    if isinstance(expected, OrderedDict):
        assert list(built) == list(expected)


def test_aliases_refer_to_existing_children() -> None:
    structure = Structure({"": Kind(order=("b", "c", "a"), aliases=(("c", "a"),))})
    assert list(build({"a": 1, "b": 2}, structure, "f").items()) == [("b", 2), ("c", 1), ("a", 1)]
    assert build({"b": 2}, structure, "f") == {"b": 2}


def test_a_class_is_a_dict_until_its_adapter_is_in_use() -> None:
    structure = Structure({"": Kind("test_structure.Box"), "in": Kind("test_structure.Box")})
    entries = {"in.x": 1, "y": 2}
    assert build(entries, structure, "f") == {"in": {"x": 1}, "y": 2}
    register_container("test_structure.Box", lambda children: ("box", children))
    assert build(entries, structure, "f") == ("box", {"in": ("box", {"x": 1}), "y": 2})


@pytest.mark.parametrize(
    "kind", ["", "dict", "collections.Nothing", "haiku._src.data_structures.FlatMap"]
)
def test_a_forged_kind_never_gives_keys_that_jax_cannot_sort(kind: str) -> None:
    kinds = {"": Kind(kind, keys=(("1", 1), ("1~1", "1")), order=("1", "1~1"))}
    built = build({"1": 3, "1~1": 4}, Structure(kinds), "f")
    assert jax.tree.leaves(built) == [3, 4]


# ---- trees that cannot be stored

REFUSED: dict[str, tuple[Any, str]] = {
    "keys of two types": ({"a": {1: 0, "1": 1}}, r"container 'a': .* got \['int', 'str'\]: use"),
    "a key of NumPy's": ({"a": {np.datetime64(3, "s"): 0}}, "container 'a': expected dict keys of"),
    "a key within a tuple": ({(1, frozenset()): 0}, "expected dict keys of str, int"),
    "a range": ({range(3): 0}, r"got range range\(0, 3\)"),
    "too deep": (deep(MAX_DEPTH + 1), "at most 500 nested containers"),
    "endless": (None, "at most 500 nested containers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_trees_that_cannot_be_stored(case: str) -> None:
    tree, message = REFUSED[case]
    if case == "endless":
        tree = []
        tree.append(tree)
    with pytest.raises(LeafError, match=message):
        walk(tree)


def test_the_caller_decides_what_a_leaf_is() -> None:
    tree = {"a": [1, 2], "b": None}
    walked = walk(tree, lambda node: node is None or isinstance(node, list))
    assert walked.entries == {"a": [1, 2], "b": None}
    assert walked.structure.flattened is not None
    assert walked.structure.flattened.names == ("a", "b")


# ---- container keys

SEGMENTS = [
    (), ("",), ("", ""), ("a",), ("a", "b"), ("a.b",), ("a", ""), ("", "a"), (".",), ("[",),
    ("[]",), ('["a"]',), ("a", "["), ("é",), ("a", "b.c"), ("a.b", "c"), ('["a","b"]', "c"),
]  # fmt: skip


def test_container_keys_are_distinct_and_can_be_parsed() -> None:
    keys = [container_key(segments) for segments in SEGMENTS]
    assert len(set(keys)) == len(SEGMENTS)
    assert [container_segments(key) for key in keys] == SEGMENTS


@pytest.mark.parametrize(
    "key", ["[", "[1]", '[["a"]]', '["a"', '["a", "b"]', '["a","b"]', "[" * 99_999]
)
def test_other_strings_are_not_container_keys(key: str) -> None:
    with pytest.raises((ValueError, RecursionError)):
        container_segments(key)


# ---- size


def test_a_hundred_thousand_names_take_seconds() -> None:
    leaf = np.zeros(2, np.float32)
    tree = {"layers": [{"attn": {"w": leaf, "b": leaf}, "n": leaf} for _ in range(33_334)]}
    begin = time.process_time()
    walked = walk(tree)
    stored = walked.structure._replace(flattened=None)
    built = build(walked.entries, stored, "f")
    assert time.process_time() - begin < 20
    assert len(walked.entries) == 100_002
    assert jax.tree.structure(built) == jax.tree.structure(tree)


def test_keys_of_kinds_are_json() -> None:
    kinds = walk({"a.b": {"c": [1]}}).structure.kinds
    assert kinds == {json.dumps(["a.b", "c"], separators=(",", ":")): Kind("list")}


def test_keys_of_subclasses_and_of_numpy_are_stored_as_what_they_are_equal_to() -> None:
    """(R6)"""
    rank = enum.IntEnum("Rank", {"ONE": 1, "TWO": 2})
    named = enum.Enum("Named", {"A": 1}, type=int)
    cases: list[tuple[dict[Any, Any], dict[Any, Any]]] = [
        ({rank["TWO"]: 2.0, rank["ONE"]: 1.0}, {1: 1.0, 2: 2.0}),
        ({named["A"]: 1.0}, {1: 1.0}),
        ({np.int64(3): 1.0, np.uint8(4): 2.0}, {3: 1.0, 4: 2.0}),
        ({np.float32(0.5): 1.0}, {0.5: 1.0}),
        ({np.bool_(True): 1.0}, {True: 1.0}),
        ({(np.int32(1), np.str_("a")): 1.0}, {(1, "a"): 1.0}),
        ({np.bytes_(b"a"): 1.0}, {b"a": 1.0}),
    ]
    for tree, expected in cases:
        found = safejax.deserialize(safejax.serialize(tree))
        assert found == expected
        for key, stored in zip(found, expected, strict=True):
            assert type(key) is type(stored)
            if isinstance(key, tuple):
                assert [type(part) for part in key] == [int, str]
        assert safejax.serialize(tree) == safejax.serialize(expected)
        # In this process the keys are those of the tree, and like has its own.
        for same in (safejax.unflatten(safejax.flatten(tree)),
                     safejax.deserialize(safejax.serialize(tree), like=tree)):  # fmt: skip
            assert [type(key) for key in same] == [type(key) for key in sorted(tree)]
