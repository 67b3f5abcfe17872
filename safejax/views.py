"""Views: the values of a leaf on the host, read only on request and only as far as requested.

A view is one of three: a **strided** window on a flat source, a **concatenation** of views
along an axis, or a **pointwise** function of a view. Indexing, transposing, expanding and
copy-free reshapes are pushed down to the operands at once, so a view of a view is still one
of the three, and reading a part requests only that part's bytes. A reshape that no window can
express is a barrier: reading any part of it reads the whole operand.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast, final

import numpy as np
from numpy.typing import NDArray

from safejax.dtypes import Dtype
from safejax.sources import ComputedSource, Source
from safejax.windows import BasicIndex, Window, explicit_index


class View(ABC):
    """An array with a shape and a dtype, whose values are read only on request."""

    __slots__ = ()

    dtype: Dtype

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that `read` returns."""

    @property
    def size(self) -> int:
        """The number of elements that the view shows."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size in bytes of the array that `read` returns."""
        return self.size * self.dtype.itemsize

    @property
    @abstractmethod
    def sources(self) -> tuple[Source, ...]:
        """The sources that `read` requests bytes from."""

    @property
    def stable(self) -> bool:
        """Whether nobody changes the bytes that are used in place."""
        return all(source.stable for source in self.sources)

    @abstractmethod
    def index(self, index: tuple[BasicIndex, ...]) -> "View":
        """The view of `array[index]`: ints in range, slices, at most one Ellipsis."""

    @abstractmethod
    def transpose(self, axes: tuple[int, ...]) -> "View":
        """The view of `array.transpose(axes)`, for a permutation of all axes."""

    @abstractmethod
    def expand(self, axis: int) -> "View":
        """The view with a new axis of size 1 at `axis`, in `range(ndim + 1)`."""

    @abstractmethod
    def reshape_in_place(self, shape: tuple[int, ...]) -> "View | None":
        """The view of `array.reshape(shape)` if no copy is needed, else None."""

    @abstractmethod
    def read(self) -> NDArray[Any]:
        """The values; read-only where the array shares a source's own memory."""

    def look(self, alignment: int) -> NDArray[Any] | None:
        """What `read` returns if it is usable without a copy; else None, and nothing is read.

        That requires a C-ordered array in memory that begins on a multiple of `alignment` bytes
        and never changes.
        """
        del alignment
        return None

    def read_into(self, out: NDArray[Any]) -> None:
        """Copy what `read` returns into `out`, an array of the same shape and dtype."""
        np.copyto(out, self.read())

    def reshape(self, shape: tuple[int, ...]) -> "View":
        """The view of `array.reshape(shape)`: without a copy, or behind a barrier."""
        if Window.whole(shape).size != self.size:
            raise ValueError(f"cannot reshape {list(self.shape)} to {list(shape)}")
        in_place = self.reshape_in_place(shape)
        if in_place is not None:
            return in_place
        return Strided(_barrier(self), 0, self.dtype, Window.whole(shape))

    @contextmanager
    def kept(self) -> Generator[None]:
        """Inside the block, a barrier's operand is read once, however many parts are read."""
        with ExitStack() as stack:
            for source in self.sources:
                if isinstance(source, ComputedSource):
                    stack.enter_context(source.kept())
            yield

    def blocks(self, nbytes: int) -> Iterator["View"]:
        """Views of at most about `nbytes` each that together make up this one, in C order.

        Read each view before requesting the next: a barrier's operand is then read once.
        """
        if self.nbytes <= nbytes or self.size <= 1:
            yield self
            return
        axis = next(axis for axis, size in enumerate(self.shape) if size > 1)
        rows = max(1, nbytes // (self.nbytes // self.shape[axis]))
        lead = (0,) * axis
        kept = ExitStack()
        try:
            for begin in range(0, self.shape[axis], rows):
                part = self.index((*lead, slice(begin, begin + rows)))
                # Each part takes over what the last one kept, which ends when no part needs it.
                following = ExitStack()
                following.enter_context(part.kept())
                kept.close()
                kept = following
                yield from part.blocks(nbytes)
        finally:
            kept.close()


@final
@dataclass(frozen=True, slots=True)
class Strided(View):
    """A strided window on the tensor of `dtype` that begins at byte `begin` of `source`."""

    source: Source
    begin: int
    dtype: Dtype
    window: Window

    @property
    def shape(self) -> tuple[int, ...]:
        return self.window.shape

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.source,)

    def index(self, index: tuple[BasicIndex, ...]) -> "Strided":
        return self._show(self.window.index(index))

    def row(self, number: int) -> "Strided":
        """The view of `array[number]` for `number >= 0`: a shortcut for the common `index`."""
        return self._show(self.window.row(number))

    def transpose(self, axes: tuple[int, ...]) -> View:
        return self._show(self.window.transpose(axes))

    def expand(self, axis: int) -> View:
        return self._show(self.window.expand(axis))

    def reshape_in_place(self, shape: tuple[int, ...]) -> View | None:
        window = self.window.reshape(shape)
        return None if window is None else self._show(window)

    def read(self) -> NDArray[Any]:
        array = self.source.read(self.begin, self.dtype, self.window)
        return _proper_bools(array) if self.dtype.kind == "b" else array

    def peek(self, alignment: int) -> NDArray[Any] | None:
        """What `look` returns, as far as known without a read; for callers that do not use it."""
        return self.source.peek(self.begin, self.dtype, self.window, alignment)

    def look(self, alignment: int) -> NDArray[Any] | None:
        array = self.source.look(self.begin, self.dtype, self.window, alignment)
        if array is not None and self.dtype.kind == "b" and _proper_bools(array) is not array:
            return None
        return array

    def read_into(self, out: NDArray[Any]) -> None:
        self.source.read_into(self.begin, self.dtype, self.window, out)
        if self.dtype.kind == "b":
            np.copyto(out, _proper_bools(out))

    def _show(self, window: Window) -> "Strided":
        return Strided(self.source, self.begin, self.dtype, window)


