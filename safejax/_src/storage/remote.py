"""Files on any fsspec file system: which one a path or URL is on, and how a file is written there.

fsspec is an extra (`safejax[remote]`) that is imported only where it is used: callers that pass
a file system have imported it, and a URL needs it.
"""

import importlib
import os
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary

from safejax._src.reading.remote import FileSystem

_LOCAL: Final = frozenset({"file", "local"})


def resolve_path(path: str, fs: FileSystem) -> tuple[FileSystem, str]:
    """The file system, or None for a local file, which can be mapped; and the path on it.

    `fs` is an fsspec file system or None. If it is None, `path` may be a URL, for which fsspec
    finds the file system. Raises `ImportError` for a URL if fsspec is not installed, `TypeError`
    if `fs` is not a file system.
    """
    if fs is None:
        if "://" not in path:
            return None, path
        try:
            # Imported by name: fsspec is an extra that only URLs need.
            fsspec = importlib.import_module("fsspec")
        except ImportError as error:
            raise ImportError(
                f"{path}: a URL needs fsspec, which cannot be imported ({error}): "
                "pip install 'safejax[remote]'",
                name=error.name,
            ) from error
        fs, path = fsspec.url_to_fs(path)
    elif not hasattr(fs, "cat_ranges") or isinstance(fs, type):
        raise TypeError(
            "fs: expected a file system of fsspec, for example fsspec.filesystem('s3'), got "
            f"{fs!r:.80}"
        )
    while fs.protocol == "dir":  # A folder of another file system.
        fs, path = fs.fs, fs._join(path)  # noqa: SLF001
    protocol = fs.protocol
    names = {protocol} if isinstance(protocol, str) else set(protocol)
    if names & _LOCAL:
        return None, os.fspath(fs._strip_protocol(path))  # noqa: SLF001
    return fs, path


def write_remotely(
    fs: FileSystem, path: str, chunks: Iterator[memoryview], wrote: Callable[[int], None]
) -> None:
    """Write `chunks` to a file that appears when it is complete; `wrote(n)` after `n` bytes.

    It is written in a transaction of the file system, and is as atomic as that transaction. If
    the caller has begun one, the file appears when the caller's ends.
    """
    with _transaction(fs), fs.open(path, "wb") as file:
        if not hasattr(file, "commit"):
            # For example, a member of a zip archive: it is written now, or not at all.
            fs.transaction.files.remove(file)
        for chunk in chunks:
            file.write(chunk)
            wrote(chunk.nbytes)


_locks: Final[WeakKeyDictionary[FileSystem, Any]] = WeakKeyDictionary()
_locks_lock: Final = threading.Lock()


@contextmanager
def _transaction(fs: FileSystem) -> Generator[None]:
    """A new transaction of the file system, or the caller's if there is one."""
    with _locks_lock:
        lock = _locks.setdefault(fs, threading.RLock())
    # A file system has one transaction at a time: another thread's would include our files.
    with lock:
        if fs._intrans:  # noqa: SLF001
            yield
        else:
            with fs.transaction:
                yield
