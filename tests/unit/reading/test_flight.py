"""Flight: what is under way is bounded, whoever asks, and failures are tried again or raised."""

import signal
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from safejax._src.reading.flight import BUDGET, MOST_BYTES, Budget, Flight, Piece, PieceError
from safejax._src.reading.patience import Patience, may_pass, patiently, status_of, wait_of

PATIENCE = Patience(pause=0.001)


def now() -> datetime:
    return datetime.now(UTC)


def test_a_budget_is_not_exceeded_and_a_large_request_gets_all_of_it() -> None:
    budget = Budget(requests=3, nbytes=100)
    assert budget.take(60, wait=False)
    assert not budget.take(60, wait=False)
    assert budget.take(40, wait=False)
    assert budget.take(0, wait=False)
    assert not budget.take(0, wait=False)
    for nbytes in (60, 40, 0):
        budget.give(nbytes)
    assert budget.take(1000, wait=False)
    assert not budget.take(1, wait=False)
    waiting = threading.Thread(target=lambda: budget.take(50, wait=True))
    waiting.start()
    budget.give(1000)
    waiting.join(10)
    assert not waiting.is_alive()


def test_flights_of_several_threads_share_the_budget_and_all_arrive() -> None:
    weight = 12 << 20
    lock = threading.Lock()
    flying = most = 0

    def start(piece: Piece) -> "Future[int]":
        return pool.submit(answer, piece)

    def answer(piece: Piece) -> int:
        nonlocal flying, most
        with lock:
            flying += 1
            most = max(most, flying)
        threading.Event().wait(0.002)
        with lock:
            flying -= 1
        if piece.begin % 3 == piece.tries:
            raise ConnectionError
        return piece.begin

    def fly(number: int) -> list[int]:
        landed: list[int] = []
        flight = Flight(start, lambda _, data: landed.append(data), lambda _: weight, PATIENCE)
        flight.run([Piece(number * 100 + k, 0, None) for k in range(20)])
        return sorted(landed)

    with ThreadPoolExecutor(40) as pool, ThreadPoolExecutor(4) as callers:
        found = list(callers.map(fly, range(4)))
    assert found == [[number * 100 + k for k in range(20)] for number in range(4)]
    assert 1 < most <= 4  # 48 MiB
    # All that was taken is given back.
    assert all(BUDGET.take(0, wait=False) for _ in range(16))
    assert not BUDGET.take(0, wait=False)
    for _ in range(16):
        BUDGET.give(0)


@pytest.mark.parametrize(("error", "tries"), [(ConnectionError(), 5), (KeyError("x"), 1)])
def test_what_fails_for_good_is_raised_with_its_cause(error: Exception, tries: int) -> None:
    def start(piece: Piece) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_exception(error)
        return future

    flight = Flight(start, lambda *_: None, lambda _: 1, PATIENCE)
    with pytest.raises(PieceError) as raised:
        flight.run([Piece(3, 8, None), Piece(8, 9, None)])
    assert raised.value.__cause__ is error
    assert raised.value.piece.tries == tries


class OfBotocore(Exception):
    def __init__(self, headers: dict[str, str] | None = None) -> None:
        super().__init__()
        self.response = {"ResponseMetadata": {"HTTPStatusCode": 503, "HTTPHeaders": headers or {}}}


class OfAiohttp(Exception):
    status = 404


ClientPayloadError = type("ClientPayloadError", (Exception,), {})


@pytest.mark.parametrize(
    ("error", "status", "again"),
    [
        (OfBotocore(), 503, True),
        (OfAiohttp(), 404, False),
        (type("Derived", (ClientPayloadError,), {})(), None, True),
        (TimeoutError(), None, True),
        (OSError(16, "reduce your request rate"), None, True),
        (PermissionError(13, "no"), None, False),
        (FileNotFoundError(2, "no"), None, False),
        (ValueError("no"), None, False),
    ],
)
def test_which_failures_pass(error: Exception, status: int | None, again: bool) -> None:
    assert (status_of(error), may_pass(error)) == (status, again)


class OfAServer(Exception):
    def __init__(self, said: str, **more: Any) -> None:
        super().__init__(said)
        self.status, self.headers = 503, {"Retry-After": said, **more}


