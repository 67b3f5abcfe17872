"""Tasks that run outside of any trace, whatever the caller is in the middle of."""

import contextlib
import threading
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
            with _plain_settings(dtype):
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
    """Run each task as `concretely` does, `workers` at a time; the first failure is raised."""
    pending = iter(tasks)
    pending_lock = threading.Lock()

    def work() -> None:
        while True:
            with pending_lock:
                item = next(pending, None)
            if item is None:
                return
            task, dtype = item
            try:
                with _plain_settings(dtype):
                    task()
            except BaseException:
                with pending_lock:
                    for _ in pending:
                        pass
                raise

    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
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
def _plain_settings(dtype: Dtype | None) -> Generator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.transfer_guard("allow"))
        stack.enter_context(jax.debug_nans(False))
        stack.enter_context(jax.debug_infs(False))
        stack.enter_context(jax.disable_jit(False))
        if dtype is not None and needs_x64(dtype):
            stack.enter_context(jax.enable_x64(True))
        yield
