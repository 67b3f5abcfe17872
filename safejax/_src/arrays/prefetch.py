"""Prefetching: lazy leaves are read and placed in the background, while the caller goes on.

Threads take the leaves in order. A leaf that is needed meanwhile is waited for if a thread has it,
and else placed by whoever needs it, so that it overtakes the others. A leaf whose placing fails is
left as it is: who needs it places it again, and has the error.

Threads refer to leaves weakly: what nobody has any more is not read.
"""

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final, final

import jax
from numpy.typing import NDArray

from safejax._src.arrays.lazy import LazyArray
from safejax._src.arrays.placing import WORTH_A_THREAD
from safejax._src.arrays.precision import needs_x64
from safejax._src.arrays.staging import session
from safejax._src.arrays.together import read_together
from safejax._src.arrays.untraced import neutral_settings
from safejax._src.reading.readahead import bring_in, fits_in_memory

_LOOK: Final = 0.005
"""Seconds between two looks at whether there is room again."""


def prefetch_all(leaves: Iterable[LazyArray], max_bytes: int | None) -> None:
    """Begin to place leaves, in order, and return.

    At most `max_bytes` bytes are placed that somebody still has; one leaf, or one group of leaves
    that are requested together, may be larger than that.
    """
    left = [leaf for leaf in leaves if not leaf.is_placed]
    for leaf in left:
        leaf.warn_if_narrowed()
    brings_in = fits_in_memory(sum(leaf.nbytes for leaf in left))
    work = _Work((_Group(group, brings_in) for group in _groups(left)), max_bytes)
    for number in range(min(4, os.cpu_count() or 1, len(work.groups))):
        threading.Thread(target=work.run, name=f"safejax-prefetch-{number}").start()


def _groups(leaves: list[LazyArray]) -> Iterator[list[LazyArray]]:
    """The leaves in groups, each of which one thread places; all of one need x64, or none."""
    asked = read_together(leaf for leaf in leaves if leaf.content.view.plans_reads)
    # A group comes where the first of its leaves does.
    group_of = {id(leaf): group for group in asked for leaf in group}
    small: list[LazyArray] = []
    held = 0
    for leaf in leaves:
        group = group_of.pop(id(leaf), None)
        if group is not None:
            for each in group:
                group_of.pop(id(each), None)
            yield group
        elif leaf.content.view.plans_reads:
            continue
        elif leaf.nbytes >= WORTH_A_THREAD:
            yield [leaf]
        else:
            if small and (
                held + leaf.nbytes > WORTH_A_THREAD or _is_wide(small[0]) != _is_wide(leaf)
            ):
                yield small
                small, held = [], 0
            small.append(leaf)
            held += leaf.nbytes
    if small:
        yield small


def _is_wide(leaf: LazyArray) -> bool:
    return needs_x64(leaf.content.view.dtype)


@final
class _Group:
    """Leaves that one thread places."""

    def __init__(self, leaves: list[LazyArray], brings_in: bool) -> None:
        self._brings_in = brings_in
        self._leaves = [weakref.ref(leaf) for leaf in leaves]
        self.nbytes = 0
        """The bytes of those that are still to be placed, when that was last looked at."""
        self.is_wide = _is_wide(leaves[0])
        self._plans_reads = leaves[0].content.view.plans_reads

    @property
    def leaves(self) -> list[LazyArray]:
        """Those that somebody has."""
        return [leaf for leaf in (each() for each in self._leaves) if leaf is not None]

    def is_over(self) -> bool:
        """Whether nobody has the leaves any more that are not placed: then nothing is left to do.

        Counts the bytes of those that are left.
        """
        left = [leaf.nbytes for leaf in self.leaves if not leaf.is_placed]
        self.nbytes = sum(left)
        return not left

    def place(self) -> None:
        """Place the leaves, and bring in the pages of those that stay where they are in a file."""
        leaves = self.leaves
        if self._plans_reads:
            in_place = LazyArray.place_many_in_this_thread(leaves)
        else:
            in_place = list[NDArray[Any]]()
            for leaf in leaves:
                with contextlib.suppress(Exception):  # The others may be placed.
                    in_place += leaf.place_in_this_thread()
                del leaf
        del leaves  # Their owner may let go of them meanwhile.
        if self._brings_in:
            bring_in(in_place)


@final
class _Work:
    """What the threads of one call do together."""

    def __init__(self, groups: Iterable[_Group], max_bytes: int | None) -> None:
        self.groups = deque(groups)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._placing = 0
        self._placed: list[tuple[int, weakref.ref[jax.Array]]] = []

    def run(self) -> None:
        """Place one group after the other until there are no more, or the interpreter ends."""
        while (group := self._next()) is not None:
            # Who needs the leaf has the error, which may be another one by then.
            with contextlib.suppress(Exception), neutral_settings(wide=group.is_wide), session():
                group.place()
            self._end(group)

    def _next(self) -> _Group | None:
        while threading.main_thread().is_alive():
            with self._lock:
                while self.groups and self.groups[0].is_over():
                    self.groups.popleft()
                if not self.groups:
                    return None
                if self._has_room(self.groups[0].nbytes):
                    group = self.groups.popleft()
                    self._placing += group.nbytes
                    return group
            time.sleep(_LOOK)
        return None

    def _has_room(self, nbytes: int) -> bool:
        if self._max_bytes is None:
            return True
        self._placed = [(n, ref) for n, ref in self._placed if _is_held(ref())]
        held = self._placing + sum(n for n, _ in self._placed)
        return held == 0 or held + nbytes <= self._max_bytes

    def _end(self, group: _Group) -> None:
        with self._lock:
            self._placing -= group.nbytes
            if self._max_bytes is not None:
                placed = [(leaf.nbytes, leaf.placed_now) for leaf in group.leaves]
                self._placed += [(n, weakref.ref(each)) for n, each in placed if each is not None]


def _is_held(array: jax.Array | None) -> bool:
    return array is not None and not array.is_deleted()
