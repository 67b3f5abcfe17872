"""Opening: the unread Leaves that a path stands for: a file, a folder, an index, several files."""

import os
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias, cast, final

from safejax._src.checkpoint.decoding import check_structure, open_file, open_leaves
from safejax._src.checkpoint.union import union
from safejax._src.format.index import INDEX_SUFFIX, Index, read_index
from safejax._src.leaves.leaf import is_array
from safejax._src.leaves.leaves import Leaves
from safejax._src.reading.remote import FileSystem, RemoteSource
from safejax._src.storage.files import PathLike, checked_path
from safejax._src.storage.local import Access
from safejax._src.storage.remote import resolve_path
from safejax.errors import InvalidFileError, ReadError

Path: TypeAlias = PathLike | list[PathLike] | tuple[PathLike, ...]
"""A file, a folder, an index or a URL; or several files."""

_ATTEMPTS: Final = 100
"""How many times a folder is opened if it is replaced meanwhile each time."""


@final
class _How(NamedTuple):
    """How files are opened: whether their digests are checked, and with which access."""

    verify: bool
    access: Access


def open_path(
    path: Path, fs: FileSystem = None, *, verify: bool = False, access: Access = "auto"
) -> Leaves:
    """The unread Leaves at a path, a URL, or a path on the fsspec file system `fs`.

    `access` says how the bytes of local files are obtained. A folder must hold one index
    (`*.safetensors.index.json`) or else one safetensors file. An index is a JSON file whose name
    ends in `.index.json`. No two of several files may have a name in common.
    """
    how = _How(verify, access)
    if isinstance(path, list | tuple):
        return _open_files([checked_path(each) for each in path], fs, None, "several files", how)
    name = checked_path(path)
    fs, file = resolve_path(name, fs)
    if file.endswith(".index.json"):
        return _settled(os.path.dirname(file), fs, lambda: _open_index(file, fs, how))
    if _is_folder(file, fs):
        return _settled(file, fs, lambda: _open_folder(file, fs, how))
    return _open_file(file, fs, how)


def shown_path(path: Path) -> str:
    """The path as errors show it."""
    if isinstance(path, list | tuple):
        return ", ".join(map(checked_path, path))
    return checked_path(path)


def _settled(folder: str, fs: FileSystem, open_files: Callable[[], Leaves]) -> Leaves:
    """What `open_files` returns for a local folder that was not replaced meanwhile."""
    if fs is not None or not hasattr(os, "O_DIRECTORY"):
        return open_files()
    for _ in range(_ATTEMPTS):
        # While the folder is open, no other folder can have its inode number.
        descriptor = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            before = os.fstat(descriptor)
            try:
                leaves = open_files()
            except (FileNotFoundError, InvalidFileError):
                if os.path.samestat(before, os.stat(folder or ".")):
                    raise
                continue
            if os.path.samestat(before, os.stat(folder or ".")):
                return leaves
        finally:
            os.close(descriptor)
    raise ReadError(
        f"{folder}: expected a folder that stays the same while its files are opened, but it was "
        f"replaced {_ATTEMPTS} times: load it when nobody saves to it"
    )


def _open_folder(folder: str, fs: FileSystem, how: _How) -> Leaves:
    found = _names_in(folder, fs)
    indices = [each for each in found if each.endswith(INDEX_SUFFIX)]
    files = [each for each in found if each.endswith(".safetensors")]
    if len(indices) == 1:
        return _open_index(_below(folder, indices[0], fs), fs, how)
    if not indices and len(files) == 1:
        return _open_file(_below(folder, files[0], fs), fs, how)
    shown = ", ".join(sorted(indices or files)[:5]) or "none"
    raise InvalidFileError(
        f"{folder}: expected a folder with one index, or one safetensors file, got {shown}: name "
        "the file, or give a list of files"
    )


def _open_index(file: str, fs: FileSystem, how: _How) -> Leaves:
    if fs is None:
        with open(file, "rb") as opened:
            data = opened.read()
    else:
        data = cast("bytes", fs.cat_file(file))
    index = read_index(data, file)
    folder = os.path.dirname(file) if fs is None else file.rpartition("/")[0]
    files = [_below(folder, shard, fs) for shard in index.files]
    exists = os.path.exists if fs is None else fs.exists
    missing = [each for each in files if not exists(each)]
    if missing:
        raise FileNotFoundError(
            f"{file}: expected the {len(files)} files of the index, {len(missing)} are not there: "
            f"{', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}"
        )
    return _open_files(files, fs, index, file, how)


def _open_files(
    files: list[str], fs: FileSystem, index: Index | None, name: str, how: _How
) -> Leaves:
    if not files:
        raise InvalidFileError("expected one file or more, got an empty list")
    parts: list[tuple[str, Leaves]] = []
    for file in files:
        # A list may contain URLs, each on a file system of its own.
        at, resolved = (fs, file) if index is not None else resolve_path(file, fs)
        parts.append((resolved, _open_file(resolved, at, how)))
    leaves = union(parts, index, name)
    if index is None or index.record is None:
        return leaves
    record = index.record
    check_structure(record, {each for each, leaf in leaves.items() if is_array(leaf)}, name)
    return Leaves({**leaves, **record.values}, record.structure, leaves.metadata)


def _open_file(file: str, fs: FileSystem, how: _How) -> Leaves:
    if fs is None:
        return open_file(file, verify=how.verify, access=how.access)
    if how.access != "auto":
        raise ValueError(
            f"{file}: access: expected 'auto' for a file that is requested from "
            f"{type(fs).__name__}, got {how.access!r}"
        )
    source = RemoteSource(fs, file)
    return open_leaves(source, source.prefix, source.nbytes, verify=how.verify)


def _is_folder(path: str, fs: FileSystem) -> bool:
    return os.path.isdir(path) if fs is None else bool(fs.isdir(path))


def _names_in(folder: str, fs: FileSystem) -> list[str]:
    if fs is None:
        return os.listdir(folder)
    return [str(each).rstrip("/").rpartition("/")[2] for each in fs.ls(folder, detail=False)]


def _below(folder: str, name: str, fs: FileSystem) -> str:
    return os.path.join(folder, name) if fs is None else f"{folder.rstrip('/')}/{name}"
