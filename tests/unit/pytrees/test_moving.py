"""Kinds of containers move with them (S4)."""

from collections import OrderedDict
from typing import Any

import jax.numpy as jnp
import pytest

import safejax
from safejax import Leaves, chain, drop, flatten, prefix, rename, select, unflatten
from safejax.testing import assert_trees_identical
from tests.support.leaves import stored, through_file

A, B, C = (jnp.full((2,), value) for value in (1.0, 2.0, 3.0))


TREES = {
    "lists and ints": {"s": [A, {3: B}], "u": (C,)},
    "an empty tuple": {"s": (), "w": A},
    "an ordered dict": {"s": OrderedDict(b=A, a=B), "w": C},
    "a key with a dot": {"s": {"x.y": A, "z": [B]}},
    "a key that reads like another's name": {"s": {"x.y": A, "x": {"y": [B]}}},
    "keys of several kinds": {"s": {True: A}, "t": {(1, "a"): B}, "u": {None: C}},
    "a list of lists": [[A, (B,)], [C]],
    "a flat dict": {"s": {"a.b": A, "c": B}},
}
every_tree = pytest.mark.parametrize("tree", TREES.values(), ids=TREES)


@every_tree
def test_a_prefix_moves_the_whole_tree(tree: Any) -> None:
    assert_trees_identical(through_file(tree, prefix("net")), {"net": tree})
    assert_trees_identical(through_file(tree, prefix("net.1")), {"net": {"1": tree}})
    assert_trees_identical(unflatten(prefix("net")(flatten(tree))), {"net": tree})


@every_tree
def test_a_prefix_that_is_removed_moves_it_back(tree: Any) -> None:
    assert_trees_identical(through_file({"net": tree}, prefix("net").inverse), tree)
    there_and_back = chain(prefix("net"), prefix("net").inverse)
    assert_trees_identical(through_file(tree, there_and_back), tree)
    leaves = flatten(tree)
    assert there_and_back(leaves).structure == leaves.structure


@every_tree
def test_a_rename_of_the_root_moves_the_whole_tree(tree: Any) -> None:
    renamed = through_file({"net": tree}, rename({"net.*": "other.place.*"}))
    assert_trees_identical(renamed, {"other": {"place": tree}})


def test_a_rename_moves_a_container() -> None:
    tree = {"s": [A, {3: B}], "u": (C,)}
    renamed = through_file(tree, rename({"s.*": "t.*"}))
    assert_trees_identical(renamed, {"t": [A, {3: B}], "u": (C,)})
    swapped = through_file(tree, rename({"s.*": "u.*", "u.*": "s.*"}))
    assert_trees_identical(swapped, {"u": [A, {3: B}], "s": (C,)})


def test_a_swap_of_containers_of_a_tree_in_memory() -> None:
    tree = {"s": [A, B], "u": (C, A)}
    swap = rename({"s.*": "u.*", "u.*": "s.*"})
    assert_trees_identical(unflatten(swap(flatten(tree))), {"u": [A, B], "s": (C, A)})
    assert_trees_identical(unflatten(swap.inverse(swap(flatten(tree)))), tree)


def test_a_swap_in_three_steps() -> None:
    tree = {"s": [A, B], "u": (C, A)}
    steps = [{"s.*": "x.*"}, {"u.*": "s.*"}, {"x.*": "u.*"}]
    leaves = chain(*map(rename, steps))(flatten(tree))
    assert_trees_identical(unflatten(leaves), {"u": [A, B], "s": (C, A)})


def test_an_empty_container_moves() -> None:
    assert through_file({"s": (), "t": [], "u": {}}, rename({"s": "v", "t": "w"})) == {
        "v": (), "w": [], "u": {},
    }  # fmt: skip


def test_a_part_of_a_container_leaves_its_kind() -> None:
    renamed = through_file([A, B], rename({"0": "first"}))
    assert_trees_identical(renamed, {"first": A, "1": B})
    there = rename({"0": "first"})(flatten([A, B]))
    assert_trees_identical(unflatten(rename({"0": "first"}).inverse(there)), [A, B])


def test_leaves_that_come_to_others_make_a_dict() -> None:
    renamed = through_file({"s": [A], "t": {"x": B}}, rename({"s.0": "t.0"}))
    assert_trees_identical(renamed, {"t": {"0": A, "x": B}})


def test_what_is_saved_after_a_rename_has_the_kinds() -> None:
    data = safejax.serialize({"s": [A, {3: B}]}, transform=prefix("net"))
    assert_trees_identical(safejax.deserialize(data), {"net": {"s": [A, {3: B}]}})


def test_leaves_of_another_writer_have_no_kinds() -> None:
    leaves = Leaves({"s.0": 1, "s.1": 2})
    assert unflatten(prefix("net")(leaves)) == {"net": {"s": {"0": 1, "1": 2}}}


@pytest.mark.parametrize("count", [2, 40])
def test_the_kind_of_a_container_goes_with_its_last_leaf(count: int) -> None:
    """Whether few or many are recorded; one with a key of several segments, and an empty one."""
    tree = {f"k{i}": [A, {"x.y": (B,)}] for i in range(count)} | {"e": [], "a.b": [C]}
    leaves = flatten(tree)
    assert len(leaves.structure.kinds) == 2 * count + 2
    left = drop("k1.*", "e", "k0.1.*")(leaves)
    gone = {"k1", '["k1","1","x.y"]', "e", '["k0","1","x.y"]'}
    assert left.structure.kinds.keys() == leaves.structure.kinds.keys() - gone
    assert select("a.b.*")(leaves).structure.kinds.keys() == {'["a.b"]'}


DEEP = ".".join("d" * 60_000)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (drop("d.*"), {"s": [A, B]}),
        (select("s.*"), {"s": [A, B]}),
        (rename({DEEP: "s.2"}), {"s": [A, B, C]}),
        (rename({DEEP: "t"}), {"s": [A, B], "t": C}),
    ],
    ids=["drop", "select", "rename in a list", "rename"],
)
def test_a_name_that_is_too_deep_for_a_tree_is_left_out_or_renamed(
    step: Any, expected: Any
) -> None:
    """That is the remedy, so the step must not refuse it, also where lists are recorded."""
    leaves = flatten({"s": [A, B]})
    assert_trees_identical(unflatten(step(leaves.replace({**leaves, DEEP: C}))), expected)


@pytest.mark.parametrize(
    ("tree", "transform", "expected"),
    [
        ({"": A, "a": B}, prefix("m"), {"m": A, "m.a": B}),
        ({"": A, ".a": B}, prefix("m"), {"m": A, "m..a": B}),
        ({"": A, ".bias": B}, rename({"*.bias": "b.*"}), {"": A, "b.": B}),
    ],
)
def test_the_empty_key(tree: Any, transform: Any, expected: dict[str, Any]) -> None:
    """Files of these could not be read: the path of the leaf was not that of its name."""
    leaves = transform(flatten(tree))
    assert_trees_identical(dict(stored(leaves)), expected)
    inverse = chain(transform, transform.inverse)
    assert_trees_identical(safejax.deserialize(safejax.serialize(tree, transform=inverse)), tree)
