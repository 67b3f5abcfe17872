"""Tasks that run outside of any trace, whatever the caller is in the middle of."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Final, TypeVar

import jax
import numpy as np

from safejax.dtypes import Dtype

_T = TypeVar("_T")

_WIDE: Final = frozenset(map(np.dtype, ("int64", "uint64", "float64", "complex128")))


def concretely(task: Callable[[], _T], dtype: Dtype | None = None) -> _T:
    """What `task` gives when it runs outside of any trace and any of JAX's debug modes.

    It runs in a thread of its own: JAX's trace, its guards and its modes belong to the thread,
    and nothing less than another one leaves them all behind. `dtype` is that of the arrays
    that the task makes; 64-bit ones need x64 whatever the mode has become since.
    """
    outcome: list[_T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            with _plain_settings(wide=dtype is not None and needs_x64(dtype)):
                outcome.append(task())
        except BaseException as error:  # noqa: BLE001 - it is raised again where it belongs
            failure.append(error)

    thread = threading.Thread(target=run, name="safejax-place", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def concretely_all(tasks: Sequence[tuple[Callable[[], object], Dtype]], workers: int) -> None:
    """Run each task as `concretely` does, `workers` at a time; the first failure is raised.

    In their order, but those that need x64 come last: to change the mode costs more than a task.
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
                    with _plain_settings(wide=wide):
                        work(left)
        except BaseException as error:  # noqa: BLE001 - it is raised again where it belongs
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


def needs_x64(dtype: Dtype) -> bool:
    """Whether JAX makes arrays of `dtype` in its x64 mode only."""
    return dtype in _WIDE


@contextlib.contextmanager
def _plain_settings(*, wide: bool) -> Generator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.transfer_guard("allow"))
        stack.enter_context(jax.debug_nans(False))
        stack.enter_context(jax.debug_infs(False))
        stack.enter_context(jax.disable_jit(False))
        if wide:
            stack.enter_context(jax.enable_x64(True))
        yield
