"""The source of a tensor whose elements share bytes: 4-bit elements, two in each byte."""

from collections.abc import Sequence
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype, unpack
from safejax._src.reading.batch import Batch
from safejax._src.reading.blocks import Blocks, whole_blocks
from safejax._src.reading.requests import Cost
from safejax._src.reading.source import Gathering, Part, Source, strided_array
from safejax._src.reading.windows import Window

_PER_BYTE: Final = 2
"""Elements in each byte."""


@final
class PackedSource(Source):
    """A tensor of 4-bit elements, stored two per byte, shown as one element per byte."""

    def __init__(self, packed: Source, begin: int) -> None:
        self.name = packed.name
        self.immutable = True
        self.plans_reads = packed.plans_reads
        self._packed = packed
        self._begin = begin

    def __repr__(self) -> str:
        return f"PackedSource({self._packed!r})"

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        assert begin == 0
        if window.size == 0:
            return np.empty(window.shape, dtype)
        packed = [self._packed.read(*part) for part in self._parts(window)]
        return _unpacked(dtype, window, packed)

    def read_into(self, begin: int, dtype: Dtype, window: Window, out: NDArray[Any]) -> None:
        if self.plans_reads:
            self.read_many([(Part(begin, dtype, window), out)])
        else:
            super().read_into(begin, dtype, window, out)

    def read_many(self, reads: Sequence[tuple[Part, NDArray[Any]]]) -> None:
        with Batch() as batch:
            self.begin_many(reads, batch)
            batch.run()

    def begin_many(self, reads: Sequence[tuple[Part, NDArray[Any]]], batch: Gathering) -> bool:
        held: list[tuple[Part, NDArray[Any], list[NDArray[Any]]]] = []
        for part, out in reads:
            if part.window.size:
                rows = self._parts(part.window)
                packed = [batch.empty(row.window.shape, row.dtype) for row in rows]
                held.append((part, out, packed))
                for row, memory in zip(rows, packed, strict=True):
                    batch.add(self._packed, row, memory)

        def unpack_all() -> None:
            for part, out, packed in held:
                np.copyto(out, _unpacked(part.dtype, part.window, packed))

        batch.then(unpack_all)
        return True

    def place_of(self, byte: int) -> tuple[Source, int]:
        return self._packed.place_of(self._begin + byte // _PER_BYTE)

    def cost(self, dtype: Dtype, window: Window) -> Cost:
        return self.cost_of_many([Part(0, dtype, window)])

    def cost_of_many(self, parts: Sequence[Part]) -> Cost:
        needed = [row for part in parts if part.window.size for row in self._parts(part.window)]
        return self._packed.cost_of_many(needed)

    def _parts(self, window: Window) -> list[Part]:
        """The parts of the packed bytes that hold what a window shows."""
        return [Part(self._begin, np.dtype(np.uint8), row) for row in _packed_windows(window)]


def _packed_windows(window: Window) -> list[Window]:
    """The packed bytes of what a window shows: of all of its runs, or of each by itself."""
    firsts, length = window.runs()
    if _all_even(firsts):
        return [_packed_rows(firsts, length)]
    return _packed_runs(whole_blocks(window.spans(), _PER_BYTE))


def _unpacked(dtype: Dtype, window: Window, packed: list[NDArray[Any]]) -> NDArray[Any]:
    """What a window shows, from the bytes of its `_packed_windows`."""
    firsts, length = window.runs()
    if _all_even(firsts):
        # All runs begin in the same half of a byte.
        odd = firsts.offset % 2
        rows = np.ascontiguousarray(packed[0])
        width = _PER_BYTE * rows.shape[-1]
        halves = unpack(rows.reshape(-1)).reshape(-1, width)[:, odd : odd + length].reshape(-1)
    else:
        # Runs whose bytes touch have been read as one.
        halves = whole_blocks(window.spans(), _PER_BYTE).joined(unpack(np.concatenate(packed)))
    return strided_array(np.ascontiguousarray(halves), 0, dtype, window.compact())


def _all_even(firsts: Window) -> bool:
    """Whether all runs begin in the same half of a byte."""
    return all(stride % 2 == 0 for stride in firsts.strides)


def _packed_rows(firsts: Window, length: int) -> Window:
    """The bytes of runs that all begin in the same half of a byte, one row per run."""
    width = (firsts.offset % 2 + length + 1) // 2
    strides = tuple(stride // 2 for stride in firsts.strides)
    return Window(firsts.offset // 2, (*firsts.shape, width), (*strides, 1))


def _packed_runs(blocks: Blocks) -> list[Window]:
    """The bytes of each read, which is one of elements that fill whole bytes."""
    return [
        Window(begin // _PER_BYTE, ((end - begin) // _PER_BYTE,), (1,))
        for begin, end in blocks.ranges
    ]
