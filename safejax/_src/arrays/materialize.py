"""Materializing: all lazy leaves of a tree read and placed at once, by several threads."""

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar

import jax
from numpy.typing import NDArray

from safejax._src.arguments import check_progress, refuse_path
from safejax._src.arrays.lazy import LazyArray
from safejax._src.arrays.precision import needs_x64
from safejax._src.arrays.untraced import run_all_untraced
from safejax._src.public import set_module
from safejax._src.reading.readahead import read_ahead

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of bytes done so far and the total number of bytes."""

_Tree = TypeVar("_Tree")


@set_module("safejax")
def materialize(tree: _Tree, *, progress: Progress | None = None) -> _Tree:
    """The same tree with every lazy leaf a plain, placed `jax.Array`; leaves are read in parallel.

    Call it before a loop: dispatch then costs what it costs for any array. Leaves that are used
    in place in a mapped file are brought into memory in the background, ahead of their first
    access. Leaves that are not lazy are kept. `progress(done, total)` is called with bytes of
    leaves.

    >>> import jax.numpy as jnp, safejax
    >>> tree = safejax.deserialize(safejax.serialize({"w": jnp.ones(3)}))
    >>> isinstance(safejax.materialize(tree)["w"], safejax.LazyArray)
    False
    """
    check_progress(progress, "materialize")
    refuse_path(tree, "materialize", "pass safejax.load(path)")
    lazy: dict[int, LazyArray] = {}
    for leaf in jax.tree_util.tree_leaves(tree):
        if isinstance(leaf, LazyArray):
            lazy[id(leaf)] = leaf
            leaf.warn_if_narrowed()
    total = sum(leaf.nbytes for leaf in lazy.values())
    done = 0
    one_at_a_time = threading.Lock()
    in_place: list[NDArray[Any]] = []

    def place(leaves: list[LazyArray]) -> None:
        nonlocal done
        for leaf in leaves:
            in_place.extend(leaf.place_in_this_thread())
            if progress is not None:
                with one_at_a_time:
                    done += leaf.nbytes
                    progress(done, total)

    # A leaf that is worth a thread gets a task; the others share one task for each x64 mode.
    groups: list[list[LazyArray]] = [[], []]
    for leaf in lazy.values():
        if leaf.is_worth_a_thread:
            groups.append([leaf])
        else:
            groups[needs_x64(leaf.content.view.dtype)].append(leaf)
    tasks = [(partial(place, group), group[0].content.view.dtype) for group in groups if group]
    run_all_untraced(tasks, workers=min(8, os.cpu_count() or 1))
    placed = jax.tree.map(lambda leaf: leaf.placed() if isinstance(leaf, LazyArray) else leaf, tree)
    read_ahead(in_place)
    return placed
