"""Remote files: byte ranges of a file on any fsspec file system.

Only what a leaf needs is requested, span by span. fsspec is an extra (`safejax[remote]`) that
is imported only where it is used: callers that pass a file system have imported it, and a URL
needs it.
"""

import importlib
import os
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias, final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from safejax.dtypes import Dtype
from safejax.errors import ReadError
from safejax.sources import Source, show
from safejax.windows import Window

FileSystem: TypeAlias = Any
"""An `fsspec.AbstractFileSystem`. `Any`, since fsspec is an extra and has no types."""

_LOCAL: Final = frozenset({"file", "local"})


@final
class RemoteSource(Source):
    """A file that answers ranged requests.

    Raises `FileNotFoundError` if there is no such file, `ReadError` if its size is unknown.
    """

    stable = True

    def __init__(self, fs: FileSystem, path: str) -> None:
        self.name = path
        self._fs = fs
        self._path = path
        size = fs.info(path)["size"]
        if not isinstance(size, int):
            raise ReadError(
                f"{path}: expected a file system that reports the size of the file, "
                f"{type(fs).__name__} reports none: download the file first"
            )
        self.nbytes = size

    def __repr__(self) -> str:
        return f"RemoteSource({self.name!r})"

    def prefix(self, begin: int, end: int) -> bytes:
        """The bytes `[begin, end)`, for the header's reader."""
        (data,) = self._ranges([(begin, end)])
        return bytes(data)

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        if window.size == 0:
            return np.empty(window.shape, dtype)
        spans = window.spans()
        self._log(spans.count * dtype.itemsize)
        starts = (begin + spans.starts * dtype.itemsize).tolist()
        length = spans.length * dtype.itemsize
        pieces = self._ranges([(start, start + length) for start in starts])
        if len(pieces) == 1 and isinstance(pieces[0], bytes):
            dense = np.frombuffer(pieces[0], np.uint8)
        else:
            dense = np.empty(len(starts) * length, np.uint8)
            for row, piece in zip(dense.reshape(-1, length), pieces, strict=True):
                row[:] = np.frombuffer(piece, np.uint8)
        return show(dense, 0, dtype, window.compact())

    def _ranges(self, spans: list[tuple[int, int]]) -> list[Any]:
        """The bytes of each span `[begin, end)`; all are requested before any is returned."""
        begins, ends = [begin for begin, _ in spans], [end for _, end in spans]
        pieces: list[Any]
        try:
            pieces = self._fs.cat_ranges([self._path] * len(spans), begins, ends)
        except Exception as error:  # noqa: BLE001 - a file system may raise anything
            pieces = [error] * len(spans)
        for (begin, end), piece in zip(spans, pieces, strict=True):
            if isinstance(piece, Exception):
                raise ReadError(
                    f"{self.name}: reading bytes [{begin}, {end}) failed: "
                    f"{type(piece).__name__}: {piece}"
                ) from piece
            if len(piece) != end - begin:
                raise ReadError(
                    f"{self.name}: expected the bytes [{begin}, {end}) of the {self.nbytes} that "
                    f"the file had when it was opened, got {len(piece)} bytes: it was cut short "
                    "since, or its file system cannot read ranges; load it again, or download it"
                )
        return pieces


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
