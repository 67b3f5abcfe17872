"""Files: written completely, or not at all."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final, TypeAlias

from safejax._src.storage.writeback import Writeback
from safejax._src.system import fcntl

PathLike: TypeAlias = str | os.PathLike[str]

_SUFFIX: Final = ".safejax-tmp"
_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def checked_path(path: PathLike) -> str:
    """`path` as a string; `TypeError` if it is not a path."""
    if not isinstance(path, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"expected a path (str or os.PathLike), got {type(path).__name__}: pass the bytes of "
            "a file to safejax.deserialize"
        )
    return os.fspath(path)


def write_atomically(
    path: str,
    chunks: Iterator[memoryview],
    wrote: Callable[[int], None],
    head: Callable[[], bytes] | None = None,
) -> None:
    """Make the file at `path` hold `chunks`, or leave it as it was.

    The chunks go to a temporary file next to the target, which is flushed to disk and renamed
    over the target; then the folder is flushed. A target that is a symbolic link is written
    through; the mode follows the umask. Temporary files that killed saves of the same target
    left behind are removed. `wrote(n)` is called after every `n` bytes. With `head`, the bytes
    that it returns once all chunks are written replace the first bytes of the file.

    Raises `OSError`: a missing or unwritable folder, a full disk, a target that is a folder.
    """
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    _check_target(path, target, folder)
    remove_litter(target)
    with _temporary_file(target) as (descriptor, temporary):
        write_chunks(descriptor, chunks, wrote, head)
        os.replace(temporary, target)
    flush_folder(folder)


def write_chunks(
    descriptor: int,
    chunks: Iterator[memoryview],
    wrote: Callable[[int], None],
    head: Callable[[], bytes] | None = None,
) -> None:
    """Write `chunks`, then `head` over the first bytes, and flush all of it to disk."""
    writeback = Writeback(descriptor)
    with open(descriptor, "wb", closefd=False) as file:
        for chunk in chunks:
            file.write(chunk)
            writeback.wrote(chunk.nbytes)
            wrote(chunk.nbytes)
        if head is not None:
            file.seek(0)
            file.write(head())
        file.flush()
    os.fsync(descriptor)


def _check_target(path: str, target: str, folder: str) -> None:
    try:
        os.stat(folder)
    except FileNotFoundError:
        reason = "expected a path in an existing folder; make the folder first"
        raise FileNotFoundError(errno.ENOENT, reason, path) from None
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(
            errno.EISDIR, "expected the path of a file, got a folder; add a file name", path
        )
    if not stat.S_ISREG(mode):
        # Renaming over a device would replace it with a file.
        raise OSError(errno.EINVAL, "expected a regular file to write, got a device or pipe", path)


def _remove_if_abandoned(entry: Path) -> None:
    assert fcntl is not None
    if not stat.S_ISREG(entry.lstat().st_mode):
        return
    descriptor = os.open(entry, os.O_RDWR | os.O_NOFOLLOW)
    try:
        # The writer holds the lock for as long as it lives.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        entry.unlink()
    finally:
        os.close(descriptor)


def remove_litter(target: str, remove: Callable[[Path], None] = _remove_if_abandoned) -> None:
    """Call `remove` with every temporary file or folder of saves to `target`.

    By default, this removes files that no process is writing any more.
    """
    if fcntl is None:
        return
    folder, prefix = os.path.dirname(target), _litter_prefix(target)
    # If the folder cannot be listed, its litter is not ours to remove.
    with contextlib.suppress(OSError):
        for entry in Path(folder).iterdir():
            if entry.name.startswith(prefix) and entry.name.endswith(_SUFFIX):
                with contextlib.suppress(OSError):
                    remove(entry)


@contextlib.contextmanager
def _temporary_file(target: str) -> Generator[tuple[int, str], None, None]:
    """A new, locked file next to `target`, which is removed at the end unless it was renamed."""
    while True:
        temporary = temporary_name(target)
        descriptor = os.open(temporary, _CREATE, 0o666)
        try:
            if fcntl is not None:
                # On a file system without locks, the litter of killed saves stays.
                with contextlib.suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                if os.fstat(descriptor).st_nlink == 0:
                    continue  # Another save removed it as litter before it was locked.
            try:
                yield descriptor, temporary
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
            return
        finally:
            os.close(descriptor)


def temporary_name(target: str) -> str:
    """The path of a new temporary file or folder next to `target`."""
    name = f"{_litter_prefix(target)}{secrets.token_hex(8)}{_SUFFIX}"
    return os.path.join(os.path.dirname(target), name)


def _litter_prefix(target: str) -> str:
    # File systems limit a name to 255 bytes.
    name = os.fsencode(os.path.basename(target))[:120].decode(errors="ignore")
    return f".{name}."


def flush_folder(folder: str) -> None:
    """Flush the names in a folder to disk."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return  # The folder is writable but not readable; the file is there, and complete.
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
