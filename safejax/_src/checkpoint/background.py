"""Saving in the background: each save has a thread of its own, and takes its turn.

Saves to one place go in the order of their calls, and so do those to a folder and to what is in
it; others go side by side. The threads are no daemons, so that the interpreter waits for them
before it exits, and before JAX's backends go.
"""

import contextvars
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Final, final

from safejax._src.checkpoint.distributed import Joint
from safejax._src.checkpoint.handle import Save, SaveHandle
from safejax._src.checkpoint.layout import Layout
from safejax._src.checkpoint.saving import write_at
from safejax._src.checkpoint.shards import Folder
from safejax._src.checkpoint.snapshot import copied_bytes, snapshot
from safejax._src.progress import Progress, ProgressArgument, reported
from safejax._src.reading.filesystems import FileSystem
from safejax._src.storage.location import locate
from safejax._src.storage.store import Store

_SIGN: Final = 0.25
"""Seconds after which a save that waits for others shows other processes that it is alive."""


def begin_to_write(
    plan: Layout | Folder,
    path: str,
    fs: FileSystem = None,
    progress: ProgressArgument = None,
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
        with reported(progress, "save") as report:
            write_at(plan, store, target, report)

    return _begin(path, plan, _Work(store, target, snapshot, write), max_host_bytes)


def write_in_turn(
    plan: Layout | Folder, path: str, fs: FileSystem = None, progress: Progress | None = None
) -> None:
    """Write the file or folder to `path` as `write` does, after earlier saves in the background."""
    store, target = locate(path, fs)
    _turns.wait_for_earlier(store, store.canonical(target), lambda: None)
    write_at(plan, store, target, progress)


def write_by_all_in_turn(joint: Joint, progress: Progress | None = None) -> None:
    """Write what all processes have agreed on, after earlier saves in the background."""
    target = joint.store.canonical(joint.path)
    _turns.wait_for_earlier(joint.store, target, joint.alive)
    joint.write(progress)


def begin_to_write_by_all(
    joint: Joint, path: str, progress: ProgressArgument = None, max_host_bytes: int | None = None
) -> SaveHandle:
    """Write what all processes have agreed on in the background, and return a handle.

    As `begin_to_write`. What is raised later, in the other thread, is raised in all processes, too.
    """

    def write(_: Layout | Folder) -> None:
        with reported(progress, "save") as report:
            joint.write(report)

    joint.round.leave()
    work = _Work(
        joint.store,
        joint.path,
        joint.hold,
        write,
        joint.copied_bytes,
        joint.agree_to_hold,
        joint.alive,
        joint.round.taken,
    )
    return _begin(path, joint.plan, work, max_host_bytes)


@final
@dataclass(frozen=True, eq=False, slots=True)
class _Work:
    """What a save does with its plan: it holds its values, and writes them to a place.

    `copied_bytes` says how many bytes of copies it takes to hold them, and `is_to_hold(fits)`
    whether that is done. `alive` is called again and again while the save waits for others, and
    all that its thread does is in the context `taken()`.
    """

    store: Store
    target: str
    hold: Callable[[Layout | Folder], Layout | Folder]
    write: Callable[[Layout | Folder], None]
    copied_bytes: Callable[[Layout | Folder], int] = copied_bytes
    is_to_hold: Callable[[bool], bool] = bool
    alive: Callable[[], None] = lambda: None
    taken: Callable[[], AbstractContextManager[None]] = nullcontext


def _begin(path: str, plan: Layout | Folder, work: _Work, max_host_bytes: int | None) -> SaveHandle:
    """Write a plan in the background, with values that are safe from changes."""
    needed = work.copied_bytes(plan)
    is_held = work.is_to_hold(max_host_bytes is None or needed <= max_host_bytes)
    save = Save(path)
    target = work.store.canonical(work.target)
    turn = _Turn(save, work.store, target, needed if is_held else 0, work.alive)
    job = _Job(save, turn, work)
    try:
        _turns.take(turn, max_host_bytes)
        job.plan = work.hold(plan) if is_held else plan
        del plan
        is_begun = is_held and _starts(job)
        if not is_begun:
            job.run()
    except BaseException:
        job.give_up()
        raise
    if not (is_begun or save.error is None or isinstance(save.error, Exception)):
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
    earlier: list[threading.Event] = field(default_factory=list[threading.Event])
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
        # Ctrl-C may be heard before `Condition.__exit__`, but not before that of a lock.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    def take(self, turn: _Turn, most: int | None) -> None:
        """Put a turn behind all others, as soon as they hold `most` bytes with it at the most.

        The caller ends it, also if an interrupt leaves this.
        """
        with self._lock:
            # A turn is taken, and a place in the order, when there is room: who waits for room
            # has nothing that others wait for.
            while turn.copies and most is not None and self._copies() + turn.copies > most:
                self._changed.wait(_SIGN)
                turn.alive()
            turn.earlier.extend(
                each.over for each in self._all if each.meets(turn.store, turn.target)
            )
            self._all.append(turn)

    def wait_for_earlier(self, store: Store, target: str, alive: Callable[[], None]) -> None:
        """Wait until the saves to a place are over whose calls were before this one.

        Not for one that goes on in this thread, and has called a function that saves.
        """
        here = threading.current_thread()
        with self._lock:
            met = [each for each in self._all if each.meets(store, target)]
            earlier = [each.over for each in met if each.save.thread is not here]
        _wait_for(earlier, alive)

    def end(self, turn: _Turn) -> None:
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

    def _copies(self) -> int:
        return sum(turn.copies for turn in self._all)


_turns: Final = _Turns()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_turns.leave_to_parent)


@final
class _Job:
    """What the thread of a save does, unless its caller is interrupted before, and gives it up."""

    def __init__(self, save: Save, turn: _Turn, work: _Work) -> None:
        self.save: Final = save
        self.plan: Layout | Folder | None = None
        self._turn = turn
        self._work: _Work | None = work
        # Who takes it from here ends the turn: one step, which nothing interrupts.
        self._to_end = [turn]

    def run(self) -> None:
        error: BaseException | None = None
        try:
            self._to_end.pop()
        except IndexError:
            return
        try:
            assert self.plan is not None
            assert self._work is not None
            with self._work.taken():
                self._turn.wait()
                self.save.state = "writing"
                self._work.write(self.plan)
        except BaseException as raised:  # noqa: BLE001 - the handle raises it
            error = raised
        # First let go of the values and the turn: who waited for the handle may need both.
        self.plan = self._work = None
        _turns.end(self._turn)
        self.save.end(error)

    def give_up(self) -> None:
        """Let others have the turn, unless the job runs, or has run, in its thread."""
        while self._to_end:
            _turns.end(self._to_end.pop())


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
