"""`safejax.testing`: its strategies draw what they say, and its assertions find each difference."""

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

import safejax
from safejax import chain, encode, flatten
from safejax._src.leaves.leaf import is_array
from safejax._src.pytrees.choices import predicate
from safejax.testing import arrays, assert_round_trip, assert_trees_identical, pytrees_matching

# ---- trees in which patterns match

MATRIX = arrays(np.float32, (6, 4))

TRANSFORMS: dict[str, tuple[Any, safejax.Transform]] = {
    "transpose": ({"*.kernel": MATRIX}, safejax.transpose("*.kernel")),
    "rename": ("layers.{i}.*", safejax.rename({"layers.{i}.*": "blocks.{i}.*"})),
    "prefix": (("a", "{i}"), safejax.prefix("model")),
    "cast": (
        {"*.w": arrays("int8")},
        safejax.cast("int16", source="int8", where="*.w"),
    ),
    "reshape": (
        {"{i}.q": MATRIX, "{i}.k": MATRIX},
        safejax.reshape("{i}.q", (2, 3, 4), source=(6, 4)),
    ),
    "stack": ({"layers.{i}.*": MATRIX}, safejax.stack("layers.{i}.*", "stacked.*")),
    "split": ({"*.qkv": MATRIX}, safejax.split("*.qkv", ["*.q", "*.k", "*.v"])),
    "concat": (
        {"{i}.k": MATRIX, "{i}.v": MATRIX},
        safejax.concat(["{i}.k", "{i}.v"], "{i}.kv"),
    ),
    "pad": ({"*.embed": MATRIX}, safejax.pad("*.embed", axis=0, to=8, source=6)),
    "elementwise": (
        {"*.scale": arrays("int16")},
        safejax.elementwise(np.invert, "*.scale", inverse=np.invert),
    ),
    "several": (
        {"*.kernel": MATRIX, "*.bias": MATRIX},
        safejax.chain(safejax.transpose("*.kernel"), safejax.rename({"*.bias": "b.*"})),
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_ten_lines_of_the_readme_for_transforms_that_name_leaves(name: str) -> None:
    patterns, my_transform = TRANSFORMS[name]

    @given(tree=pytrees_matching(patterns))
    def test_my_transform(tree: Any) -> None:
        assert_round_trip(tree, pipeline=chain(flatten, my_transform, encode))

    test_my_transform()


def test_a_transform_whose_new_names_are_among_the_near_misses() -> None:
    @given(tree=pytrees_matching({"layers.{i}.*": MATRIX}, near_misses=False))
    def test_my_transform(tree: Any) -> None:
        assert_round_trip(tree, pipeline=chain(flatten, safejax.stack("layers.{i}.*"), encode))

    test_my_transform()


PATTERNS = ["*.kernel", "layers.{i}.*", "{a}.{b}.w", "*", "w", "{{x}}.{i}", "*.a.*.b", "{i}.{i}"]


@pytest.mark.parametrize("pattern", PATTERNS)
@given(data=st.data())
def test_each_pattern_matches(pattern: str, data: st.DataObject) -> None:
    leaf = st.just(np.int8(1))
    tree = data.draw(pytrees_matching({pattern: leaf, "exactly": leaf}, others=st.just(2.5)))
    leaves = flatten(tree)
    assert "exactly" in leaves
    names = [name for name in leaves if predicate(pattern)(name)]
    assert names
    for name, found in leaves.items():
        assert is_array(found) == (name in names or name == "exactly")


def test_leaves_of_several_patterns_are_drawn_for_the_first() -> None:
    @given(tree=pytrees_matching({"*.w": st.just(1), "*": st.just(2)}))
    def check(tree: Any) -> None:
        for name, leaf in flatten(tree).items():
            assert leaf == (1 if name.endswith(".w") else 2)

    check()


def names_of(tree: Any) -> set[str]:
    return set(flatten(tree))


def is_drawn(trees: st.SearchStrategy[Any], condition: Callable[[Any], bool]) -> bool:
    """Whether a tree like this is drawn; it need not be the simplest one."""
    try:
        find(trees, condition, settings=settings(max_examples=2000, phases=[Phase.generate]))
    except NoSuchExample:
        return False
    return True


@pytest.mark.parametrize(
    "near", [r".*\.kernels", r".*\.KERNEL|.*\.[kK]ERNEL", r".*\.kernel\.x", "step"]
)
def test_near_misses_are_drawn(near: str) -> None:
    trees = pytrees_matching("*.kernel")
    assert is_drawn(trees, lambda tree: any(re.fullmatch(near, name) for name in names_of(tree)))


def test_no_near_misses() -> None:
    @given(tree=pytrees_matching("*.kernel", near_misses=False))
    def check(tree: Any) -> None:
        others = {name for name in names_of(tree) if not name.endswith(".kernel")}
        assert others <= {"step", "other.w"}

    check()


@pytest.mark.parametrize("kind", [dict, list, tuple])
def test_numbered_children_are_in_dicts_lists_and_tuples(kind: type) -> None:
    trees = pytrees_matching("layers.{i}.w")
    assert is_drawn(trees, lambda tree: type(tree["layers"]) is kind)


def test_default_leaves_have_two_axes_or_more() -> None:
    @given(tree=pytrees_matching("*.kernel"))
    def check(tree: Any) -> None:
        for name, leaf in flatten(tree).items():
            assert not name.endswith(".kernel") or leaf.ndim >= 2

    check()


def test_a_pattern_that_is_not_valid() -> None:
    with pytest.raises(safejax.TransformError, match="expected a placeholder"):
        pytrees_matching("{0}")


# ---- assertions about structure


@pytest.mark.parametrize(
    ("actual", "expected", "message"),
    [
        ({"a": 1}, {"a": 1, "b": [2]}, r"missing 'b\.0'"),
        ({"a": 1, "c": 2}, {"a": 1}, "unexpected 'c'"),
        ({"a": [1]}, {"a": (1,)}, "the same names"),
        ({"a": None}, {"a": 1}, "the same names"),
    ],
)
def test_a_difference_in_structure(actual: Any, expected: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message) as said:
        assert_trees_identical(actual, expected)
    assert "expected the structure PyTreeDef(" in str(said.value)
    assert ", got PyTreeDef(" in str(said.value)


def test_structures_of_lazy_leaves_are_compared_without_reading() -> None:
    lazy = safejax.deserialize(safejax.serialize({"w": jnp.ones(3)}))
    with safejax.observe_reads() as log, pytest.raises(AssertionError, match="missing 'b'"):
        assert_trees_identical(lazy, {"w": jnp.ones(3), "b": 1})
    assert log.nbytes == 0


def test_chex_is_imported_for_the_assertions_only() -> None:
    program = (
        "import sys, safejax; assert 'chex' not in sys.modules; "
        "import safejax.testing; assert 'chex' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