def test_a_server_says_how_long_to_wait() -> None:
    assert wait_of(OfAServer("7")) == 7
    assert wait_of(OfAServer("in a while")) == 0
    assert wait_of(OfAServer("Fri, 31 Dec 1999 23:59:59 GMT")) == 0
    assert 3000 < wait_of(OfAServer(format_datetime(now() + timedelta(hours=1)))) <= 3600
    assert wait_of(TimeoutError()) == 0
    # s3fs makes an error of its own of that of botocore.
    of_botocore = OfBotocore({"retry-after": "3"})
    of_s3fs = OSError(16, "reduce your request rate")
    of_s3fs.__cause__ = of_botocore
    assert (wait_of(of_s3fs), status_of(of_s3fs), may_pass(of_s3fs)) == (3, 503, True)
    # It is not asked for again, since the period is over by then.
    left = [OfAServer("10"), OfAServer("10")]
    with pytest.raises(OfAServer):
        patiently(lambda: (_ for _ in ()).throw(left.pop()), Patience(pause=0, period=1))
    assert len(left) == 1


def test_a_question_is_asked_again() -> None:
    left = [TimeoutError(), ConnectionError()]

    def ask() -> int:
        if left:
            raise left.pop()
        return 3

    assert patiently(ask, PATIENCE) == 3
    left = [TimeoutError() for _ in range(5)]
    with pytest.raises(TimeoutError):
        patiently(ask, PATIENCE)
    assert left == []
    # The period is over before the first pause is.
    left = [TimeoutError(), TimeoutError()]
    with pytest.raises(TimeoutError):
        patiently(ask, Patience(pause=10, period=1))
    assert len(left) == 1


def test_signals_while_it_waits_do_not_make_it_wait_for_ever() -> None:
    """A `SimpleQueue` of CPython does, if one comes when its timeout is just over."""
    end = time.monotonic() + 20

    def handle(*_: Any) -> None:
        if time.monotonic() > end:
            raise TimeoutError("it still waits")

    def start(piece: Piece) -> "Future[int]":
        future: Future[int] = Future()
        if piece.tries == 0:
            future.set_exception(ConnectionResetError())
        else:
            future.set_result(1)
        return future

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    landed: list[int] = []
    try:
        for _ in range(300):
            flight = Flight(start, lambda _, got: landed.append(got), lambda _: 0, PATIENCE)
            flight.run([Piece(0, 1, None)])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert landed == [1] * 300


def test_an_interrupt_at_any_step_loses_nothing_of_the_budget() -> None:
    """Of the main thread, in which Python handles signals; a lock is a step, too."""

    def start(piece: Piece) -> "Future[int]":
        return pool.submit(lambda: piece.begin)

    def traced(at: int) -> Any:
        steps = 0

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal steps
            file, function = frame.f_code.co_filename, frame.f_code.co_name
            is_ours = file == flights and event != "call"
            # A lock that is written in Python is held before its `__enter__` has returned.
            is_held = file == threading.__file__ and (function, event) == ("__enter__", "return")
            if is_ours or is_held:
                steps += 1
                if steps == at:
                    raise KeyboardInterrupt
            return trace

        return trace

    def run_interrupted(at: int) -> bool:
        flight = Flight(start, lambda *_: None, lambda _: 1 << 20, PATIENCE)
        pieces = [Piece(number, number + 1, None) for number in range(3)]
        before = sys.gettrace()
        sys.settrace(traced(at))
        try:
            flight.run(pieces)
        except (KeyboardInterrupt, RuntimeError):  # Which it becomes where Python starts a thread.
            return True
        finally:
            sys.settrace(before)
        return False

    flights = Flight.run.__code__.co_filename
    with ThreadPoolExecutor(4) as pool:
        interrupted = [run_interrupted(at) for at in range(1, 80)]
        assert interrupted[0]
        assert not interrupted[-1]
        # Nobody has a lock of it, and all that was taken is given back.
        taken = pool.submit(lambda: [BUDGET.take(MOST_BYTES // 16, wait=True) for _ in range(16)])
        assert all(taken.result(30))
        for _ in range(16):
            BUDGET.give(MOST_BYTES // 16)
