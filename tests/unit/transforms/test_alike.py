"""What a step finds once for leaves that are alike is what it would find for each of them."""

from typing import Any

import jax
import numpy as np
import pytest

import safejax
from safejax import Leaves, TransformError, cast, chain, reshape, transpose
from safejax._src.arrays.content import Content
from safejax._src.transforms.alike import Alike
from tests.support.leaves import stored

# Some are alike, of one file or of arrays in memory, and some are like no other one.
TREE: dict[str, Any] = {
    "a": np.arange(24, dtype=np.float32).reshape(4, 6),
    "b": np.arange(24, dtype=np.float32).reshape(4, 6) + 100,
    "c": np.arange(24, dtype=np.float16).reshape(4, 6),
    "d": np.arange(24, dtype=np.float32).reshape(6, 4),
    "e": np.arange(24, dtype=np.float32).reshape(4, 6) - 100,
    "f": np.arange(6, dtype=np.float32).reshape(1, 6),
    "k": jax.random.split(jax.random.key(3), (4, 6)),
    "l": jax.random.split(jax.random.key(4), (4, 6)),
    "w": jax.lax.full((4, 6), 1.5),
    "n": 3,
}
_SAME = ["a", "b", "c", "e", "k", "l"]
STEPS: dict[str, safejax.Transform] = {
    "transpose": transpose(_SAME, must_match=False),
    "cast": cast("bfloat16", must_match=False),
    "cast, of a dtype": cast("bfloat16", source="float32", must_match=False),
    "reshape": reshape([*_SAME, "d"], (2, 12), must_match=False),
    "a chain": chain(
        cast("bfloat16", must_match=False),
        transpose(["a", "b", "c", "e", "k"], must_match=False),
        reshape(["a", "b", "d", "e"], (3, 8), must_match=False),
    ),
    "there and back": chain(
        cast("bfloat16", source="float32", must_match=False),
        transpose(["a", "b"], must_match=False),
        transpose(["a", "b", "e"], must_match=False),
        cast("float32", source="bfloat16", must_match=False),
    ),
}


def made(step: safejax.Transform, leaves: Leaves) -> dict[str, tuple[Any, ...]]:
    return {
        name: (leaf,) if isinstance(leaf, int) else (
            leaf.shape, leaf.dtype, leaf.content.weak_type, leaf.name,
            np.asarray(jax.random.key_data(leaf) if name in "kl" else leaf).tobytes(),
        )
        for name, leaf in step(leaves).items()
    }  # fmt: skip


@pytest.mark.parametrize("case", STEPS)
@pytest.mark.parametrize("names", ["abcdefklwn", "nwlkfedcba", "ebdac"])
def test_all_leaves_together_and_each_alone(case: str, names: str) -> None:
    leaves = stored(TREE)
    together = made(STEPS[case], Leaves({name: leaves[name] for name in names}))
    assert list(together) == list(names)
    for name in names:
        alone = made(STEPS[case], Leaves({name: leaves[name]}))
        assert alone == {name: together[name]}, name


def test_every_leaf_at_fault_is_named() -> None:
    """What is an error is not remembered."""
    leaves = stored({"a": np.zeros((2, 3)), "b": np.zeros((2, 3)), "c": np.zeros((2, 6))})
    with pytest.raises(TransformError, match=r"leaf 'a': .*'b' is at fault, too"):
        reshape("*", (3, 4))(leaves)
    assert reshape("c", (3, 4))(leaves)["c"].shape == (3, 4)


def test_the_function_is_called_once_for_each_kind() -> None:
    calls: list[str] = []

    def turn(name: str, content: Content) -> Content:
        calls.append(name)
        return content.of(content.view.transpose((1, 0)))

    alike, leaves = Alike(turn), stored(TREE)
    for name in "abcde":
        changed = alike(name, leaves[name].content)
        assert changed.view.read().tobytes() == np.asarray(leaves[name]).T.tobytes()
    assert calls == ["a", "c", "d"]
