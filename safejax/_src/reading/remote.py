"""Remote files as sources: byte ranges of a file on any fsspec file system."""

from collections.abc import Sequence
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.requests import byte_spans, planned
from safejax._src.reading.source import File, strided_array
from safejax._src.reading.windows import Window
from safejax.errors import ReadError

FileSystem: TypeAlias = Any
"""An `fsspec.AbstractFileSystem`. `Any`, since fsspec is an extra and has no types."""


@final
class RemoteSource(File):
    """A file that answers ranged requests.

    Raises `FileNotFoundError` if there is no such file, `ReadError` if its size is unknown.
    """

    immutable = True

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
        (data,) = self._ranges([(begin, end)])
        return bytes(data)

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        if window.size == 0:
            return np.empty(window.shape, dtype)
        requests = planned(byte_spans(begin, dtype, window))
        self._log(requests.nbytes)
        self._log_excess(requests.excess)
        pieces = self._ranges(requests.ranges)
        if len(pieces) == 1 and isinstance(pieces[0], bytes):
            memory = np.frombuffer(pieces[0], np.uint8)
        else:
            memory = np.empty(requests.nbytes, np.uint8)
            for part, piece in zip(requests.parts(memory), pieces, strict=True):
                part[:] = np.frombuffer(piece, np.uint8)
        return strided_array(requests.joined(memory), 0, dtype, window.compact())

    def _ranges(self, ranges: Sequence[tuple[int, int]]) -> list[Any]:
        """The bytes of each range `[begin, end)`; all are requested before any is returned."""
        begins, ends = [begin for begin, _ in ranges], [end for _, end in ranges]
        pieces: list[Any]
        try:
            pieces = self._fs.cat_ranges([self._path] * len(ranges), begins, ends)
        except Exception as error:  # noqa: BLE001 - a file system may raise anything
            pieces = [error] * len(ranges)
        for (begin, end), piece in zip(ranges, pieces, strict=True):
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
