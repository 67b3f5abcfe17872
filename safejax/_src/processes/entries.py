"""Entries: which rounds this process has entered, and which of them are over.

The number of an entry is how many there were before, so it is the same in all processes.
"""

import threading
from typing import Final, final


@final
class Entry:
    """The entry of this process into a round, which one of its threads ends."""

    def __init__(self) -> None:
        self.number = -1
        self._to_end: list[None] = []

    def begin(self) -> None:
        """Take the next number. If an interrupt leaves this, the caller ends the entry."""
        with _entries.lock:
            # Without a call between them, Ctrl-C is heard before all three or after them.
            self.number = _entries.begun
            _entries.begun += 1
            self._to_end = [None]
            _entries.open.add(self.number)

    def take(self) -> bool:
        """Whether the caller has to end it; true once, in whichever thread is first."""
        try:
            self._to_end.pop()
        except IndexError:
            return False
        return True

    def end(self) -> None:
        """Count it to those that are over."""
        with _entries.lock:
            _entries.open.discard(self.number)
            _entries.finished.add(self.number)

    def others(self) -> list[int]:
        """The numbers of the other entries of this process that are not over."""
        with _entries.lock:
            return sorted(_entries.open - {self.number})


def forget_finished(still_open: list[int]) -> list[int]:
    """The numbers of entries that are over here, and not among those that are open elsewhere.

    Each of them is returned once.
    """
    with _entries.lock:
        finished = _entries.finished - set(still_open)
        _entries.finished -= finished
    return sorted(finished)


class _Entries:
    """All entries of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.begun = 0
        self.open: set[int] = set()
        self.finished: set[int] = set()


_entries: Final = _Entries()
