"""Blocks: the reads of every block that the spans of a tensor touch, whole.

What is checked or decoded as a whole has to be read as a whole: a block with a digest, or a byte
that holds two elements. Spans go in and reads come out; nothing is read here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from safejax._src.reading.requests import Reach, Requests, planned
from safejax._src.reading.windows import Spans

MOST_AT_A_TIME: Final = 64 << 20
"""Most bytes of blocks that are in memory at one time."""


@final
@dataclass(frozen=True, slots=True)
class Blocks:
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


def whole_blocks(spans: Spans, size: int, limit: int | None = None) -> Blocks:
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
    return Blocks(spans, ranges, np.flatnonzero(is_new).tolist(), int((ends - begins).sum()))


def touched_blocks(wanted: Sequence[Spans], size: int, limit: int) -> Requests:
    """The reads of every block that one of the spans touches, whole, of at most `MOST_AT_A_TIME`.

    Blocks are `size` long and begin at multiples of it; the last one ends at `limit`. The bytes of
    the spans are those that are needed.
    """
    numbers = [np.zeros(0, np.int64)]
    for spans in wanted:
        firsts, ends = spans.starts // size, (spans.starts + spans.length - 1) // size + 1
        counts = ends - firsts
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        numbers.append(np.repeat(firsts, counts) + within)
    blocks = Spans(np.unique(np.concatenate(numbers)) * size, size)
    together = planned([blocks], Reach(0, 0, 1, max(MOST_AT_A_TIME // size, 1) * size))
    needed = planned(wanted, Reach(0, 0, 1, limit)).needed
    return Requests(together.begins, np.minimum(together.ends, limit), needed)