@final
@dataclass(frozen=True, slots=True)
class Concatenation(View):
    """Views of one dtype, joined along `axis`."""

    parts: tuple[View, ...]
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.parts[0].shape
        along = sum(part.shape[self.axis] for part in self.parts)
        return (*first[: self.axis], along, *first[self.axis + 1 :])

    @property
    def dtype(self) -> Dtype:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.parts[0].dtype

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(dict.fromkeys(source for part in self.parts for source in part.sources))

    def index(self, index: tuple[BasicIndex, ...]) -> View:
        entries = explicit_index(index, self.shape)
        others = [entry if isinstance(entry, int) else _slice(*entry) for entry in entries]
        along = entries[self.axis]
        chosen: list[View] = []
        begin = 0
        for part in self.parts:
            end = begin + part.shape[self.axis]
            inner = _within(along, begin, end)
            if inner is not None:
                others[self.axis] = inner
                chosen.append(part.index(tuple(others)))
            begin = end
        if not chosen:
            others[self.axis] = slice(0, 0)
            chosen.append(self.parts[0].index(tuple(others)))
        if isinstance(along, tuple) and along[1] < 0:
            chosen.reverse()
        dropped = sum(isinstance(entry, int) for entry in entries[: self.axis])
        return concatenation(tuple(chosen), self.axis - dropped)

    def transpose(self, axes: tuple[int, ...]) -> View:
        parts = tuple(part.transpose(axes) for part in self.parts)
        return Concatenation(parts, axes.index(self.axis))

    def expand(self, axis: int) -> View:
        parts = tuple(part.expand(axis) for part in self.parts)
        return Concatenation(parts, self.axis + (axis <= self.axis))

    def reshape_in_place(self, shape: tuple[int, ...]) -> View | None:
        # The parts stay joined along new axis k if the axes before k hold as many elements as
        # those before the old axis, and each part fills whole rows of the axes after k.
        before = Window.whole(self.shape[: self.axis]).size
        for k in range(len(shape)):
            row = Window.whole(shape[k + 1 :]).size
            if Window.whole(shape[:k]).size != before or row == 0 or before == 0:
                continue
            sizes = [part.size // before for part in self.parts]
            if any(size % row for size in sizes):
                continue
            parts = [
                part.reshape_in_place((*shape[:k], size // row, *shape[k + 1 :]))
                for part, size in zip(self.parts, sizes, strict=True)
            ]
            if all(part is not None for part in parts):
                return concatenation(tuple(cast("list[View]", parts)), k)
        return None

    def read(self) -> NDArray[Any]:
        result = np.empty(self.shape, self.dtype)
        self.read_into(result)
        return result

    def read_into(self, out: NDArray[Any]) -> None:
        lead = (slice(None),) * self.axis
        begin = 0
        for part in self.parts:
            end = begin + part.shape[self.axis]
            part.read_into(out[(*lead, slice(begin, end), ...)])
            begin = end


@final
@dataclass(frozen=True, slots=True)
class Pointwise(View):
    """A function of each element of a view; `function` keeps the shape and returns `dtype`."""

    operand: View
    function: Callable[[NDArray[Any]], NDArray[Any]]
    dtype: Dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.operand.shape

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.operand.sources

    def index(self, index: tuple[BasicIndex, ...]) -> View:
        return self._on(self.operand.index(index))

    def transpose(self, axes: tuple[int, ...]) -> View:
        return self._on(self.operand.transpose(axes))

    def expand(self, axis: int) -> View:
        return self._on(self.operand.expand(axis))

    def reshape_in_place(self, shape: tuple[int, ...]) -> View | None:
        operand = self.operand.reshape_in_place(shape)
        return None if operand is None else self._on(operand)

    def read(self) -> NDArray[Any]:
        return self.function(self.operand.read())

    def read_into(self, out: NDArray[Any]) -> None:
        if isinstance(self.function, CastTo):
            self.function.into(self.operand.read(), out)
        else:
            super(Pointwise, self).read_into(out)

    def _on(self, operand: View) -> "Pointwise":
        return Pointwise(operand, self.function, self.dtype)


@final
@dataclass(frozen=True, slots=True)
class CastTo:
    """NumPy's conversion to `dtype`, without its warnings about overflow and NaN."""

    dtype: Dtype

    def __call__(self, array: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(all="ignore"):
            return array.astype(self.dtype)

    def into(self, array: NDArray[Any], out: NDArray[Any]) -> None:
        """Convert the values of `array` into `out`, an array of `dtype`."""
        with np.errstate(all="ignore"):
            np.copyto(out, array, casting="unsafe")


def concatenation(parts: tuple[View, ...], axis: int) -> View:
    """The parts joined along an existing axis; a single part is returned as it is."""
    return parts[0] if len(parts) == 1 else Concatenation(parts, axis)


def stack(parts: tuple[View, ...], axis: int) -> View:
    """The parts joined along a new axis."""
    return concatenation(tuple(part.expand(axis) for part in parts), axis)


def cast_view(view: View, dtype: Dtype) -> View:
    """The view with every element converted to `dtype`, as NumPy converts it."""
    return view if view.dtype == dtype else Pointwise(view, CastTo(dtype), dtype)


def _proper_bools(array: NDArray[Any]) -> NDArray[Any]:
    """The array with each byte 0 or 1: a file may hold other bytes, and XLA relies on these."""
    raw = array.view(np.uint8)
    if raw.size == 0 or raw.max() <= 1:
        return array
    return np.asarray(raw != 0)  # For a 0-d array, NumPy returns a scalar.


def _barrier(operand: View) -> Source:
    name = " and ".join(source.name for source in operand.sources)
    return ComputedSource(operand.read, f"reshaped {name}", operand.stable, operand)


def _slice(start: int, step: int, count: int) -> slice:
    if count == 0:
        return slice(0, 0)
    end = start + step * count
    return slice(start, None if end < 0 else end, step)


def _within(along: int | tuple[int, int, int], begin: int, end: int) -> int | slice | None:
    """The part of an index along the axis that is in `[begin, end)`, counted from `begin`."""
    if isinstance(along, int):
        return along - begin if begin <= along < end else None
    start, step, count = along
    # The positions start + step * k that fall in [begin, end), by ceiling division.
    low, high = (begin, end) if step > 0 else (end - 1, begin - 1)
    first = max(0, -((start - low) // step))
    last = min(count, -((start - high) // step))
    if first >= last:
        return None
    return _slice(start + step * first - begin, step, last - first)
