"""The source of a tensor whose blocks are checked against their digests when they are read."""

from itertools import pairwise
from typing import Any, final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.digests import DIGEST_BYTES, Digests, hasher
from safejax._src.reading.source import BufferSource, Source, show, usable_in_place
from safejax._src.reading.windows import Window
from safejax.errors import ChecksumError


@final
class VerifiedSource(Source):
    """One tensor of a file, whose blocks are checked when they are read.

    A read requests every block that it touches, whole. Blocks that are read in place are
    checked once; blocks that are fetched are checked each time.

    Raises `ChecksumError` if the digest of a block is not the recorded one.
    """

    def __init__(self, file: Source, tensor: str, span: tuple[int, int], digests: Digests) -> None:
        self.name = file.name
        self.stable = file.stable
        self._file = file
        self._tensor = tensor
        self._begin, end = span
        self._nbytes = end - self._begin
        self._block_bytes = digests.block_bytes
        self._digests = digests.of[tensor]
        self._new = hasher()
        self._in_place = isinstance(file, BufferSource)
        self._checked: set[int] = set()

    def __repr__(self) -> str:
        return f"VerifiedSource({self._tensor!r} of {self._file!r})"

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        if window.size == 0:
            return np.empty(window.shape, dtype)
        begin -= self._begin
        starts, width, runs = self._runs(begin, dtype, window)
        if len(runs) == 1:
            ((_, _, first, last),) = runs
            blocks = self._blocks(first, last)
            return show(blocks, begin - first * self._block_bytes, dtype, window)
        dense = np.empty((len(starts), width), np.uint8)
        for low, high, first, last in runs:
            blocks = self._blocks(first, last)
            rows = starts[low:high] - first * self._block_bytes
            dense[low:high] = sliding_window_view(blocks, width)[rows]
        return show(dense.reshape(-1), 0, dtype, window.compact())

    def cost(self, dtype: Dtype, window: Window) -> tuple[int, int]:
        if window.size == 0:
            return 0, 0
        _, _, runs = self._runs(0, dtype, window)
        spans = [self._span(first, last) for _, _, first, last in runs]
        return sum(end - begin for begin, end in spans), len(spans)

    def peek(self, begin: int, dtype: Dtype, window: Window, alignment: int) -> NDArray[Any] | None:
        return self._file.peek(begin, dtype, window, alignment)

    def look(self, begin: int, dtype: Dtype, window: Window, alignment: int) -> NDArray[Any] | None:
        if self.peek(begin, dtype, window, alignment) is None:
            return None
        return usable_in_place(self.read(begin, dtype, window), alignment)

    def _runs(
        self, begin: int, dtype: Dtype, window: Window
    ) -> tuple[NDArray[np.int64], int, list[tuple[int, int, int, int]]]:
        """Where spans begin in the tensor, the bytes of each, and the runs of blocks they are in.

        A run is the spans `[low, high)`, and the first and last of their blocks: adjacent blocks
        are read as one.
        """
        spans = window.spans()
        starts = begin + spans.starts * dtype.itemsize
        width = spans.length * dtype.itemsize
        firsts, lasts = starts // self._block_bytes, (starts + width - 1) // self._block_bytes
        leads = np.concatenate([[True], firsts[1:] > lasts[:-1] + 1])
        bounds = [*np.flatnonzero(leads).tolist(), len(starts)]
        runs = [
            (low, high, int(firsts[low]), int(lasts[high - 1])) for low, high in pairwise(bounds)
        ]
        return starts, width, runs

    def _span(self, first: int, last: int) -> tuple[int, int]:
        """The bytes `[begin, end)` of the tensor that are the blocks `first` to `last`."""
        return first * self._block_bytes, min((last + 1) * self._block_bytes, self._nbytes)

    def _blocks(self, first: int, last: int) -> NDArray[np.uint8]:
        """The bytes of the blocks `first` to `last`, checked."""
        begin, end = self._span(first, last)
        whole = Window.whole((end - begin,))
        blocks = self._file.read(self._begin + begin, np.dtype(np.uint8), whole)
        for number in range(first, last + 1):
            if number not in self._checked:
                at = number * self._block_bytes - begin
                self._check(number, blocks[at : at + self._block_bytes])
                if self._in_place:
                    self._checked.add(number)
        return blocks

    def _check(self, number: int, block: NDArray[np.uint8]) -> None:
        hashed = self._new()
        hashed.update(np.ascontiguousarray(block).data)
        found = hashed.digest()
        wanted = self._digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
        if found != wanted:
            begin = self._begin + number * self._block_bytes
            raise ChecksumError(
                f"{self.name}: leaf {self._tensor!r}: expected the digest {wanted.hex()} of bytes "
                f"[{begin}, {begin + block.nbytes}), got {found.hex()}: the file was damaged, or "
                "changed, since it was saved; restore it from a copy"
            )
