"""Remote files as sources: byte ranges of a file on any fsspec file system."""

import contextlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias, final

import numpy as np

from safejax._src.reading.landing import Landing
from safejax._src.reading.requested import RequestedFile
from safejax._src.reading.requests import FAR, Requests
from safejax.errors import ReadError

FileSystem: TypeAlias = Any
"""An `fsspec.AbstractFileSystem`. `Any`, since fsspec is an extra and has no types."""


_VERSIONS: Final = (
    "generation", "versionid", "etag", "md5hash", "contentmd5", "md5", "blobid", "oid", "xethash",
    "sha256", "sha", "hex", "checksum", "digest", "crc32c", "crc",
)  # fmt: skip
"""What file systems call something in `info` that says which content a file has."""

_TIMES: Final = (
    "mtime", "lastmodified", "modified", "updated", "modificationtime", "modifiedtime", "modify",
    "servermodified", "clientmodified", "datetime",
)  # fmt: skip
"""What they call the time of its last modification."""


@final
class RemoteSource(RequestedFile):
    """A file that answers ranged requests.

    After each read, the file system is asked whether the file is still the one that was opened,
    as far as it tells: by a version or a digest, or else by the time of modification, and by the
    size. `ReadError` is raised if it is not. Reads that end at the same time share the question.

    Raises `FileNotFoundError` if there is no such file, `ReadError` if its size is unknown.
    """

    reach = FAR

    def __init__(self, fs: FileSystem, path: str) -> None:
        self.name = path
        self._fs = fs
        self._path = path
        self._identity = self._found_identity()
        self._lock = threading.Lock()
        self._checks = 0
        self._changed: str | None = None
        size = self._identity["size"]
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

    def _fetch(self, requests: Requests, landing: Landing) -> None:
        begins = requests.begins.tolist()
        pieces = self._ranges(list(zip(begins, requests.ends.tolist(), strict=True)))
        self._check()
        for begin, piece in zip(begins, pieces, strict=True):
            landing.land(begin, np.frombuffer(piece, np.uint8))

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

    def _check(self) -> None:
        """Raise `ReadError` if the file system now reports another file than was opened."""
        before = self._checks
        with self._lock:
            # A check that began meanwhile, after the read for which this one is, serves both.
            if self._checks <= before and self._changed is None:
                self._checks += 1
                try:
                    self._changed = self._difference()
                except ReadError:
                    self._checks -= 1  # It served nobody.
                    raise
            changed = self._changed
        if changed is not None:
            raise ReadError(
                f"{self.name}: expected the file that was opened, but it was replaced since: "
                f"{changed}; load it again"
            )

    def _difference(self) -> str | None:
        """In what the file differs from the one that was opened; None if in nothing."""
        # Listings that the file system keeps are as old as the file that was opened.
        self._fs.invalidate_cache(self._path)
        try:
            found = self._found_identity()
        except Exception as error:
            raise ReadError(
                f"{self.name}: asking whether the file is still the one that was opened failed: "
                f"{type(error).__name__}: {error}"
            ) from error
        known = [key for key in (*_VERSIONS, *_TIMES) if key in found and key in self._identity]
        for key in (*known[:1], "size"):
            if found[key] != self._identity[key]:
                return f"{key} was {self._identity[key]!s:.80} and is {found[key]!s:.80}"
        return None

    def _found_identity(self) -> Mapping[str, Any]:
        """The size, and what distinguishes versions of the file, with the names of the lists."""
        info = self._fs.info(self._path)
        named = {key.lower().replace("-", "").replace("_", ""): info[key] for key in info}
        found = {key: named[key] for key in (*_VERSIONS, *_TIMES) if named.get(key) is not None}
        if not found:
            # Most file systems do not have it, each in a way of its own.
            with contextlib.suppress(Exception):
                found["modified"] = self._fs.modified(self._path)
        return {**found, "size": info["size"]}
