"""Reshard: the tensors of a file come whole to the process that writes it.

Every process knows which regions of each tensor are its own to give (`checkpoint/ours.py`), and
to which process. To each of those it sends one run of bytes: the regions one after the other, in
parts of bounded size, each with a head that says where it goes. The runs are cut into equal
chunks and go through the devices (`arrays/all_to_all.py`), so shapes, dtypes and shardings do not
matter there. A tensor of which its writer has all values is not sent.

All processes call the collective equally often, whatever fails in one of them meanwhile, and
agree before and afterwards.
"""

import struct
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from safejax._src import dtypes
from safejax._src.arrays.all_to_all import all_to_all, rounds
from safejax._src.checkpoint.layout import Extent, Layout
from safejax._src.checkpoint.ours import Share, blocks
from safejax._src.processes.agreement import Round
from safejax._src.processes.interrupts import interrupts_wait
from safejax._src.processes.preparing import agreed
from safejax._src.reading.buffer import BufferSource
from safejax._src.reading.shares import Region
from safejax._src.reading.source import strided_array
from safejax._src.reading.view import Strided
from safejax._src.reading.windows import Window
from safejax.errors import LeafError, ProcessError

_BLOCK_BYTES: Final = 64 << 10
"""About the most bytes of one part; each process holds a part of every other one."""

_HEAD: Final = struct.Struct("<qq")
"""The head of a part: the number of the tensor, from 1, and of its axes; 0 ends a run.

The window follows, `int64`: the offset, the shape, the strides.
"""

_BYTE: Final = np.dtype(np.uint8)


def reshard(
    files: Mapping[str, int],
    layouts: Mapping[str, Layout],
    ours: Mapping[str, Sequence[Share]],
    across: Round,
) -> dict[str, Layout]:
    """The layouts of the files of this process, with tensors that it has whole.

    `files` says which process writes each of some files, at most one of a process; `ours` has
    the shares of this process in each. All processes call this alike. What a process cannot give
    is raised in all.
    """  # fmt: skip
    mine = [name for name, writer in files.items() if writer == across.process]

    def prepare() -> tuple[dict[int, Outgoing], dict[str, Incoming]]:
        incoming = {name: Incoming(ours[name], across.processes, across.alive) for name in mine}
        outgoing = {
            writer: Outgoing(ours[name]) for name, writer in files.items() if name not in incoming
        }
        return outgoing, incoming

    (outgoing, incoming), longest = agreed(
        across, prepare, lambda made: max((run.nbytes for run in made[0].values()), default=0), max
    )
    if longest:
        with interrupts_wait():
            failure = _exchange(outgoing, incoming, longest, across.processes)
        missing = sum(each.missing for each in incoming.values())
        across.agree(missing, _check_none_missing, failure)
    return {name: incoming[name].whole(layouts[name]) for name in mine}


def _exchange(
    outgoing: Mapping[int, "Outgoing"],
    incoming: Mapping[str, "Incoming"],
    longest: int,
    processes: int,
) -> Exception | None:
    """Send and receive everything; the error of this process, which has called as often as all."""
    failure: Exception | None = None
    for nbytes in rounds(longest, processes):
        sent = np.zeros((processes, nbytes), np.uint8)
        if failure is None:
            try:
                for process, run in outgoing.items():
                    run.fill(sent[process])
            except Exception as error:  # noqa: BLE001 - raised in all processes, afterwards
                failure = error
        received = all_to_all(sent)
        del sent  # Neither of the two is kept while the next one is made.
        try:
            for each in incoming.values():
                for process in range(processes):
                    each.feed(process, received[process])
        except Exception as error:  # noqa: BLE001 - raised in all processes, afterwards
            failure = failure or error
        del received
    return failure


def _check_none_missing(values: list[Any]) -> None:
    if any(values):
        raise ProcessError(
            f"expected all bytes of other processes, got {sum(values)} too few: this is an error "
            "of safejax, please report it; what was there before is unchanged"
        )


# ---- sending


