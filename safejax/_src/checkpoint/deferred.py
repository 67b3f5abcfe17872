"""Saves in two steps: the values are held at once, and written when somebody else says so.

For libraries that call us before the folder of the file is there, and have threads of their own.
"""

from collections.abc import Callable
from typing import final

from safejax._src.checkpoint.distributed import Joint
from safejax._src.checkpoint.saving import write_at
from safejax._src.checkpoint.snapshot import snapshot
from safejax._src.checkpoint.task import SaveTask
from safejax._src.progress import reported
from safejax._src.storage.location import locate


@final
class HeldSave:
    """A save whose values are safe from changes; `write` has to be called once, in any thread."""

    def __init__(self, write: Callable[[], None]) -> None:
        self._to_write = [write]

    def write(self) -> None:
        """Write the file, with all other processes if they have agreed on it.

        Raises what `SaveHandle.result` raises.
        """
        # What is held is let go of as soon as it is written.
        self._to_write.pop()()


def hold(task: SaveTask) -> HeldSave:
    """Hold the values of a task as they are now; the folder of its path need not be there yet.

    If the tree spans processes, all of them call this, and then write. Raises at once what
    `save_async` raises at once.
    """
    if task.spans_processes:
        return task.agree(lambda joint: _held_by_all(joint, task))
    store, target = locate(task.target, task.fs)
    target = store.absolute(target)
    plan = snapshot(task.plan())

    def write() -> None:
        with reported(task.progress, task.function) as report:
            write_at(plan, store, target, report)

    return HeldSave(write)


def _held_by_all(joint: Joint, task: SaveTask) -> HeldSave:
    joint.round.leave()
    if joint.agree_to_hold(True):
        joint.hold()()

    def write() -> None:
        with joint.round.taken(), reported(task.progress, task.function) as report:
            joint.write(report)

    return HeldSave(write)
