"""Requests: which reads bring the spans of a source that are needed, decided in one place.

Spans go in and reads come out; nothing is read here. A source hands the spans of a window to
`planned`, does the reads, and takes the spans from what they return. What is needed and what is
requested are counted apart, since a read may hold more than the spans that it is made for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.windows import Spans, Window


@final
@dataclass(frozen=True, slots=True)
class Requests:
    """Reads of a source, ascending and disjoint, that together hold all of `spans`.

    Each read is a half-open run of bytes `(begin, end)`; in total they are `nbytes`. Read `k`
    holds the spans from number `firsts[k]` up to the first one of the next read.
    """

    spans: Spans
    ranges: Sequence[tuple[int, int]]
    firsts: Sequence[int]
    nbytes: int

    @property
    def excess(self) -> int:
        """The bytes that are requested without being needed."""
        return self.nbytes - self.spans.count

    def parts(self, memory: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        """The part of `memory` that belongs to each read, in order; it has room for `nbytes`."""
        if len(self.ranges) == len(self.spans.starts) and not self.excess:
            # Each read is one span. There may be many, and this is the fastest way to cut.
            return iter(memory.reshape(-1, self.spans.length))
        bounds = accumulate((end - begin for begin, end in self.ranges), initial=0)
        return (memory[begin:end] for begin, end in pairwise(bounds))

    def span_numbers(self, number: int) -> slice:
        """The numbers of the spans that a read holds."""
        last = number + 1 == len(self.firsts)
        return slice(self.firsts[number], None if last else self.firsts[number + 1])

    def rows(self, number: int, read: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The spans that a read holds, one in each row, taken from the bytes that it returned."""
        begin, _ = self.ranges[number]
        starts = self.spans.starts[self.span_numbers(number)]
        return sliding_window_view(read, self.spans.length)[starts - begin]

    def joined(self, memory: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The bytes of all spans, one after another, taken from those of all reads in `memory`.

        It is `memory` itself if the reads hold nothing but the spans.
        """
        if not self.excess:
            return memory
        begins, ends = np.array(self.ranges, np.int64).T
        sizes = ends - begins
        # How many bytes each read moves towards the front.
        moved = begins - (np.cumsum(sizes) - sizes)
        held = np.diff(np.array(self.firsts, np.int64), append=len(self.spans.starts))
        places = self.spans.starts - np.repeat(moved, held)
        return sliding_window_view(memory, self.spans.length)[places].reshape(-1)


def byte_spans(begin: int, dtype: Dtype, window: Window) -> Spans:
    """The spans, in bytes, that a window shows of the `dtype` tensor that begins at `begin`."""
    spans = window.spans()
    return Spans(begin + spans.starts * dtype.itemsize, spans.length * dtype.itemsize)


def planned(spans: Spans) -> Requests:
    """The reads that a file is asked for: one for each span, and nothing else."""
    ranges = [(begin, begin + spans.length) for begin in spans.starts.tolist()]
    return Requests(spans, ranges, range(len(ranges)), spans.count)


def planned_cost(dtype: Dtype, window: Window) -> tuple[int, int]:
    """The bytes and the number of the reads that `planned` makes for a window, without a list."""
    if window.size == 0:
        return 0, 0
    firsts, _ = window.runs()
    return window.distinct * dtype.itemsize, firsts.size


def whole_blocks(spans: Spans, size: int, limit: int | None = None) -> Requests:
    """The reads of every block that the spans touch, whole; adjacent blocks are one read.

    Blocks are `size` long and begin at multiples of it; the last one ends at `limit`, if that
    is given. Spans may touch the same block.
    """
    firsts, ends = spans.starts // size, (spans.starts + spans.length - 1) // size + 1
    is_new = np.concatenate([[True], firsts[1:] > ends[:-1]])
    begins, ends = firsts[is_new] * size, ends[np.roll(is_new, -1)] * size
    if limit is not None:
        ends = np.minimum(ends, limit)
    ranges = list(zip(begins.tolist(), ends.tolist(), strict=True))
    return Requests(spans, ranges, np.flatnonzero(is_new).tolist(), int((ends - begins).sum()))
