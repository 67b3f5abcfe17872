"""Pieces: parts of large tensors of a mapped file, which come from the disk by themselves.

When a page of a mapped file is touched that is not in memory, Linux reads what is around it, too:
as much as the device's read-ahead, which is 128 KiB on many machines and 8 MiB on some. That makes
whole tensors fast, whose neighbours are needed next; for a row of a large one, it is read for
nothing. So a piece is taken from a second mapping of the file, around whose pages nothing is read,
after exactly its pages were asked for. Pieces that follow each other are soon read like a whole.

Other systems have neither this read-ahead nor this advice: there nothing is a piece.
"""

import math
import mmap
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.descriptors import LocalFile
from safejax._src.reading.mapping import map_file
from safejax._src.reading.memory import address
from safejax._src.reading.source import Extent, strided_array
from safejax._src.reading.windows import Window
from safejax._src.system import ADVISES, is_resident, madvise, will_need

_LARGE: Final = 256 << 10
"""Bytes of a tensor from which on parts of it are pieces."""

_GAP: Final = 32 << 10
"""Bytes between two runs up to which what is between them is read: a disk reads that in less time
than it answers one more request."""

_LONG: Final = 8 << 20
"""Bytes of a run from which on it is no piece: next to it, what is read around it is little."""

_MOST: Final = 256 << 20
"""Bytes from which on a part is no piece, however sparse it is."""

_GOES_ON: Final = 1 << 20
"""Bytes of pieces, each of which begins where one before it ended, after which all are a whole."""

_STREAMS: Final = 16
"""How many such sequences of pieces are remembered."""

_STEP: Final = 128 << 10
"""Bytes that are asked for at a time; the system ignores what exceeds its read-ahead."""

_FEW: Final = 64
"""Runs that are asked for without a look at whether they are in memory."""

_SAMPLES: Final = 8

_PAGE: Final = mmap.PAGESIZE

_RANDOM: Final[int | None] = getattr(mmap, "MADV_RANDOM", None)


@final
class _Runs(NamedTuple):
    """The bytes of a piece: `nbytes` of them at `first`, or at all places that `firsts` shows."""

    first: int
    nbytes: int
    firsts: Window | None


