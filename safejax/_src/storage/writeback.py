"""Write-back: data is sent to the disk while the rest of its file is still being written.

Linux keeps written data in memory until it is flushed, so a save would first copy everything,
and then wait for the disk. When data is sent in runs, the two overlap. This does not guarantee
that anything is on the disk: only fsync(2) does, and it also reports what went wrong here.
"""

from typing import Final, final

from safejax._src.system import sync_file_range

_START: Final = 2
"""`SYNC_FILE_RANGE_WRITE` of sync_file_range(2): send what is not on its way, and do not wait."""

_AT_A_TIME: Final = 32 << 20
"""Bytes per run; if runs are much longer, everyone has to wait for the last one."""


@final
class Writeback:
    """Sends what is written to a file to the disk, run by run from the start of the file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._send = sync_file_range()
        self._sent = 0
        self._written = 0

    def wrote(self, nbytes: int) -> None:
        """Call this after every `nbytes` written; some of them may still be in a buffer."""
        self._written += nbytes
        count = self._written - self._sent
        if self._send is not None and count >= _AT_A_TIME:
            # On a file system that cannot do this, only time is lost.
            self._send(self._descriptor, self._sent, count, _START)
            self._sent = self._written
