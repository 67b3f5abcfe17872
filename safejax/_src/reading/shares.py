"""Shares: who writes which bytes of a file that several processes write together.

A byte belongs to one of the processes that hold its values. If several do, the file is cut in
stripes, which they take in turn: so which of them writes a byte depends on nothing but where it
is, and every byte is written once, however each process came by its view of the values. What is
in every process alike, such as a NumPy array, is shared by all; what is read from a file is
written by process 0, as the files of others may differ.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, final

from safejax._src.reading.array import AbsentSource
from safejax._src.reading.concatenation import Concatenation, concatenation
from safejax._src.reading.derived import Derived
from safejax._src.reading.pointwise import Pointwise
from safejax._src.reading.view import Strided, View
from safejax._src.reading.windows import Window
from safejax.errors import LeafError

STRIPE_BYTES: Final = 4096
"""The least size in bytes of a stripe, and a divisor of all sizes: that of a page."""

_STRIPES_EACH: Final = 16
"""At most about so many stripes of a tensor are written by each of its holders."""


@final
class Region(NamedTuple):
    """The values of `view`, and where they go: `at` counts elements of a tensor in a file.

    Both have the same shape, and `at` is in C order.
    """

    view: View
    at: Window

    def part(self, index: tuple[slice | int, ...]) -> "Region":
        """The same index of both."""
        return Region(self.view.index(index), self.at.index(index))


@final
class Piece(NamedTuple):
    """A region whose values come from one source; `holders` is None if every process has them."""

    region: Region
    holders: tuple[int, ...] | None


@final
@dataclass(frozen=True, slots=True)
class Stripes:
    """The stripes of a tensor: `begin` and `nbytes` say which bytes of the file it has.

    `bits` is the size of an element.
    """

    begin: int
    nbytes: int
    bits: int

    def among(self, holders: int, rank: int) -> Iterator[tuple[int, int]]:
        """The half-open ranges of elements that are in stripes of holder `rank` of `holders`."""
        if holders == 1:
            yield 0, self.nbytes * 8 // self.bits
            return
        pages = -(-self.nbytes // (STRIPE_BYTES * _STRIPES_EACH * holders))
        size = STRIPE_BYTES * pages
        first = self.begin // size
        last = (self.begin + self.nbytes - 1) // size
        for stripe in range(first + (rank - first) % holders, last + 1, holders):
            begin = max(stripe * size - self.begin, 0)
            end = min((stripe + 1) * size - self.begin, self.nbytes)
            # An element is in the stripe that its first byte is in.
            yield -(-begin * 8 // self.bits), -(-end * 8 // self.bits)


def pieces(view: View) -> Iterator[Piece]:
    """The pieces of a tensor that this process has values of."""
    if view.size:
        yield from _pieces(Region(view, Window.whole(view.shape)))


def shared_among(piece: Piece, processes: int) -> tuple[int, ...] | range:
    """The processes that write the piece: each a share of it."""
    if piece.holders is not None:
        return piece.holders
    reads_files = piece.region.view.cost().nbytes > 0
    return range(1) if reads_files else range(processes)


def shares(
    view: View, stripes: Stripes, process: int, processes: int, writer: int | None = None
) -> Iterator[Region]:
    """The regions of a tensor that one of `processes` writes.

    If one of them is the `writer` of the whole tensor, the regions that each gives to it; what the
    writer has itself is its own.
    """
    for piece in pieces(view):
        among = shared_among(piece, processes)
        if writer is not None and writer in among:
            among = (writer,)
        if process not in among:
            continue
        if len(among) == 1:
            yield piece.region
            continue
        for begin, end in stripes.among(len(among), among.index(process)):
            low, high = (_count_below(piece.region.at, bound) for bound in (begin, end))
            yield from _flat_range(piece.region, low, high)


def _pieces(region: Region) -> Iterator[Piece]:
    view, at = region
    if isinstance(view, Pointwise):
        for piece in _pieces(Region(view.operand, at)):
            values = Pointwise(piece.region.view, view.function, view.dtype)
            yield Piece(Region(values, piece.region.at), piece.holders)
    elif isinstance(view, Concatenation):
        yield from _of_parts(view, at)
    else:
        assert isinstance(view, Strided)
        yield from _of_strided(view, at)


def _of_parts(view: Concatenation, at: Window) -> Iterator[Piece]:
    """The pieces of the parts; neighbours in rows are one piece, so that longer runs are written.

    Only those of the same holders: who writes a byte must not depend on what is grouped here.
    """
    lead = (slice(None),) * view.axis
    in_rows = math.prod(view.shape[: view.axis]) > 1
    group: list[View] = []
    holders: tuple[int, ...] | None = None
    first = begin = 0

    def grouped() -> Iterator[Piece]:
        if group:
            place = at.index((*lead, slice(first, begin)))
            yield Piece(Region(concatenation(tuple(group), view.axis), place), holders)
            group.clear()

    for part in view.parts:
        end = begin + part.shape[view.axis]
        if isinstance(part, Strided) and isinstance(part.source, AbsentSource):
            yield from grouped()
            begin = end
            continue
        place = at.index((*lead, slice(begin, end)))
        found = list(_pieces(Region(part, place))) if part.size else []
        is_whole = len(found) == 1 and found[0].region.view.shape == part.shape
        if in_rows and is_whole and found[0].holders is not None:
            if found[0].holders != holders:
                yield from grouped()
            if not group:
                first, holders = begin, found[0].holders
            group.append(found[0].region.view)
        else:
            yield from grouped()
            yield from found
        begin = end
    yield from grouped()


def _of_strided(view: Strided, at: Window) -> Iterator[Piece]:
    source, operand = view.source, view.source.operand
    if isinstance(operand, View):
        # A reshape that shows all of its operand has the same bytes in the same order.
        is_whole = view.window == Window.whole(view.shape) and view.size == operand.size
        place = at.reshape(operand.shape) if is_whole else None
        if place is not None:
            yield from _pieces(Region(operand, place))
            return
        if source.elsewhere:
            raise LeafError(
                "expected a part of an array that one process can read alone, got a part of a "
                "reshape for which values of several processes are needed: reshape it in a "
                "jitted function before the save"
            )
        yield Piece(Region(view, at), _common_holders(operand))
    elif isinstance(source, Derived) and source.elsewhere:
        raise LeafError(
            "expected a part of a leaf that one process can make alone, got one that merge or "
            "permute makes of values of several processes: do that in a jitted function before "
            "the save"
        )
    elif source.has_values:
        yield Piece(Region(view, at), source.holders)


def _common_holders(view: View) -> tuple[int, ...] | None:
    """The processes that hold all values of a view; this one does."""
    known = [set(source.holders) for source in view.sources if source.holders is not None]
    return tuple(sorted(set.intersection(*known))) if known else None


def _count_below(at: Window, bound: int) -> int:
    """How many elements of a window in C order are below an element of its source."""
    count, left = 0, bound - at.offset
    inner = at.size
    for size, stride in zip(at.shape, at.strides, strict=True):
        if size == 1:
            continue
        inner //= size
        if left <= 0:
            break
        # The rows that begin below the bound; only the last of them may reach beyond it.
        rows = min(size, -(-left // stride))
        count += (rows - 1) * inner
        left -= (rows - 1) * stride
    else:
        count += left > 0
    return count


def _flat_range(region: Region, begin: int, end: int) -> Iterator[Region]:
    """The elements `[begin, end)` of a region in C order, as few regions."""
    if begin >= end:
        return
    if (begin, end) == (0, region.at.size):
        yield region
        return
    row = region.at.size // region.at.shape[0]
    first, last = -(-begin // row), end // row
    if first > last:
        yield from _flat_range(_row(region, last), begin - last * row, end - last * row)
        return
    if begin < first * row:
        yield from _flat_range(_row(region, first - 1), begin - (first - 1) * row, row)
    if first < last:
        yield region.part((slice(first, last),))
    if end > last * row:
        yield from _flat_range(_row(region, last), 0, end - last * row)


def _row(region: Region, number: int) -> Region:
    return region.part((number,))
