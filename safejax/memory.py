"""Memory for values that have to be copied: aligned so that a device on the CPU takes it as it is.

XLA's CPU client uses a buffer in place if it begins on 64 bytes; NumPy's large arrays begin 16
bytes after that, and would be copied once more. Large blocks are in huge pages, where the
system has them: touching memory for the first time costs more than filling it, page by page.
"""

import math
import mmap
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

ALIGNMENT: Final = 64
"""Bytes that XLA's CPU client wants a buffer to begin on."""

_HUGE: Final = 2 << 20
_ADVICE: Final[int | None] = getattr(mmap, "MADV_HUGEPAGE", None)


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """A C-ordered array of undefined values that begins on `ALIGNMENT` bytes.

    Its memory is freed with the last array that looks at it, and with no other one's.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _HUGE or _ADVICE is None:
        raw = np.empty(nbytes + ALIGNMENT, np.uint8)
        begin = -address(raw) % ALIGNMENT
    else:
        # What is not touched takes no memory: one page more than needed, to begin on a page.
        memory = mmap.mmap(-1, nbytes + _HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(_ADVICE)
        raw = np.frombuffer(memory, np.uint8)
        begin = -address(raw) % _HUGE
    return raw[begin : begin + nbytes].view(dtype).reshape(shape)


@final
class Arena:
    """Memory for arrays that are let go together, in one piece; taken when it is first needed.

    `count` arrays of `nbytes` each fit into it.
    """

    def __init__(self, count: int, nbytes: int) -> None:
        self._room = -(-nbytes // ALIGNMENT) * ALIGNMENT
        self._count = count
        self._memory: NDArray[np.uint8] | None = None
        self._taken = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """As `aligned_empty`, out of the arena; what does not fit has memory of its own."""
        nbytes = math.prod(shape) * dtype.itemsize
        if self._taken == self._count or nbytes > self._room:
            return aligned_empty(shape, dtype)
        if self._memory is None:
            self._memory = aligned_empty((self._count * self._room,), np.dtype(np.uint8))
        begin = self._taken * self._room
        self._taken += 1
        return self._memory[begin : begin + nbytes].view(dtype).reshape(shape)


def address(array: NDArray[Any]) -> int:
    """Where the array's first element lies."""
    return array.__array_interface__["data"][0]


def is_aligned(array: NDArray[Any], alignment: int = ALIGNMENT) -> bool:
    """Whether the array is C-ordered and begins on `alignment` bytes."""
    return array.flags.c_contiguous and address(array) % alignment == 0
