"""Descriptors: local files that are known to be the ones that were opened, and unchanged.

A process may have a few hundred files open, and a checkpoint as many shards. So only so many
descriptors are kept; if there are more files, those that were opened first are closed, and
opened again when they are needed. By then, their path may be that of another file.
"""

import errno
import os
import stat
import threading
import time
import weakref
from collections import deque
from typing import Final, final

from safejax._src.system import hold_at_forks, open_files_limit
from safejax.errors import ReadError

_MOST: Final = 1024
_SHARE: Final = 4
"""At most one in so many of the descriptors that the process may have is used here."""

_SOON: Final = 1_000_000
"""Nanoseconds in which the time of modification of a file is looked at once, by `check_often`."""


@final
class Descriptor:
    """A descriptor that is closed when nobody refers to it any more."""

    def __init__(self, path: str) -> None:
        self.number: Final = _opened(path)
        weakref.finalize(self, os.close, self.number)


@final
class LocalFile:
    """A file with the size and the time of modification that it had when it was opened.

    `descriptor` is that of `path`, just opened. Raises `IsADirectoryError` for a folder.
    """

    def __init__(self, path: str, descriptor: Descriptor) -> None:
        self.path: Final = path
        self.status: Final = os.fstat(descriptor.number)
        if stat.S_ISDIR(self.status.st_mode):
            raise IsADirectoryError(f"{path}: expected a safetensors file, got a folder")
        self._kept: Descriptor | None = descriptor
        self._checked = 0
        _keep(self)

    def descriptor(self) -> Descriptor | None:
        """A descriptor of the file; None if its path is that of another file by now.

        Refer to it for as long as its number is used.
        """
        kept = self._kept  # Another thread may close it.
        if kept is not None:
            return kept
        try:
            again = Descriptor(self.path)
        except OSError:
            return None
        if not os.path.samestat(os.fstat(again.number), self.status):
            return None
        self._kept = again
        _keep(self)
        return again

    def check(self) -> None:
        """Raise `ReadError` if the file was changed since it was opened.

        A file that has another path by now, or none, is not changed by that.
        """
        descriptor = self.descriptor()
        if descriptor is None:
            return
        found = os.fstat(descriptor.number)
        if (found.st_mtime_ns, found.st_size) != (self.status.st_mtime_ns, self.status.st_size):
            raise self.changed(found.st_size)

    def check_often(self) -> None:
        """Like `check`, but cheap enough for each row in a loop.

        The size is looked at each time, the time of modification once in a millisecond.
        """
        kept = self._kept
        now = time.monotonic_ns()
        if (
            kept is None
            or now - self._checked > _SOON
            or os.lseek(kept.number, 0, os.SEEK_END) != self.status.st_size
        ):
            self.check()
            self._checked = now

    def changed(self, size: int) -> ReadError:
        """The error for a file that has another content and this size by now."""
        nbytes = self.status.st_size
        if size < nbytes:
            return ReadError(
                f"{self.path}: expected the {nbytes} bytes that the file had when it was "
                f"opened, got {size}: it was cut short since; load it again"
            )
        return ReadError(
            f"{self.path}: expected the file as it was when it was opened, but another program "
            f"changed it since it was opened (now it has {size} bytes, then it had {nbytes}): "
            "load it again; a file that is in use must be replaced as a whole, as safejax.save "
            "does"
        )

    def replaced(self) -> ReadError:
        """The error for a file that was closed here, and whose path is that of another by now."""
        return ReadError(
            f"{self.path}: expected the file that was opened, but it was replaced since, and with "
            "so many files it could not be kept open: load it again"
        )

    @property
    def is_open(self) -> bool:
        """Whether a descriptor is kept."""
        return self._kept is not None

    def close(self) -> None:
        """Close the file, once nobody uses its descriptor any more."""
        self._kept = None


_kept: Final[deque[weakref.ref[LocalFile]]] = deque()
_lock: Final = threading.RLock()
hold_at_forks(_lock)


def _keep(file: LocalFile) -> None:
    """Keep the descriptor of a file, and close that of others if there are too many."""
    most = max(1, min(_MOST, open_files_limit() // _SHARE))
    with _lock:
        if len(_kept) >= most:
            _forget_closed()
        while len(_kept) >= most:
            _close_first()
        _kept.append(weakref.ref(file))


def _forget_closed() -> None:
    still = [each for each in _kept if (file := each()) is not None and file.is_open]
    _kept.clear()
    _kept.extend(still)


def _close_first() -> None:
    first = _kept.popleft()()
    if first is not None:
        first.close()


def _opened(path: str) -> int:
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    # Others have taken what was left.
    with _lock:
        while _kept:
            _close_first()
    return os.open(path, flags)
