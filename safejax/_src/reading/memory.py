"""Memory for values that must be copied, aligned so that a CPU device can use it in place.

XLA's CPU client uses a buffer in place if it begins on a multiple of 64 bytes. NumPy's large
arrays begin 16 bytes after one, and would be copied once more. Large blocks use huge pages
where the system has them: touching memory for the first time, page by page, costs more than
filling it.
"""

import math
import mmap
from collections.abc import Callable
from typing import Any, Final, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype

ALIGNMENT: Final = 64
"""Bytes: XLA's CPU client uses a buffer in place if it begins on a multiple of this."""

_HUGE: Final = 2 << 20
_ADVICE: Final[int | None] = getattr(mmap, "MADV_HUGEPAGE", None)


Allocator: TypeAlias = Callable[[tuple[int, ...], Dtype], NDArray[Any]]


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """A C-ordered array of undefined values that begins on a multiple of `ALIGNMENT` bytes.

    Its memory is its own, and is freed with the last array that uses it.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _HUGE or _ADVICE is None:
        raw = np.empty(nbytes + ALIGNMENT, np.uint8)
        begin = -address(raw) % ALIGNMENT
    else:
        # One page more than needed, so as to begin on a page: untouched pages take no memory.
        memory = mmap.mmap(-1, nbytes + _HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(_ADVICE)
        raw = np.frombuffer(memory, np.uint8)
        begin = -address(raw) % _HUGE
    return raw[begin : begin + nbytes].view(dtype).reshape(shape)


@final
class Arena:
    """One piece of memory for arrays that are freed together, allocated when first needed.

    It has room for `count` arrays of `nbytes` each.
    """

    def __init__(self, count: int, nbytes: int) -> None:
        self._room = -(-nbytes // ALIGNMENT) * ALIGNMENT
        self._count = count
        self._memory: NDArray[np.uint8] | None = None
        self._taken = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Like `aligned_empty`, but in the arena; an array that does not fit has its own memory."""
        nbytes = math.prod(shape) * dtype.itemsize
        if self._taken == self._count or nbytes > self._room:
            return aligned_empty(shape, dtype)
        if self._memory is None:
            self._memory = aligned_empty((self._count * self._room,), np.dtype(np.uint8))
        begin = self._taken * self._room
        self._taken += 1
        return self._memory[begin : begin + nbytes].view(dtype).reshape(shape)


def address(array: NDArray[Any]) -> int:
    """The address of the array's first element."""
    return array.__array_interface__["data"][0]


def is_aligned(array: NDArray[Any], alignment: int = ALIGNMENT) -> bool:
    """Whether the array is C-ordered and begins on a multiple of `alignment` bytes."""
    return array.flags.c_contiguous and address(array) % alignment == 0
