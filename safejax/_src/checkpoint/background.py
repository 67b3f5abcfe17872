"""Saving in the background: each save has a thread of its own, and takes its turn.

Saves to one place go in the order of their calls, and so do those to a folder and to what is in
it; others go side by side. The threads are no daemons, so that the interpreter waits for them
before it exits, and before JAX's backends go.
"""

import contextvars
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, final

from safejax._src.arrays.materialize import Progress
from safejax._src.checkpoint.distributed import Joint
from safejax._src.checkpoint.handle import Save, SaveHandle
from safejax._src.checkpoint.layout import Layout
from safejax._src.checkpoint.saving import write_at
from safejax._src.checkpoint.shards import Folder
from safejax._src.checkpoint.snapshot import copied_bytes, snapshot
from safejax._src.reading.remote import FileSystem
from safejax._src.storage.location import locate
from safejax._src.storage.store import Store

_SIGN: Final = 0.25
"""Seconds after which a save that waits for others shows other processes that it is alive."""


def begin_to_write(
    plan: Layout | Folder,
    path: str,
    fs: FileSystem = None,
    progress: Progress | None = None,
    max_host_bytes: int | None = None,
) -> SaveHandle:
    """Write the file or folder to `path` in the background, as `write` does, and return a handle.

    Returns when the values are safe from changes. `progress` is called in the other thread.
    If copies of more than `max_host_bytes` bytes would be held, earlier saves are waited for. A
    plan that needs more alone is written before this returns, block by block.

    Raises `LeafError` for arrays that are deleted. All other errors are those of the handle.
    """
    store, target = locate(path, fs)
    target = store.absolute(target)  # The working folder may be another one when it is written.

    def write(plan: Layout | Folder) -> None:
        write_at(plan, store, target, progress)

    values = Values(
        lambda: copied_bytes(plan), lambda fits: fits, lambda: snapshot(plan), lambda: None
    )
    return _begin(path, plan, store, target, write, max_host_bytes, values)


def write_in_turn(
    plan: Layout | Folder, path: str, fs: FileSystem = None, progress: Progress | None = None
) -> None:
    """Write the file or folder to `path` as `write` does, after earlier saves in the background."""
    store, target = locate(path, fs)
    _turns.wait_for_earlier(store, store.canonical(target), lambda: None)
    write_at(plan, store, target, progress)


def write_by_all_in_turn(joint: Joint, progress: Progress | None = None) -> None:
    """Write what all processes have agreed on, after earlier saves in the background."""
    try:
        target = joint.store.canonical(joint.path)
        _turns.wait_for_earlier(joint.store, target, joint.alive)
    except BaseException as error:
        joint.failed(error)
        raise
    joint.write(progress)


def begin_to_write_by_all(
    joint: Joint, path: str, progress: Progress | None = None, max_host_bytes: int | None = None
) -> SaveHandle:
    """Write what all processes have agreed on in the background, and return a handle.

    As `begin_to_write`; the other processes raise what is raised here.
    """

    def write(plan: Layout | Folder) -> None:
        joint.replace_plan(plan)
        joint.write(progress)

    values = Values(joint.copied_bytes, joint.agree_to_hold, joint.hold, joint.alive)
    try:
        return _begin(path, joint.plan, joint.store, joint.path, write, max_host_bytes, values)
    except BaseException as error:
        joint.failed(error)
        raise


@final
class Values(NamedTuple):
    """How the values of a save are made safe from changes.

    `copied_bytes` says how many bytes of copies that takes, `is_to_hold(fits)` whether it is
    done, `hold` does it, and `alive` is called again and again while this save waits for others.
    """

    copied_bytes: Callable[[], int]
    is_to_hold: Callable[[bool], bool]
    hold: Callable[[], Layout | Folder]
    alive: Callable[[], None]


def _begin(
    path: str,
    plan: Layout | Folder,
    store: Store,
    target: str,
    write: Callable[[Layout | Folder], None],
    max_host_bytes: int | None,
    values: Values,
) -> SaveHandle:
    """Call `write` in the background, with a plan whose values are safe from changes."""
    needed = values.copied_bytes()
    is_held = values.is_to_hold(max_host_bytes is None or needed <= max_host_bytes)
    save = Save(path)
    copies = needed if is_held else 0
    turn = _turns.take(save, store, store.canonical(target), copies, max_host_bytes, values.alive)
    try:
        if is_held:
            plan = values.hold()
    except BaseException:
        _turns.end(turn)
        raise
    job = _Job(save, turn, plan, write)
    del plan, values
    if not (is_held and _starts(job)):
        job.run()
        if save.error is not None and not isinstance(save.error, Exception):
            raise save.error  # Ctrl-C, for example.
    return SaveHandle(save)


