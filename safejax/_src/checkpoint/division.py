"""Division: how the leaves of a tree are divided among processes.

Every process sees the sharding of an array that spans processes. An array on devices of one process
only is, in that process, like any local array, of which each process may have one; in the others
it is an array of that process. So what others see of it is asked of them.
"""

import hashlib
import itertools
from functools import lru_cache
from typing import Any, Final, TypeAlias

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Sharding

from safejax._src.arrays.lazy import LazyArray
from safejax._src.arrays.parts import Box, Holders, holders_of, view_of_share
from safejax._src.arrays.placing import Placement
from safejax._src.leaves.leaf import content_at
from safejax._src.leaves.leaves import Leaves
from safejax._src.reading.held import held_by

Runs: TypeAlias = list[list[int]]
"""For each leaf, in order, the one process that holds it, or -1; as runs of `[count, process]`."""

NOBODY: Final = -1
"""In the place of a process, if there is not one that holds a leaf alone."""

_FEW_BYTES: Final = 1 << 20
"""Bytes of local arrays that are read in less time than an agreement takes."""


def spans_processes(tree: Any) -> bool:
    """Whether a tree has an array of which this process does not hold all."""
    # To ask for a class of JAX takes longer than all that is done for most arrays of NumPy.
    return any(type(leaf) is not np.ndarray and is_spanning(leaf) for leaf in _leaves_of(tree))


def only_holder(tree: Any) -> int | None:
    """The one other process that has all arrays of a tree, if there is one.

    For that process they are local arrays, so that it saves them alone.
    """
    arrays = [leaf for leaf in _leaves_of(tree) if isinstance(leaf, jax.Array)]
    holders = {_single_holder(leaf.sharding) if is_spanning(leaf) else -1 for leaf in arrays}
    return None if len(holders) != 1 or -1 in holders else holders.pop()


def _leaves_of(tree: Any) -> list[Any]:
    try:
        return list(tree.values()) if isinstance(tree, Leaves) else jax.tree.leaves(tree)
    except Exception:  # noqa: BLE001 - flatten says what is wrong with the tree
        return []


def is_spanning(leaf: object) -> bool:
    """Whether a leaf is an array of which this process does not hold all."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
        return False
    return not leaf.is_fully_addressable


def may_be_divided(leaves: Leaves) -> bool:
    """Whether it is worth while to divide leaves as if no process held one of them alone.

    If that is not so in the end, the local arrays have been read in vain.
    """
    arrays = [leaf for leaf in leaves.values() if isinstance(leaf, jax.Array)]
    local = sum(leaf.nbytes for leaf in arrays if leaf.is_fully_addressable)
    return local <= _FEW_BYTES and all(
        not is_spanning(leaf) or _single_holder(leaf.sharding) == NOBODY for leaf in arrays
    )


def single_holders(leaves: Leaves) -> Runs:
    """The leaves that one other process holds alone."""
    return _runs(
        [_single_holder(leaf.sharding) if is_spanning(leaf) else -1 for leaf in leaves.values()]
    )


def merged(first: Runs, second: Runs) -> Runs:
    """What process 0 sees of the others, with what process 1 sees of process 0."""
    each = _holder_of_each(first), _holder_of_each(second)
    if len(each[0]) != len(each[1]):
        return first  # The trees are not the same, which is found later.
    return _runs([0 if b == 0 else a for a, b in zip(*each, strict=True)])


def held_alone(leaves: Leaves, runs: Runs, process: int) -> frozenset[str]:
    """The names of the leaves that this process holds and no other one."""
    holders = _holder_of_each(runs)
    return frozenset(
        name
        for (name, leaf), holder in zip(leaves.items(), holders, strict=False)
        if holder == process and isinstance(leaf, jax.Array) and leaf.is_fully_addressable
    )


def divided(leaves: Leaves, alone: frozenset[str], process: int) -> Leaves:
    """The leaves with views that know which processes hold them.

    Those in `alone` are in this process only. A lazy leaf that spans processes has the values of
    the devices of this one.
    """

    def own(name: str, leaf: Any) -> Any:
        if name in alone:
            content = content_at(name, leaf)
            view = held_by(content.view, (process,))
            return LazyArray(content.of(view), name, Placement(leaf.sharding, leaf.committed))
        if not isinstance(leaf, LazyArray) or leaf.is_fully_addressable:
            return leaf
        content = leaf.content
        held = _boxes_of_process(leaf.sharding, content.shape, process)
        view = view_of_share(content.view, held, process)
        return LazyArray(content.of(view), name, Placement(leaf.sharding, committed=True))

    return leaves.map(own)


@lru_cache(maxsize=1024)
def digest_of_division(sharding: Sharding, shape: tuple[int, ...]) -> str:
    """A digest of which process holds which part of an array."""
    text = repr(sorted(holders_of(sharding, shape).items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=1024)
def _boxes_of_process(
    sharding: Sharding, shape: tuple[int, ...], process: int
) -> dict[Box, Holders]:
    return {box: each for box, each in holders_of(sharding, shape).items() if process in each}


@lru_cache(maxsize=1024)
def _single_holder(sharding: Sharding) -> int:
    processes = {device.process_index for device in sharding.device_set}
    return processes.pop() if len(processes) == 1 else -1


def _holder_of_each(runs: Runs) -> list[int]:
    return [holder for count, holder in runs for _ in range(count)]


def _runs(holders: list[int]) -> Runs:
    return [[len(list(run)), holder] for holder, run in itertools.groupby(holders)]
