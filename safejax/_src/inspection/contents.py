"""Contents: what is in files or in a tree, by name; of files, only headers are read.

Nothing here imports JAX, except for what is a tree.
"""

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, cast, final

from safejax._src.checkpoint.explaining import is_of_orbax
from safejax._src.checkpoint.finding import Opener, Path, find, shown_path
from safejax._src.checkpoint.stored import Stored, check_structure, read_stored, stored_view
from safejax._src.format.index import Index
from safejax._src.inspection.shards import Shard
from safejax._src.pytrees.structure import EMPTY, Kind
from safejax._src.reading.buffer import BufferSource
from safejax._src.reading.digests import DIGEST_BYTES
from safejax._src.reading.filesystems import FileSystem
from safejax._src.reading.masking import masked
from safejax._src.reading.source import File
from safejax._src.reading.view import View
from safejax._src.storage.location import locate
from safejax.errors import InvalidFileError

IN_MEMORY: Final = "<bytes>"
_ALIGNMENT: Final = 64
_MOST_BITS: Final = 10_000
_NARROWED: Final = frozenset({"int64", "uint64", "float64", "complex128"})


class Item(NamedTuple):
    """A tensor: what is known of it without a read, and a view of its values, if there are any.

    `span` is that of its bytes in the file, half-open.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    view: View | None
    file: str | None = None
    span: tuple[int, int] | None = None
    key: str | None = None
    weak_type: bool = False
    digests: int = 0
    sharding: str | None = None
    shards: tuple[Shard, ...] = ()

    @property
    def description(self) -> str:
        """Its type in short: `float32[4,3]`, `~float32[]` if it is weakly typed."""
        dtype = self.dtype if self.key is None else f"key<{self.key}> {self.dtype}"
        return f"{'~' if self.weak_type else ''}{dtype}[{','.join(map(str, self.shape))}]"

    @property
    def in_place(self) -> bool:
        """Whether the CPU's devices use its bytes in the mapped file, with no copy of them."""
        return (
            self.view is not None
            and self.dtype not in _NARROWED
            and self.view.is_in_place(_ALIGNMENT)
        )