def _wait_for(earlier: list[threading.Event], alive: Callable[[], None]) -> None:
    while earlier:
        while not earlier[-1].wait(_SIGN):
            alive()
        earlier.pop()


@final
@dataclass(frozen=True, eq=False, slots=True)
class _Turn:
    """The turn of a save: when it comes, which place it has, what it holds meanwhile."""

    save: Save
    store: Store
    target: str
    copies: int
    alive: Callable[[], None]
    earlier: list[threading.Event]
    over: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        """Wait until all earlier saves to the same place are over."""
        _wait_for(self.earlier, self.alive)

    def meets(self, store: Store, target: str) -> bool:
        """Whether a save to a place changes what this one does."""
        ours, theirs = (store.join(path, "") for path in (self.target, target))
        return self.store == store and (ours.startswith(theirs) or theirs.startswith(ours))


@final
class _Turns:
    """The saves of this process that are not over, in the order of their calls."""

    def __init__(self) -> None:
        self._all: list[_Turn] = []
        self._changed = threading.Condition()

    def take(
        self,
        save: Save,
        store: Store,
        target: str,
        copies: int,
        most: int | None,
        alive: Callable[[], None],
    ) -> _Turn:
        """The turn of a save that holds `copies` bytes, as soon as all hold `most` at the most."""
        with self._changed:
            # A turn is taken, and a place in the order, when there is room: who waits for room
            # has nothing that others wait for.
            while copies and most is not None and self._copies() + copies > most:
                self._changed.wait(_SIGN)
                alive()
            earlier = [each.over for each in self._all if each.meets(store, target)]
            turn = _Turn(save, store, target, copies, alive, earlier)
            self._all.append(turn)
            return turn

    def wait_for_earlier(self, store: Store, target: str, alive: Callable[[], None]) -> None:
        """Wait until the saves to a place are over whose calls were before this one.

        Not for one that goes on in this thread, and has called a function that saves.
        """
        here = threading.current_thread()
        with self._changed:
            met = [each for each in self._all if each.meets(store, target)]
            earlier = [each.over for each in met if each.save.thread is not here]
        _wait_for(earlier, alive)

    def end(self, turn: _Turn) -> None:
        """Let those go on that wait for this turn, or for the memory that it held."""
        with self._changed:
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

    def _copies(self) -> int:
        return sum(turn.copies for turn in self._all)


_turns: Final = _Turns()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_turns.leave_to_parent)


@final
class _Job:
    """What the thread of a save does."""

    def __init__(
        self,
        save: Save,
        turn: _Turn,
        plan: Layout | Folder,
        write: Callable[[Layout | Folder], None],
    ) -> None:
        self.save: Final = save
        self._turn = turn
        self._plan: Layout | Folder | None = plan
        self._write = write

    def run(self) -> None:
        error: BaseException | None = None
        try:
            assert self._plan is not None
            self._turn.wait()
            self.save.state = "writing"
            self._write(self._plan)
        except BaseException as raised:  # noqa: BLE001 - the handle raises it
            error = raised
        # First let go of the values and the turn: who waited for the handle may need both.
        self._plan = None
        _turns.end(self._turn)
        self.save.end(error)


def _starts(job: _Job) -> bool:
    """Start the thread of a job; false if that cannot be, so that the job must be done here."""
    if not threading.main_thread().is_alive():
        return False  # The interpreter exits: it may not wait for threads that start now.
    # What the caller has set for its own thread, such as NumPy's errstate, holds for the job.
    thread = threading.Thread(
        target=contextvars.copy_context().run,
        args=(job.run,),
        name=f"safejax-save {job.save.path}",
        daemon=False,  # Else it would be one if the caller's thread is.
    )
    job.save.thread = thread
    try:
        thread.start()
    except RuntimeError:  # There are too many threads.
        return False
    return True
