"""Concatenations: views of one dtype, one after the other along an axis."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, cast, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.batch import Batch
from safejax._src.reading.requests import FREE, Cost
from safejax._src.reading.source import HostArray, Source
from safejax._src.reading.view import View
from safejax._src.reading.windows import BasicIndex, Window, explicit_index


@final
@dataclass(frozen=True, slots=True)
class Concatenation(View):
    """Views of one dtype, joined along `axis`."""

    parts: tuple[View, ...]
    axis: int
    # Where each part ends along the axis: of 20,000 parts, each may be asked for by its number.
    _ends: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ends = accumulate(part.shape[self.axis] for part in self.parts)
        object.__setattr__(self, "_ends", tuple(ends))

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.parts[0].shape
        return (*first[: self.axis], self._ends[-1], *first[self.axis + 1 :])

    @property
    def dtype(self) -> Dtype:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.parts[0].dtype

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(dict.fromkeys(source for part in self.parts for source in part.sources))

    @property
    def arrays(self) -> tuple[HostArray, ...]:
        return tuple(array for part in self.parts for array in part.arrays)

    def with_arrays(self, instead: Callable[[HostArray], HostArray]) -> "Concatenation":
        return Concatenation(tuple(part.with_arrays(instead) for part in self.parts), self.axis)

    def cost(self) -> Cost:
        if self.plans_reads:
            batch = Batch(is_dry=True)
            self.read_in_batch(batch.empty(self.shape, self.dtype), batch)
            return batch.cost
        total = FREE
        for part in self.parts:
            total += part.cost()
        return total

    def index(self, index: tuple[BasicIndex, ...]) -> View:
        entries = explicit_index(index, self.shape)
        others = [entry if isinstance(entry, int) else _slice(*entry) for entry in entries]
        along = entries[self.axis]
        chosen: list[View] = []
        for number in self._near(along):
            begin = self._ends[number - 1] if number else 0
            inner = _within(along, begin, self._ends[number])
            if inner is not None:
                others[self.axis] = inner
                chosen.append(self.parts[number].index(tuple(others)))
        if not chosen:
            others[self.axis] = slice(0, 0)
            chosen.append(self.parts[0].index(tuple(others)))
        if isinstance(along, tuple) and along[1] < 0:
            chosen.reverse()
        dropped = sum(isinstance(entry, int) for entry in entries[: self.axis])
        return concatenation(tuple(chosen), self.axis - dropped)

    def _near(self, along: int | tuple[int, int, int]) -> range:
        """The numbers of the parts from the first to the last that an index along the axis has."""
        start, step, count = (along, 1, 1) if isinstance(along, int) else along
        if count == 0:
            return range(0)
        low, high = sorted((start, start + step * (count - 1)))
        return range(bisect_right(self._ends, low), bisect_right(self._ends, high) + 1)

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
        if self.plans_reads:
            with Batch() as batch:
                self.read_in_batch(out, batch)
                batch.run()
            return
        for part, place in self._places(out):
            part.read_into(place)

    def read_in_batch(self, out: NDArray[Any], batch: Batch) -> None:
        for part, place in self._places(out):
            part.read_in_batch(place, batch)

    def _places(self, out: NDArray[Any]) -> Iterator[tuple[View, NDArray[Any]]]:
        """The parts, each with its place in an array of all of them."""
        lead = (slice(None),) * self.axis
        begin = 0
        for part, end in zip(self.parts, self._ends, strict=True):
            yield part, out[(*lead, slice(begin, end), ...)]
            begin = end


def concatenation(parts: tuple[View, ...], axis: int) -> View:
    """The parts joined along an existing axis; a single part is returned as it is."""
    return parts[0] if len(parts) == 1 else Concatenation(parts, axis)


def stack(parts: tuple[View, ...], axis: int) -> View:
    """The parts joined along a new axis."""
    return concatenation(tuple(part.expand(axis) for part in parts), axis)


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
