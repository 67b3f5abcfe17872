"""Placing all: the lazy leaves of a tree are read and placed at once, by several threads.

Neighbours in a file whose bytes are requested are read together.
"""

import os
import threading
from collections.abc import Iterable
from functools import partial
from typing import Any, TypeVar

import jax
from numpy.typing import NDArray

from safejax._src.arrays.lazy import LazyArray
from safejax._src.arrays.precision import needs_x64
from safejax._src.arrays.together import read_together
from safejax._src.arrays.untraced import run_all_untraced
from safejax._src.dtypes import Dtype
from safejax._src.progress import Progress
from safejax._src.reading.readahead import read_ahead

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
    in_place: list[NDArray[Any]] = []

    def report(leaf: LazyArray) -> None:
        nonlocal done
        if progress is not None:
            with one_at_a_time:
                done += leaf.nbytes
                progress(done, total)

    def place(leaves: list[LazyArray]) -> None:
        for leaf in leaves:
            in_place.extend(leaf.place_in_this_thread())
            report(leaf)

    def place_together(leaves: list[LazyArray]) -> None:
        in_place.extend(LazyArray.place_many_in_this_thread(leaves))
        for leaf in leaves:
            report(leaf)

    gathered: set[int] = set()
    for leaf in first:
        gathered.add(id(leaf))
        report(leaf)

    # A leaf that is worth a thread gets a task; the others share one task for each x64 mode.
    groups: list[list[LazyArray]] = [[], []]
    asked: list[LazyArray] = []
    for leaf in lazy:
        if id(leaf) in gathered:
            continue
        view = leaf.content.view
        if view.plans_reads:
            asked.append(leaf)
        elif leaf.is_worth_a_thread:
            groups.append([leaf])
        else:
            groups[needs_x64(view.dtype)].append(leaf)
    tasks = [
        (partial(place_together, group), _stored_dtype(group)) for group in read_together(asked)
    ]
    tasks += [(partial(place, group), _stored_dtype(group)) for group in groups if group]
    run_all_untraced(tasks, workers=min(8, os.cpu_count() or 1))
    placed = jax.tree.map(lambda leaf: leaf.placed() if isinstance(leaf, LazyArray) else leaf, tree)
    read_ahead(in_place)
    return placed


def _stored_dtype(group: list[LazyArray]) -> Dtype:
    return group[0].content.view.dtype
