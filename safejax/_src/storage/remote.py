"""Files on any fsspec file system.

fsspec is an extra (`safejax[remote]`) and is not imported here: callers that have a file system
have imported it.
"""

import contextlib
import errno
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final
from weakref import WeakKeyDictionary

from safejax._src.reading import patience as patience_of
from safejax._src.reading.asking import in_thread
from safejax._src.reading.filesystems import FileSystem
from safejax._src.reading.masking import masked
from safejax._src.reading.remote import RemoteSource, said_by
from safejax._src.storage.far import FarStore
from safejax._src.storage.faults import saving, told
from safejax._src.storage.parts import least_part
from safejax._src.storage.store import MAX_WHOLE_BYTES, Access, Inside, too_large
from safejax._src.system import hold_at_forks, in_forked_process
from safejax.errors import ReadError


@final
@dataclass(frozen=True, slots=True)
class RemoteStore(FarStore):
    """The files of an fsspec file system; names in a path are separated by slashes."""

    fs: FileSystem

    @property
    def kind(self) -> str:
        return type(self.fs).__name__

    @property
    def writes_at_once(self) -> bool:
        with _lock_of(self.fs):
            return not self.fs._intrans  # noqa: SLF001

    def join(self, folder: str, name: str) -> str:
        folder, query = self._split(folder)
        return f"{folder.rstrip('/')}/{name}{query}"

    def parent(self, path: str) -> str:
        path, query = self._split(path)
        return path.rpartition("/")[0] + query

    def bare(self, path: str) -> str:
        return self._split(path)[0]

    def canonical(self, path: str) -> str:
        return str(self.fs._strip_protocol(path))  # noqa: SLF001

    def exists(self, path: str) -> bool:
        return bool(told(self.kind, path, lambda: self.fs.exists(path)))

    def is_folder(self, path: str) -> bool:
        return bool(told(self.kind, path, lambda: self.fs.isdir(path)))

    def names_in(self, folder: str) -> list[str]:
        found: list[Any] = told(self.kind, folder, lambda: self.fs.ls(folder, detail=False))
        return [self.bare(str(each)).rstrip("/").rpartition("/")[2] for each in found]

    def look_into(self, path: str, likely: str) -> Inside | None:
        file = self.join(path, likely)
        # Not asked for by the store: if it is not there, or cannot be had, nobody needs it.
        guess = in_thread(lambda: self.read(file))
        if self._has_queries:
            # Any URL is that of a folder if its page has links.
            names = self._names_or_none(path) or None
        else:
            names = self._names_if_folder(path)
        if names is None:
            return None
        try:
            return Inside(
                names, guess.result(patience_of.PATIENCE.stall) if likely in names else None
            )
        except Exception:  # noqa: BLE001 - whoever needs the file asks for it again
            return Inside(names, None)

    def read(self, path: str) -> bytes:
        source = RemoteSource(self.fs, path)
        if source.nbytes > MAX_WHOLE_BYTES:
            raise too_large(path, source.nbytes)
        return source.prefix(0, source.nbytes)

    def _names_if_folder(self, path: str) -> list[str] | None:
        """The names in a folder, None if it is none; most file systems tell both by one request."""
        own = self.canonical(path).rstrip("/")
        found: list[Any] = []
        # Not all of them can list what is a file.
        with contextlib.suppress(ReadError):
            try:
                found = told(self.kind, path, lambda: self.fs.ls(path, detail=True))
            except FileNotFoundError:
                return None
        if [(each["name"], each["type"]) for each in found] == [(own, "file")]:
            return None
        if found:
            return [str(each["name"]).rstrip("/").rpartition("/")[2] for each in found]
        return self.names_in(path) if self.is_folder(path) else None

    def _names_or_none(self, path: str) -> list[str] | None:
        try:
            return self.names_in(path)
        except (FileNotFoundError, ReadError):
            return None

    @property
    def _has_queries(self) -> bool:
        """Whether paths are URLs, which may have a query."""
        protocol = self.fs.protocol
        names = {protocol} if isinstance(protocol, str) else set(protocol)
        return bool(names & {"http", "https"})

    def _split(self, path: str) -> tuple[str, str]:
        """The path without a query, and the query."""
        at = min((path.find(mark) for mark in "?#" if mark in path), default=len(path))
        return (path[:at], path[at:]) if self._has_queries else (path, "")

    def source(self, path: str, access: Access = "auto") -> RemoteSource:
        self.check_access(path, access)
        return RemoteSource(self.fs, path)

    def write(
        self,
        path: str,
        chunks: Iterator[memoryview],
        wrote: Callable[[int], None],
        head: Callable[[], bytes] | None = None,
        instead_of: Sequence[str] = (),
        nbytes: int = 0,
    ) -> None:
        """Write `chunks` to a file that appears when it is complete; `wrote(n)` after `n` bytes.

        It is written in a transaction of the file system, and is as atomic as that transaction.
        If the caller has begun one, the file appears when the caller's ends.
        """
        del instead_of
        assert head is None, "bytes cannot be changed once they are sent"
        with _lock_of(self.fs):
            if self.fs._intrans:  # noqa: SLF001
                self._send(path, chunks, wrote, nbytes)
            else:
                self._send_at_once(path, chunks, wrote, nbytes)

    def _send_at_once(
        self, path: str, chunks: Iterator[memoryview], wrote: Callable[[int], None], nbytes: int
    ) -> None:
        """Send a file in a transaction of its own."""
        with saving(self.kind, path):
            transaction = self.fs.transaction
            transaction.__enter__()
        try:
            file = self._send(path, chunks, wrote, nbytes)
        except BaseException as error:
            try:
                self._end(transaction, error)
            except Exception as other:  # noqa: BLE001 - a file system may raise anything
                error.add_note(
                    f"{masked(path)}: an upload that is not complete may be left: {said_by(other)}"
                )
            raise
        try:
            with saving(self.kind, path):
                self._end(transaction, None)
        except BaseException:
            # Not every version of fsspec does so.
            with contextlib.suppress(Exception):
                file.discard()
            raise

    def _end(self, transaction: Any, error: BaseException | None) -> None:
        try:
            if error is None:
                transaction.__exit__(None, None, None)
            else:
                transaction.__exit__(type(error), error, error.__traceback__)
        finally:
            # Some versions leave a transaction that cannot be ended open for ever.
            self.fs._intrans = False  # noqa: SLF001
            self.fs._transaction = None  # noqa: SLF001

    def _send(
        self, path: str, chunks: Iterator[memoryview], wrote: Callable[[int], None], nbytes: int
    ) -> Any:
        """Send a file, which appears when the transaction ends; the file, which is closed."""
        with saving(self.kind, path):
            file = self.fs.open(path, "wb", **self._parts(nbytes))
        if not hasattr(file, "commit"):
            # For example, a member of a zip archive: it is written now, or not at all.
            self.fs.transaction.files.remove(file)
        try:
            for chunk in chunks:
                with saving(self.kind, path):
                    file.write(chunk)
                wrote(chunk.nbytes)
        except BaseException:
            _drop(file)
            raise
        with saving(self.kind, path):
            file.close()
        return file

    def _parts(self, nbytes: int) -> dict[str, int]:
        """An option for larger parts, if those of the file system would be too many for S3."""
        least = least_part(nbytes)
        usual = getattr(self.fs, "default_block_size", None) or getattr(self.fs, "blocksize", 0)
        return {"block_size": least} if least > usual else {}

    def remove(self, path: str) -> None:
        self.fs.rm_file(path)

    def make_folder(self, path: str) -> None:
        if self.fs.isfile(path):
            reason = "expected a folder for a set of files, got a file; give another name"
            raise NotADirectoryError(errno.ENOTDIR, reason, path)
        # What has no parent may be a bucket, which is not made by the way.
        if self.parent(self.canonical(path)) and not self.fs.isdir(path):
            with contextlib.suppress(FileExistsError):
                self.fs.mkdir(path, create_parents=False)

    def look_again(self, folder: str) -> None:
        self.fs.invalidate_cache(folder)


_locks: Final[WeakKeyDictionary[FileSystem, Any]] = WeakKeyDictionary()
_locks_lock: Final = threading.RLock()
hold_at_forks(_locks_lock)
in_forked_process(_locks.clear)


def _lock_of(fs: FileSystem) -> Any:
    """A file system has one transaction at a time: another thread's would include our files."""
    with _locks_lock:
        return _locks.setdefault(fs, threading.RLock())


def _drop(file: Any) -> None:
    """Close a file that is not complete; what it has not sent yet is not wanted."""
    spec: Any = sys.modules.get("fsspec.spec")
    if spec is not None and isinstance(file, spec.AbstractBufferedFile):
        # Its `close` would send the rest, and some make a file of what they have.
        file.closed = True
        return
    with contextlib.suppress(Exception):
        file.close()
