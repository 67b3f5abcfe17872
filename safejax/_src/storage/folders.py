"""Folders: a set of files that is replaced as one, so that no reader sees half of it."""

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Callable, Generator
from typing import Final

from safejax._src.storage.files import (
    errors_name,
    flush_folder,
    flush_name,
    flushing,
    missing_folder,
)
from safejax._src.storage.litter import locked_folder, remove_folder, remove_litter, temporary_name
from safejax._src.storage.permissions import least_shared, status_of, take_over

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


def write_folder_atomically(
    path: str, fill: Callable[[str], None], replaces: Callable[[str], bool]
) -> None:
    """Make the folder at `path` hold the files that `fill(folder)` writes, or leave it as it was.

    The files are written to a new folder next to the old one, which then takes its place.
    Whatever else is in the old folder is kept in the new one, as hard links where possible,
    except files for whose names `replaces` returns true; folders are kept whatever their names.
    Files that are open or mapped keep their content. Modes, and where allowed groups and owners,
    are those of the old folder and its files; a new file in an old set is as private as the most
    private file that is replaced. Temporary files and folders that killed saves left behind next
    to it are removed. A symbolic link is written through.

    The two folders are exchanged in one step where the operating system can (Linux). Elsewhere
    there is a moment in which no folder exists, but none in which half of one does.

    Raises `OSError`, which names `path`: a missing or unwritable parent, a full disk, a target
    that is not a folder, a folder in it that has the name of a new file.
    """
    target = os.path.realpath(path)
    parent = os.path.dirname(target)
    replaced = _checked_target(path, target)
    remove_litter(target)
    with errors_name(path), _temporary_folder(target, replaced) as temporary:
        fill(temporary)
        if replaced is None:
            flush_folder(temporary)
            os.rename(temporary, target)
            flush_name(path, parent)
            return
        with _replaced_by(temporary, target, replaces, replaced):
            # Before the old files are removed: after a power cut, the old folder may be back.
            flush_name(path, parent)


def make_folder(path: str) -> None:
    """Make a folder at `path`, unless there is one. The errors are those of writing one."""
    target = os.path.realpath(path)
    if _checked_target(path, target) is None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(target)
        flush_folder(os.path.dirname(target))


def _checked_target(path: str, target: str) -> os.stat_result | None:
    """The status of the folder to write to; None if there is none."""
    if not os.path.isdir(os.path.dirname(target)):
        raise missing_folder(path)
    replaced = status_of(target)
    if replaced is not None and not stat.S_ISDIR(replaced.st_mode):
        reason = "expected a folder for a set of files, got a file; give another name"
        raise NotADirectoryError(errno.ENOTDIR, reason, path)
    return replaced


@contextlib.contextmanager
def _replaced_by(
    temporary: str, target: str, replaces: Callable[[str], bool], replaced: os.stat_result
) -> Generator[None]:
    """Put the folder `temporary` in the place of `target`, and the other way round.

    In the block, no other save removes the old folder.
    """
    _check_no_folder_is_replaced(target, temporary)
    _take_over_files(target, temporary, replaces)
    _link_others(target, temporary, replaces)
    take_over(temporary, replaced)
    flush_folder(temporary)
    with contextlib.ExitStack() as lock:
        # Once they are exchanged, the old folder looks like litter to other saves. If somebody
        # else has its lock, it does not.
        with contextlib.suppress(OSError):
            lock.enter_context(locked_folder(target, wait=False))
        _exchange(temporary, target)
        # Also keep what was added to the old folder while the new one was written.
        if _link_others(temporary, target, replaces):
            flush_folder(target)
        yield


def _check_no_folder_is_replaced(old: str, new: str) -> None:
    for name in os.listdir(new):
        path = os.path.join(old, name)
        if os.path.isdir(path) and not os.path.islink(path):
            reason = "expected a file to replace, or none, got a folder; move it elsewhere"
            raise IsADirectoryError(errno.EISDIR, reason, path)


