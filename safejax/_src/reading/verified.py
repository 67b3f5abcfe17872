"""The source of a tensor whose blocks are checked against their digests when they are read."""

from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.digests import DIGEST_BYTES, Digests, hasher
from safejax._src.reading.requests import Requests, byte_spans, whole_blocks
from safejax._src.reading.source import Source, strided_array, usable_in_place
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
        self.immutable = file.immutable
        self._file = file
        self._tensor = tensor
        self._begin, end = span
        self._nbytes = end - self._begin
        self._block_bytes = digests.block_bytes
        self._digests = digests.of[tensor]
        self._new = hasher()
        self._checked: set[int] = set()

    def __repr__(self) -> str:
        return f"VerifiedSource({self._tensor!r} of {self._file!r})"

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        if window.size == 0:
            return np.empty(window.shape, dtype)
        requests = self._requests(begin - self._begin, dtype, window)
        self._log_excess(requests.excess)
        if len(requests.ranges) == 1:
            ((first, end),) = requests.ranges
            return strided_array(
                self._blocks(first, end), begin - self._begin - first, dtype, window
            )
        dense = np.empty((len(requests.spans.starts), requests.spans.length), np.uint8)
        # Not all at once: the blocks may be many times as large as what is needed of them.
        for number, (first, end) in enumerate(requests.ranges):
            blocks = self._blocks(first, end)
            dense[requests.span_numbers(number)] = requests.rows(number, blocks)
        return strided_array(dense.reshape(-1), 0, dtype, window.compact())

    def cost(self, dtype: Dtype, window: Window) -> tuple[int, int]:
        if window.size == 0:
            return 0, 0
        requests = self._requests(0, dtype, window)
        return requests.nbytes, len(requests.ranges)

    def is_in_place(self, begin: int, dtype: Dtype, window: Window, alignment: int) -> bool:
        return self._file.is_in_place(begin, dtype, window, alignment)

    def in_place(
        self, begin: int, dtype: Dtype, window: Window, alignment: int
    ) -> NDArray[Any] | None:
        if not self.is_in_place(begin, dtype, window, alignment):
            return None
        return usable_in_place(self.read(begin, dtype, window), alignment)

    def _requests(self, begin: int, dtype: Dtype, window: Window) -> Requests:
        """The reads, in bytes of the tensor, of all blocks that the window touches."""
        return whole_blocks(byte_spans(begin, dtype, window), self._block_bytes, self._nbytes)

    def _blocks(self, begin: int, end: int) -> NDArray[np.uint8]:
        """The bytes `[begin, end)` of the tensor, which are whole blocks, checked."""
        whole = Window.whole((end - begin,))
        blocks = self._file.read(self._begin + begin, np.dtype(np.uint8), whole)
        for at in range(0, end - begin, self._block_bytes):
            number = (begin + at) // self._block_bytes
            if number not in self._checked:
                self._check(number, blocks[at : at + self._block_bytes])
                if self._file.in_memory:
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
