"""Data sent to the disk while the rest of its file is still written.

Linux keeps what is written in memory until it is flushed: a save would copy first, and wait for
the disk then. Sent off in runs, the one goes on while the other does. It says nothing of what is
on the disk: only fsync(2) does, and it reports what went wrong here, too.
"""

import ctypes
import sys
from collections.abc import Callable
from typing import Final, final

_START: Final = 2
"""`SYNC_FILE_RANGE_WRITE` of sync_file_range(2): what is not on its way is sent, not awaited."""

_AT_A_TIME: Final = 32 << 20
"""Bytes of a run: of much longer ones the last keeps everyone waiting."""


def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """sync_file_range(2), which lets other threads run meanwhile; None where there is none."""
    if sys.platform != "linux":
        return None
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is not None:
        call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return call


@final
class Writeback:
    """Sends what is written to a file from its begin on, run by run."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._send = _sync_file_range()
        self._sent = 0
        self._written = 0

    def wrote(self, nbytes: int) -> None:
        """To be called after every `nbytes` that were written; some may be in a buffer yet."""
        self._written += nbytes
        count = self._written - self._sent
        if self._send is not None and count >= _AT_A_TIME:
            # A file system that cannot do it loses no more than time.
            self._send(self._descriptor, self._sent, count, _START)
            self._sent = self._written