@final
@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file: its name, its size, that of its header with the length in front, in bytes.

    `alignment` is the largest power of two, up to 4096, that its data begins on a multiple of.
    `tensors` is how many it has, and `digests` whether it records digests of them.
    """

    name: str
    nbytes: int
    header_bytes: int
    alignment: int
    tensors: int
    digests: bool


@final
@dataclass(frozen=True, slots=True)
class Contents:
    """What is in files, or in a tree.

    `values` are the entries that are not tensors: scalars, strings, None and empty containers.
    """

    source: str
    items: Mapping[str, Item]
    values: Mapping[str, Any]
    metadata: Mapping[str, str]
    kinds: Mapping[str, Kind]
    files: tuple[FileInfo, ...]
    warnings: tuple[str, ...]


def is_path(value: object) -> bool:
    """Whether a value is a path, or several; a tree is none."""
    if isinstance(value, list | tuple):
        parts = cast("Sequence[object]", value)
        return bool(parts) and all(isinstance(part, str | os.PathLike) for part in parts)
    return isinstance(value, str | os.PathLike)


def contents(source: Any, fs: FileSystem = None) -> Contents:
    """What is at a path, in the bytes of a file, or in a tree."""
    if isinstance(source, bytes | bytearray | memoryview):
        return _of_one(BufferSource(bytes(source), IN_MEMORY))
    if is_path(source):
        path = cast("Path", source)
        try:
            found = find(path, fs, Opener(_of_one, _of_several))
        except InvalidFileError:
            if not isinstance(path, str | os.PathLike) or fs is not None:
                raise
            path = os.fspath(path)
            if not is_of_orbax(*locate(path)):
                raise
            return _of_orbax(path)
        return Contents(
            shown_path(path), found.items, found.values, found.metadata, found.kinds,
            found.files, found.warnings,
        )  # fmt: skip
    # Imported by name: only trees need JAX.
    return importlib.import_module("safejax._src.inspection.trees").contents_of_tree(source)


def file_info(stored: Stored) -> FileInfo:
    begin = min(
        (tensor.begin for tensor in stored.header.tensors.values()), default=stored.source.nbytes
    )
    alignment = min(begin & -begin, 4096)
    return FileInfo(
        stored.source.name, stored.source.nbytes, begin, alignment,
        len(stored.header.tensors), stored.record.digests is not None,
    )  # fmt: skip


def items_of(stored: Stored) -> dict[str, Item]:
    """The tensors of a file, in its order."""
    record = stored.record
    digests = {} if record.digests is None else record.digests.of
    found: dict[str, Item] = {}
    for name, tensor in stored.header.tensors.items():
        view = stored_view(stored.source, name, tensor, record)
        found[name] = Item(
            name,
            tensor.code if view is None else view.dtype.name,
            tensor.shape if view is None else view.shape,
            tensor.end - tensor.begin,
            view,
            stored.source.name,
            (tensor.begin, tensor.end),
            record.keys.get(name),
            name in record.weak,
            len(digests.get(name, b"")) // DIGEST_BYTES,
        )
    return found


def _of_orbax(path: str) -> Contents:
    """What is in a checkpoint of Orbax; of its arrays only what describes them is read."""
    # Imported by name: only such folders need Orbax, and JAX.
    tree = importlib.import_module("safejax.orbax").load(path)
    held = importlib.import_module("safejax._src.inspection.trees").contents_of_tree(tree)
    # A load decides where they go, as for other files.
    items = {name: item._replace(sharding=None, shards=()) for name, item in held.items.items()}
    return replace(held, source=masked(path), items=items)


def _of_one(source: File) -> Contents:
    stored = read_stored(source)
    return Contents(
        masked(source.name), items_of(stored), stored.record.values, stored.metadata,
        stored.record.structure.kinds, (file_info(stored),), (),
    )  # fmt: skip


def _of_several(files: Sequence[tuple[str, File]], index: Index | None, name: str) -> Contents:
    parts = [read_stored(source) for _, source in files]
    of_file = [items_of(part) for part in parts]
    problems, items = united(of_file, [shown for shown, _ in files], index)
    errors = [problem.text for problem in problems if problem.is_error]
    if errors:
        raise InvalidFileError(f"{name}: {'; '.join(errors[:5])}")
    values: dict[str, Any] = {}
    kinds: dict[str, Kind] = {}
    for part in parts:
        values |= part.record.values
        kinds |= part.record.structure.kinds
    if index is not None and index.record is not None:
        check_structure(index.record, items.keys(), name)
        values |= index.record.values
        kinds = dict(index.record.structure.kinds)
    warnings = tuple(problem.text for problem in problems)
    infos = tuple(map(file_info, parts))
    return Contents(name, items, values, _common(parts), kinds, infos, warnings)


class Problem(NamedTuple):
    """What is wrong with several files together; a load raises an error, or warns of it."""

    text: str
    is_error: bool


def united(
    of_file: Sequence[Mapping[str, Item]], shown: Sequence[str], index: Index | None
) -> tuple[list[Problem], dict[str, Item]]:
    """The tensors of several files as one, and what is wrong with them; the index decides."""
    problems: list[Problem] = []
    files = [os.path.basename(each) for each in shown]
    weight_map = {} if index is None else index.weight_map
    found: dict[str, Item] = {}
    owner: dict[str, str] = {}
    for file, items in zip(files, of_file, strict=True):
        for name, item in items.items():
            meant = weight_map.get(name)
            if meant is not None and os.path.basename(meant) != file:
                text = f"tensor {name!r}: the index gives it to {meant}, it is also in {file}"
                problems.append(Problem(text, is_error=False))
            elif name in found:
                text = f"tensor {name!r}: expected it in one file, got it in {owner[name]}, {file}"
                problems.append(Problem(text, is_error=True))
            else:
                found[name], owner[name] = item, file
    for name, file in weight_map.items():
        if name not in found and os.path.basename(file) in files:
            text = f"tensor {name!r}: expected it in {file}, which does not have it"
            problems.append(Problem(text, is_error=True))
    if index is not None:
        problems += [
            Problem(f"tensor {name!r}: the index omits it, it is in {owner[name]}", is_error=False)
            for name in found
            if name not in weight_map
        ]
        found = {name: found[name] for name in (*weight_map, *found) if name in found}
    return problems, found


def _common(parts: Sequence[Stored]) -> dict[str, str]:
    """The metadata in which all files agree, as a load has it."""
    tables = [part.metadata for part in parts]
    merged = {key: value for table in tables for key, value in table.items()}
    return {
        key: value
        for key, value in merged.items()
        if all(table.get(key, value) == value for table in tables)
    }


def value_text(value: Any) -> str:
    """All of an entry that is no tensor."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return hex(value)  # Python refuses to write so many decimal digits.
    return "empty" if value is EMPTY else repr(value)


def described_value(value: Any) -> str:
    """An entry that is no tensor, in short."""
    return value_text(value)[:80]
