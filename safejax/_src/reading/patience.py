"""Patience: which failures of a request another one can help, and how long that is tried."""

import errno
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
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

_CLASSES: Final = {
    "UnauthenticatedError": 401,
    "PermissionDeniedError": 403,
    "PreconditionError": 412,
}
"""Classes of obstore, whose errors have their status only in what they say."""

_SAID: Final = re.compile(r"\b(?:status(?: code)?:? )([45]\d\d)\b")

_FORBIDDEN: Final = "Forbidden: "
"""What gcsfs says of status 403, in an error that has nothing else."""

_MOST_CAUSES: Final = 10


@final
@dataclass(frozen=True, slots=True)
class Patience:
    """How long failed requests are made again; times are in seconds.

    A request is made at most `attempts` times, and not again if it first failed longer than
    `period` ago. An answer of which no byte arrives for `stall` has failed, as has one that is not
    there after `longest`, where nobody can tell whether bytes arrive. The first pause is about
    `pause`, and each further one twice as long; pauses are random, so that processes that have
    failed at the same time do not come back at the same time. A server may ask for a longer one.
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
            pause = max(patience.before(attempt), wait_of(error))
            if not may_pass(error) or time.monotonic() + pause - began > patience.period:
                raise
        time.sleep(pause)
    return task()


class StatusError(OSError):
    """A server answers with a status of HTTP that is an error."""

    def __init__(self, status: int, reason: str | None, headers: Mapping[str, str]) -> None:
        super().__init__(f"status {status}" + (f" ({reason})" if reason else ""))
        self.status = status
        self.headers = headers


class CutShortError(OSError):
    """An answer ends before all of its bytes are there."""


def status_of(error: BaseException) -> int | None:
    """The status of HTTP that an error, or what it is due to, reports; several packages have it."""
    return next((found for each in _causes(error) if (found := _status(each)) is not None), None)


def wait_of(error: BaseException) -> float:
    """The seconds that a server asks to be left alone; 0 if it does not (RFC 9110, Retry-After)."""
    for each in _causes(error):
        answer = _answer(each)
        headers: Any = (
            answer.get("ResponseMetadata", {}).get("HTTPHeaders")
            if isinstance(answer, dict)
            else getattr(answer, "headers", None)
        )
        if hasattr(headers, "get"):
            said: Any = headers.get("Retry-After") or headers.get("retry-after")
            if said:
                return _seconds(str(said))
    return 0


def _seconds(said: str) -> float:
    """What `Retry-After` says: seconds, or a date."""
    if said.strip().isdecimal():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it is due to."""
    each: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if each is None:
            return
        yield each
        each = each.__cause__


def _answer(error: BaseException) -> Any:
    """What has the status and the headers: a dict of botocore, a response, or the error itself."""
    response: Any = getattr(error, "response", None)
    return error if response is None else response


def _status(error: BaseException) -> int | None:
    answer = _answer(error)
    if isinstance(answer, dict):
        status: Any = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    said = (getattr(answer, name, None) for name in ("status", "status_code", "code"))
    # The first one only: others may be deprecated names of it.
    status = next((value for value in said if isinstance(value, int)), 0)
    if 100 <= status < 600:
        return status
    if type(error) is OSError and str(error).startswith(_FORBIDDEN):
        return 403
    if not _is_of_obstore(error):
        return None
    if type(error).__name__ in _CLASSES:
        return _CLASSES[type(error).__name__]
    found = _SAID.search(str(error))
    return None if found is None else int(found[1])


def is_unreachable(error: BaseException) -> bool:
    """Whether an error says that there was no answer."""
    if _is_of_obstore(error):
        return "error sending request" in str(error)
    return status_of(error) is None and may_pass(error)


def _is_of_obstore(error: BaseException) -> bool:
    return type(error).__module__.startswith("obstore")


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed when it is made again."""
    status = _status(error)
    if status is not None:
        return status in _STATUSES
    if isinstance(error, ConnectionError | TimeoutError | CutShortError):
        return True
    if any(kind.__name__ in _NAMES for kind in type(error).__mro__):
        return True
    status = status_of(error)
    if status is not None:
        return status in _STATUSES
    return isinstance(error, OSError) and error.errno in _NUMBERS
