"""The layout of a file to write: which bytes go where, known before any leaf is read."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Final, NamedTuple, cast, final

import jax
from numpy.typing import NDArray

from safejax._src import dtypes
from safejax._src.arrays.content import Content
from safejax._src.arrays.parts import view_of_array
from safejax._src.collector import collector_paused
from safejax._src.dtypes import Stored
from safejax._src.format.header import MAX_HEADER_BYTES
from safejax._src.format.record import Record, with_record
from safejax._src.format.written_header import data_order, write_header
from safejax._src.leaves.leaf import (
    check_leaf,
    content_at,
    describe,
    is_array,
    is_simple,
    is_weakly_typed,
)
from safejax._src.leaves.leaves import Leaves
from safejax._src.pytrees.structure import Structure, name_in
from safejax._src.reading.digests import (
    DIGEST_BYTES,
    Digests,
    chosen_block_bytes,
    digests_size,
    hasher,
)
from safejax._src.reading.source import HostArray
from safejax._src.reading.view import View
from safejax.errors import InvalidFileError, LeafError


# A named tuple: a file may hold 100,000, and frozen dataclasses take longer to make.
@final
class Extent(NamedTuple):
    """The part of a file that holds one tensor: where it begins, and which values go there.

    `begin` counts from the start of the file. `values` is an array as `is_simple` has it, or a
    view of any other one; `stored` says how they are stored.
    """

    name: str
    begin: int
    values: "View | HostArray"
    stored: Stored

    @property
    def view(self) -> View:
        """A view of the values."""
        return self.values if isinstance(self.values, View) else _view_of(self.values)

    @property
    def arrays(self) -> tuple[HostArray, ...]:
        """The arrays that the values are taken from, which their owners may change or delete."""
        return self.values.arrays if isinstance(self.values, View) else (self.values,)

    @property
    def size(self) -> int:
        """The number of elements of the leaf."""
        return math.prod(self.values.shape)

    @property
    def nbytes(self) -> int:
        """The size of the data in bytes."""
        return self.stored.nbytes

    @property
    def end(self) -> int:
        """The offset in the file at which the data ends."""
        return self.begin + self.stored.nbytes

    def with_arrays(self, instead: Callable[[HostArray], HostArray]) -> "Extent":
        """The extent with the values of `instead(array)` for each array of its view."""
        values = self.values
        instead_of = values.with_arrays(instead) if isinstance(values, View) else instead(values)
        return self._replace(values=instead_of)


def _view_of(array: HostArray) -> View:
    return view_of_array(cast("jax.Array | NDArray[Any]", array))


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """Which bytes go where in a file: first the head, then the extents, in order and without holes.

    `head` is the length and the header. The digests of the data can only be known once it has
    been read: if `record` has digests, they are zeros, and so they are in `head`; `head_with`
    gives the head with others in their place. `file` is the name of the file in errors.
    """

    file: str
    head: bytes
    extents: tuple[Extent, ...]
    metadata: Mapping[str, str]
    record: Record

    @property
    def nbytes(self) -> int:
        """The size of the file in bytes."""
        return self.extents[-1].end if self.extents else len(self.head)

    @property
    def block_bytes(self) -> int | None:
        """The size in bytes of the blocks that have digests; None if there are no digests."""
        return None if self.record.digests is None else self.record.digests.block_bytes

    def with_arrays(self, instead: Callable[[HostArray], HostArray]) -> "Layout":
        """The layout with the values of `instead(array)` for each array of its views."""
        extents = tuple(extent.with_arrays(instead) for extent in self.extents)
        return replace(self, extents=extents)

    @collector_paused()
    def head_with(self, digests: Mapping[str, bytes]) -> bytes:
        """The head with these digests of the data; it is exactly as long as `head`.

        `digests` maps the name of each tensor that has data to its concatenated digests. Raises
        `ValueError` if they are not those of all blocks, or if the file has no digests.
        """
        zeros = self.record.digests
        expected = {} if zeros is None else zeros.of
        if zeros is None or _lengths(digests) != _lengths(expected):
            raise ValueError(
                f"{self.file}: expected the digests of {_count(expected)} blocks, got those of "
                f"{_count(digests)}"
            )
        record = self.record._replace(digests=Digests(zeros.block_bytes, digests))
        tensors = {extent.name: extent.stored for extent in self.extents}
        return _head(tensors, self.metadata, record, self.file)


def _lengths(digests: Mapping[str, bytes]) -> dict[str, int]:
    return {name: len(each) for name, each in digests.items()}


def _count(digests: Mapping[str, bytes]) -> int:
    return sum(_lengths(digests).values()) // DIGEST_BYTES


def _head(
    tensors: Mapping[str, Stored], metadata: Mapping[str, str], record: Record, file: str
) -> bytes:
    return write_header(tensors, with_record(metadata, record), file)


@collector_paused()
def layout(leaves: Leaves, file: str, *, checksum: bool = False, by_all: bool = False) -> Layout:
    """The layout of the file that holds `leaves`; the bytes of the file follow from it alone.

    If it is written `by_all` processes, some values may be elsewhere. Reads nothing. Raises
    `LeafError` for a leaf that no file can hold, `InvalidFileError` if its header is too long.
    """
    _check_header_fits(leaves, file)
    held: dict[str, View | HostArray] = {}
    tensors: dict[str, Stored] = {}
    values: dict[str, Any] = {}
    recorded: dict[str, str] = {}
    keys: dict[str, str] = {}
    weak: set[str] = set()
    for name, leaf in leaves.items():
        if is_simple(leaf):
            held[name], dtype, shape = leaf, leaf.dtype, leaf.shape
            weak_type = is_weakly_typed(leaf)
        elif is_array(leaf):
            view, key, weak_type = _content(name, leaf, by_all)
            held[name], dtype, shape = view, view.dtype, view.shape
            if key is not None:
                keys[name] = key
        else:
            check_leaf(name, leaf)
            values[name] = leaf
            continue
        stored = dtypes.stored_as(dtype, shape)
        if stored is None:
            content_at(name, leaf)  # It says more of an array of NumPy.
            raise LeafError(
                f"{file}: leaf {name!r}: expected a dtype that JAX has, got {dtype}: convert it "
                "first, for example with astype"
            )
        if stored.recorded is not None:
            recorded[name] = stored.recorded
        if weak_type:
            weak.add(name)
        tensors[name] = stored
    tensors = data_order(tensors)
    digests = _no_digests_yet(tensors) if checksum else None
    record = Record(_structure_of(leaves), values, recorded, keys, weak, digests)
    head = _head(tensors, leaves.metadata, record, file)
    sizes = (stored.nbytes for stored in tensors.values())
    begins = accumulate(sizes, initial=len(head))
    # Made from parallel iterables, which takes half the time of a call for each.
    rows = zip(tensors, begins, map(held.__getitem__, tensors), tensors.values(), strict=False)
    return Layout(file, head, tuple(map(Extent._make, rows)), leaves.metadata, record)


_LEAST_ENTRY: Final = len('"":{"dtype":"U8","shape":[],"data_offsets":[0,1]},')


def _check_header_fits(leaves: Leaves, file: str) -> None:
    """Raise `InvalidFileError` if the names alone make a header longer than readers take.

    `write_header` checks the header itself, once the work for each leaf is done.
    """
    if sum(map(len, leaves)) + _LEAST_ENTRY * len(leaves) <= MAX_HEADER_BYTES:
        return
    names = [name for name, leaf in leaves.items() if is_array(leaf)]
    least = sum(map(len, names)) + _LEAST_ENTRY * len(names)
    if least > MAX_HEADER_BYTES:
        raise InvalidFileError(
            f"{file}: expected a header of at most {MAX_HEADER_BYTES} bytes, got more than {least} "
            f"for {len(names)} tensors: readers refuse it; store fewer or shorter names, or "
            "several files, with max_shard_bytes=..."
        )


def _no_digests_yet(tensors: Mapping[str, Stored]) -> Digests:
    """Zeros in place of the digests of the tensors' data.

    Raises `ImportError` if xxhash is missing, before any data is written.
    """
    hasher()
    sizes = {name: stored.nbytes for name, stored in tensors.items() if stored.nbytes}
    block_bytes = chosen_block_bytes(sum(sizes.values()))
    zeros = {name: bytes(digests_size(size, block_bytes)) for name, size in sizes.items()}
    return Digests(block_bytes, zeros)


def _structure_of(leaves: Leaves) -> Structure:
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


def _content(name: str, leaf: Any, by_all: bool) -> Content:
    content = content_at(name, leaf)
    if content.view.has_values:
        return content
    sources = content.view.sources
    if by_all and all(source.has_values or source.elsewhere for source in sources):
        return content
    if content.view.elsewhere:
        raise LeafError(
            f"leaf {name!r}: expected an array that this process holds all of, got "
            f"{describe(leaf)}, a part of which other processes hold: call safejax.save with it "
            "in all processes, or gather it first, with "
            "jax.experimental.multihost_utils.process_allgather(array, tiled=True)"
        )
    raise LeafError(f"leaf {name!r}: expected values to store, got {leaf}: give an array instead")
