"""Runs tasks outside of any trace, whatever trace the caller is in."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import jax

from safejax._src.arrays.precision import needs_x64
from safejax._src.dtypes import Dtype

_T = TypeVar("_T")


def run_untraced(task: Callable[[], _T], dtype: Dtype | None = None) -> _T:
    """The result of `task`, run outside of any trace and without JAX's debug modes.

    The task runs in a thread of its own: JAX's traces, guards and modes belong to a thread, and
    only another thread is free of all of them. `dtype` is that of the arrays that the task makes.
    A 64-bit dtype needs x64 even if the caller has turned that mode off since.
    """
    outcome: list[_T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            with neutral_settings(wide=dtype is not None and needs_x64(dtype)):
                outcome.append(task())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            failure.append(error)

    thread = threading.Thread(target=run, name="safejax-place", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def run_all_untraced(tasks: Sequence[tuple[Callable[[], object], Dtype]], workers: int) -> None:
    """Run each task as `run_untraced` does, `workers` at a time; raise the first failure.

    Tasks start in order, except that those that need x64 come last: changing the mode takes
    longer than a task.
    """
    pending: dict[bool, deque[Callable[[], object]]] = {False: deque(), True: deque()}
    for task, dtype in tasks:
        pending[needs_x64(dtype)].append(task)
    failures: list[BaseException] = []

    def work(left: deque[Callable[[], object]]) -> None:
        while not failures:
            try:
                task = left.popleft()
            except IndexError:
                return
            task()

    def run() -> None:
        try:
            for wide, left in pending.items():
                if left:
                    with neutral_settings(wide=wide):
                        work(left)
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            failures.append(error)

    threads = [
        threading.Thread(target=run, name=f"safejax-place-{number}", daemon=True)
        for number in range(min(workers, len(tasks)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@contextlib.contextmanager
def neutral_settings(*, wide: bool) -> Generator[None]:
    """The settings of JAX under which arrays are placed; `wide` is for dtypes that need x64."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.transfer_guard("allow"))
        stack.enter_context(jax.debug_nans(False))
        stack.enter_context(jax.debug_infs(False))
        stack.enter_context(jax.disable_jit(False))
        if wide:
            stack.enter_context(jax.enable_x64(True))
        yield