@final
class Pieces:
    """What is a piece of a file, and the second mapping that such are taken from."""

    def __init__(self, file: LocalFile) -> None:
        self._file = file
        # Of each large tensor, where it begins and ends, and how much of it can be a piece.
        self._begins: list[int] = []
        self._others: list[tuple[int, int]] = []
        self._mapping: NDArray[np.uint8] | None = None
        # The bytes of each sequence of pieces so far, by where it ended.
        self._streams: dict[int, int] = {}

    def learn(self, tensors: Iterable[Extent]) -> None:
        """Learn where the tensors of the file are. Before, nothing is a piece."""
        if ADVISES and self._file.status.st_size > _LARGE:
            large = sorted((at.begin, at.end) for at in tensors if at.end - at.begin >= _LARGE)
            self._begins = [begin for begin, _ in large]
            self._others = [(end, min(_MOST, (end - begin) // 2)) for begin, end in large]

    def memory(self, begin: int, dtype: Dtype, window: Window) -> NDArray[np.uint8] | None:
        """The file's bytes for a non-empty part that is a piece, which is then on its way.

        `window` shows it of the tensor that begins at `begin`. None if it is no piece.
        """
        if not self._begins:
            return None
        runs = self._runs(begin, dtype, window)
        if runs is None:
            return None
        if runs.firsts is None and self._follows(runs.first, runs.first + runs.nbytes):
            return None
        mapping = self._mapped()
        if mapping is not None:
            self._bring_in(runs, mapping)
        return mapping

    def rows(
        self, begin: int, dtype: Dtype, window: Window, usual: NDArray[Any]
    ) -> Callable[[int], NDArray[Any]] | None:
        """A function that returns rows of what `window` shows, by their numbers, as pieces.

        `usual` is what rows are taken from that are read like a whole. None if all of them are.
        """
        if not self._begins:
            return None
        row = window.row(0)
        runs = self._runs(begin, dtype, row)
        mapping = None if runs is None else self._mapped()
        if runs is None or mapping is None:
            return None
        pieces = strided_array(mapping, begin, dtype, window)
        if runs.firsts is not None:

            def of_many(number: int) -> NDArray[Any]:
                is_piece = self.memory(begin, dtype, window.row(number)) is not None
                return (pieces if is_piece else usual)[number]

            return of_many
        first, nbytes = runs.first, runs.nbytes
        step = window.strides[0] * dtype.itemsize
        enough = _GOES_ON // nbytes if 0 <= step - nbytes <= _GAP else window.shape[0]
        last, follow = -1, 0

        def of_one(number: int) -> NDArray[Any]:
            # Threads that come in between only have other pages read.
            nonlocal last, follow
            follow = follow + 1 if number == last + 1 else 0
            last = number
            if follow > enough:
                return usual[number]
            at = first + number * step
            if at % _PAGE + nbytes > _PAGE:  # A page alone comes in when it is touched.
                self._ask_for(at, nbytes)
            return pieces[number]

        return of_one

    def _runs(self, begin: int, dtype: Dtype, window: Window) -> _Runs | None:
        """The runs of a part that is a piece, with the gaps that are read, too; else None."""
        size = dtype.itemsize
        at = begin + window.offset * size
        number = bisect_right(self._begins, at) - 1
        if number < 0:
            return None
        end, most = self._others[number]
        nbytes = window.distinct * size
        if at >= end or nbytes > most:
            return None
        if window.strides == Window.whole(window.shape).strides:
            return _Runs(at, nbytes, None) if nbytes < _LONG else None
        firsts, length = window.runs()
        first, run = begin + firsts.offset * size, length * size
        axes = len(firsts.shape)
        while axes and firsts.strides[axes - 1] * size - run <= _GAP:
            axes -= 1
            run += firsts.strides[axes] * size * (firsts.shape[axes] - 1)
        shape = firsts.shape[:axes]
        if run >= _LONG or math.prod(shape) * max(run, _PAGE) > most:
            return None
        strides = tuple(stride * size for stride in firsts.strides[:axes])
        return _Runs(first, run, Window(first, shape, strides) if shape else None)

    def _follows(self, begin: int, end: int) -> bool:
        """Whether a piece follows others that together are worth being read like a whole."""
        # Without a lock, which a process that is forked meanwhile would wait for. Of threads that
        # come in between, only other pages are read.
        streams = self._streams
        before = streams.pop(begin, 0)
        streams[end] = before + end - begin
        for oldest in list(streams)[:-_STREAMS]:
            streams.pop(oldest, None)
        return before >= _GOES_ON

    def _mapped(self) -> NDArray[np.uint8] | None:
        """The second mapping; None if there can be none."""
        if self._mapping is None:
            descriptor = self._file.descriptor()
            if descriptor is None:  # The path is that of another file by now.
                return None
            try:
                mapping = map_file(descriptor.number, self._file.status.st_size)
            except OSError:  # No address space or no more mappings: the first one has it all.
                return None
            if madvise()(address(mapping), mapping.nbytes, _RANDOM):
                return None
            self._mapping = mapping
        return self._mapping

    def _bring_in(self, runs: _Runs, mapping: NDArray[np.uint8]) -> None:
        first, nbytes, firsts = runs
        if firsts is None:
            self._ask_for(first, nbytes)
            return
        count = firsts.shape[0]
        if firsts.size > _FEW:
            # Either nearly all of a file is in memory or nearly nothing. Where the system does not
            # say so, each page is read when it is touched.
            start = address(mapping) + first
            steps = range(0, count, max(1, count // _SAMPLES))
            if all(is_resident(start + number * firsts.strides[0]) for number in steps):
                return
        for begin in firsts.spans().starts.tolist():
            self._ask_for(begin, nbytes)

    def _ask_for(self, begin: int, nbytes: int) -> None:
        """Have the system read the pages of some bytes, without waiting for them."""
        descriptor = self._file.descriptor()
        if descriptor is None:
            return
        if nbytes <= _STEP:
            will_need(descriptor.number, begin, nbytes)
            return
        end = begin + nbytes
        for at in range(begin, end, _STEP):
            will_need(descriptor.number, at, min(end - at, _STEP))
