"""The source of a tensor whose blocks are checked against their digests when they are read."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.batch import Batch
from safejax._src.reading.blocks import touched_blocks
from safejax._src.reading.digests import DIGEST_BYTES, Digests, hasher
from safejax._src.reading.landing import Landing, Target
from safejax._src.reading.requests import Cost, Requests, byte_spans
from safejax._src.reading.source import Gathering, Part, Source, strided_array, usable_in_place
from safejax._src.reading.windows import Window
from safejax.errors import ChecksumError

_BYTE: Final = np.dtype(np.uint8)


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
        if self._file.in_memory:
            begin_here = begin - self._begin
            spans = byte_spans(begin_here, dtype, window)
            touched = touched_blocks([spans], self._block_bytes, self._nbytes)
            if len(touched.begins) == 1:
                self._log_excess(touched.cost.excess)
                first, end = int(touched.begins[0]), int(touched.ends[0])
                return strided_array(self._blocks(first, end), begin_here - first, dtype, window)
        out = np.empty(window.shape, dtype)
        self.read_many([(Part(begin, dtype, window), out)])
        return out

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
        targets = [
            Target(part._replace(begin=part.begin - self._begin), out)
            for part, out in reads
            if part.window.size
        ]
        if not targets:
            return True
        touched = touched_blocks([each.spans for each in targets], self._block_bytes, self._nbytes)
        landing = Landing(targets)
        arriving: list[tuple[int, NDArray[np.uint8], bool]] = []
        left: list[tuple[int, int]] = []
        for begin, end in self._in_one_place(touched, landing):
            is_needed_whole = landing.holds(begin, end)
            # Blocks may be many times as large as what is needed of them.
            if not is_needed_whole and not batch.takes(end - begin):
                left.append((begin, end))
                continue
            in_place = is_needed_whole and not batch.is_dry
            place = landing.memory(begin, end) if in_place else None
            memory = batch.empty((end - begin,), _BYTE) if place is None else place
            arriving.append((begin, memory, not is_needed_whole))
            batch.add(self._file, self._part(begin, end), memory)

        def finish() -> None:
            for begin, memory, is_copied in arriving:
                self._check_all(begin, memory)
                if is_copied:
                    landing.land(begin, memory)
            for begin, end in left:
                landing.land(begin, self._blocks(begin, end))
            for target in targets:
                target.finish()

        if not batch.is_dry:
            self._log_excess(touched.cost.excess)
        # Of the file, whole blocks are needed.
        cost = Cost(0, 0, -touched.cost.excess)
        for begin, end in left:
            cost += self._file.cost_of_many([self._part(begin, end)])
        batch.then(finish, cost)
        return True

    def place_of(self, byte: int) -> tuple[Source, int]:
        return self._file.place_of(byte)

    def cost(self, dtype: Dtype, window: Window) -> Cost:
        return self.cost_of_many([Part(self._begin, dtype, window)])

    def cost_of_many(self, parts: Sequence[Part]) -> Cost:
        batch = Batch(is_dry=True)
        for part in parts:
            batch.add(self, part, batch.empty(part.window.shape, part.dtype))
        return batch.cost

    def is_in_place(self, begin: int, dtype: Dtype, window: Window, alignment: int) -> bool:
        return self._file.is_in_place(begin, dtype, window, alignment)

    def in_place(
        self, begin: int, dtype: Dtype, window: Window, alignment: int
    ) -> NDArray[Any] | None:
        if not self.is_in_place(begin, dtype, window, alignment):
            return None
        return usable_in_place(self.read(begin, dtype, window), alignment)

    def _in_one_place(self, touched: Requests, landing: Landing) -> Iterator[tuple[int, int]]:
        """The blocks of reads, in reads that are all needed in one place, or else not."""
        for first, last in zip(touched.begins.tolist(), touched.ends.tolist(), strict=True):
            begin, end = first, min(first + self._block_bytes, last)
            while end < last:
                more = min(end + self._block_bytes, last)
                if landing.holds(end, more) != landing.holds(begin, end) or (
                    landing.holds(begin, end) and not landing.holds(begin, more)
                ):
                    yield begin, end
                    begin = end
                end = more
            yield begin, end

    def _part(self, begin: int, end: int) -> Part:
        """The bytes `[begin, end)` of the tensor, as a part of the file."""
        return Part(self._begin + begin, _BYTE, Window.whole((end - begin,)))

    def _blocks(self, begin: int, end: int) -> NDArray[np.uint8]:
        """The bytes `[begin, end)` of the tensor, which are whole blocks, checked."""
        blocks = self._file.read(*self._part(begin, end))
        self._check_all(begin, blocks)
        return blocks

    def _check_all(self, begin: int, blocks: NDArray[np.uint8]) -> None:
        """Check whole blocks, the first of which begins at byte `begin` of the tensor."""
        for at in range(0, blocks.nbytes, self._block_bytes):
            number = (begin + at) // self._block_bytes
            if number not in self._checked:
                self._check(number, blocks[at : at + self._block_bytes])
                if self._file.in_memory:
                    self._checked.add(number)

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
