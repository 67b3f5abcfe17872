"""The stream of a layout: the bytes of a file, made chunk by chunk while they are written.

Digests are only known after all data has passed. A file whose first bytes can be written again
is written once: `Stream` gives its chunks, and then its head with digests. Where bytes cannot be
changed once they are sent, `final_chunks` reads the data twice.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Final, final

from safejax._src import dtypes
from safejax._src.checkpoint.ahead import fetched_ahead
from safejax._src.checkpoint.layout import Extent, Layout
from safejax._src.reading.array import on_the_host
from safejax._src.reading.digests import BlockHasher, hasher
from safejax._src.reading.view import View
from safejax.errors import LeafError

BLOCK_BYTES: Final = 16 << 20
"""Bytes of a leaf that are held in memory at a time while it is written."""

JOINED_BYTES: Final = 1 << 20
"""About how many bytes of small leaves are one chunk."""

_SMALL: Final = 1 << 16
"""Bytes of a chunk that is worth a chunk of its own: writing it takes longer than the call."""


@final
class Stream:
    """The bytes of the file of a layout, once, and the digests of what has passed.

    Raises `LeafError` if values that have digests change meanwhile, or are not those `expected`.
    """

    def __init__(self, layout: Layout, expected: Mapping[str, bytes] = {}) -> None:
        self._layout = layout
        self._expected = expected
        self._digests: dict[str, bytes] = {}

    def chunks(self) -> Iterator[memoryview]:
        """The file's bytes in order, with the layout's head.

        At most about `BLOCK_BYTES` of them are copied at a time. A chunk holds the data of small
        leaves, or of a part of one leaf.
        """
        yield memoryview(self._layout.head)
        yield from self._data()

    def head(self) -> bytes:
        """The head with the digests of the data, once all chunks have been taken."""
        if self._layout.block_bytes is None:
            return self._layout.head
        return self._layout.head_with(self._digests)

    def data_again(self) -> Iterator[memoryview]:
        """The data once more, which must have the digests of what has passed."""
        if all(extent.view.immutable for extent in self._layout.extents):
            return _data(self._layout)
        chunks = Stream(self._layout, self._digests).chunks()
        next(chunks)  # The head, which has no digests.
        return chunks

    @property
    def late_head(self) -> Callable[[], bytes] | None:
        """`head`, if it is another than that of the chunks; None if there are no digests."""
        return None if self._layout.block_bytes is None else self.head

    def _data(self) -> Iterator[memoryview]:
        block_bytes = self._layout.block_bytes
        if block_bytes is None:
            return _data(self._layout)
        return _joined(self._hashed(block_bytes))

    def _hashed(self, block_bytes: int) -> Iterator[memoryview]:
        for extent in fetched_ahead(self._layout.extents):
            if not extent.nbytes:
                continue
            of_blocks = BlockHasher(hasher(), block_bytes)
            again = None if extent.view.immutable else BlockHasher(hasher(), block_bytes)
            for chunk in _data_of(extent):
                of_blocks.update(chunk)
                yield chunk
                if again is not None:
                    again.update(chunk)
            digests = of_blocks.digests()
            # What was written was read between the two.
            is_same = again is None or again.digests() == digests
            if not is_same or self._expected.get(extent.name, digests) != digests:
                raise LeafError(
                    f"leaf {extent.name!r}: expected values that stay while they are saved with "
                    "checksum=True, got others: another thread has changed the array; give save a "
                    "copy of it"
                )
            self._digests[extent.name] = digests


def final_chunks(layout: Layout) -> Iterator[memoryview]:
    """The file's bytes in order, with the digests in the head.

    If there are digests, the data is read twice, the first time before this returns.
    """
    stream = Stream(layout)
    if layout.block_bytes is not None:
        for _ in stream.chunks():
            pass
    return chain([memoryview(stream.head())], stream.data_again())


def to_bytes(layout: Layout) -> bytes:
    """The bytes of the file; the data is read once."""
    stream = Stream(layout)
    _, *data = stream.chunks()
    return b"".join([stream.head(), *data])


def _joined(chunks: Iterator[memoryview]) -> Iterator[memoryview]:
    """The same bytes, in which small chunks that follow each other are one."""
    small = bytearray()
    for chunk in chunks:
        is_small = chunk.nbytes < _SMALL
        if is_small:
            small += chunk
        if small and (not is_small or len(small) >= JOINED_BYTES):
            yield memoryview(small)
            small = bytearray()
        if not is_small:
            yield chunk
    if small:
        yield memoryview(small)


def _data(layout: Layout) -> Iterator[memoryview]:
    """The data of a file, in which that of small leaves that follow each other is one chunk."""
    small: list[bytes] = []
    nbytes = 0
    for extent in fetched_ahead(layout.extents):
        size = extent.stored.nbytes
        if size < _SMALL:
            if size:
                small.append(_bytes_of(extent))
                nbytes += size
            if nbytes < JOINED_BYTES:
                continue
        if nbytes:
            yield memoryview(b"".join(small))
            small, nbytes = [], 0
        if size >= _SMALL:
            yield from _data_of(extent)
    if nbytes:
        yield memoryview(b"".join(small))


def _data_of(extent: Extent) -> Iterator[memoryview]:
    """The bytes of a tensor, as they are stored in the file."""
    view, stored = extent.view, extent.stored
    if stored.nbytes < _SMALL:
        if stored.nbytes:
            yield memoryview(_bytes_of(extent))
        return
    for block in (view,) if dtypes.is_packed(stored.code) else view.blocks(BLOCK_BYTES):
        try:
            values = block.read()
        except LeafError as error:
            raise _named(error, extent) from error
        yield dtypes.to_stored_bytes(values, stored).data


def _bytes_of(extent: Extent) -> bytes:
    """The bytes of a small tensor, as they are stored in the file."""
    values, stored = extent.values, extent.stored
    try:
        # The bytes of bools may be invalid, which a view mends.
        if isinstance(values, View) or stored.code == "BOOL":
            array = extent.view.read()
        else:
            array = on_the_host(values)
    except LeafError as error:
        raise _named(error, extent) from error
    return dtypes.stored_bytes(array, stored)


def _named(error: LeafError, extent: Extent) -> LeafError:
    """The error of an array that was deleted since the layout was made."""
    return LeafError(f"leaf {extent.name!r}: {error}")
