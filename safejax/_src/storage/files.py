"""Files: written completely, or not at all."""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final, TypeAlias

from safejax._src.storage.litter import is_temporary, remove_litter, temporary_name
from safejax._src.storage.permissions import least_shared, status_of, take_over
from safejax._src.storage.writeback import Writeback
from safejax._src.system import fcntl

PathLike: TypeAlias = str | os.PathLike[str]

_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)

_HAS_NO_FLUSH: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})
"""What fsync(2) says of a folder on a file system that flushes files only, such as some by FUSE."""


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
    instead_of: Sequence[str] = (),
) -> None:
    """Make the file at `path` hold `chunks`, or leave it as it was, as `fill_atomically` does.

    `wrote(n)` is called after every `n` bytes. With `head`, the bytes that it returns once all
    chunks are written replace the first bytes of the file.
    """

    def fill(descriptor: int, temporary: str) -> None:
        del temporary
        write_chunks(descriptor, chunks, wrote, head, flush=False)

    fill_atomically(path, fill, instead_of)


def fill_atomically(
    path: str, fill: Callable[[int, str], None], instead_of: Sequence[str] = ()
) -> None:
    """Make the file at `path` hold what `fill` writes, or leave it as it was.

    `fill(descriptor, temporary)` is called with a temporary file next to the target. The file is
    then flushed to disk and renamed over the target, and the folder is flushed. A target that is a
    symbolic link is written through. The mode, and where allowed the group and the owner, are those
    of the target. A new file has those of the most private of the files that it is written
    `instead_of`; the umask is for one that replaces none. If `path` is one of those and a symbolic
    link, the link is replaced: another folder may have the same file, as in the cache of a model
    hub. Temporary files that killed saves left behind in the folder are removed.

    Raises `OSError`, which names `path`: a missing or unwritable folder, a full disk, a target
    that is a folder.
    """
    target = os.path.realpath(path)
    if path in instead_of:
        folder, name = os.path.split(path)
        target = os.path.join(os.path.realpath(folder), name)
    folder = os.path.dirname(target)
    replaced = _checked_target(path, target, folder)
    if replaced is None:
        found = [status for status in map(status_of, instead_of) if status is not None]
        replaced = least_shared(found)
    remove_litter(target)
    with errors_name(path), _temporary_file(target, 0o600 if replaced else 0o666) as opened:
        descriptor, temporary = opened
        fill(descriptor, temporary)
        if replaced is not None:
            take_over(temporary, replaced)
        os.fsync(descriptor)
        os.replace(temporary, target)
    flush_name(path, folder)


@contextlib.contextmanager
def errors_name(path: str) -> Generator[None]:
    """Errors of the system about a temporary file or folder name `path`, which it is to be."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not is_temporary(str(error.filename)):
            raise
        reason = error.strerror or os.strerror(error.errno)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason += (
                "; a save makes a new file next to the old one: expected a folder that may be "
                "written to, got one that may not; save to another folder"
            )
        raise type(error)(error.errno, reason, path) from error


def home_remedy(path: str) -> str:
    """What to do about a path with a folder `~`, which is not expanded; empty for others."""
    if re.search(r"(?:^|[/\\])~[^/\\]*[/\\]", path) is None:
        return ""
    return "; '~' is not expanded: pass os.path.expanduser(path)"


def write_chunks(
    descriptor: int,
    chunks: Iterator[memoryview],
    wrote: Callable[[int], None],
    head: Callable[[], bytes] | None = None,
    *,
    flush: bool = True,
) -> None:
    """Write `chunks`, then `head` over the first bytes, and `flush` all of it to disk."""
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
    if flush:
        os.fsync(descriptor)


def missing_folder(path: str) -> FileNotFoundError:
    """The error for a path to write to whose folder does not exist."""
    remedy = home_remedy(path) or "; make the folder first"
    return FileNotFoundError(errno.ENOENT, f"expected a path in an existing folder{remedy}", path)


def _checked_target(path: str, target: str, folder: str) -> os.stat_result | None:
    """The status of the file to replace; None if there is none."""
    if status_of(folder) is None:
        raise missing_folder(path)
    replaced = status_of(target)
    if replaced is None:
        return None
    mode = replaced.st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(
            errno.EISDIR, "expected the path of a file, got a folder; add a file name", path
        )
    if not stat.S_ISREG(mode):
        # Renaming over a device would replace it with a file.
        raise OSError(errno.EINVAL, "expected a regular file to write, got a device or pipe", path)
    return replaced


@contextlib.contextmanager
def _temporary_file(target: str, mode: int) -> Generator[tuple[int, str], None, None]:
    """A new, locked file next to `target`, which is removed at the end unless it was renamed."""
    while True:
        temporary = temporary_name(target)
        descriptor = os.open(temporary, _CREATE, mode)
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


def flush_name(path: str, folder: str) -> None:
    """Flush a folder in which `path` has been put into its place; an error says that it has."""
    try:
        flush_folder(folder)
    except OSError as error:
        reason = (
            f"{error.strerror or error}; what was saved is in its place, but after a power cut "
            "what was there before may be back: save it again"
        )
        raise OSError(error.errno, reason, path) from error


@contextlib.contextmanager
def flushing(path: str) -> Generator[int]:
    """A block in which a file is open, after which its bytes and its permissions are flushed."""
    # Windows flushes only what is open for writing.
    flags = os.O_RDWR if os.name == "nt" else os.O_RDONLY
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    try:
        yield descriptor
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: str) -> None:
    """Flush the names in a folder to disk, where its file system has a way to."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return  # The folder is writable but not readable; the file is there, and complete.
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _HAS_NO_FLUSH:
            raise
    finally:
        os.close(descriptor)
