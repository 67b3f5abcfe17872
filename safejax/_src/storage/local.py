"""Local files, and how their bytes are obtained, decided in one place.

- `"map"`: the file is mapped. Values that are aligned for a CPU device are used in place;
  others are copied once, by a system call if they are contiguous.
- `"copy"`: the file is mapped and always copied: no array uses the file once it is placed.
- `"read"`: the file is never mapped; every span is read into private memory.
- `"auto"`: `"read"` for a file on a network, where a page that is no longer available ends the
  process and each page fault is a request; `"map"` for any other file.
"""

import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final, get_args

from safejax._src.reading.file import FileSource, MappedSource
from safejax._src.storage.files import write_atomically
from safejax._src.storage.folders import make_folder
from safejax._src.storage.network import is_on_network
from safejax._src.storage.store import Access, Store
from safejax._src.system import CAN_READ, CAN_WRITE_AT


@final
@dataclass(frozen=True, slots=True)
class LocalStore(Store):
    """The files that the operating system knows by their paths."""

    @property
    def kind(self) -> str:
        return "the local file system"

    @property
    def replaces_folders(self) -> bool:
        return True

    @property
    def rewrites(self) -> bool:
        return True

    @property
    def shares_files(self) -> bool:
        return CAN_WRITE_AT

    def join(self, folder: str, name: str) -> str:
        return os.path.join(folder, name)

    def parent(self, path: str) -> str:
        return os.path.dirname(path)

    def canonical(self, path: str) -> str:
        return os.path.realpath(path)

    def absolute(self, path: str) -> str:
        return os.path.abspath(path)

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def is_folder(self, path: str) -> bool:
        return os.path.isdir(path)

    def names_in(self, folder: str) -> list[str]:
        return os.listdir(folder)

    def read(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def source(self, path: str, access: Access = "auto") -> MappedSource | FileSource:
        if access not in get_args(Access):
            raise ValueError(
                f"access: expected one of {', '.join(map(repr, get_args(Access)))}, got {access!r}"
            )
        if access == "auto":
            access = "read" if CAN_READ and is_on_network(path) else "map"
        if access == "read":
            if not CAN_READ:
                raise ValueError(
                    f"{path}: access: expected 'map' or 'copy', since this system has no preadv, "
                    "got 'read'"
                )
            return FileSource(path)
        return MappedSource(path, in_place=access == "map")

    def write(
        self,
        path: str,
        chunks: Iterator[memoryview],
        wrote: Callable[[int], None],
        head: Callable[[], bytes] | None = None,
        instead_of: Sequence[str] = (),
        nbytes: int = 0,
    ) -> None:
        del nbytes
        write_atomically(path, chunks, wrote, head, instead_of)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def make_folder(self, path: str) -> None:
        make_folder(path)

    def free_bytes(self, path: str) -> int | None:
        try:
            return shutil.disk_usage(os.path.dirname(os.path.realpath(path))).free
        except OSError:
            return None

    @contextmanager
    def watched(self, folder: str) -> Generator[Callable[[], bool]]:
        if not hasattr(os, "O_DIRECTORY"):
            yield lambda: True
            return
        folder = folder or "."
        # While the folder is open, no other folder can have its inode number.
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            before = os.fstat(descriptor)
            yield lambda: os.path.samestat(before, os.stat(folder))
        finally:
            os.close(descriptor)
