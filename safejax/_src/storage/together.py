"""Files that several processes write together, each its own bytes of a file that is there.

One process makes the temporary file, and renames it in the end. The others open it by its path,
so they must see the same folder; the file system must show what one process has flushed to all.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Generator, Iterable
from typing import Final, final

from safejax._src.storage.litter import temporary_name
from safejax._src.system import sync_file_range

_START: Final = 2
"""`SYNC_FILE_RANGE_WRITE` of sync_file_range(2): send what is not on its way, and do not wait."""

_AT_A_TIME: Final = 32 << 20
"""Bytes after which what is written is sent to the disk."""


@final
class SharedFile:
    """An open file of which this process writes some bytes, and others may write the rest."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._send = sync_file_range()
        self._unsent = 0

    def write(self, begin: int, data: memoryview) -> None:
        """Write `data` at byte `begin`."""
        while data.nbytes:
            count = os.pwrite(self._descriptor, data, begin)
            begin, data = begin + count, data[count:]
            self._unsent += count
        if self._unsent >= _AT_A_TIME and self._send is not None:
            self._send(self._descriptor, 0, 0, _START)
            self._unsent = 0

    def write_runs(self, begins: Iterable[int], data: memoryview, nbytes: int) -> None:
        """Write runs of `nbytes` each, which lie one after the other in `data`."""
        for number, begin in enumerate(begins):
            self.write(begin, data[number * nbytes : (number + 1) * nbytes])

    def read(self, begin: int, nbytes: int) -> bytes:
        """The bytes `[begin, begin + nbytes)`, also those that others have flushed."""
        found = bytearray()
        while len(found) < nbytes:
            more = os.pread(self._descriptor, nbytes - len(found), begin + len(found))
            if not more:
                raise OSError(errno.EIO, "expected more bytes of a file that is being written")
            found += more
        return bytes(found)

    def cut(self, nbytes: int) -> None:
        """Let the file end after `nbytes`."""
        os.ftruncate(self._descriptor, nbytes)

    def flush(self) -> None:
        """Flush what was written to the disk."""
        os.fsync(self._descriptor)


@contextlib.contextmanager
def opened_together(temporary: str, nbytes: int) -> Generator[SharedFile]:
    """The file that another process made at `temporary`, `nbytes` long.

    Raises `OSError` if it is not there: the processes do not see the same folder.
    """
    try:
        descriptor = os.open(temporary, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError as error:
        raise _not_shared(temporary) from error
    try:
        if os.fstat(descriptor).st_size != nbytes:
            raise _not_shared(temporary)
        yield SharedFile(descriptor)
    finally:
        os.close(descriptor)


def _not_shared(temporary: str) -> OSError:
    return FileNotFoundError(
        errno.ENOENT,
        "expected the file that process 0 made for all, got none, or another one: save to a "
        "folder that all processes share",
        temporary,
    )


def remove_together(temporary: str) -> None:
    """Remove a temporary file or folder, so that it cannot be renamed; others may do so, too."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if os.path.isdir(temporary):
            # In one step, since another process may just put the folder into its place.
            away = temporary_name(temporary)
            os.rename(temporary, away)
            shutil.rmtree(away)
        else:
            os.unlink(temporary)
