"""Files on any fsspec file system.

fsspec is an extra (`safejax[remote]`) and is not imported here: callers that have a file system
have imported it.
"""

import contextlib
import errno
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast, final
from weakref import WeakKeyDictionary

from safejax._src.reading.remote import FileSystem, RemoteSource
from safejax._src.storage.store import Access, Store


@final
@dataclass(frozen=True, slots=True)
class RemoteStore(Store):
    """The files of an fsspec file system; names in a path are separated by slashes."""

    fs: FileSystem

    @property
    def kind(self) -> str:
        return type(self.fs).__name__

    @property
    def replaces_folders(self) -> bool:
        return False

    @property
    def rewrites(self) -> bool:
        return False  # Bytes cannot be changed once they are sent.

    @property
    def shares_files(self) -> bool:
        return False

    @property
    def writes_at_once(self) -> bool:
        with _lock_of(self.fs):
            return not self.fs._intrans  # noqa: SLF001

    def join(self, folder: str, name: str) -> str:
        return f"{folder.rstrip('/')}/{name}"

    def parent(self, path: str) -> str:
        return path.rpartition("/")[0]

    def canonical(self, path: str) -> str:
        return str(self.fs._strip_protocol(path))  # noqa: SLF001

    def exists(self, path: str) -> bool:
        return bool(self.fs.exists(path))

    def is_folder(self, path: str) -> bool:
        return bool(self.fs.isdir(path))

    def names_in(self, folder: str) -> list[str]:
        found = self.fs.ls(folder, detail=False)
        return [str(each).rstrip("/").rpartition("/")[2] for each in found]

    def read(self, path: str) -> bytes:
        return cast("bytes", self.fs.cat_file(path))

    def source(self, path: str, access: Access = "auto") -> RemoteSource:
        if access != "auto":
            raise ValueError(
                f"{path}: access: expected 'auto' for a file that is requested from {self.kind}, "
                f"got {access!r}"
            )
        return RemoteSource(self.fs, path)

    def write(
        self,
        path: str,
        chunks: Iterator[memoryview],
        wrote: Callable[[int], None],
        head: Callable[[], bytes] | None = None,
        instead_of: Sequence[str] = (),
    ) -> None:
        """Write `chunks` to a file that appears when it is complete; `wrote(n)` after `n` bytes.

        It is written in a transaction of the file system, and is as atomic as that transaction.
        If the caller has begun one, the file appears when the caller's ends.
        """
        del instead_of
        assert head is None, "bytes cannot be changed once they are sent"
        with _transaction(self.fs), self.fs.open(path, "wb") as file:
            if not hasattr(file, "commit"):
                # For example, a member of a zip archive: it is written now, or not at all.
                self.fs.transaction.files.remove(file)
            for chunk in chunks:
                file.write(chunk)
                wrote(chunk.nbytes)

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

    @contextmanager
    def watched(self, folder: str) -> Generator[Callable[[], bool]]:
        del folder
        yield lambda: True


_locks: Final[WeakKeyDictionary[FileSystem, Any]] = WeakKeyDictionary()
_locks_lock: Final = threading.Lock()


def _lock_of(fs: FileSystem) -> Any:
    """A file system has one transaction at a time: another thread's would include our files."""
    with _locks_lock:
        return _locks.setdefault(fs, threading.RLock())


@contextmanager
def _transaction(fs: FileSystem) -> Generator[None]:
    """A new transaction of the file system, or the caller's if there is one."""
    with _lock_of(fs):
        if fs._intrans:  # noqa: SLF001
            yield
        else:
            with fs.transaction:
                yield
