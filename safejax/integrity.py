"""Integrity: a digest for each block of a tensor's bytes, so that a part is checked by its blocks.

`save(..., checksum=True)` records the digests, and `load(..., verify=True)` checks each block
when it is read. The digest is 64-bit XXH3, which detects damage, but does not protect against
somebody who changes the digest too. `xxhash` is an extra (`safejax[checksum]`), imported when
digests are first needed.
"""

import importlib
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypeAlias, final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from safejax.dtypes import Dtype
from safejax.errors import ChecksumError
from safejax.sources import BufferSource, Source, show, usable_in_place
from safejax.windows import Window

ALGORITHM: Final = "xxh3_64"
DIGEST_BYTES: Final = 8

_MIN_BLOCK_BYTES: Final = 1 << 20
_MAX_BLOCKS: Final = 1 << 16

_Hash: TypeAlias = Any
"""An xxhash hash object, which works like those of hashlib. `Any`, since xxhash is an extra."""


@final
class Digests(NamedTuple):
    """The digests of a file: one for each block of `block_bytes` of each tensor, in order.

    `of` maps the name of each tensor to its concatenated digests, `DIGEST_BYTES` each.
    """

    block_bytes: int
    of: Mapping[str, bytes]


def chosen_block_bytes(total: int) -> int:
    """The block size for a file with `total` bytes of data: 1 MiB, or more above 64 GiB.

    A header is limited to 100 MB, so the number of blocks is bounded, and not their size.
    """
    block = _MIN_BLOCK_BYTES
    while total > block * _MAX_BLOCKS:
        block *= 2
    return block


def digests_size(nbytes: int, block_bytes: int) -> int:
    """The total size in bytes of the digests of a tensor of `nbytes`."""
    return -(-nbytes // block_bytes) * DIGEST_BYTES


def hasher() -> Callable[[], _Hash]:
    """The function that makes a new hash object; `ImportError` if xxhash is not installed."""
    try:
        # Imported by name: only callers that ask for digests need it.
        return importlib.import_module("xxhash").xxh3_64
    except ImportError as error:
        raise ImportError(
            f"checksums need xxhash, which cannot be imported ({error}): "
            "pip install 'safejax[checksum]'",
            name=error.name,
        ) from error


@final
class BlockHasher:
    """Computes the digests of a tensor whose bytes arrive in chunks of any size."""

    def __init__(self, new: Callable[[], _Hash], block_bytes: int) -> None:
        self._new = new
        self._block_bytes = block_bytes
        self._done: list[bytes] = []
        self._current = new()
        self._missing = block_bytes

    def update(self, chunk: memoryview) -> None:
        """Add the next bytes of the tensor."""
        while chunk.nbytes:
            part = chunk[: self._missing]
            self._current.update(part)
            self._missing -= part.nbytes
            chunk = chunk[part.nbytes :]
            if not self._missing:
                self._finish_block()

    def digests(self) -> bytes:
        """The digests of all blocks, concatenated; the last block may be shorter."""
        if self._missing < self._block_bytes:
            self._finish_block()
        return b"".join(self._done)

    def _finish_block(self) -> None:
        self._done.append(self._current.digest())
        self._current = self._new()
        self._missing = self._block_bytes


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