def _take_over_files(old: str, new: str, replaces: Callable[[str], bool]) -> None:
    """Give every file of a new set the permissions of the one that it replaces."""
    status = {
        entry.name: entry.stat() for entry in os.scandir(old) if _is_replaced(entry, replaces)
    }
    others = least_shared(list(status.values()))
    for entry in os.scandir(new):
        replaced = status.get(entry.name, others)
        if replaced is not None and _permissions(replaced) != _permissions(entry.stat()):
            with flushing(entry.path):
                take_over(entry.path, replaced)


def _permissions(status: os.stat_result) -> tuple[int, int, int]:
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


def _is_replaced(entry: os.DirEntry[str], replaces: Callable[[str], bool]) -> bool:
    return replaces(entry.name) and entry.is_file()


def _link_others(source: str, target: str, replaces: Callable[[str], bool]) -> int:
    """Add to `target` the entries that only `source` has, without those that are replaced.

    All that is in them is flushed, but not their own names. Returns how many there are.
    """
    count = 0
    for entry in os.scandir(source):
        destination = os.path.join(target, entry.name)
        is_folder = entry.is_dir(follow_symlinks=False)
        if os.path.lexists(destination) or (replaces(entry.name) and not is_folder):
            continue
        count += 1
        if is_folder:
            _link_folder(entry.path, destination)
        else:
            _link(entry.path, destination)
    return count


def _link_folder(source: str, destination: str) -> None:
    """Make a folder with the entries of another one; all of it is flushed, but not its name."""
    try:
        entries = list(os.scandir(source))
    except PermissionError as error:
        reason = (
            "expected a folder that can be read, so that it can be kept in the new one, got one "
            "that may not; change its mode, or move it elsewhere"
        )
        raise PermissionError(error.errno, reason, source) from error
    os.mkdir(destination)
    for entry in entries:
        is_folder = entry.is_dir(follow_symlinks=False)
        (_link_folder if is_folder else _link)(entry.path, os.path.join(destination, entry.name))
    shutil.copystat(source, destination)
    flush_folder(destination)


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination, follow_symlinks=False)
    except OSError:
        # Some file systems have no hard links, and another user's file must not be linked.
        shutil.copy2(source, destination, follow_symlinks=False)
        if not os.path.islink(destination):
            with flushing(destination):
                pass


def _exchange(one: str, other: str) -> None:
    """Exchange the names of two folders."""
    renameat2 = None
    # Windows, or a program that is linked statically, has no library that is the process itself.
    with contextlib.suppress(TypeError, OSError):
        renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        names = os.fsencode(one), os.fsencode(other)
        if not renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE):
            return
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL):
            raise OSError(number, os.strerror(number), other)
    between = temporary_name(other)
    os.rename(other, between)
    try:
        os.rename(one, other)
    except OSError:
        os.rename(between, other)
        raise
    os.rename(between, one)


@contextlib.contextmanager
def _temporary_folder(target: str, replaced: os.stat_result | None) -> Generator[str]:
    """A new, locked folder next to `target`; whatever has its name at the end is removed."""
    with contextlib.ExitStack() as lock:
        temporary = _new_folder(target, replaced, lock)
        try:
            yield temporary
        finally:
            # What another user has in the old folder stays, as litter: the new one is complete.
            with contextlib.suppress(FileNotFoundError, PermissionError):
                remove_folder(temporary)


def _new_folder(target: str, replaced: os.stat_result | None, lock: contextlib.ExitStack) -> str:
    while True:
        temporary = temporary_name(target)
        os.mkdir(temporary, 0o777 if replaced is None else 0o700)
        # Another save may remove it as litter before it is locked.
        with contextlib.suppress(FileNotFoundError):
            if replaced is not None:
                take_over(temporary, replaced, hidden=True)
            if lock.enter_context(locked_folder(temporary)):
                return temporary
