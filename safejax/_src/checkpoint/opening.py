"""Opening: the unread Leaves that are at a path: a file, a folder, an index, several files."""

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, TypeAlias, final

from safejax._src.checkpoint.choosing import choose
from safejax._src.checkpoint.decoding import check_structure, open_leaves
from safejax._src.checkpoint.explaining import in_folder, not_there, other_set
from safejax._src.checkpoint.union import union
from safejax._src.format.index import Index, is_index, read_index
from safejax._src.leaves.leaf import is_tensor
from safejax._src.leaves.leaves import Leaves
from safejax._src.reading.remote import FileSystem
from safejax._src.storage.files import PathLike, checked_path
from safejax._src.storage.location import locate
from safejax._src.storage.store import Access, Store
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
    (`*.safetensors.index.json`) or else one safetensors file; of several, the one with the
    canonical name is opened, and a plain one before its variants. An index is a JSON file whose
    name ends in `.index.json`, or that of a variant. No two of several files may have a name in
    common, unless an index says which of them is meant.
    """
    how = _How(verify, access)
    if isinstance(path, list | tuple):
        names = [checked_path(each) for each in path]
        # A list may contain URLs, each on a file system of its own.
        return _open_files((locate(each, fs) for each in names), None, "several files", how)
    store, file = locate(checked_path(path), fs)
    if is_index(file):
        return _settled(store, store.parent(file), lambda: _open_index(store, file, how))
    if store.is_folder(file):
        return _settled(store, file, lambda: _open_folder(store, file, how))
    try:
        return _open_file(store, file, how)
    except FileNotFoundError as error:
        raise not_there(store, file) from error


def shown_path(path: Path) -> str:
    """The path as errors show it."""
    if isinstance(path, list | tuple):
        return ", ".join(map(checked_path, path))
    return checked_path(path)


def _settled(store: Store, folder: str, open_files: Callable[[], Leaves]) -> Leaves:
    """What `open_files` returns for a folder that was not replaced meanwhile."""
    for _ in range(_ATTEMPTS):
        with store.watched(folder) as is_same:
            try:
                leaves = open_files()
            except (FileNotFoundError, InvalidFileError):
                if is_same():
                    raise
                continue
            if is_same():
                return leaves
    raise _never_settled(folder, "a folder")


def _never_settled(path: str, what: str) -> ReadError:
    return ReadError(
        f"{path}: expected {what} that stays the same while its files are opened, but it was "
        f"replaced {_ATTEMPTS} times: load it when nobody saves to it"
    )


def _open_folder(store: Store, folder: str, how: _How) -> Leaves:
    names = store.names_in(folder)

    def named_by(index: str) -> list[str]:
        file = store.join(folder, index)
        return read_index(store.read(file), file).files

    chosen = choose(names, named_by)
    if chosen is None:
        raise InvalidFileError(
            f"{folder}: expected a folder with one index, or one safetensors file, got "
            f"{in_folder(store, folder, names)}"
        )
    if is_index(chosen):
        return _open_index(store, store.join(folder, chosen), how)
    return _open_file(store, store.join(folder, chosen), how)


def _open_index(store: Store, file: str, how: _How) -> Leaves:
    """The Leaves of the files of an index, which is read again if it is replaced meanwhile."""
    for _ in range(_ATTEMPTS):
        data = store.read(file)
        try:
            return _open_indexed(store, file, read_index(data, file), how)
        except FileNotFoundError:
            if store.read(file) == data:
                raise
        store.look_again(store.parent(file))
    raise _never_settled(file, "an index")


def _open_indexed(store: Store, file: str, index: Index, how: _How) -> Leaves:
    folder = store.parent(file)
    files = [store.join(folder, shard) for shard in index.files]
    missing = [each for each in files if not store.exists(each)]
    if missing:
        raise FileNotFoundError(
            f"{file}: expected the {len(files)} files of the index, {len(missing)} are not there: "
            f"{', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}"
            f"{other_set(store, folder, index.files)}"
        )
    return _open_files(((store, each) for each in files), index, file, how)


def _open_files(
    files: Iterable[tuple[Store, str]], index: Index | None, name: str, how: _How
) -> Leaves:
    parts = [(file, _open_file(store, file, how)) for store, file in files]
    if not parts:
        raise InvalidFileError("expected one file or more, got an empty list")
    leaves = union(parts, index, name)
    if index is None or index.record is None:
        return leaves
    record = index.record
    check_structure(record, {each for each, leaf in leaves.items() if is_tensor(leaf)}, name)
    return Leaves({**leaves, **record.values}, record.structure, leaves.metadata)


def _open_file(store: Store, file: str, how: _How) -> Leaves:
    return open_leaves(store.source(file, how.access), verify=how.verify)
