"""Stores: the places that hold files, each with its own notion of paths.

Callers ask a store what it can do, and not which one it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, Literal, NamedTuple, TypeAlias, final

from safejax._src.reading.masking import masked
from safejax._src.reading.source import File
from safejax.errors import InvalidFileError

Access: TypeAlias = Literal["auto", "map", "copy", "read"]
"""How the bytes of a file are obtained; a store chooses if it is `"auto"`."""

MAX_WHOLE_BYTES: Final = 100_000_000
"""The largest file that is read whole: an index, or a configuration. A header has at most as many.

An index of ten million names has several times as many bytes.
"""


def too_large(path: str, nbytes: int) -> InvalidFileError:
    """The error for a file that is to be read whole, and is larger than any of its kind."""
    return InvalidFileError(
        f"{masked(path)}: expected an index or a configuration of at most {MAX_WHOLE_BYTES} bytes, "
        f"got {nbytes}: get the file again, or load the safetensors files by their names"
    )


@final
class Inside(NamedTuple):
    """The names in a folder, and the bytes of the file that is likely to be there, if known."""

    names: list[str]
    likely: bytes | None


class Store(ABC):
    """A place that holds files.

    `kind` names the place in errors. `replaces_folders` is true if a folder can be replaced as a
    whole, so that no reader sees half of it. `rewrites` is true if the first bytes of a file can
    be written again at the end of a `write`. `shares_files` is true if several processes can write
    parts of one file. `writes_at_once` is true if a file is there for all when `write` returns.
    """

    __slots__ = ()

    is_far: bool = False
    """Whether each question to the place takes a round trip, so that several are asked at once."""

    @property
    @abstractmethod
    def kind(self) -> str: ...

    @property
    @abstractmethod
    def replaces_folders(self) -> bool: ...

    @property
    @abstractmethod
    def rewrites(self) -> bool: ...

    @property
    @abstractmethod
    def shares_files(self) -> bool: ...

    @property
    def writes_at_once(self) -> bool:
        return True

    @abstractmethod
    def join(self, folder: str, name: str) -> str:
        """The path of what has this name in the folder."""

    @abstractmethod
    def parent(self, path: str) -> str:
        """The path of the folder that holds `path`; empty for a name without a folder."""

    def bare(self, path: str) -> str:
        """The path without what does not belong to the name, such as the query of a URL."""
        return path

    @abstractmethod
    def canonical(self, path: str) -> str:
        """The one path of what is at `path`, whichever links and working folder it is given by."""

    def absolute(self, path: str) -> str:
        """The path of the same place, whatever the working folder is later."""
        return path

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether there is a file or a folder at `path`."""

    @abstractmethod
    def is_folder(self, path: str) -> bool:
        """Whether there is a folder at `path`."""

    @abstractmethod
    def names_in(self, folder: str) -> list[str]:
        """The names of the files and folders in a folder, without its path, in any order."""

    def look_into(self, path: str, likely: str) -> "Inside | None":
        """What is in the folder at `path`; None if there is no folder.

        Where the store is far, a file that is likely to be there is read at the same time.
        """
        del likely
        return Inside(self.names_in(path), None) if self.is_folder(path) else None

    @abstractmethod
    def read(self, path: str) -> bytes:
        """All bytes of a small file; `InvalidFileError` if it has over `MAX_WHOLE_BYTES`."""

    @abstractmethod
    def source(self, path: str, access: Access = "auto") -> File:
        """The source of a file, whose bytes are read when they are needed.

        Raises `ValueError` for a way of access that is unknown, or that the store does not have.
        """

    @abstractmethod
    def write(
        self,
        path: str,
        chunks: Iterator[memoryview],
        wrote: Callable[[int], None],
        head: Callable[[], bytes] | None = None,
        instead_of: Sequence[str] = (),
        nbytes: int = 0,
    ) -> None:
        """Make the file at `path` hold `chunks`, or leave it as it was, as far as the store can.

        `wrote(n)` is called after every `n` bytes. With `head`, the bytes that it returns once
        all chunks are written replace the first bytes of the file; only for a store that
        `rewrites`. A new file that is written `instead_of` others is as private as the most
        private of them, where the store has such permissions. `nbytes` is how many bytes the
        chunks have together, or 0 if that is unknown.
        """

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove the file at `path`; `FileNotFoundError` if there is none."""

    def flush(self, folder: str) -> None:
        """Flush which names there are in a folder, so that a power cut does not change that.

        Where a place does so by itself, or has no way to, this does nothing.
        """
        del folder

    @abstractmethod
    def make_folder(self, path: str) -> None:
        """Make a folder at `path`, unless there is one; the folder that holds it must be there.

        Raises `NotADirectoryError` if a file is there.
        """

    def look_again(self, folder: str) -> None:
        """Forget what is remembered of a folder that others write to."""
        del folder

    def free_bytes(self, path: str) -> int | None:
        """How many bytes can be written to files in the folder of `path`; None if unknown."""
        del path
        return None

    @abstractmethod
    def watched(self, folder: str) -> AbstractContextManager[Callable[[], bool]]:
        """A block in which a function says whether the folder is still the one it was at first.

        A folder that can be replaced as a whole may be replaced while its files are opened. Where
        that cannot be found out, the function always returns true.
        """
