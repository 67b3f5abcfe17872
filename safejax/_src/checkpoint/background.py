"""Saving in the background: each save has a thread of its own, and takes its turn.

The threads are no daemons, so that the interpreter waits for them before it exits, and before JAX's
backends go.
"""

import contextvars
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, final

from safejax._src.checkpoint.distributed import Joint
from safejax._src.checkpoint.handle import Save, SaveHandle
from safejax._src.checkpoint.layout import Layout
from safejax._src.checkpoint.saving import write_at
from safejax._src.checkpoint.shards import Folder
from safejax._src.checkpoint.snapshot import Holding
from safejax._src.checkpoint.turns import Turn, turns
from safejax._src.progress import Progress, ProgressArgument, reported
from safejax._src.reading.filesystems import FileSystem
from safejax._src.storage.location import locate
from safejax._src.storage.store import Store

_HEAD_START: Final = 0.002
"""Seconds that the caller gets to go on: a thread that computes keeps others out for up to 5 ms."""


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
    plan that needs more alone is written before this returns, block by block; so is one that is
    saved from within a save whose copies leave it no room.

    Raises `LeafError` for arrays that are deleted. All other errors are those of the handle.
    """
    store, target = locate(path, fs)
    target = store.absolute(target)  # The working folder may be another one when it is written.

    def write(plan: Layout | Folder) -> None:
        with reported(progress, "save") as report:
            write_at(plan, store, target, report)

    return _begin(path, plan, _Work(store, target, Holding(plan), write), max_host_bytes)


def write_in_turn(
    plan: Layout | Folder, path: str, fs: FileSystem = None, progress: Progress | None = None
) -> None:
    """Write the file or folder to `path` as `write` does, after earlier saves in the background."""
    store, target = locate(path, fs)
    turns.wait_for_earlier(store, store.canonical(target), lambda: None)
    write_at(plan, store, target, progress)


def write_by_all_in_turn(joint: Joint, progress: Progress | None = None) -> None:
    """Write what all processes have agreed on, after earlier saves in the background."""
    target = joint.store.canonical(joint.path)
    turns.wait_for_earlier(joint.store, target, joint.alive)
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
        joint,
        write,
        joint.agree_to_hold,
        joint.alive,
        joint.round.taken,
    )
    return _begin(path, joint.plan, work, max_host_bytes)


class _Holds(Protocol):
    """The values of a plan, which can be held as they are now."""

    def copied_bytes(self) -> int: ...

    def hold(self) -> Callable[[], Layout | Folder]: ...


@final
@dataclass(frozen=True, eq=False, slots=True)
class _Work:
    """What a save does with its plan: it holds its values, and writes them to a place.

    `values.copied_bytes()` says how many bytes of copies it takes to hold them, and
    `is_to_hold(fits)` whether that is done. `values.hold()` returns what makes the plan that is
    written, which is left to the other thread. `alive` is called again and again while the save
    waits for others, and all that its thread does is in the context `taken()`.
    """

    store: Store
    target: str
    values: _Holds
    write: Callable[[Layout | Folder], None]
    is_to_hold: Callable[[bool], bool] = bool
    alive: Callable[[], None] = lambda: None
    taken: Callable[[], AbstractContextManager[None]] = nullcontext


def _begin(path: str, plan: Layout | Folder, work: _Work, max_host_bytes: int | None) -> SaveHandle:
    """Write a plan in the background, with values that are safe from changes."""
    needed = work.values.copied_bytes()
    has_room = max_host_bytes is None or needed + turns.copies_kept() <= max_host_bytes
    is_held = work.is_to_hold(has_room)
    save = Save(path)
    target = work.store.canonical(work.target)
    turn = Turn(save, work.store, target, needed if is_held else 0, work.alive)
    job = _Job(save, turn, work)
    try:
        turns.take(turn, max_host_bytes)
        job.plan = work.values.hold() if is_held else partial(_itself, plan)
        del plan
        is_begun = is_held and _starts(job)
        if not is_begun:
            save.thread = threading.current_thread()
            job.run()
    except BaseException:
        job.give_up()
        raise
    if not (is_begun or save.error is None or isinstance(save.error, Exception)):
        raise save.error  # Ctrl-C, for example.
    return SaveHandle(save)


def _itself(plan: Layout | Folder) -> Layout | Folder:
    return plan


@final
class _Job:
    """What the thread of a save does, unless its caller is interrupted before, and gives it up."""

    def __init__(self, save: Save, turn: Turn, work: _Work) -> None:
        self.save: Final = save
        self.plan: Callable[[], Layout | Folder] | None = None
        self._turn = turn
        self._write: Callable[[Layout | Folder], None] | None = work.write
        self._taken = work.taken
        # Who takes it from here ends the turn: one step, which nothing interrupts.
        self._to_end = [turn]

    def run(self) -> None:
        error: BaseException | None = None
        plan: Layout | Folder | None = None
        try:
            self._to_end.pop()
        except IndexError:
            return
        try:
            assert self.plan is not None
            assert self._write is not None
            with self._taken():
                plan = self.plan()
                self.plan = None  # It refers to the arrays that it has made the plan of.
                self._turn.wait()
                self.save.state = "writing"
                self._write(plan)
        except BaseException as raised:  # noqa: BLE001 - the handle raises it
            error = raised
        # First let go of the values and the turn: who waited for the handle may need both.
        self.plan = self._write = plan = None
        turns.end(self._turn)
        self.save.end(error)

    def give_up(self) -> None:
        """Let others have the turn, unless the job runs, or has run, in its thread."""
        while self._to_end:
            turns.end(self._to_end.pop())


def _run_a_little_later(job: _Job) -> None:
    # Else the caller, who waits until the thread has started, would wait for the interpreter too.
    time.sleep(_HEAD_START)
    job.run()


def _starts(job: _Job) -> bool:
    """Start the thread of a job; false if that cannot be, so that the job must be done here."""
    if not threading.main_thread().is_alive():
        return False  # The interpreter exits: it may not wait for threads that start now.
    # What the caller has set for its own thread, such as NumPy's errstate, holds for the job.
    thread = threading.Thread(
        target=contextvars.copy_context().run,
        args=(_run_a_little_later, job),
        name=f"safejax-save {job.save.path}",
        daemon=False,  # Else it would be one if the caller's thread is.
    )
    job.save.thread = thread
    try:
        thread.start()
    except RuntimeError:  # There are too many threads.
        return False
    return True
