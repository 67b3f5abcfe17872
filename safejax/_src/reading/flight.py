"""Flight: requests of a file that are under way at the same time, bounded in number and bytes."""

import contextvars
import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import Any, Final, final

from numpy.typing import NDArray

from safejax._src.reading.patience import Patience, may_pass, wait_of
from safejax._src.system import in_forked_process

MOST_REQUESTS: Final = 16
"""Requests that are under way at the same time in a process."""

MOST_BYTES: Final = 48 << 20
"""Bytes of answers that are in memory of their own, before they are copied to where they belong."""

_LOOKS: Final = 0.5
"""Seconds after which a flight looks whether it is stopped."""


@final
@dataclass(slots=True)
class Piece:
    """A read of the bytes `[begin, end)`, and where they can arrive; None if they are copied."""

    begin: int
    end: int
    memory: NDArray[Any] | None
    tries: int = field(default=0, init=False)
    first_failed: float = field(default=0.0, init=False)


@final
class Budget:
    """What all readers of the process may have under way together."""

    def __init__(self, requests: int, nbytes: int) -> None:
        self._requests = self._most_requests = requests
        self._nbytes = nbytes
        self._most = nbytes
        self._free = threading.Condition()

    def take(self, nbytes: int, *, wait: bool) -> bool:
        """Take one request of so many bytes; false if there is no room for it, and no `wait`."""
        nbytes = min(nbytes, self._most)
        with self._free:
            while self._requests < 1 or self._nbytes < nbytes:
                if not wait:
                    return False
                self._free.wait()
            self._requests -= 1
            self._nbytes -= nbytes
            return True

    def give(self, nbytes: int) -> None:
        """Give back what was taken."""
        with self._free:
            self._requests += 1
            self._nbytes += min(nbytes, self._most)
            self._free.notify_all()

    def forget_threads(self) -> None:
        """Have all of it free, in a forked process whose parent had requests under way."""
        self.__init__(self._most_requests, self._most)


BUDGET: Final = Budget(MOST_REQUESTS, MOST_BYTES)
in_forked_process(BUDGET.forget_threads)


@final
class Flight:
    """Requests, each of which `start` begins, and `land` takes the answer of.

    `weight` says how many bytes of an answer are in memory of their own. All runs in the thread of
    the caller but for what `start` begins, and in one of its own if the caller is the main thread.
    A request is made again as `patience` says.
    """

    def __init__(
        self,
        start: Callable[[Piece], "Future[Any]"],
        land: Callable[[Piece, Any], None],
        weight: Callable[[Piece], int],
        patience: Patience,
    ) -> None:
        self._start = start
        self._land = land
        self._weight = weight
        self._patience = patience
        # A SimpleQueue of CPython waits for ever if a signal comes when its timeout is over.
        self._done: Queue[Future[Any]] = Queue()
        self._flying: dict[Future[Any], tuple[Piece, float]] = {}
        self._left: deque[Piece] = deque()
        # What is made again, with the time for it; the number keeps pieces from being compared.
        self._later: list[tuple[float, int, Piece]] = []
        self._is_stopped = False

    def run(self, pieces: Iterable[Piece]) -> None:
        """Do all requests; raise the error of one that fails for good, as `PieceError`."""
        self._left.extend(pieces)
        if threading.current_thread() is not threading.main_thread():
            self._run()
            return
        # Signals are handled in the main thread, between any two steps of Python. What one raises
        # there must not lose a lock, or a share, of the budget that all threads have together.
        errors: list[BaseException] = []
        context = contextvars.copy_context()

        def work() -> None:
            try:
                context.run(self._run)
            except BaseException as error:  # noqa: BLE001 - raised again by the caller
                errors.append(error)

        thread = threading.Thread(target=work, name="safejax-requests", daemon=True)
        try:
            thread.start()
            thread.join()
        except BaseException:
            self._is_stopped = True
            raise
        if errors:
            raise errors[0]

    def _run(self) -> None:
        try:
            while (self._left or self._later or self._flying) and not self._is_stopped:
                self._begin()
                self._wait()
        finally:
            for future, (piece, _) in self._flying.items():
                future.cancel()
                BUDGET.give(self._weight(piece))

    def _begin(self) -> None:
        """Begin as many requests as there may be under way."""
        while self._later and self._later[0][0] <= time.monotonic():
            self._left.appendleft(heapq.heappop(self._later)[2])
        while self._left and not self._is_stopped:
            # Whoever has requests under way takes their answers before it waits for others.
            is_idle = not self._flying and not self._later
            if not BUDGET.take(self._weight(self._left[0]), wait=is_idle):
                return
            piece = self._left.popleft()
            try:
                future = self._start(piece)
            except BaseException:
                BUDGET.give(self._weight(piece))
                raise
            self._flying[future] = piece, time.monotonic()
            future.add_done_callback(self._done.put)

    def _wait(self) -> None:
        """Wait for an answer, or until there is something to begin."""
        now = time.monotonic()
        # The main thread, which is interrupted, only leaves word of it.
        until = [
            now + _LOOKS,
            *(began + self._patience.longest for _, began in self._flying.values()),
        ]
        if self._later:
            until.append(self._later[0][0])
        if self._left:
            until.append(now + 0.05)  # There may be room by then.
        try:
            future = self._done.get(timeout=max(0.0, min(until) - now))
        except Empty:
            self._give_up_on_old()
            return
        if future not in self._flying:
            return
        piece, _ = self._flying.pop(future)
        try:
            self._answered(piece, future)
        finally:
            BUDGET.give(self._weight(piece))

    def _answered(self, piece: Piece, future: "Future[Any]") -> None:
        error = future.exception()
        if error is None:
            self._land(piece, future.result())
        else:
            self._failed(piece, error)

    def _give_up_on_old(self) -> None:
        now = time.monotonic()
        for future, (piece, began) in list(self._flying.items()):
            if now - began >= self._patience.longest:
                future.cancel()
                del self._flying[future]
                BUDGET.give(self._weight(piece))
                self._failed(piece, TimeoutError(f"no answer in {self._patience.longest:g} s"))

    def _failed(self, piece: Piece, error: BaseException) -> None:
        now = time.monotonic()
        piece.tries += 1
        if piece.tries == 1:
            piece.first_failed = now
        at = now + max(self._patience.before(piece.tries), wait_of(error))
        is_over = piece.tries >= self._patience.attempts
        if is_over or at - piece.first_failed > self._patience.period or not may_pass(error):
            raise PieceError(piece) from error
        heapq.heappush(self._later, (at, id(piece), piece))


class PieceError(Exception):
    """A request failed for good; the cause is the error of its last attempt."""

    def __init__(self, piece: Piece) -> None:
        super().__init__(piece.begin, piece.end)
        self.piece = piece