@final
class Outgoing:
    """A run of bytes for one process: the regions of shares, made part by part when it is taken."""

    def __init__(self, shares: Sequence[Share]) -> None:
        self._shares = shares
        # Sizes follow from shapes, so that nothing is read for them.
        self.nbytes = sum(
            _HEAD.size + 8 * (1 + 2 * len(part.at.shape)) + part.at.size * _unit(share.extent)
            for _, share, part in self._parts()
        )
        self._made = self._chunks()
        self._left = np.empty(0, np.uint8)

    def fill(self, out: NDArray[np.uint8]) -> None:
        """Put the next bytes of the run into `out`; fewer if these are the last ones."""
        at = 0
        while at < len(out):
            if not len(self._left):
                chunk = next(self._made, None)
                if chunk is None:
                    return
                self._left = chunk
            count = min(len(out) - at, len(self._left))
            out[at : at + count] = self._left[:count]
            self._left = self._left[count:]
            at += count

    def _parts(self) -> Iterator[tuple[int, Share, Region]]:
        for number, share in enumerate(self._shares, 1):
            for region in share.regions:
                for part in blocks(region, _BLOCK_BYTES):
                    yield number, share, part

    def _chunks(self) -> Iterator[NDArray[np.uint8]]:
        for number, share in enumerate(self._shares, 1):
            for region in share.regions:
                with region.view.kept():
                    for part in blocks(region, _BLOCK_BYTES):
                        yield _head_of(number, part.at)
                        yield _elements(part, share.extent)


def _unit(extent: Extent) -> int:
    """The bytes of an element while it is sent: those in the file, but no two share a byte."""
    return max(1, extent.nbytes // extent.size)


def _head_of(number: int, at: Window) -> NDArray[np.uint8]:
    window = np.array([at.offset, *at.shape, *at.strides], "<i8")
    return np.frombuffer(_HEAD.pack(number, len(at.shape)) + window.tobytes(), np.uint8)


def _elements(part: Region, extent: Extent) -> NDArray[np.uint8]:
    try:
        values = part.view.read()
    except LeafError as error:  # It was deleted since the layout was made.
        raise LeafError(f"leaf {extent.name!r}: {error}") from error
    return dtypes.to_element_bytes(values, extent.stored)


# ---- receiving


@final
class Incoming:
    """The tensors of a file that this process writes; those that it has not whole, in memory."""

    def __init__(self, shares: Sequence[Share], processes: int, alive: Callable[[], None]) -> None:
        self._shares = shares
        self._memory: dict[int, NDArray[np.uint8]] = {}
        self.missing = 0
        for number, share in enumerate(shares, 1):
            if share.is_whole:
                continue
            extent, unit = share.extent, _unit(share.extent)
            self._memory[number] = np.empty(extent.size * unit, np.uint8)
            self.missing += (extent.size - share.size) * unit
            for region in share.regions:
                with region.view.kept():
                    for part in blocks(region, _BLOCK_BYTES):
                        self._put(number, part.at, _elements(part, extent))
                        alive()
        self._runs = [self._taken() for _ in range(processes)]
        self._wanted = [next(run) for run in self._runs]
        self._got = [bytearray() for _ in range(processes)]

    def feed(self, process: int, chunk: NDArray[np.uint8]) -> None:
        """Take the next bytes that a process has sent."""
        at = 0
        while at < len(chunk) and self._wanted[process]:
            got, wanted = self._got[process], self._wanted[process]
            taken = chunk[at : at + wanted - len(got)]
            at += len(taken)
            if len(got) + len(taken) < wanted:
                got += taken.data
                return
            whole = np.frombuffer(bytes(got) + taken.tobytes(), np.uint8) if got else taken
            self._got[process] = bytearray()
            self._wanted[process] = self._runs[process].send(whole)

    def whole(self, layout: Layout) -> Layout:
        """The layout, whose tensors are all in this process."""
        memory = {
            self._shares[number - 1].extent.name: bytes_ for number, bytes_ in self._memory.items()
        }

        def with_memory(extent: Extent) -> Extent:
            if extent.name not in memory:
                return extent
            source = BufferSource(memory[extent.name], "tensor of several processes")
            window = Window.whole((len(memory[extent.name]),))
            return Extent(
                extent.name, extent.begin, Strided(source, 0, _BYTE, window), extent.stored
            )

        return replace(layout, extents=tuple(map(with_memory, layout.extents)))

    def _taken(self) -> Generator[int, NDArray[np.uint8], None]:
        """What takes the run of a process: yields how many bytes it wants, and is sent them."""
        while True:
            number, axes = _HEAD.unpack((yield _HEAD.size).data)
            if number == 0:
                break
            window = np.frombuffer((yield 8 * (1 + 2 * axes)), "<i8").tolist()
            at = Window(window[0], tuple(window[1 : 1 + axes]), tuple(window[1 + axes :]))
            elements = yield at.size * _unit(self._shares[number - 1].extent)
            self._put(number, at, elements)
            self.missing -= elements.nbytes
        while True:
            yield 0

    def _put(self, number: int, at: Window, elements: NDArray[np.uint8]) -> None:
        unit = _unit(self._shares[number - 1].extent)
        element = np.dtype(f"u{unit}" if unit in (1, 2, 4, 8) else (np.void, unit))
        place = strided_array(self._memory[number], 0, element, at)
        place[...] = elements.view(element).reshape(at.shape)
