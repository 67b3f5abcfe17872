"""Finding: the files that are at a path: a file, a folder, an index, several files.

What is made of the files is the caller's: `Opener` says how. This module does not import JAX.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Generic, TypeAlias, TypeVar, final

from safejax._src.checkpoint.choosing import choose, is_checkpoint
from safejax._src.checkpoint.explaining import in_folder, not_there, other_set
from safejax._src.format.index import INDEX_NAME, Index, is_index, read_index
from safejax._src.reading.filesystems import FileSystem
from safejax._src.reading.masking import masked
from safejax._src.reading.source import File
from safejax._src.storage.files import PathLike, checked_path
from safejax._src.storage.location import locate
from safejax._src.storage.store import Access, Inside, Store
from safejax.errors import InvalidFileError, ReadError

Path: TypeAlias = PathLike | list[PathLike] | tuple[PathLike, ...]
"""A file, a folder, an index or a URL; or several files."""

_SIDE_BY_SIDE: Final = 16
"""How many files are opened at the same time where each takes a round trip."""

_ATTEMPTS: Final = 100
"""How many times a folder is opened if it is replaced meanwhile each time."""


_Opened = TypeVar("_Opened")


@final
@dataclass(frozen=True, slots=True)
class Opener(Generic[_Opened]):
    """What is made of the files at a path.

    `one` is called with a single file, and `several` with the files of an index, in its order, or
    with those of a list and no index; both may be called again if the files are replaced
    meanwhile. `several` gets each file as errors show it with its source, and a name for all of
    them. `access` says how the bytes of local files are obtained. A file of several that cannot be
    opened is an error, or else `missed` is called with it and with the error, and it is left out.
    """

    one: Callable[[File], _Opened]
    several: Callable[[Sequence[tuple[str, File]], Index | None, str], _Opened]
    access: Access = "auto"
    missed: Callable[[str, Exception], None] | None = None


def find(path: Path, fs: FileSystem, opener: Opener[_Opened]) -> _Opened:
    """What `opener` makes of the files at a path, a URL, or a path on the file system `fs`.

    A folder must hold one index (`*.safetensors.index.json`) or else one safetensors file; of
    several, the one with the canonical name is opened, and a plain one before its variants. An
    index is a JSON file whose name ends in `.index.json`, or that of a variant.
    """
    if isinstance(path, list | tuple):
        names = [checked_path(each) for each in path]
        # A list may contain URLs, each on a file system of its own.
        return _open_files([locate(each, fs) for each in names], "several files", opener)
    store, file = locate(checked_path(path), fs)
    if is_index(store.bare(file)):
        return _settled(store, store.parent(file), lambda: _open_index(store, file, opener))
    # A question that takes a round trip is not asked where the name tells.
    is_named = store.is_far and is_checkpoint(store.bare(file))
    inside = None if is_named else store.look_into(file, INDEX_NAME)
    if inside is not None:
        known = inside if store.is_far else None
        return _settled(store, file, lambda: _open_folder(store, file, opener, known))
    try:
        return _open_file(store, file, opener)
    except FileNotFoundError as error:
        if is_named and store.is_folder(file):
            return _settled(store, file, lambda: _open_folder(store, file, opener))
        raise not_there(store, file, error) from None


def shown_path(path: Path) -> str:
    """The path as errors show it."""
    if isinstance(path, list | tuple):
        return ", ".join(masked(checked_path(each)) for each in path)
    return masked(checked_path(path))


def _settled(store: Store, folder: str, open_files: Callable[[], _Opened]) -> _Opened:
    """What `open_files` returns for a folder that was not replaced meanwhile."""
    for _ in range(_ATTEMPTS):
        with store.watched(folder) as is_same:
            try:
                opened = open_files()
            except (FileNotFoundError, InvalidFileError):
                if is_same():
                    raise
                continue
            if is_same():
                return opened
    raise _never_settled(masked(folder), "a folder")


def _never_settled(path: str, what: str) -> ReadError:
    return ReadError(
        f"{path}: expected {what} that stays the same while its files are opened, but it was "
        f"replaced {_ATTEMPTS} times: load it when nobody saves to it"
    )


def _open_folder(
    store: Store, folder: str, opener: Opener[_Opened], inside: Inside | None = None
) -> _Opened:
    """The Leaves of a folder, in which is looked again if a file of it is gone meanwhile.

    A save whose index comes last, for example, leaves one file if its tree has no tensor.
    """
    before: list[str] = []
    for _ in range(_ATTEMPTS):
        if inside is None:
            inside = Inside(store.names_in(folder), None)
        try:
            return _open_chosen(store, folder, opener, inside)
        except FileNotFoundError:
            store.look_again(folder)
            names = store.names_in(folder)
            # Twice the same: once, the file may have been there again when its name was seen.
            if sorted(names) == sorted(inside.names) == before:
                raise
        before, inside = sorted(names), Inside(names, None)
    raise _never_settled(masked(folder), "a folder")


def _open_chosen(store: Store, folder: str, opener: Opener[_Opened], inside: Inside) -> _Opened:
    names, likely = inside

    def content_of(index: str) -> bytes:
        known = likely if index == INDEX_NAME else None
        return store.read(store.join(folder, index)) if known is None else known

    def named_by(index: str) -> list[str]:
        return read_index(content_of(index), masked(store.join(folder, index))).files

    chosen = choose(names, named_by)
    if chosen is None:
        raise InvalidFileError(
            f"{masked(folder)}: expected a folder with one index, or one safetensors file, got "
            f"{in_folder(store, folder, names)}"
        )
    file = store.join(folder, chosen)
    if is_index(chosen):
        return _open_index(store, file, opener, content_of(chosen))
    return _open_file(store, file, opener)


def _open_index(
    store: Store, file: str, opener: Opener[_Opened], content: bytes | None = None
) -> _Opened:
    """The Leaves of the files of an index, which is read again if it is replaced meanwhile."""
    for _ in range(_ATTEMPTS):
        data = store.read(file) if content is None else content
        content = None
        try:
            return _open_indexed(store, file, read_index(data, masked(file)), opener)
        except FileNotFoundError:
            if store.read(file) == data:
                raise
        store.look_again(store.parent(file))
    raise _never_settled(masked(file), "an index")


def _open_indexed(store: Store, file: str, index: Index, opener: Opener[_Opened]) -> _Opened:
    shown = masked(file)
    folder = store.parent(file)
    files = [store.join(folder, shard) for shard in index.files]
    # Where a question takes a round trip, a file is opened at once, and missed then.
    asked = not store.is_far and opener.missed is None
    missing = [] if not asked else [each for each in files if not store.exists(each)]
    opened = [] if missing else _sources([(store, each) for each in files], opener.access)
    missing += [
        each
        for each, source in zip(files, opened, strict=False)
        if isinstance(source, FileNotFoundError)
    ]
    if missing and opener.missed is None:
        raise FileNotFoundError(
            f"{shown}: expected the {len(files)} files of the index, {len(missing)} are not "
            f"there: {masked(', '.join(missing[:5]))}{' …' if len(missing) > 5 else ''}"
            f"{other_set(store, folder, index.files)}"
        )
    return _opened(files, opened, index, shown, opener)


def _open_files(files: list[tuple[Store, str]], name: str, opener: Opener[_Opened]) -> _Opened:
    if not files:
        raise InvalidFileError("expected one file or more, got an empty list")
    return _opened([file for _, file in files], _sources(files, opener.access), None, name, opener)


def _sources(files: list[tuple[Store, str]], access: Access) -> list[File | Exception]:
    """The sources of files, or the errors of opening them; what is far is opened side by side."""

    def source_of(place: tuple[Store, str]) -> File | Exception:
        store, file = place
        try:
            return store.source(file, access)
        except Exception as error:  # noqa: BLE001 - raised by the caller
            return error

    if len(files) > 1 and any(store.is_far for store, _ in files):
        with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
            return list(pool.map(source_of, files))
    return [source_of(place) for place in files]


def _opened(
    files: list[str],
    sources: list[File | Exception],
    index: Index | None,
    name: str,
    opener: Opener[_Opened],
) -> _Opened:
    parts: list[tuple[str, File]] = []
    for file, source in zip(files, sources, strict=True):
        if not isinstance(source, Exception):
            parts.append((masked(file), source))
        elif opener.missed is None:
            raise source
        else:
            opener.missed(masked(file), source)
    return opener.several(parts, index, name)


def _open_file(store: Store, file: str, opener: Opener[_Opened]) -> _Opened:
    return opener.one(store.source(file, opener.access))
