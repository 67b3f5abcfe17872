"""A pause for Python's garbage collector while many objects are made and none becomes garbage.

The collector belongs to the whole process. A pause therefore covers only code of this package:
a user's transforms, shardings, file systems and pytree nodes run outside of it.
"""

import gc
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager

# Reentrant, since a finalizer or a signal handler may open a file while its thread holds it.
_lock = threading.RLock()
_inside = 0
_was_enabled = False


@contextmanager
def collector_paused() -> Generator[None]:
    """Pause the cycle collector while any thread is inside such a block.

    Parsing a header makes many small objects and no cycles; collecting meanwhile doubles the
    time. The first thread to enter disables the collector, and the last to leave enables it
    again if it was enabled before. If a program calls `gc.enable()` meanwhile, the collector is
    enabled from then on; a `gc.disable()` meanwhile has no effect, and is undone at the end.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


@contextmanager
def collector_resumed() -> Generator[None]:
    """Leave the pause that this thread is in for the length of the block, to run a user's code.

    The collector stays disabled if it was disabled before the pause, or while other threads are
    inside theirs.
    """
    _leave()
    try:
        yield
    finally:
        _enter()


# Both keep a count of at least 1 while they change the collector, so that a finalizer that runs
# then, in the same thread, can enter and leave a pause of its own without any effect.
def _enter() -> None:
    global _inside, _was_enabled
    with _lock:
        _inside += 1
        if _inside == 1:
            _was_enabled = gc.isenabled()
            gc.disable()


def _leave() -> None:
    global _inside
    with _lock:
        if _inside == 1 and _was_enabled:
            gc.enable()
        _inside -= 1


def _forget_other_threads() -> None:
    # A forked child has none of the threads that were inside, or that held the lock.
    global _lock, _inside
    _lock = threading.RLock()
    if _inside and _was_enabled:
        gc.enable()
    _inside = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)
