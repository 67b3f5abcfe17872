"""Read-ahead: the pages of mapped files are brought in before their arrays are touched.

An array that is used in place has not been read: its pages are faulted in one after another,
each at its first touch. A separate thread that requests them in large runs makes them available
earlier, whether they come from the disk or only from the page cache.
"""

import contextlib
import errno
import mmap
import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from safejax._src.reading.memory import address
from safejax._src.system import madvise

_POPULATE_READ: Final = 22
"""`MADV_POPULATE_READ` of madvise(2), Linux 5.14: an unreadable page is an error, not a SIGBUS."""

_WILL_NEED: Final[int | None] = getattr(mmap, "MADV_WILLNEED", None)
"""What other systems have: it reads from the disk, but each first touch still faults."""

_CONTAINER_LIMITS: Final = (
    "/sys/fs/cgroup/memory.max",  # cgroup version 2, as a container sees its own limit
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",  # cgroup version 1
)

_MOST_AT_A_TIME: Final = 32 << 20
"""Bytes per call; during a call the process can map nothing else."""


def read_ahead(blocks: Iterable[NDArray[Any]]) -> threading.Thread | None:
    """Start to bring in the pages that the arrays `blocks` use, and return at once.

    The thread that does so keeps the arrays alive meanwhile. Returns None if there is nothing
    to bring in, if the system has no way to do so, or if it is so much that the last pages
    would evict the first ones from memory.
    """
    held = list(blocks)
    runs = _page_runs((address(block), block.nbytes) for block in held)
    if not runs or _WILL_NEED is None or not fits_in_memory(sum(end - at for at, end in runs)):
        return None
    thread = threading.Thread(
        target=_bring_in, args=(runs, held), name="safejax-read-ahead", daemon=True
    )
    thread.start()
    return thread


def bring_in(blocks: Iterable[NDArray[Any]]) -> None:
    """Bring in the pages that the arrays `blocks` use; returns when they are there."""
    held = list(blocks)
    runs = _page_runs((address(block), block.nbytes) for block in held)
    if runs and _WILL_NEED is not None:
        _bring_in(runs, held)


def fits_in_memory(nbytes: int) -> bool:
    """Whether so many bytes are at most half of the memory that the process may use."""
    return nbytes <= _most()


def _bring_in(runs: list[tuple[int, int]], held: list[NDArray[Any]]) -> None:
    advise = madvise()
    advice = _POPULATE_READ if sys.platform == "linux" else _WILL_NEED
    for begin, end in runs:
        for at in range(begin, end, _MOST_AT_A_TIME):
            nbytes = min(end - at, _MOST_AT_A_TIME)
            failed = advise(at, nbytes, advice)
            if failed == errno.EINVAL and advice == _POPULATE_READ:
                advice = _WILL_NEED
                failed = advise(at, nbytes, advice)
            if failed:  # The file may have been truncated; others may be complete.
                break
    held.clear()  # The memory had to stay mapped until here.


def _most() -> int:
    """Half of the memory that the process may use, in bytes."""
    limits = [os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE]
    for path in _CONTAINER_LIMITS:
        # Without a limit, the file does not exist or holds no number.
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(path).read_text()))
    return min(limits) // 2


def _page_runs(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pages of memory spans `(address, nbytes)` as `[begin, end)`, joined where they meet."""
    page = mmap.PAGESIZE
    runs: list[tuple[int, int]] = []
    for at, nbytes in sorted(spans):
        begin, end = at // page * page, -(-(at + nbytes) // page) * page
        if runs and begin <= runs[-1][1]:
            runs[-1] = runs[-1][0], max(end, runs[-1][1])
        else:
            runs.append((begin, end))
    return runs
