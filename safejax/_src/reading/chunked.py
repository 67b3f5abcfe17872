"""The source of an array that is stored in chunks, each of which is decoded as a whole.

What is needed at one time is read together: each chunk is decoded once, and copied to all who need
a part of it. A bounded cache keeps chunks for reads that follow each other, such as those of a
conversion, which goes through an array in blocks of rows.
"""

import itertools
import math
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.boxes import Box, box_of
from safejax._src.reading.landing import is_one_run
from safejax._src.reading.memory import aligned_empty
from safejax._src.reading.requests import Cost
from safejax._src.reading.source import Part, Source, strided_array
from safejax._src.reading.windows import Window

Index: TypeAlias = tuple[int, ...]
"""Which chunk: its number along each axis."""

_UNDER_WAY: Final = 16 << 20
"""Bytes of decoded chunks that are read at the same time, if there is more than one chunk."""


class Chunks(ABC):
    """An array that is stored in chunks: all have the shape `chunk`, from the origin on."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: Dtype

    @abstractmethod
    def begin(
        self, slices: tuple[slice, ...], out: NDArray[Any] | None = None
    ) -> Callable[[], NDArray[Any]]:
        """Begin to read a part of the array; the function waits for it, and returns it.

        It is read into `out`, if that is given. The function raises `ReadError` if the part cannot
        be had.
        """


@final
class _Held:
    """A decoded chunk, and how many bytes of it have not been taken so far."""

    def __init__(self, chunk: NDArray[Any], left: int) -> None:
        self.chunk = chunk
        self.left = left


@final
class ChunkCache:
    """Decoded chunks of several arrays: those that were used last, of at most `nbytes` bytes.

    One of which each byte has been taken is let go of, since arrays are mostly read once. One that
    is larger than `nbytes` is kept while it is the last that was used.
    """

    def __init__(self, nbytes: int) -> None:
        self._most = nbytes
        self._held: OrderedDict[tuple[int, Index], _Held] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()
        self.numbers: Final = itertools.count()
        """Numbers of the arrays whose chunks it holds, each for one array."""

    def take(self, array: int, index: Index, needed: int) -> NDArray[Any] | None:
        """The chunk of an array, if it is held, of which so many bytes are needed now."""
        with self._lock:
            held = self._held.get((array, index))
            if held is None:
                return None
            held.left -= needed
            self._held.move_to_end((array, index))
            if held.left <= 0:
                self._drop(array, index)
            return held.chunk

    def make_room(self, nbytes: int) -> None:
        """Let go of chunks, so that some of this size can be decoded and held."""
        with self._lock:
            self._shrink(nbytes)

    def put(self, array: int, index: Index, chunk: NDArray[Any], left: int) -> None:
        """Hold a chunk of an array, of which so many bytes have not been taken yet."""
        with self._lock:
            if (array, index) not in self._held:
                self._shrink(chunk.nbytes)
                self._held[array, index] = _Held(chunk, left)
                self._nbytes += chunk.nbytes

    def _shrink(self, nbytes: int) -> None:
        while self._held and self._nbytes + nbytes > self._most:
            self._drop(*next(iter(self._held)))

    def _drop(self, array: int, index: Index) -> None:
        self._nbytes -= self._held.pop((array, index)).chunk.nbytes


class _Wanted(NamedTuple):
    """A box that is needed, and the memory for its elements."""

    box: Box
    memory: NDArray[Any]


@final
class ChunkedSource(Source):
    """An array in chunks, as the flat source of its elements in C order."""

    immutable = True
    plans_reads = True

    def __init__(self, chunks: Chunks, name: str, cache: ChunkCache) -> None:
        self.name = name
        self._chunks = chunks
        self._cache = cache
        self._number = next(cache.numbers)

    def __repr__(self) -> str:
        return f"ChunkedSource({self.name!r})"

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        assert begin == 0
        if window.size == 0:
            return np.empty(window.shape, dtype)
        wanted = self._wanted(window)
        self._fill([wanted])
        return strided_array(_bytes_of(wanted.memory), 0, dtype, wanted.box.window)

    def read_into(self, begin: int, dtype: Dtype, window: Window, out: NDArray[Any]) -> None:
        self.read_many([(Part(begin, dtype, window), out)])

    def read_many(self, reads: Sequence[tuple[Part, NDArray[Any]]]) -> None:
        held = [
            (part, out, self._wanted(part.window, out)) for part, out in reads if part.window.size
        ]
        self._fill([wanted for _, _, wanted in held])
        for part, out, wanted in held:
            if not np.may_share_memory(wanted.memory, out):
                found = strided_array(_bytes_of(wanted.memory), 0, part.dtype, wanted.box.window)
                np.copyto(out, found)

    def cost(self, dtype: Dtype, window: Window) -> Cost:
        return self.cost_of_many([Part(0, dtype, window)])

    def cost_of_many(self, parts: Sequence[Part]) -> Cost:
        boxes = [box_of(self._chunks.shape, part.window) for part in parts if part.window.size]
        needed = self._needed(boxes)
        return Cost(sum(map(self._nbytes, needed)), len(needed), sum(needed.values()))

    # ---- inside

    def _wanted(self, window: Window, out: NDArray[Any] | None = None) -> _Wanted:
        """The box of a window, and memory for it: that of `out`, if the box is in its order."""
        box = box_of(self._chunks.shape, window)
        is_whole = box.window.size == math.prod(box.shape)
        if out is not None and is_whole and is_one_run(box.window, out):
            return _Wanted(box, out.reshape(box.shape))
        return _Wanted(box, aligned_empty(box.shape, self._chunks.dtype))

    def _slices(self, index: Index) -> tuple[slice, ...]:
        """The part of the array that a chunk has: those at the end may have less."""
        return tuple(
            slice(number * size, min((number + 1) * size, length))
            for number, size, length in zip(
                index, self._chunks.chunk, self._chunks.shape, strict=True
            )
        )

    def _nbytes(self, index: Index) -> int:
        count = self._chunks.dtype.itemsize
        for part in self._slices(index):
            count *= part.stop - part.start
        return count

    def _needed(self, boxes: Sequence[Box]) -> dict[Index, int]:
        """How many bytes of each chunk are in a box, each counted once; of chunks that have some.

        They are in the order in which they lie along the axes.
        """
        found: dict[Index, set[tuple[range, ...]]] = {}
        for box in boxes:
            # There may be very many chunks: all that can be is done once for each axis.
            for parts in itertools.product(*map(_along, box.slices, self._chunks.chunk)):
                index = tuple(number for number, _ in parts)
                found.setdefault(index, set()).add(tuple(inside for _, inside in parts))
        needed: dict[Index, int] = {}
        for index in sorted(found):
            count = sum(math.prod(map(len, inside)) for inside in found[index])
            nbytes = count * self._chunks.dtype.itemsize
            needed[index] = min(nbytes, self._nbytes(index)) if len(found[index]) > 1 else nbytes
        return needed

    def _fill(self, wanted: Sequence[_Wanted]) -> None:
        """Copy what is wanted out of its chunks, each of which is decoded once.

        A chunk of which another read may want the rest is kept in the cache.
        """
        needed = self._needed([each.box for each in wanted])
        missing: deque[Index] = deque()
        for index in needed:
            chunk = self._cache.take(self._number, index, needed[index])
            if chunk is None:
                missing.append(index)
            else:
                self._copy(index, chunk, wanted)
        sizes = {index: self._nbytes(index) for index in missing}
        self._log_all(list(sizes.values()))
        self._log_excess(sum(sizes.values()) - sum(needed[index] for index in missing))
        while missing:
            group = [missing.popleft()]
            nbytes = sizes[group[0]]
            while missing and nbytes + sizes[missing[0]] <= _UNDER_WAY:
                nbytes += sizes[missing[0]]
                group.append(missing.popleft())
            kept = {index for index in group if needed[index] < sizes[index]}
            if kept:
                self._cache.make_room(nbytes)
            begun: list[tuple[Index, bool, Callable[[], NDArray[Any]]]] = []
            for index in group:
                # All of a chunk is mostly for one array.
                place = None if index in kept else self._place(index, wanted)
                begin = self._chunks.begin(self._slices(index), place)
                begun.append((index, place is not None, begin))
            for index, is_placed, wait in begun:
                chunk = wait()
                if not is_placed:
                    self._copy(index, chunk, wanted)
                if index in kept:
                    left = sizes[index] - needed[index]
                    self._cache.put(self._number, index, chunk, left)

    def _place(self, index: Index, wanted: Sequence[_Wanted]) -> NDArray[Any] | None:
        """The memory that a whole chunk is for; None if it is for several arrays, or in parts."""
        part = self._slices(index)
        found = [(overlap, memory) for box, memory in wanted if (overlap := _overlap(box, part))]
        if len(found) != 1:
            return None
        (inside, outside), memory = found[0]
        if inside != tuple((0, own.stop - own.start, 1) for own in part):
            return None
        return memory[(*(slice(*each) for each in outside), ...)]

    def _copy(self, index: Index, chunk: NDArray[Any], wanted: Sequence[_Wanted]) -> None:
        part = self._slices(index)
        for box, memory in wanted:
            overlap = _overlap(box, part)
            if overlap is not None:
                inside, outside = (tuple(slice(*each) for each in side) for side in overlap)
                memory[outside] = chunk[inside]


def _along(part: tuple[int, int, int], size: int) -> list[tuple[int, range]]:
    """The chunks of this size that a part of an axis is in, and which of its elements each has."""
    begin, end, step = part
    wanted = range(begin, end, step)
    found: list[tuple[int, range]] = []
    for number in range(begin // size, (end - 1) // size + 1):
        first, last = (-((begin - bound) // step) for bound in (number * size, (number + 1) * size))
        inside = wanted[max(first, 0) : last]
        if inside:
            found.append((number, inside))
    return found


def _overlap(
    box: Box, part: tuple[slice, ...]
) -> tuple[tuple[tuple[int, int, int], ...], tuple[tuple[int, int, int], ...]] | None:
    """The elements of a box that a chunk has: where in the chunk, and where in the box."""
    inside: list[tuple[int, int, int]] = []
    outside: list[tuple[int, int, int]] = []
    for (begin, end, step), own in zip(box.slices, part, strict=True):
        # The first element of the box that is in the chunk, or behind it.
        skipped = max(0, -((begin - own.start) // step))
        first = begin + skipped * step
        last = min(end, own.stop)
        if first >= last:
            return None
        count = -((first - last) // step)
        inside.append((first - own.start, last - own.start, step))
        outside.append((skipped, skipped + count, 1))
    return tuple(inside), tuple(outside)


def _bytes_of(memory: NDArray[Any]) -> NDArray[np.uint8]:
    return memory.reshape(-1).view(np.uint8)
