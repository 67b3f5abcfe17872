"""Batches: what several views need is read together, each source asked once for all of it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Final, Self, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.requests import FREE, Cost
from safejax._src.reading.source import Part, Source

ROOM: Final = 64 << 20
"""Most bytes of a batch that are read only to be checked or decoded, and are in memory together."""

_Reads: TypeAlias = dict[Source, list[tuple[Part, NDArray[Any]]]]


@final
class Batch:
    """Parts of sources that are to be read, and what is to be done with them afterwards.

    A source that checks or decodes what another one has is asked what it needs of that: so leaves
    with digests, and leaves of 4 bits, are requested with their neighbours in the file.

    With `is_dry`, nothing can be read, and `empty` gives arrays that have no memory: the batch is
    for its `cost`.
    """

    def __init__(self, *, is_dry: bool = False) -> None:
        self.is_dry = is_dry
        self._room = ROOM
        self._reads: _Reads = {}
        self._later: list[Callable[[], None]] = []
        self._other = FREE
        self._kept = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._kept.close()

    def keep(self, block: AbstractContextManager[None]) -> None:
        """Enter a block, and leave it with that of the batch."""
        self._kept.enter_context(block)

    def empty(self, shape: tuple[int, ...], dtype: Dtype) -> NDArray[Any]:
        """An array for values that are read, and used once they are there."""
        if self.is_dry:
            return np.broadcast_to(np.empty((), dtype), shape)
        return np.empty(shape, dtype)

    def takes(self, nbytes: int) -> bool:
        """Whether there is room for so many bytes that are read in addition; takes it if so."""
        if nbytes > self._room:
            return False
        self._room -= nbytes
        return True

    def add(self, source: Source, part: Part, out: NDArray[Any]) -> None:
        """Have a part of a source read into `out`, of the shape of its window."""
        self._reads.setdefault(source, []).append((part, out))

    def then(self, task: Callable[[], None], cost: Cost = FREE) -> None:
        """Do something, which itself costs this much, once all parts have been read."""
        self._later.append(task)
        self._other += cost

    def run(self) -> None:
        """Read everything; then do the tasks in the reverse order, operands first."""
        assert not self.is_dry
        for source, reads in self._begun().items():
            source.read_many(reads)
        for task in reversed(self._later):
            task()

    @property
    def first(self) -> tuple[Source, int] | None:
        """The source of the first part, and the byte at which it begins; None if there is none."""
        for source, reads in self._reads.items():
            part, _ = reads[0]
            return source.place_of(part.begin + part.window.offset * part.dtype.itemsize)
        return None

    @property
    def cost(self) -> Cost:
        """What `run` requests of files."""
        reads_of = self._begun()
        total = self._other
        for source, reads in reads_of.items():
            total += source.cost_of_many([part for part, _ in reads])
        return total

    def _begun(self) -> _Reads:
        """What is read of the sources that read by themselves."""
        by_themselves: _Reads = {}
        while self._reads:
            asked, self._reads = self._reads, {}
            for source, reads in asked.items():
                if not source.begin_many(reads, self):
                    by_themselves.setdefault(source, []).extend(reads)
        self._reads = by_themselves
        return by_themselves
