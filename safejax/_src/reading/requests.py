"""Requests: which reads bring the bytes that are needed of a file, decided in one place.

Spans go in and reads come out; nothing is read here. The spans of all windows that are needed at
one time are planned together. Runs that are near each other are one read, since each read costs a
round trip; what is far apart is not read, and what is large is cut. What is needed and what is
requested are counted apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.windows import Spans, Window

_Integers: TypeAlias = NDArray[np.int64]


@final
@dataclass(frozen=True, slots=True)
class Cost:
    """What is requested of files: bytes, the number of requests, and how many bytes are needed.

    A file that is mapped is requested by its runs of bytes.
    """

    nbytes: int
    requests: int
    needed: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.nbytes + other.nbytes, self.requests + other.requests, self.needed + other.needed
        )

    @property
    def excess(self) -> int:
        """The bytes that are requested without being needed."""
        return self.nbytes - self.needed


FREE: Final = Cost(0, 0, 0)


@final
class Reach(NamedTuple):
    """How far apart runs may be and still be one request; all in bytes, but for `factor`.

    Runs with at most `gap` between them are one request: what is read for nothing then costs no
    more than the requests that it saves, at `gap` bytes each. Runs with at most `dense_gap` between
    them are one where they are dense: all that is read is then at most `factor` times what is
    needed of it. No request is larger than `piece`.
    """

    gap: int
    dense_gap: int
    factor: int
    piece: int


FAR: Final = Reach(gap=64 << 10, dense_gap=128 << 10, factor=8, piece=8 << 20)
"""For files that answer requests: one takes as long as many kilobytes do."""

NEAR: Final = Reach(gap=4 << 10, dense_gap=64 << 10, factor=2, piece=8 << 20)
"""For files of the operating system, which reads pages of this size, and reads ahead."""


@final
@dataclass(frozen=True, slots=True)
class Requests:
    """Reads of a file, ascending and disjoint, of the bytes `[begins[k], ends[k])`.

    Each byte that is needed is in exactly one of them; `needed` is their number.
    """

    begins: _Integers
    ends: _Integers
    needed: int

    @property
    def nbytes(self) -> int:
        """The bytes of all reads."""
        return int((self.ends - self.begins).sum())

    @property
    def cost(self) -> Cost:
        """What the reads cost."""
        return Cost(self.nbytes, len(self.begins), self.needed)


def byte_spans(begin: int, dtype: Dtype, window: Window) -> Spans:
    """The spans, in bytes, that a window shows of the `dtype` tensor that begins at `begin`."""
    spans = window.spans()
    return Spans(begin + spans.starts * dtype.itemsize, spans.length * dtype.itemsize)


def planned(wanted: Sequence[Spans], reach: Reach) -> Requests:
    """The reads that bring all spans; those of one window may overlap those of another."""
    starts, ends = _ascending(wanted)
    if not len(starts):
        return Requests(starts, ends, 0)
    # How far all spans up to each one reach: a long one may reach beyond those that follow it.
    reached = np.maximum.accumulate(ends)
    gaps = starts[1:] - reached[:-1]
    new = ends - starts
    new[1:] = np.maximum(ends[1:] - np.maximum(starts[1:], reached[:-1]), 0)
    firsts = np.flatnonzero(np.concatenate([[True], gaps > reach.gap]))
    needed = np.add.reduceat(new, firsts)
    begins, ends = starts[firsts], reached[np.append(firsts[1:], len(starts)) - 1]
    begins, ends = _dense_as_one(begins, ends, needed, reach)
    begins, ends = _cut(begins, ends, reach.piece)
    return Requests(begins, ends, int(needed.sum()))


@lru_cache(maxsize=1024)
def runs_cost(dtype: Dtype, window: Window) -> Cost:
    """The cost of a window of which each run is read by itself, and nothing else."""
    if window.size == 0:
        return FREE
    firsts, _ = window.runs()
    nbytes = window.distinct * dtype.itemsize
    return Cost(nbytes, firsts.size, nbytes)


def _ascending(wanted: Sequence[Spans]) -> tuple[_Integers, _Integers]:
    """The begins and the ends of all spans, in the order of the begins."""
    held = [spans for spans in wanted if spans.count]
    if len(held) == 1:
        return held[0].starts, held[0].starts + held[0].length
    starts = np.concatenate([np.zeros(0, np.int64), *(spans.starts for spans in held)])
    ends = np.concatenate([np.zeros(0, np.int64), *(each.starts + each.length for each in held)])
    order = np.argsort(starts, kind="stable")
    return starts[order], ends[order]


def _dense_as_one(
    begins: _Integers, ends: _Integers, needed: _Integers, reach: Reach
) -> tuple[_Integers, _Integers]:
    """The same reads, with those as one that are dense."""
    gaps = begins[1:] - ends[:-1]
    if not np.any(gaps <= reach.dense_gap):
        return begins, ends
    has = int(needed[0])
    first = int(begins[0])
    kept = [0]
    last: list[int] = []
    columns = (begins[1:], ends[1:], needed[1:], gaps)
    for number, (begin, end, count, gap) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True), 1
    ):
        if gap <= reach.dense_gap and end - first <= reach.factor * (has + count):
            has += count
            continue
        last.append(number - 1)
        kept.append(number)
        has, first = count, begin
    last.append(len(begins) - 1)
    return begins[kept], ends[last]


def _cut(begins: _Integers, ends: _Integers, piece: int) -> tuple[_Integers, _Integers]:
    """The same bytes, in reads of at most `piece`."""
    counts = -((begins - ends) // piece)
    if len(counts) == int(counts.sum()):
        return begins, ends
    # The number of each piece within its read.
    numbers = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    cut = np.repeat(begins, counts) + numbers * piece
    return cut, np.minimum(cut + piece, np.repeat(ends, counts))
