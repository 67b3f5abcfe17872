"""Gathered: a view whose elements along an axis are in another order.

An order that is no range of steps needs more than a window. What is read of the operand are the
elements that a part needs, in as few windows as there are ranges of them.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.concatenation import Concatenation, concatenation
from safejax._src.reading.derived import Derived
from safejax._src.reading.pointwise import Pointwise
from safejax._src.reading.requests import Cost
from safejax._src.reading.source import Part, strided_array
from safejax._src.reading.touched import Along, located
from safejax._src.reading.view import Strided, View
from safejax._src.reading.windows import Window


@final
class Order:
    """A permutation of all elements along an axis: the place that each is taken from.

    It is compared by identity, and never changed: what is read for a window is found once for all
    leaves that have the same order.
    """

    __slots__ = ("is_identity", "places")

    def __init__(self, places: NDArray[np.intp]) -> None:
        self.places = places
        self.is_identity = np.array_equal(places, np.arange(len(places)))


def gathered(view: View, axis: int, order: Order) -> View:
    """The view of `array.take(order.places, axis)`."""
    if order.is_identity:
        return view
    if isinstance(view, Pointwise):
        return Pointwise(gathered(view.operand, axis, order), view.function, view.dtype)
    if isinstance(view, Concatenation):
        parts = _of_parts(view, axis, order)
        if parts is not None:
            return Concatenation(parts, view.axis)
    name = " and ".join(dict.fromkeys(source.name for source in view.sources))
    source = GatheredSource(view, axis, order, f"permuted {name}")
    return Strided(source, 0, view.dtype, Window.whole(view.shape))


def _of_parts(view: Concatenation, axis: int, order: Order) -> tuple[View, ...] | None:
    """The parts with the order of each; None if elements change from one part to another."""
    if axis != view.axis:
        return tuple(gathered(part, axis, order) for part in view.parts)
    orders: list[Order] = []
    begin = 0
    for part in view.parts:
        end = begin + part.shape[axis]
        own = order.places[begin:end] - begin
        if own.size and (own.min() < 0 or own.max() >= end - begin):
            return None
        orders.append(Order(own))
        begin = end
    return tuple(gathered(part, axis, own) for part, own in zip(view.parts, orders, strict=True))


@final
class GatheredSource(Derived):
    """The flat values of a view with its elements along `axis` in the order of `order`."""

    def __init__(self, view: View, axis: int, order: Order, name: str) -> None:
        super().__init__((view,), name)
        self._axis, self._order = axis, order

    def _of(self, operands: tuple[View, ...]) -> "GatheredSource":
        return GatheredSource(operands[0], self._axis, self._order, self.name)

    def cost_of_many(self, parts: Sequence[Part]) -> Cost:
        windows = [part.window for part in parts if part.window.size]
        return self._cost_of([self._needed(window).view for window in windows])

    def read_many(self, reads: Sequence[tuple[Part, NDArray[Any]]]) -> None:
        left = [(part, out, self._needed(part.window)) for part, out in reads if part.window.size]
        with self._read([[needed.view] for _, _, needed in left]) as held:
            for (part, out, needed), (values,) in zip(left, held, strict=True):
                _fill(out, part.dtype, values.take(needed.places, self._axis), needed.within)

    def _needed(self, window: Window) -> "_Needed":
        (view,) = self.operands
        indices, places, within = _located(window, view.shape, self._axis, self._order)
        pieces = tuple(view.index(index) for index in indices)
        return _Needed(concatenation(pieces, self._axis), places, within)


@final
class _Needed(NamedTuple):
    """What is read of the operand, where in it the elements are, and the window on these."""

    view: View
    places: NDArray[np.intp]
    within: Window


@lru_cache(maxsize=16)  # Each has the places of all elements along an axis.
def _located(
    window: Window, shape: tuple[int, ...], axis: int, order: Order
) -> tuple[tuple[tuple[slice, ...], ...], NDArray[np.intp], Window]:
    """The pieces of an array that are read for a window, and the rest of what is needed."""
    box, within = located(window, shape, [0] * len(shape))
    begin, length, step = box[axis]
    wanted = order.places[begin : begin + (length - 1) * step + 1 : step]
    found = np.sort(wanted)
    breaks = np.flatnonzero(np.diff(found) != 1) + 1
    runs = [Along(int(part[0]), len(part), 1) for part in np.split(found, breaks)]
    indices = tuple(tuple(map(_slice, (*box[:axis], run, *box[axis + 1 :]))) for run in runs)
    return indices, np.searchsorted(found, wanted), within


def _slice(along: Along) -> slice:
    begin, length, step = along
    return slice(begin, begin + (length - 1) * step + 1, step)


def _fill(out: NDArray[Any], dtype: Dtype, values: NDArray[Any], within: Window) -> None:
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    np.copyto(out, strided_array(flat, 0, dtype, within))
