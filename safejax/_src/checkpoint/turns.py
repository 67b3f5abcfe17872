"""Turns: saves to one place go in the order of their calls, others side by side.

A save to a folder and one to what is in it meet in one place, too.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, final

from safejax._src.checkpoint.handle import Save
from safejax._src.storage.store import Store
from safejax._src.system import in_forked_process

_SIGN: Final = 0.25
"""Seconds after which a save that waits for others shows other processes that it is alive."""


def _wait_for(earlier: list[threading.Event], alive: Callable[[], None]) -> None:
    while earlier:
        while not earlier[-1].wait(_SIGN):
            alive()
        earlier.pop()


@final
@dataclass(frozen=True, eq=False, slots=True)
class Turn:
    """The turn of a save: when it comes, which place it has, what it holds meanwhile."""

    save: Save
    store: Store
    target: str
    copies: int
    alive: Callable[[], None]
    earlier: list[tuple[Save, threading.Event]] = field(
        default_factory=list[tuple[Save, threading.Event]]
    )
    over: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        """Wait until all earlier saves to the same place are over.

        Not for one that goes on in this thread, and has called a function that saves.
        """
        here = threading.current_thread()
        earlier = [over for save, over in self.earlier if not save.waits_for(here)]
        self.earlier.clear()
        _wait_for(earlier, self.alive)

    def meets(self, store: Store, target: str) -> bool:
        """Whether a save to a place changes what this one does."""
        ours, theirs = (store.join(path, "") for path in (self.target, target))
        return self.store == store and (ours.startswith(theirs) or theirs.startswith(ours))


@final
class _Turns:
    """The saves of this process that are not over, in the order of their calls."""

    def __init__(self) -> None:
        self._all: list[Turn] = []
        # Ctrl-C may be heard before `Condition.__exit__`, but not before that of a lock.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    def take(self, turn: Turn, most: int | None) -> None:
        """Put a turn behind all others, as soon as they hold `most` bytes with it at the most.

        What `copies_kept` counts is not waited for. The caller ends it, also if an interrupt leaves
        this.
        """
        with self._lock:
            # A turn is taken, and a place in the order, when there is room: who waits for room
            # has nothing that others wait for.
            while (
                turn.copies
                and most is not None
                and (held := sum(each.copies for each in self._all)) + turn.copies > most
                and held > self._copies_kept()
            ):
                self._changed.wait(_SIGN)
                turn.alive()
            met = [each for each in self._all if each.meets(turn.store, turn.target)]
            turn.earlier.extend((each.save, each.over) for each in met)
            turn.save.earlier = tuple(each.save for each in met)
            self._all.append(turn)

    def wait_for_earlier(self, store: Store, target: str, alive: Callable[[], None]) -> None:
        """Wait until the saves to a place are over whose calls were before this one.

        Not for one that goes on in this thread, and has called a function that saves, nor for those
        that wait for that one.
        """
        here = threading.current_thread()
        with self._lock:
            met = [each for each in self._all if each.meets(store, target)]
            earlier = [each.over for each in met if not each.save.waits_for(here)]
        _wait_for(earlier, alive)

    def end(self, turn: Turn) -> None:
        """Let those go on that wait for this turn, or for the memory that it held."""
        with self._lock:
            if turn in self._all:  # Not in a process that was forked meanwhile.
                self._all.remove(turn)
            self._changed.notify_all()
        turn.over.set()

    def leave_to_parent(self) -> None:
        """Begin anew in a forked process, where the threads of these saves do not exist."""
        left = self._all
        self.__init__()
        for turn in left:
            turn.save.leave_to_parent()

    def copies_kept(self) -> int:
        """How many bytes of copies are held until this thread goes on.

        They are those of a save that goes on in it, and has called a function that saves, and of
        others that wait for that save.
        """
        with self._lock:
            return self._copies_kept()

    def _copies_kept(self) -> int:
        here = threading.current_thread()
        return sum(turn.copies for turn in self._all if turn.save.waits_for(here))


turns: Final = _Turns()
in_forked_process(turns.leave_to_parent)
