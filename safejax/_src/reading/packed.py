"""The source of a tensor whose elements share bytes: 4-bit elements, two in each byte."""

from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype, unpack
from safejax._src.reading.requests import Requests, whole_blocks
from safejax._src.reading.source import Source, strided_array
from safejax._src.reading.windows import Spans, Window

_PER_BYTE: Final = 2
"""Elements in each byte."""


@final
class PackedSource(Source):
    """A tensor of 4-bit elements, stored two per byte, shown as one element per byte."""

    def __init__(self, packed: Source, begin: int) -> None:
        self.name = packed.name
        self.immutable = True
        self._packed = packed
        self._begin = begin

    def __repr__(self) -> str:
        return f"PackedSource({self._packed!r})"

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        assert begin == 0
        if window.size == 0:
            return np.empty(window.shape, dtype)
        firsts, length = window.runs()
        if _all_even(firsts):
            halves = self._even(firsts, length)
        else:
            halves = self._scattered(window.spans())
        return strided_array(np.ascontiguousarray(halves), 0, dtype, window.compact())

    def cost(self, dtype: Dtype, window: Window) -> tuple[int, int]:
        del dtype
        if window.size == 0:
            return 0, 0
        firsts, length = window.runs()
        if _all_even(firsts):
            rows = [_packed_rows(firsts, length)]
        else:
            rows = _packed_runs(whole_blocks(window.spans(), _PER_BYTE))
        costs = [self._packed.cost(np.dtype(np.uint8), row) for row in rows]
        return sum(nbytes for nbytes, _ in costs), sum(runs for _, runs in costs)

    def _even(self, firsts: Window, length: int) -> NDArray[np.uint8]:
        """The elements of runs that all begin in the same half of a byte, from one read."""
        odd = firsts.offset % 2
        rows = _packed_rows(firsts, length)
        packed = np.ascontiguousarray(self._bytes(rows)).reshape(-1)
        return unpack(packed).reshape(-1, 2 * rows.shape[-1])[:, odd : odd + length].reshape(-1)

    def _scattered(self, spans: Spans) -> NDArray[np.uint8]:
        """The elements of arbitrary runs; runs whose bytes touch are read as one."""
        requests = whole_blocks(spans, _PER_BYTE)
        packed = [self._bytes(run) for run in _packed_runs(requests)]
        return requests.joined(unpack(np.concatenate(packed)))

    def _bytes(self, window: Window) -> NDArray[np.uint8]:
        return self._packed.read(self._begin, np.dtype(np.uint8), window)


def _all_even(firsts: Window) -> bool:
    """Whether all runs begin in the same half of a byte."""
    return all(stride % 2 == 0 for stride in firsts.strides)


def _packed_rows(firsts: Window, length: int) -> Window:
    """The bytes of runs that all begin in the same half of a byte, one row per run."""
    width = (firsts.offset % 2 + length + 1) // 2
    strides = tuple(stride // 2 for stride in firsts.strides)
    return Window(firsts.offset // 2, (*firsts.shape, width), (*strides, 1))


def _packed_runs(requests: Requests) -> list[Window]:
    """The bytes of each read, which is one of elements that fill whole bytes."""
    return [
        Window(begin // _PER_BYTE, ((end - begin) // _PER_BYTE,), (1,))
        for begin, end in requests.ranges
    ]
