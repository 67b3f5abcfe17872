"""Encode and decode: Leaves to the bytes of a safetensors file and back, lazily."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, final

import jax
import numpy as np

from safejax import dtypes
from safejax.dtypes import Stored
from safejax.errors import InvalidFileError, LeafError
from safejax.header import Entry, Header, Tensor, data_order, read_header, write_header
from safejax.lazy import Content, LazyArray, NarrowingNotice, key_data_shape
from safejax.leaves import Leaves, check_leaf, content_at, is_array
from safejax.names import join
from safejax.placing import default_placement
from safejax.record import Record, read_record, with_record
from safejax.sources import AbstractSource, BufferSource, MappedSource, PackedSource, Source
from safejax.steps import Step
from safejax.strict_json import collector_paused
from safejax.structure import Structure, container_segments
from safejax.views import Strided, View
from safejax.windows import Window

BLOCK_BYTES: Final = 64 << 20
"""Bytes of a leaf that are held at a time while it is written."""

IN_MEMORY: Final = "<bytes>"
"""What errors call a file that is only bytes in memory."""


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """A file that can be written: its first bytes, and the leaves in the order of their data."""

    head: bytes
    leaves: tuple[tuple[View, Stored], ...]

    @property
    def nbytes(self) -> int:
        """Size of the file in bytes."""
        return len(self.head) + sum(stored.nbytes for _, stored in self.leaves)

    def chunks(self) -> Iterator[memoryview]:
        """The file's bytes in order, with no more than about `BLOCK_BYTES` of them copied."""
        yield memoryview(self.head)
        for view, stored in self.leaves:
            packed = dtypes.is_packed(stored.code)
            for block in [view] if packed else view.blocks(BLOCK_BYTES):
                if block.size:
                    yield dtypes.to_stored_bytes(block.read(), stored).data


