"""Patience: which failures of a request another one can help, and how long that is tried."""

import errno
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar, final

_T = TypeVar("_T")

_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Of HTTP: the server is busy, or gave up, for the moment (RFC 9110, RFC 6585, RFC 8470)."""

_NUMBERS: Final = frozenset({
    errno.EAGAIN, errno.EBUSY, errno.EIO, errno.ECONNRESET, errno.ECONNABORTED,
    errno.ECONNREFUSED, errno.EPIPE, errno.ETIMEDOUT, errno.ENETRESET,
})  # fmt: skip

_NAMES: Final = frozenset({
    "ClientConnectionError", "ClientPayloadError",  # aiohttp
    "EndpointConnectionError", "HTTPClientError", "IncompleteReadError",  # botocore
    "IncompleteRead", "ProtocolError", "TransportError",  # http.client, urllib3, httpx
    "ConnectionError", "Timeout",  # requests
})  # fmt: skip
"""Classes of packages that need not be installed, by their names."""


@final
@dataclass(frozen=True, slots=True)
class Patience:
    """How long failed requests are made again; times are in seconds.

    A request is made at most `attempts` times, and not again if it first failed longer than
    `period` ago. An answer of which no byte arrives for `stall` has failed, as has one that is not
    there after `longest`, where nobody can tell whether bytes arrive. The first pause is about
    `pause`, and each further one twice as long; pauses are random, so that processes that have
    failed at the same time do not come back at the same time.
    """

    attempts: int = 5
    period: float = 60
    stall: float = 30
    longest: float = 300
    pause: float = 0.2

    def before(self, attempt: int) -> float:
        """The pause before an attempt; the second one is number 1."""
        return self.pause * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)


PATIENCE: Final = Patience()


def patiently(task: Callable[[], _T], patience: Patience) -> _T:
    """What `task` returns; it is called again where that may help."""
    began = time.monotonic()
    for attempt in range(1, patience.attempts):
        try:
            return task()
        except Exception as error:
            pause = patience.before(attempt)
            if not may_pass(error) or time.monotonic() + pause - began > patience.period:
                raise
        time.sleep(pause)
    return task()


class StatusError(OSError):
    """A server answers with a status of HTTP that is an error."""

    def __init__(self, status: int, reason: str | None) -> None:
        super().__init__(f"status {status}" + (f" ({reason})" if reason else ""))
        self.status = status


class CutShortError(OSError):
    """An answer ends before all of its bytes are there."""


def status_of(error: BaseException) -> int | None:
    """The status of HTTP that an error reports, as the classes of several packages have it."""
    response: Any = getattr(error, "response", None)  # botocore
    if isinstance(response, dict):
        status: Any = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    answer: Any = error if response is None else response  # httpx, requests: of the response
    for name in ("status", "status_code", "code"):
        status = getattr(answer, name, None)
        if isinstance(status, int) and 100 <= status < 600:
            return status
    return None


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed when it is made again."""
    status = status_of(error)
    if status is not None:
        return status in _STATUSES
    if isinstance(error, ConnectionError | TimeoutError | CutShortError):
        return True
    if any(kind.__name__ in _NAMES for kind in type(error).__mro__):
        return True
    return isinstance(error, OSError) and error.errno in _NUMBERS
