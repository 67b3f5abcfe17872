"""Folders: a set of files that is replaced as one, so that no reader sees half of it."""

import contextlib
import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final

from safejax._src.storage.files import flush_folder, remove_litter, temporary_name
from safejax._src.system import fcntl

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


def write_folder_atomically(
    path: str, fill: Callable[[str], None], replaces: Callable[[str], bool]
) -> None:
    """Make the folder at `path` hold the files that `fill(folder)` writes, or leave it as it was.

    The files are written to a new folder next to the old one, which then takes its place.
    Whatever else is in the old folder is kept in the new one, as hard links where possible,
    except files for whose names `replaces` returns true. Files that are open or mapped keep
    their content. Temporary folders that killed saves of the same folder left behind are
    removed. A symbolic link is written through.

    The two folders are exchanged in one step where the operating system can (Linux). Elsewhere
    there is a moment in which no folder exists, but none in which half of one does.

    Raises `OSError`: a missing or unwritable parent, a full disk, a target that is not a folder.
    """
    target = os.path.realpath(path)
    parent = os.path.dirname(target)
    if not os.path.isdir(parent):
        reason = "expected a path in an existing folder; make the folder first"
        raise FileNotFoundError(errno.ENOENT, reason, path)
    if os.path.exists(target) and not os.path.isdir(target):
        reason = "expected a folder for a set of files, got a file; give another name"
        raise NotADirectoryError(errno.ENOTDIR, reason, path)
    remove_litter(target, _remove_if_abandoned)
    with _temporary_folder(target) as temporary:
        fill(temporary)
        if os.path.isdir(target):
            _link_others(target, temporary, replaces)
            shutil.copymode(target, temporary)
            flush_folder(temporary)
            _exchange(temporary, target)
            # Also keep what was added to the old folder while the new one was written.
            _link_others(temporary, target, replaces)
        else:
            flush_folder(temporary)
            os.rename(temporary, target)
    flush_folder(parent)


def _link_others(source: str, target: str, replaces: Callable[[str], bool]) -> None:
    """Add to `target` the entries that only `source` has, without those that are replaced."""
    for entry in os.scandir(source):
        destination = os.path.join(target, entry.name)
        if replaces(entry.name) or os.path.lexists(destination):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.copytree(entry.path, destination, symlinks=True, copy_function=_link)
        else:
            _link(entry.path, destination)


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination, follow_symlinks=False)
    except OSError:
        # Some file systems have no hard links, and another user's file must not be linked.
        shutil.copy2(source, destination, follow_symlinks=False)


def _exchange(one: str, other: str) -> None:
    """Exchange the names of two folders."""
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
def _temporary_folder(target: str) -> Generator[str]:
    """A new, locked folder next to `target`; whatever has its name at the end is removed."""
    temporary = temporary_name(target)
    os.mkdir(temporary)
    try:
        with _locked(temporary):
            yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(temporary)


def _remove_if_abandoned(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        with _locked(str(entry), wait=False):
            shutil.rmtree(entry)


@contextlib.contextmanager
def _locked(folder: str, *, wait: bool = True) -> Generator[None]:
    """Hold the folder's lock, as its writer does for as long as it lives."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if wait:
            # On a file system without locks, the litter of killed saves stays.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
