"""Windows: which elements of a flat source a leaf shows.

A window is an offset, a shape and strides, all counted in elements: index `(i, j, …)` shows
element `offset + i * strides[0] + j * strides[1] + …`. Slicing, transposing, broadcasting and
reshapes that need no copy turn one window into another, so layers never pile up.

NumPy itself does this arithmetic, on an array that has the window's shape and strides but no
memory behind it, so the rules are NumPy's by construction.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from types import EllipsisType
from typing import Any, Final, Self, TypeAlias, final

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

BasicIndex: TypeAlias = int | slice | EllipsisType

MAX_AXES: Final = 64
"""The most axes that a NumPy array can have."""

_HALF: Final = 1 << 63
_NOWHERE: Final = np.zeros(1, np.int8)
_NOWHERE.flags.writeable = False


@final
@dataclass(frozen=True, slots=True)
class Spans:
    """Half-open runs of elements `[start, start + length)`, ascending and disjoint."""

    starts: NDArray[np.int64]
    length: int

    @property
    def count(self) -> int:
        """The total number of elements in the runs."""
        return len(self.starts) * self.length


@final
@dataclass(frozen=True, slots=True)
class Window:
    """A strided window on a flat source; `offset` and `strides` count elements."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    # Most leaves have the shape of another one.
    @classmethod
    @lru_cache(maxsize=1024)
    def whole(cls, shape: tuple[int, ...]) -> Self:
        """The window that shows a whole C-ordered array of `shape`, at offset 0."""
        strides: list[int] = []
        step = 1
        for size in reversed(shape):
            strides.append(step)
            step *= max(size, 1)
        return cls(0, shape, tuple(reversed(strides)))

    @property
    def size(self) -> int:
        """The number of elements that the window shows, repeats included."""
        return math.prod(self.shape)

    @property
    def distinct(self) -> int:
        """The number of elements of the source that the window shows, each counted once."""
        count = 1
        for size, stride in zip(self.shape, self.strides, strict=True):
            if stride != 0 or size == 0:
                count *= size
        return count

    def index(self, index: tuple[BasicIndex, ...]) -> "Window":
        """The window on `array[index]`, for NumPy's basic indices."""
        key = tuple(
            (entry.start, entry.stop, entry.step) if isinstance(entry, slice) else entry
            for entry in index
        )
        part = _indexed(self.shape, self.strides, key)
        return Window(self.offset + part.offset, part.shape, part.strides)

    def row(self, number: int) -> "Window":
        """The window on `array[number]` for `number >= 0`: a shortcut for the common `index`."""
        offset = self.offset + number * self.strides[0]
        return Window(offset, self.shape[1:], self.strides[1:])

    def transpose(self, axes: tuple[int, ...]) -> "Window":
        """The window on `array.transpose(axes)`."""
        return _transposed(self, axes)

    def expand(self, axis: int, size: int = 1) -> "Window":
        """The window with a new axis of `size` at `axis`, along which all elements repeat."""
        return _expanded(self, axis, size)

    def reshape(self, shape: tuple[int, ...]) -> "Window | None":
        """The window on `array.reshape(shape)`, or None where NumPy would need a copy."""
        return _reshaped(self, shape)

    def runs(self) -> tuple["Window", int]:
        """The elements of a non-empty window as runs of equal length, each element once.

        Returns a window on the runs' first elements, ascending in C order, and the runs' length.
        """
        offset, axes = self._ascending()
        length = 1
        while axes and axes[0][2] == length:
            length *= axes.pop(0)[1]
        axes.reverse()
        firsts = Window(offset, tuple(axis[1] for axis in axes), tuple(axis[2] for axis in axes))
        return firsts, length

    def spans(self) -> Spans:
        """The elements that the window shows, as runs of the source with each element once."""
        if self.size == 0:
            return Spans(np.zeros(0, np.int64), 0)
        firsts, length = self.runs()
        starts = np.full(1, firsts.offset, np.int64)
        for size, stride in zip(firsts.shape, firsts.strides, strict=True):
            starts = (starts[:, None] + np.arange(size, dtype=np.int64) * stride).reshape(-1)
        return Spans(starts, length)

    def compact(self) -> "Window":
        """The same window on a source that holds only its `spans()`, one after another."""
        _, axes = self._ascending()
        strides = [0] * len(self.shape)
        offset = 0
        step = 1
        for axis, size, _ in axes:
            backward = self.strides[axis] < 0
            strides[axis] = -step if backward else step
            offset += step * (size - 1) if backward else 0
            step *= size
        return Window(offset, self.shape, tuple(strides))

    def _ascending(self) -> tuple[int, list[tuple[int, int, int]]]:
        """The lowest element, and `(axis, size, |stride|)` of the axes that move, inner first."""
        offset = self.offset
        axes: list[tuple[int, int, int]] = []
        for axis, (size, stride) in enumerate(zip(self.shape, self.strides, strict=True)):
            if size > 1 and stride != 0:
                offset += stride * (size - 1) if stride < 0 else 0
                axes.append((axis, size, abs(stride)))
        axes.sort(key=lambda moving: moving[2])
        return offset, axes

    def showing(self, phantom: NDArray[np.int8]) -> "Window":
        """The window on what a view of this one's phantom shows: the array that NumPy works on."""
        moved = _address(phantom) - _address(_NOWHERE) if phantom.size else 0
        # NumPy wraps an address below zero around to the top of 64 bits; this restores the sign.
        moved = (moved + _HALF) % (2 * _HALF) - _HALF
        return Window(self.offset + moved, phantom.shape, phantom.strides)


