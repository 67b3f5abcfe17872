"""Placing all: the lazy leaves of a tree are read and placed at once."""

import threading
from collections.abc import Iterable
from typing import Any, TypeVar

import jax

from safejax._src.arrays.at_once import place_at_once
from safejax._src.arrays.lazy import LazyArray
from safejax._src.progress import Progress

_Tree = TypeVar("_Tree")


def lazy_leaves(tree: Any) -> list[LazyArray]:
    """The lazy leaves of a tree, each once, in the tree's order."""
    leaves = jax.tree_util.tree_leaves(tree)
    return list({id(leaf): leaf for leaf in leaves if isinstance(leaf, LazyArray)}.values())


def place_all(
    tree: _Tree, progress: Progress | None = None, first: Iterable[LazyArray] = ()
) -> _Tree:
    """The same tree with every lazy leaf a plain, placed `jax.Array`; leaves are read in parallel.

    `progress` is called with bytes of leaves. Before all others come the leaves that `first`
    yields, which places them.
    """
    lazy = lazy_leaves(tree)
    for leaf in lazy:
        leaf.warn_if_narrowed()
    total = 0 if progress is None else sum(leaf.nbytes for leaf in lazy)
    done = 0
    one_at_a_time = threading.Lock()

    def report(leaf: LazyArray) -> None:
        nonlocal done
        if progress is not None:
            with one_at_a_time:
                done += leaf.nbytes
                progress(done, total)

    gathered: set[int] = set()
    for leaf in first:
        gathered.add(id(leaf))
        report(leaf)

    left = (leaf for leaf in lazy if id(leaf) not in gathered)
    place_at_once(left, LazyArray.place_many_in_this_thread, report)
    return jax.tree.map(lambda leaf: leaf.placed() if isinstance(leaf, LazyArray) else leaf, tree)
