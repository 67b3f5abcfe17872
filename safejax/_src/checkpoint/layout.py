"""The layout of a file to write: which bytes go where, known before any leaf is read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import jax

from safejax._src import dtypes
from safejax._src.arrays.content import Content
from safejax._src.arrays.lazy import LazyArray
from safejax._src.collector import collector_paused
from safejax._src.dtypes import Stored
from safejax._src.format.header import Entry, data_order, write_header
from safejax._src.format.record import Record, with_record
from safejax._src.leaves.leaf import check_leaf, content_at, is_array
from safejax._src.leaves.leaves import Leaves
from safejax._src.pytrees.structure import Structure, name_in
from safejax._src.reading.digests import (
    BlockHasher,
    Digests,
    chosen_block_bytes,
    digests_size,
    hasher,
)
from safejax._src.reading.view import View
from safejax.errors import LeafError

BLOCK_BYTES: Final = 16 << 20
"""Bytes of a leaf that are held in memory at a time while it is written."""


@final
@dataclass(slots=True)
class Layout:
    """A file that can be written: its first bytes, and the leaves in the order of their data.

    Digests are known only after the data was written: `head` reserves room for them at first,
    and holds them once `chunks` is exhausted.
    """

    leaves: Sequence[tuple[Entry, View, Stored]]
    metadata: Mapping[str, str]
    record: Record
    file: str
    block_bytes: int | None
    head: bytes = field(init=False)

    def __post_init__(self) -> None:
        if self.block_bytes is None:
            self.head = self._head(None)
            return
        hasher()  # If xxhash is missing, fail now and not after all data was written.
        sizes = {
            entry.name: digests_size(entry.nbytes, self.block_bytes)
            for entry, _, _ in self.leaves
            if entry.nbytes
        }
        self.head = self._head(Digests(self.block_bytes, {n: bytes(s) for n, s in sizes.items()}))

    @property
    def nbytes(self) -> int:
        """The size of the file in bytes."""
        return len(self.head) + sum(entry.nbytes for entry, _, _ in self.leaves)

    def chunks(self) -> Iterator[memoryview]:
        """The file's bytes in order; at most about `BLOCK_BYTES` of them are copied at a time."""
        yield memoryview(self.head)
        digests: dict[str, bytes] = {}
        for entry, view, stored in self.leaves:
            if not entry.nbytes:
                continue
            if self.block_bytes is None:
                yield from _data(view, stored)
                continue
            of_blocks = BlockHasher(hasher(), self.block_bytes)
            for chunk in _data(view, stored):
                of_blocks.update(chunk)
                yield chunk
            digests[entry.name] = of_blocks.digests()
        if self.block_bytes is not None:
            self.head = self._head(Digests(self.block_bytes, digests))

    @property
    def late_head(self) -> Callable[[], bytes] | None:
        """The function that returns the head with its digests; None if the head stays the same."""
        return None if self.block_bytes is None else lambda: self.head

    def to_bytes(self) -> bytes:
        """The bytes of the file."""
        chunks = list(self.chunks())
        chunks[0] = memoryview(self.head)
        return b"".join(chunks)

    def _head(self, digests: Digests | None) -> bytes:
        record = self.record._replace(digests=digests)
        metadata = with_record(self.metadata, record)
        return write_header([entry for entry, _, _ in self.leaves], metadata, self.file)


def _data(view: View, stored: Stored) -> Iterator[memoryview]:
    """The bytes of a non-empty leaf, as they are stored in the file."""
    blocks = [view] if dtypes.is_packed(stored.code) else view.blocks(BLOCK_BYTES)
    return (dtypes.to_stored_bytes(block.read(), stored).data for block in blocks)


@collector_paused()
def layout(leaves: Leaves, file: str, *, checksum: bool = False) -> Layout:
    """The layout of the file that holds `leaves`; the bytes of the file follow from it alone.

    Reads nothing. Raises `LeafError` for a leaf that no file can hold.
    """
    views: dict[str, tuple[View, Stored]] = {}
    values: dict[str, Any] = {}
    recorded: dict[str, str] = {}
    keys: dict[str, str] = {}
    for name, leaf in leaves.items():
        check_leaf(name, leaf)
        if not is_array(leaf):
            values[name] = leaf
            continue
        content = _content(name, leaf)
        stored = dtypes.stored_as(content.view.dtype, content.view.shape)
        if stored is None:
            raise LeafError(
                f"{file}: leaf {name!r}: expected a dtype that JAX has, got "
                f"{content.view.dtype}: convert it first, for example with astype"
            )
        if stored.recorded is not None:
            recorded[name] = stored.recorded
        if content.key is not None:
            keys[name] = content.key
        views[name] = (content.view, stored)
    record = Record(_of_these(leaves), values, recorded, keys)
    entries = data_order(
        [Entry(name, part.code, part.shape, part.nbytes) for name, (_, part) in views.items()]
    )
    total = sum(entry.nbytes for entry in entries)
    return Layout(
        [(entry, *views[entry.name]) for entry in entries],
        leaves.metadata,
        record,
        file,
        chosen_block_bytes(total) if checksum else None,
    )


def _of_these(leaves: Leaves) -> Structure:
    """The structure, without what it records for names that a transform removed or changed."""
    paths = {name: path for name, path in leaves.structure.paths.items() if name in leaves}
    kinds = dict(leaves.structure.kinds)
    for key, kind in kinds.items():
        if kind.aliases:
            aliases = tuple(
                (alias, to)
                for alias, to in kind.aliases
                if name_in(key, to) in leaves and name_in(key, alias) not in leaves
            )
            kinds[key] = kind._replace(aliases=aliases)
    return Structure(kinds, paths)


def _content(name: str, leaf: Any) -> Content:
    if not isinstance(leaf, LazyArray) and isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise LeafError(
            f"leaf {name!r}: expected an array with values, got one that was deleted, or donated "
            "to a jitted function: save what that function returned"
        )
    content = content_at(name, leaf)
    if not content.view.has_values:
        raise LeafError(
            f"leaf {name!r}: expected values to store, got {leaf}: give an array instead"
        )
    return content
