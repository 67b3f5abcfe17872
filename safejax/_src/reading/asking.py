"""Asking: what it is to request ranges of a file, and where that is done.

`askers.py` has the ways of file systems of fsspec, and `objects.py` that of obstore's stores.
"""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.reading.filesystems import FileSystem
from safejax._src.reading.patience import Patience


@final
class Reply(NamedTuple):
    """The bytes of an answer, and what it says of the file; None if it says nothing."""

    data: NDArray[np.uint8]
    told: Mapping[str, Any] | None


class Asker(ABC):
    """How one file is asked for; `tells` is true if answers say which file they are of.

    If something is `pinned`, as an answer has told it, only bytes of that version are asked for,
    where that is known to the place. It refuses with status 412 if it has another one.
    """

    tells: bool = True
    pinned: Mapping[str, Any] | None = None

    def __init__(self, fs: FileSystem, path: str) -> None:
        self.fs = fs
        self.path = path

    @abstractmethod
    def ask(
        self, begin: int, end: int, memory: NDArray[np.uint8] | None, patience: Patience
    ) -> "Future[Reply]":
        """Request the bytes `[begin, end)`, or those of them that there are.

        If there is `memory`, they arrive there if they can.
        """

    @property
    def strong_etag(self) -> str | None:
        """The ETag that is pinned, if it says that every byte is the same (RFC 9110)."""
        etag = (self.pinned or {}).get("etag")
        return etag if isinstance(etag, str) and etag.startswith('"') else None


def in_thread(task: Callable[[], Any]) -> "Future[Any]":
    """What `task` returns, or raises, in a thread that the end of the process does not wait for."""
    future: Future[Any] = Future()

    def run() -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(task())
            except BaseException as error:  # noqa: BLE001 - raised by who asks the future
                future.set_exception(error)

    threading.Thread(target=run, name="safejax-request", daemon=True).start()
    return future


def in_loop(task: Coroutine[Any, Any, Reply], loop: Any) -> "Future[Reply]":
    """What `task` returns, or raises, in a loop that runs in another thread."""
    try:
        return asyncio.run_coroutine_threadsafe(task, loop)
    except BaseException:
        task.close()
        raise