# Most windows are the same as another one, each of another tensor: then they stay the same.
@lru_cache(maxsize=1024)
def _phantom(shape: tuple[int, ...], strides: tuple[int, ...]) -> NDArray[np.int8]:
    return as_strided(_NOWHERE, shape, strides, writeable=False)


@lru_cache(maxsize=1024)
def _indexed(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    index: tuple[int | EllipsisType | tuple[int | None, ...], ...],
) -> Window:
    """The window on a part; slices, which cannot be hashed before Python 3.12, are tuples."""
    # With a final Ellipsis NumPy returns a view, and does not read an element: there is none.
    closed = index if Ellipsis in index else (*index, ...)
    entries = tuple(slice(*entry) if isinstance(entry, tuple) else entry for entry in closed)
    return Window(0, shape, strides).showing(_phantom(shape, strides)[entries])


@lru_cache(maxsize=1024)
def _transposed(window: Window, axes: tuple[int, ...]) -> Window:
    shape = tuple(window.shape[axis] for axis in axes)
    return Window(window.offset, shape, tuple(window.strides[axis] for axis in axes))


@lru_cache(maxsize=1024)
def _expanded(window: Window, axis: int, size: int) -> Window:
    shape = (*window.shape[:axis], size, *window.shape[axis:])
    strides = (*window.strides[:axis], 0, *window.strides[axis:])
    return Window(window.offset, shape, strides)


@lru_cache(maxsize=1024)
def _reshaped(window: Window, shape: tuple[int, ...]) -> Window | None:
    phantom = _phantom(window.shape, window.strides)
    try:
        return window.showing(phantom.reshape(shape, copy=False))
    except ValueError:
        if window.size != Window.whole(shape).size or len(shape) > MAX_AXES:
            raise
        return None


def _address(array: NDArray[Any]) -> int:
    return array.__array_interface__["data"][0]


def explicit_index(
    index: tuple[BasicIndex, ...], shape: tuple[int, ...]
) -> tuple[int | tuple[int, int, int], ...]:
    """One entry per axis: an int in range, or `(start, step, count)` for a slice."""
    if Ellipsis in index:
        at = index.index(Ellipsis)
        filler = (slice(None),) * (len(shape) - len(index) + 1)
        index = (*index[:at], *filler, *index[at + 1 :])
    index = (*index, *(slice(None),) * (len(shape) - len(index)))
    entries: list[int | tuple[int, int, int]] = []
    for entry, size in zip(index, shape, strict=True):
        if isinstance(entry, slice):
            chosen = range(size)[entry]
            entries.append((chosen.start, chosen.step, len(chosen)))
        else:
            assert not isinstance(entry, EllipsisType), "at most one Ellipsis"
            entries.append(range(size)[entry])
    return tuple(entries)
