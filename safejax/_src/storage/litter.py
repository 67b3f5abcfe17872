"""Temporary files and folders, and the litter of killed saves: those that nobody writes any more.

A writer holds the lock of its temporary file or folder for as long as it lives. So what has such
a name and is not locked is litter, whichever target it was for, and the next save in the same
folder removes it.
"""

import contextlib
import os
import re
import shutil
import stat
import time
from collections.abc import Generator
from typing import Final

from safejax._src.storage.network import is_on_network
from safejax._src.system import fcntl

_SUFFIX: Final = ".safejax-tmp"
_NAME: Final = re.compile(rf"\..*\.[0-9a-f]{{16}}{re.escape(_SUFFIX)}", re.DOTALL)

_OLD: Final = 24 * 60 * 60
"""Seconds without a change after which the writer is gone, even one on another machine."""


def temporary_name(target: str) -> str:
    """The path of a new temporary file or folder next to `target`."""
    name = f"{_prefix(target)}{os.urandom(8).hex()}{_SUFFIX}"
    return os.path.join(os.path.dirname(target), name)


def is_temporary(path: str) -> bool:
    """Whether the path is that of a temporary file or folder, or of a file in such a folder."""
    return any(map(_NAME.fullmatch, path.split(os.sep)))


def _prefix(target: str) -> str:
    # File systems limit a name to 255 bytes.
    name = os.fsencode(os.path.basename(target))[:120].decode(errors="ignore")
    return f".{name}."


def remove_litter(target: str) -> None:
    """Remove the litter in the folder of `target`, also that of saves to other names.

    On a network file system, another machine's lock may not be seen, so there the litter of
    other names must also be a day old.
    """
    if fcntl is None:
        return
    folder, own = os.path.dirname(target), _prefix(target)
    # If the folder cannot be listed, its litter is not ours to remove.
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        found = [entry for entry in entries if _NAME.fullmatch(entry.name)]
        local = not found or not is_on_network(folder)
        for entry in found:
            with contextlib.suppress(OSError):
                if local or entry.name.startswith(own) or _is_old(entry):
                    _remove_if_abandoned(entry)


def _is_old(entry: os.DirEntry[str]) -> bool:
    changed = [entry.stat(follow_symlinks=False).st_mtime]
    if entry.is_dir(follow_symlinks=False):
        with os.scandir(entry.path) as inside:
            changed += [each.stat(follow_symlinks=False).st_mtime for each in inside]
    return time.time() - max(changed) > _OLD


def _remove_if_abandoned(entry: os.DirEntry[str]) -> None:
    mode = entry.stat(follow_symlinks=False).st_mode
    if stat.S_ISDIR(mode):
        with locked_folder(entry.path, wait=False):
            remove_folder(entry.path)
    elif stat.S_ISREG(mode):
        assert fcntl is not None
        descriptor = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(entry.path)
        finally:
            os.close(descriptor)


def remove_folder(path: str) -> None:
    """Remove a folder with all that is in it, also with folders that are read-only."""
    try:
        shutil.rmtree(path)
    except PermissionError:
        os.chmod(path, stat.S_IRWXU)
        for folder, inside, _ in os.walk(path):
            for name in inside:
                found = os.path.join(folder, name)
                if not os.path.islink(found):
                    os.chmod(found, stat.S_IRWXU)
        shutil.rmtree(path)


@contextlib.contextmanager
def locked_folder(folder: str, *, wait: bool = True) -> Generator[bool]:
    """Hold the lock of the folder at this path; yields whether the folder is still there.

    If another process holds the lock, this waits for it, or raises `OSError` unless `wait`.
    """
    if fcntl is None:
        yield True
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if wait:
            # On a file system without locks, the litter of killed saves stays.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield _is_at(descriptor, folder)
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, folder: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(folder))
    except FileNotFoundError:
        return False
