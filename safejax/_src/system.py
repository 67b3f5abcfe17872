"""What not every operating system has: locks, limits, forks, reads at a position, advice."""

import ctypes
import errno
import mmap
import os
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Final, Protocol, final

try:
    import fcntl as fcntl
except ImportError:  # Windows
    fcntl = None

try:
    import resource as _resource
except ImportError:  # Windows
    _resource = None


CAN_READ: Final = hasattr(os, "preadv")
"""Whether the system can read at an offset into existing memory; Windows cannot."""


CAN_WRITE_AT: Final = hasattr(os, "pwrite")
"""Whether the system can write at an offset; Windows cannot."""


def open_files_limit() -> int:
    """How many files this process may have open; Windows, which has no call for it, allows 512."""
    if _resource is None:
        return 512
    limit, _ = _resource.getrlimit(_resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == _resource.RLIM_INFINITY else limit


def madvise() -> Callable[[int, int, int | None], int]:
    """`madvise` that returns errno; unlike `mmap.madvise` it lets other threads run meanwhile."""
    call = ctypes.CDLL(None, use_errno=True).madvise
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def advise(begin: int, nbytes: int, advice: int | None) -> int:
        return ctypes.get_errno() if call(begin, nbytes, advice) else 0

    return advise


ADVISES: Final = sys.platform == "linux"
"""Whether the system reads ahead, and takes advice on that, as Linux does."""


@contextmanager
def no_read_ahead(descriptor: int) -> Generator[None]:
    """Inside the block, reads of a file bring in their own pages only, if that can be had."""
    if sys.platform != "linux":
        yield
        return
    # What is no plain file takes no advice, and some file systems take none.
    with suppress(OSError):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    try:
        yield
    finally:
        with suppress(OSError):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_NORMAL)


def will_need(descriptor: int, begin: int, nbytes: int) -> None:
    """Have the pages of these bytes of a file read from the disk, without waiting for them."""
    if sys.platform == "linux":
        # For each row of a loop, `suppress` would cost as much as the call.
        try:  # noqa: SIM105
            os.posix_fadvise(descriptor, begin, nbytes, os.POSIX_FADV_WILLNEED)
        except OSError:
            pass  # It is advice: whoever needs the pages reads them, too.


def is_resident(address: int) -> bool:
    """Whether the page of a mapped file that `address` is in is in memory.

    Linux says yes for all pages of a file that this user neither owns nor may write to.
    """
    found = ctypes.c_ubyte()
    begin = address // mmap.PAGESIZE * mmap.PAGESIZE
    return bool(_mincore()(begin, 1, ctypes.byref(found))) or found.value & 1 == 1


@cache
def _mincore() -> Any:
    call = ctypes.CDLL(None).mincore
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    return call


def sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """`sync_file_range`, which lets other threads run meanwhile; None if the system lacks it."""
    if sys.platform != "linux":
        return None
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is not None:
        call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return call


def allocate(descriptor: int, nbytes: int) -> None:
    """Make a new file `nbytes` long, and reserve room for all of them where that is possible.

    Raises `OSError` if there is no room. Not `posix_fallocate`, which writes every block of the
    file where the file system cannot reserve them.
    """
    os.ftruncate(descriptor, nbytes)
    if sys.platform != "linux" or not nbytes:
        return
    call = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if call is None:
        return
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if call(descriptor, 0, 0, nbytes) and ctypes.get_errno() == errno.ENOSPC:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Forgetful(Protocol):
    """An object with a lock, or a count, that threads may have when a process is forked."""

    def forget_threads(self) -> None:
        """Be as if no thread had anything of it: a forked process has none of those threads."""


_at_work: Final[dict[tuple[int, int], Forgetful]] = {}
"""What threads have locks of now, by those threads and the `id` of each object."""


@final
class AtWork:
    """A block in which this thread takes locks of objects, which a forked process frees."""

    __slots__ = ("_objects",)

    def __init__(self, *objects: Forgetful) -> None:
        self._objects = objects

    def __enter__(self) -> None:
        here = threading.get_ident()
        for each in self._objects:
            _at_work[here, id(each)] = each

    def __exit__(self, *raised: object) -> None:
        here = threading.get_ident()
        for each in self._objects:
            _at_work.pop((here, id(each)), None)


def _forget_threads() -> None:
    for each in _at_work.values():
        each.forget_threads()
    _at_work.clear()


def in_forked_process(task: Callable[[], object]) -> None:
    """Call `task` in each process that is forked from this one, first of all."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=task)


def hold_at_forks(lock: Any) -> None:
    """Hold a reentrant lock while this process is forked, so that the new process has it free.

    It must be one that no thread has for long. What it guards is whole in the new process.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )


in_forked_process(_forget_threads)
