"""Merged: the values of a function of several views, made block by block where they are needed.

Each axis of an operand and of a result may have a name. Axes with one name go together: an axis
has one element for each `step` of the name, the last of which may be for fewer. What a part of a
result needs are the blocks that it touches, in which all axes of a name have whole elements. An
axis without a name, and one whose name no operand and the result have in common, is always there
as a whole.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.derived import Derived
from safejax._src.reading.requests import Cost
from safejax._src.reading.source import Part, strided_array
from safejax._src.reading.touched import Along, located
from safejax._src.reading.view import View
from safejax._src.reading.windows import Window

_MOST_AT_A_TIME: Final = 4 << 20
"""Bytes of a result that are made at one time: what a function makes on its way has the caches."""


@final
class Axis(NamedTuple):
    """One element for each `step` of `name`; without a name, an axis that is there as a whole."""

    name: str | None
    step: int = 1

    def count(self, size: int) -> int:
        """The number of elements for `size` of the name."""
        return -(-size // self.step)


Axes: TypeAlias = tuple[Axis, ...]


@final
@dataclass(frozen=True, slots=True)
class AxisMap:
    """The axes of the operands and of the results of a function, and the sizes of their names."""

    operands: tuple[Axes, ...]
    results: tuple[Axes, ...]
    sizes: Mapping[str, int]

    def block(self, name: str) -> int:
        """The size of a block of a name: the least that is a multiple of all of its steps."""
        axes = (axis for each in (*self.operands, *self.results) for axis in each)
        return math.lcm(*(axis.step for axis in axes if axis.name == name))

    def is_divided(self, name: str | None) -> bool:
        """Whether parts of results need only parts of the operands along axes of this name."""
        return name is not None and all(
            any(name == axis.name for axes in side for axis in axes)
            for side in (self.operands, self.results)
        )


Function: TypeAlias = Callable[[Sequence[NDArray[Any]], AxisMap], Sequence[NDArray[Any]]]
"""The results for blocks of the operands; the map has the sizes of these blocks."""


@final
class MergedSource(Derived):
    """One of the results of a function of views, as flat values in C order.

    A read makes the blocks of it that the window touches, of what is read of the operands.
    """

    def __init__(
        self,
        operands: tuple[View, ...],
        axes: AxisMap,
        function: Function,
        number: int,
        shape: tuple[int, ...],
        name: str,
    ) -> None:
        super().__init__(operands, name)
        self._axes, self._function = axes, function
        self._number, self._shape = number, shape
        self._own = axes.results[number]

    def _of(self, operands: tuple[View, ...]) -> "MergedSource":
        return MergedSource(
            operands, self._axes, self._function, self._number, self._shape, self.name
        )

    def cost_of_many(self, parts: Sequence[Part]) -> Cost:
        windows = [part.window for part in parts if part.window.size]
        return self._cost_of([view for each in windows for view in self._needed(each).views])

    def read_many(self, reads: Sequence[tuple[Part, NDArray[Any]]]) -> None:
        left = [(part, out, self._needed(part.window)) for part, out in reads if part.window.size]
        with self._read([needed.views for _, _, needed in left]) as held:
            for (part, out, needed), values in zip(left, held, strict=True):
                self._fill(part, out, needed, values)

    def _needed(self, window: Window) -> "_Needed":
        """What a part of the result is made of."""
        blocks = [
            self._block(axis, size) for axis, size in zip(self._own, self._shape, strict=True)
        ]
        box, within = located(window, self._shape, blocks)
        # Of a name: where its part begins, how much of it there is, and every how manieth.
        parts = {name: Along(0, size, 1) for name, size in self._axes.sizes.items()}
        for axis, along in zip(self._own, box, strict=True):
            if axis.name is not None:
                most = self._axes.sizes[axis.name] - along.begin * axis.step
                count = min(most, along.length * axis.step)
                parts[axis.name] = Along(along.begin * axis.step, count, along.step)
        views = tuple(
            operand.index(tuple(_index(axis, parts) for axis in axes))
            for operand, axes in zip(self.operands, self._axes.operands, strict=True)
        )
        sizes = {name: along.length for name, along in parts.items()}
        shape = tuple(along.length for along in box)
        return _Needed(
            views, AxisMap(self._axes.operands, self._axes.results, sizes), shape, within
        )

    def _block(self, axis: Axis, size: int) -> int:
        """The block of an axis of the result; 0 if each element is one by itself."""
        if axis.name is None or not self._axes.is_divided(axis.name):
            return size
        block = self._axes.block(axis.name)
        return 0 if block == 1 else block // axis.step

    def _fill(
        self, part: Part, out: NDArray[Any], needed: "_Needed", operands: Sequence[NDArray[Any]]
    ) -> None:
        values = np.empty(needed.shape, part.dtype)
        for piece, begin in self._pieces(needed, part.dtype):
            at = tuple(_piece_of(axis, begin, piece) for axis in self._own)
            results = self._function(
                [
                    operand[tuple(_piece_of(axis, begin, piece) for axis in axes)]
                    for operand, axes in zip(operands, self._axes.operands, strict=True)
                ],
                piece,
            )
            values[at] = results[self._number]
        flat = values.reshape(-1).view(np.uint8)
        np.copyto(out, strided_array(flat, 0, part.dtype, needed.within))

    def _pieces(self, needed: "_Needed", dtype: Dtype) -> Generator[tuple[AxisMap, dict[str, int]]]:
        """Parts of what is needed that are made at one time, and where each begins."""
        axes = needed.axes
        divided = [axis.name for axis in self._own if axes.is_divided(axis.name)]
        many = [name for name in divided if name and axes.sizes[name] > axes.block(name)]
        name = next(iter(many), None)
        nbytes = math.prod(needed.shape) * dtype.itemsize
        if name is None or nbytes <= _MOST_AT_A_TIME:
            yield axes, {}
            return
        size, block = axes.sizes[name], axes.block(name)
        step = max(1, size * _MOST_AT_A_TIME // nbytes // block) * block
        for begin in range(0, size, step):
            sizes = {**axes.sizes, name: min(step, size - begin)}
            yield AxisMap(axes.operands, axes.results, sizes), {name: begin}


@final
class _Needed(NamedTuple):
    """The parts of the operands, their sizes, the shape of what they give, and a window on that."""

    views: tuple[View, ...]
    axes: AxisMap
    shape: tuple[int, ...]
    within: Window


def _index(axis: Axis, parts: Mapping[str, Along]) -> slice:
    if axis.name is None:
        return slice(None)
    begin, count, step = parts[axis.name]
    if axis.step == 1:
        return slice(begin, begin + (count - 1) * step + 1 if count else begin, step)
    return slice(begin // axis.step, begin // axis.step + axis.count(count))


def _piece_of(axis: Axis, begins: Mapping[str, int], piece: AxisMap) -> slice:
    """The elements of an axis that belong to a piece."""
    if axis.name is None or axis.name not in begins:
        return slice(None)
    begin = begins[axis.name] // axis.step
    return slice(begin, begin + axis.count(piece.sizes[axis.name]))
