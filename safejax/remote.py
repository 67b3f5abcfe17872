"""Remote files: ranges of a file on any fsspec file system.

Only what a leaf needs is requested, span by span. fsspec is an extra (`safejax[remote]`), and
is imported by nobody but its users: a file system object brings it along, and a URL needs it.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from safejax.dtypes import Dtype
from safejax.errors import ReadError
from safejax.sources import Source, show
from safejax.windows import Window

_LOCAL: Final = frozenset({"file", "local"})


@final
class RemoteSource(Source):
    """A file that answers ranged requests."""

    stable = True

    def __init__(self, fs: Any, path: str) -> None:
        self.name = path
        self._fs = fs
        self._path = path
        self.nbytes: int = fs.info(path)["size"]

    def __repr__(self) -> str:
        return f"RemoteSource({self.name!r})"

    def prefix(self, begin: int, end: int) -> bytes:
        """The bytes `[begin, end)`, as the header's reader asks for them."""
        return self._range(begin, end)

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        if window.size == 0:
            return np.empty(window.shape, dtype)
        spans = window.spans()
        self._log(spans.count * dtype.itemsize)
        starts = (begin + spans.starts * dtype.itemsize).tolist()
        length = spans.length * dtype.itemsize
        if len(starts) == 1:
            pieces = [self._range(starts[0], starts[0] + length)]
        else:
            ends = [start + length for start in starts]
            pieces = self._fs.cat_ranges([self._path] * len(starts), starts, ends)
            for start, piece in zip(starts, pieces, strict=True):
                self._check(piece, start, start + length)
        dense = np.frombuffer(bytearray(b"".join(pieces)), np.uint8)
        return show(dense, 0, dtype, window.compact())

    def _range(self, begin: int, end: int) -> bytes:
        data = self._fs.cat_file(self._path, begin, end)
        self._check(data, begin, end)
        return data

    def _check(self, data: bytes | BaseException, begin: int, end: int) -> None:
        if isinstance(data, BaseException):
            raise ReadError(f"{self.name}: reading bytes [{begin}, {end}) failed: {data}") from data
        if len(data) != end - begin:
            raise ReadError(
                f"{self.name}: expected {end - begin} bytes from byte {begin} on, got {len(data)}: "
                "the file was cut short since it was opened; load it again"
            )


def resolve_path(path: str, fs: Any) -> tuple[Any, str]:
    """The file system and the path in it; None for a local file, which is mapped.

    `fs` is an fsspec file system, or None; `path` may then be a URL, for which fsspec finds one.
    Raises `ImportError` for a URL where fsspec is not installed.
    """
    if fs is None:
        if "://" not in path:
            return None, path
        try:
            # By name: fsspec is an extra that only URLs need.
            fsspec = importlib.import_module("fsspec")
        except ImportError as error:
            raise ImportError(
                f"{path}: a URL needs fsspec, which is not installed: pip install 'safejax[remote]'"
            ) from error
        fs, path = fsspec.url_to_fs(path)
    protocol = fs.protocol
    names = {protocol} if isinstance(protocol, str) else set(protocol)
    if names & _LOCAL:
        return None, os.fspath(fs._strip_protocol(path))  # noqa: SLF001
    return fs, path


def write_remotely(
    fs: Any, path: str, chunks: Iterator[memoryview], wrote: Callable[[int], None]
) -> None:
    """Write `chunks` to a file that is there when all of it is; `wrote(n)` after `n` bytes."""
    with fs.transaction, fs.open(path, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
            wrote(chunk.nbytes)
