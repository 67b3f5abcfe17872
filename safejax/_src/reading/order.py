"""Orders: that of the axes of a view in which its bytes lie in the file one after the other.

A view that shows a tensor transposed is read in that order, in long runs, and handed on with its
axes permuted.
"""

import math
from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any, Final

from numpy.typing import NDArray

from safejax._src.dtypes import is_below_a_byte
from safejax._src.reading.concatenation import Concatenation
from safejax._src.reading.memory import Allocator
from safejax._src.reading.pointwise import Pointwise
from safejax._src.reading.view import Strided, View
from safejax._src.reading.windows import Window

_LEAST_BYTES: Final = 64 << 10
"""Bytes of a view from which the order in which it is read is worth a thought."""


PIECE_BYTES: Final = 4 << 20
"""Most bytes of a piece, which stays in the cache of a core while it is brought into its order."""

_PIECE_RUN: Final = 512
"""Elements that a piece has in a run as it is stored, as far as there are so many."""


def read_in_order(view: View, order: tuple[int, ...] | None, empty: Allocator) -> NDArray[Any]:
    """What `read` returns, in memory of `empty`: in the order of the file, or in that of the view.

    In the former, `order`, runs are copied, and the axes of what comes back are permuted; XLA
    brings them into their places in less time than NumPy.
    """
    if order is None:
        values = empty(view.shape, view.dtype)
        view.read_into(values)
        return values
    turned = view.transpose(order)
    values = empty(turned.shape, view.dtype)
    turned.read_into(values)
    return values.transpose([order.index(axis) for axis in range(len(order))])


def order_of_reading(view: View) -> tuple[int, ...] | None:
    """The axes of a view in their order in the file, if NumPy would copy it element by element.

    None for a view whose rows are runs of the file, or nearly so; for a small one; and for one
    that has no such order.
    """
    if view.nbytes < _LEAST_BYTES or is_below_a_byte(view.dtype):
        return None
    order = _order(view)
    innermost = max(axis for axis, size in enumerate(view.shape) if size > 1)
    return None if order is None or order[-1] == innermost else order


def is_worth_pieces(view: View) -> bool:
    """Whether a view with an order is brought into its own in pieces, without a copy of it all.

    Not so where a part is requested or checked in another unit than its own bytes.
    """
    return view.nbytes > PIECE_BYTES and all(source.in_memory for source in view.sources)


def pieces(
    stored: tuple[int, ...], itemsize: int, order: tuple[int, ...]
) -> Iterator[tuple[slice, ...]]:
    """The indices of pieces of an array of shape `stored`, the axes of a view in this `order`.

    Each is one run of the view, or a few, of what is stored in runs that are long enough.
    """
    sizes = [1] * len(stored)
    room = _PIECE_RUN
    for place in reversed(range(len(stored))):
        sizes[place] = min(stored[place], room)
        room = -(-room // sizes[place])
    room = max(1, PIECE_BYTES // itemsize // math.prod(sizes))
    for axis in reversed(range(len(stored))):
        place = order.index(axis)
        size = min(stored[place], sizes[place] * room)
        room = room * sizes[place] // size
        sizes[place] = size
    return product(*map(_even, stored, sizes))


def _even(size: int, most: int) -> list[slice]:
    """Slices of about equal lengths, of at most `most` each."""
    count = -(-size // most)
    bounds = [size * k // count for k in range(count + 1)]
    return [slice(*pair) for pair in pairwise(bounds)]


def _order(view: View) -> tuple[int, ...] | None:
    if isinstance(view, Pointwise):
        return _order(view.operand)
    if isinstance(view, Concatenation):
        orders = {_order(part) for part in view.parts}
        return orders.pop() if len(orders) == 1 else None
    return _order_of_window(view.window) if isinstance(view, Strided) else None


def _order_of_window(window: Window) -> tuple[int, ...] | None:
    """The axes by falling strides; those of one element, which have no place, come first."""
    moving = [axis for axis, size in enumerate(window.shape) if size > 1]
    if any(window.strides[axis] <= 0 for axis in moving):
        return None
    moving.sort(key=lambda axis: -window.strides[axis])
    return (*(axis for axis, size in enumerate(window.shape) if size <= 1), *moving)