@collector_paused()
def layout(leaves: Leaves, file: str) -> Layout:
    """The layout of the file that holds `leaves`, which the bytes follow from alone.

    Raises `LeafError` for a leaf that no file can hold; reads nothing.
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
                f"{content.view.dtype}: convert it first, by astype say"
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
    head = write_header(entries, with_record(leaves.metadata, record), file)
    return Layout(head, tuple(views[entry.name] for entry in entries))


def _of_these(leaves: Leaves) -> Structure:
    """The structure, less what it tells of names that a transform has taken away or changed."""
    paths = {name: path for name, path in leaves.structure.paths.items() if name in leaves}
    kinds = dict(leaves.structure.kinds)
    for key, kind in kinds.items():
        if kind.aliases:
            aliases = tuple(
                (alias, to)
                for alias, to in kind.aliases
                if _name_in(key, to) in leaves and _name_in(key, alias) not in leaves
            )
            kinds[key] = replace(kind, aliases=aliases)
    return Structure(kinds, paths)


def _name_in(container: str, segment: str) -> str:
    return join((*container_segments(container), segment))


def _content(name: str, leaf: Any) -> Content:
    if not isinstance(leaf, LazyArray) and isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise LeafError(
            f"leaf {name!r}: expected an array with values, got one that was deleted, or donated "
            "to a jitted function: save what that gave back"
        )
    content = content_at(name, leaf)
    if any(isinstance(source, AbstractSource) for source in content.view.sources):
        raise LeafError(
            f"leaf {name!r}: expected values to store, got {leaf}: give an array instead"
        )
    return content


@collector_paused()
def open_leaves(source: Source, prefix: Callable[[int, int], bytes], size: int) -> Leaves:
    """The Leaves of a file of `size` bytes, every array unread and bound for JAX's default device.

    `prefix(begin, end)` gives the bytes of the header. Raises `InvalidFileError`.
    """
    file = source.name
    header = read_header(prefix, size, file)
    metadata, record = read_record(header.metadata, file)
    _check_record(header, record, file)
    notice, placement = NarrowingNotice(), default_placement()
    entries: dict[str, Any] = {}
    for name, tensor in header.tensors.items():
        content = Content(_view(source, name, tensor, record), record.keys.get(name))
        _check_key(name, content, file)
        entries[name] = LazyArray(content, name, placement, notice)
    return Leaves({**entries, **record.values}, record.structure, metadata)


def _check_record(header: Header, record: Record, file: str) -> None:
    """A record speaks of tensors that are there, and of values that are not."""
    tensors = header.tensors.keys()
    for what, names in (("dtypes", record.dtypes), ("keys", record.keys)):
        for name in names.keys() - tensors:
            raise InvalidFileError(
                f"{file}: invalid record: expected {what} of tensors in the file, got one of "
                f"{name!r}, which is not there"
            )
    for name in record.values.keys() & tensors:
        raise InvalidFileError(
            f"{file}: invalid record: expected a value beside the tensors, got one of {name!r}, "
            "which is a tensor"
        )
    for key, kind in record.structure.kinds.items():
        for alias, to in kind.aliases:
            for segment, there in ((to, True), (alias, False)):
                name = _name_in(key, segment)
                if (name in tensors or name in record.values) != there:
                    raise InvalidFileError(
                        f"{file}: invalid record: expected the alias {alias!r} of {to!r} to stand "
                        f"for a leaf that is there, and not for itself, got {name!r}"
                    )
    for name, path in record.structure.paths.items():
        if name not in tensors and name not in record.values:
            raise InvalidFileError(
                f"{file}: invalid record: expected paths of leaves in the file, got one of "
                f"{name!r}, which is not there"
            )
        # A suffix tells names apart that would be one; nothing else may come between.
        joined = join(path).encode(errors="backslashreplace").decode()
        if name != joined and not name.startswith(f"{joined}~"):
            raise InvalidFileError(
                f"{file}: invalid record: expected {name!r} to be its path joined by dots, got "
                f"the path {list(path)}"
            )


def _view(source: Source, name: str, tensor: Tensor, record: Record) -> View:
    recorded = record.dtypes.get(name)
    if recorded is not None:
        restored = dtypes.restored(recorded, tensor.code, tensor.shape)
        if restored is None:
            raise InvalidFileError(
                f"{source.name}: invalid record: tensor {name!r}: expected a dtype that is stored "
                f"as {tensor.code}{list(tensor.shape)}, got {recorded!r}"
            )
        dtype, shape = restored
        return Strided(source, tensor.begin, dtype, Window.whole(shape))
    dtype = dtypes.dtype_of_code(tensor.code)
    if dtype is None:
        raise InvalidFileError(
            f"{source.name}: tensor {name!r}: expected a dtype that JAX can hold, got "
            f"{tensor.code}: read it with safetensors"
        )
    if dtypes.is_packed(tensor.code):
        source = PackedSource(source, tensor.begin)
        return Strided(source, 0, dtype, Window.whole(tensor.shape))
    return Strided(source, tensor.begin, dtype, Window.whole(tensor.shape))


def _check_key(name: str, content: Content, file: str) -> None:
    if content.key is None:
        return
    try:
        data = key_data_shape(content.key)
    except ValueError:
        raise InvalidFileError(
            f"{file}: tensor {name!r}: expected keys of an implementation that this JAX has, got "
            f"{content.key!r}: register it first, or read the key data with safetensors"
        ) from None
    view = content.view
    if view.dtype != np.uint32 or view.shape[len(view.shape) - len(data) :] != data:
        raise InvalidFileError(
            f"{file}: invalid record: tensor {name!r}: expected {content.key} keys, which are "
            f"uint32[…,{','.join(map(str, data))}], got {view.dtype}{list(view.shape)}"
        )


@final
@dataclass(frozen=True, slots=True)
class Encode(Step[Leaves, bytes]):
    """Leaves to the bytes of a safetensors file, read by every safetensors reader.

    The same Leaves always give the same bytes. Raises `LeafError` for a leaf that no file can
    hold. The inverse is `decode`.
    """

    def __call__(self, leaves: Leaves, /) -> bytes:
        return b"".join(layout(leaves, IN_MEMORY).chunks())

    @property
    def inverse(self) -> "Decode":
        return Decode()

    def __repr__(self) -> str:
        return "encode"


@final
@dataclass(frozen=True, slots=True)
class Decode(Step[bytes, Leaves]):
    """The bytes of a safetensors file to Leaves, whose arrays are not read yet.

    Raises `InvalidFileError` for bytes that are no safetensors file. A buffer that may change
    is copied. The inverse is `encode`.
    """

    def __call__(self, data: bytes | bytearray | memoryview, /) -> Leaves:
        if not isinstance(data, bytes | bytearray | memoryview):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"expected the bytes of a safetensors file, got {type(data).__name__}: for a "
                "file on disk call safejax.load(path)"
            )
        held = bytes(data)
        return open_leaves(
            BufferSource(held, IN_MEMORY), lambda begin, end: held[begin:end], len(held)
        )

    @property
    def inverse(self) -> Encode:
        return Encode()

    def __repr__(self) -> str:
        return "decode"


def open_file(path: str) -> Leaves:
    """The Leaves of a safetensors file on disk, mapped and unread."""
    source = MappedSource(path)
    return open_leaves(source, source.prefix, source.nbytes)


encode: Final = Encode()
decode: Final = Decode()
