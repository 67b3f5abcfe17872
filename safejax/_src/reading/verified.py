"""The source of a tensor whose blocks are checked against their digests when they are read."""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.blocks import touched_blocks
from safejax._src.reading.digests import DIGEST_BYTES, Digests, hasher
from safejax._src.reading.landing import Landing, Target
from safejax._src.reading.requests import FREE, Cost, Requests, byte_spans
from safejax._src.reading.source import Part, Source, strided_array, usable_in_place
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
        self.plans_reads = file.plans_reads
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
        part = Part(begin - self._begin, dtype, window)
        touched = self._touched([part])
        if self._file.in_memory and len(touched.begins) == 1:
            self._log_excess(touched.cost.excess)
            first, end = int(touched.begins[0]), int(touched.ends[0])
            return strided_array(self._blocks(first, end), part.begin - first, dtype, window)
        target = Target(part)
        self._land(touched, [target])
        return target.array

    def read_into(self, begin: int, dtype: Dtype, window: Window, out: NDArray[Any]) -> None:
        if self.plans_reads:
            self.read_many([(Part(begin, dtype, window), out)])
        else:
            super().read_into(begin, dtype, window, out)

    def read_many(self, reads: Sequence[tuple[Part, NDArray[Any]]]) -> None:
        parts = [part._replace(begin=part.begin - self._begin) for part, _ in reads]
        targets = [
            Target(part, out)
            for part, (_, out) in zip(parts, reads, strict=True)
            if part.window.size
        ]
        if targets:
            self._land(self._touched(parts), targets)
            for target in targets:
                target.finish()

    def cost(self, dtype: Dtype, window: Window) -> Cost:
        return self.cost_of_many([Part(self._begin, dtype, window)])

    def cost_of_many(self, parts: Sequence[Part]) -> Cost:
        parts = [part._replace(begin=part.begin - self._begin) for part in parts]
        if not any(part.window.size for part in parts):
            return FREE
        touched = self._touched(parts)
        total = FREE
        for size in (touched.ends - touched.begins).tolist():
            total += self._file.cost(np.dtype(np.uint8), Window.whole((size,)))
        return Cost(total.nbytes, total.requests, touched.needed)

    def is_in_place(self, begin: int, dtype: Dtype, window: Window, alignment: int) -> bool:
        return self._file.is_in_place(begin, dtype, window, alignment)

    def in_place(
        self, begin: int, dtype: Dtype, window: Window, alignment: int
    ) -> NDArray[Any] | None:
        if not self.is_in_place(begin, dtype, window, alignment):
            return None
        return usable_in_place(self.read(begin, dtype, window), alignment)

    def _touched(self, parts: Sequence[Part]) -> Requests:
        """The reads, in bytes of the tensor, of all blocks that the parts touch."""
        wanted = [byte_spans(*part) for part in parts if part.window.size]
        return touched_blocks(wanted, self._block_bytes, self._nbytes)

    def _land(self, touched: Requests, targets: Sequence[Target]) -> None:
        """Read the blocks, check them, and put what is needed of them where it belongs."""
        self._log_excess(touched.cost.excess)
        landing = Landing(targets)
        ranges = zip(touched.begins.tolist(), touched.ends.tolist(), strict=True)
        # Not all at once: the blocks may be many times as large as what is needed of them.
        for first, end in ranges:
            landing.land(first, self._blocks(first, end))

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
