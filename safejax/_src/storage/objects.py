"""Object stores of obstore: a store of S3, Google, Azure, HTTP or memory, which is given as `fs`.

obstore is an extra and is not imported here: whoever has a store has imported it.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from queue import Empty, Full, Queue
from typing import Any, Final, TypeAlias, final

from safejax._src.reading import patience as patience_of
from safejax._src.reading.asking import in_thread
from safejax._src.reading.masking import masked
from safejax._src.reading.objects import ObjectAsker
from safejax._src.reading.remote import RemoteSource
from safejax._src.storage.far import FarStore
from safejax._src.storage.faults import saving, told
from safejax._src.storage.local import LocalStore
from safejax._src.storage.parts import least_part
from safejax._src.storage.store import MAX_WHOLE_BYTES, Access, Inside, Store, too_large

Objects: TypeAlias = Any
"""An `obstore.store.ObjectStore`. `Any`, since obstore is an extra."""

_KINDS: Final = ("S3Store", "GCSStore", "AzureStore", "HTTPStore", "MemoryStore", "LocalStore")

PART: Final = 8 << 20
"""Bytes of a part of a file that is sent."""

AT_A_TIME: Final = 48 << 20
"""Bytes of parts that are sent at the same time."""


def object_store(fs: Any, path: str) -> tuple[Store, str] | None:
    """The store for an object store of obstore, or for its file system for fsspec; else None."""
    module: Any = sys.modules.get("obstore.store")
    if module is None:
        return None
    of_fsspec: Any = sys.modules.get("obstore.fsspec")
    if of_fsspec is not None and isinstance(fs, of_fsspec.FsspecStore):
        # Its files are there when they are closed, whether they are complete or not.
        bucket, path = fs._split_path(path)  # noqa: SLF001
        fs = fs._construct_store(bucket)  # noqa: SLF001
    kinds = tuple(getattr(module, name) for name in _KINDS)
    if not isinstance(fs, kinds):
        return None
    if "://" in path:
        raise ValueError(
            f"{masked(path)}: expected a path within the {type(fs).__name__} that is given as fs, "
            "got a URL: leave out its beginning, or give no fs"
        )
    if isinstance(fs, module.LocalStore):
        return LocalStore(), f"{fs.prefix or ''}/{path.lstrip('/')}"
    return ObjectStore(fs), path.strip("/")


@final
@dataclass(frozen=True, slots=True)
class ObjectStore(FarStore):
    """The files of an object store; there are no folders but those that have files."""

    objects: Objects

    @property
    def kind(self) -> str:
        return type(self.objects).__name__

    def join(self, folder: str, name: str) -> str:
        return f"{folder}/{name}".lstrip("/")

    def parent(self, path: str) -> str:
        return path.rpartition("/")[0]

    def canonical(self, path: str) -> str:
        return path.strip("/")

    def exists(self, path: str) -> bool:
        try:
            told(self.kind, path, lambda: self.objects.head(path))
        except FileNotFoundError:
            return self.is_folder(path)
        return True

    def is_folder(self, path: str) -> bool:
        # Servers of HTTP have no lists.
        return self.kind != "HTTPStore" and bool(self._names(path))

    def names_in(self, folder: str) -> list[str]:
        names = self._names(folder)
        if not names:
            raise FileNotFoundError(f"{masked(folder)}: there is no such folder")
        return names

    def look_into(self, path: str, likely: str) -> Inside | None:
        if self.kind == "HTTPStore":
            return None
        # Not asked for by the store: if it is not there, or cannot be had, nobody needs it.
        guess = in_thread(lambda: self.read(self.join(path, likely)))
        names = self._names(path)
        if not names:
            return None
        with suppress(Exception):
            if likely in names:
                return Inside(names, guess.result(patience_of.PATIENCE.longest))
        return Inside(names, None)

    def read(self, path: str) -> bytes:
        source = self.source(path)
        if source.nbytes > MAX_WHOLE_BYTES:
            raise too_large(path, source.nbytes)
        return source.prefix(0, source.nbytes)

    def source(self, path: str, access: Access = "auto") -> RemoteSource:
        self.check_access(path, access)
        return RemoteSource(self.objects, path, ObjectAsker(self.objects, path))

    def write(
        self,
        path: str,
        chunks: Iterator[memoryview],
        wrote: Callable[[int], None],
        head: Callable[[], bytes] | None = None,
        instead_of: Sequence[str] = (),
        nbytes: int = 0,
    ) -> None:
        """Send `chunks` in parts; the file is there when all of them are, and not if one fails."""
        del instead_of
        assert head is None, "bytes cannot be changed once they are sent"
        small: list[memoryview] = []
        held = 0
        for chunk in chunks:
            small.append(chunk)
            held += chunk.nbytes
            if held > PART:
                break
        else:
            with saving(self.kind, path):
                self.objects.put(path, b"".join(small), use_multipart=False)
            wrote(held)
            return
        self._send(path, chain(small, chunks), wrote, max(least_part(nbytes), PART))

    def _send(
        self, path: str, chunks: Iterator[memoryview], wrote: Callable[[int], None], part: int
    ) -> None:
        """Hand chunks to a thread that sends them.

        The chunks are made here, where an interrupt ends it.
        """
        handed = _Handed()
        sent: Future[Any] = in_thread(
            lambda: self.objects.put(
                path, handed.chunks(), use_multipart=True, chunk_size=part,
                max_concurrency=max(2, AT_A_TIME // part),
            )
        )  # fmt: skip
        try:
            for chunk in chunks:
                if not handed.put(chunk, sent):
                    break
                wrote(chunk.nbytes)
            else:
                handed.put(None, sent)
            with saving(self.kind, path):
                sent.result()
        except BaseException:
            handed.stop()
            with suppress(Exception):
                sent.exception()  # It ends when the upload is aborted.
            raise

    def remove(self, path: str) -> None:
        # Not every store says so if there is none.
        told(self.kind, path, lambda: self.objects.head(path))
        with saving(self.kind, path):
            self.objects.delete(path)

    def make_folder(self, path: str) -> None:
        """Nothing: a folder is there if it has a file."""

    def _names(self, folder: str) -> list[str]:
        prefix = folder.strip("/")
        found: Any = told(
            self.kind, folder, lambda: self.objects.list_with_delimiter(prefix or None)
        )
        paths = [each["path"] for each in found["objects"]] + list(found["common_prefixes"])
        # An object may have the name of the folder itself.
        return [path.rstrip("/").rpartition("/")[2] for path in paths if path != prefix]


class _StoppedError(Exception):
    """A save has failed; what was sent of it is not wanted."""


@final
class _Handed:
    """Chunks that go from one thread to another, one at a time."""

    def __init__(self) -> None:
        self._queue: Queue[memoryview | None] = Queue(1)
        self._stopped = threading.Event()

    def put(self, chunk: memoryview | None, taker: "Future[Any]") -> bool:
        """Hand over a chunk, or the end; false if nobody takes it any more."""
        while not taker.done():
            with suppress(Full):
                self._queue.put(chunk, timeout=0.1)
                return True
        return False

    def chunks(self) -> Iterator[memoryview]:
        """What is handed over; raises an error if that stops before the end."""
        while True:
            if self._stopped.is_set():
                raise _StoppedError
            try:
                chunk = self._queue.get(timeout=0.1)
            except Empty:
                continue
            if chunk is None:
                return
            yield chunk

    def stop(self) -> None:
        """Let the taker fail."""
        self._stopped.set()
