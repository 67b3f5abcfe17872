"""Arriving: the bytes of an answer are put where they belong while they come.

For file systems that run in a loop. What stalls is an error.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.reading.asking import Reply
from safejax._src.reading.patience import CutShortError, Patience, StatusError

_RANGE: Final = re.compile(r"bytes (?:([0-9]{1,19})-([0-9]{1,19})|\*)/([0-9]{1,19})(?![0-9])")

_MOST_ANSWERS: Final = 100
"""Answers that may together have the bytes of one request."""


class Held(NamedTuple):
    """What an answer says: the size of the file, and the end of the bytes that it has."""

    size: int
    end: int


class NoRangesError(OSError):
    """A server does not answer with the range that is requested."""


def held_by(content_range: str | None, begin: int) -> Held:
    """What an answer has that has the range that begins at `begin`, or the beginning of it."""
    found = _RANGE.match(content_range or "")
    if found is None or (found[1] is not None and int(found[1]) != begin):
        raise NoRangesError(
            f"expected the bytes from {begin} on, got the range {content_range!r:.80}"
        )
    size = int(found[3])
    return Held(size, size if found[2] is None else int(found[2]) + 1)


def held_by_answer(answer: Any, begin: int, end: int) -> Held:
    """What an answer of aiohttp has; raises the error that it is."""
    found = _RANGE.match(answer.headers.get("Content-Range", ""))
    if answer.status == 416 and found is not None:
        return Held(int(found[3]), begin)  # Nothing of the range is there.
    if answer.status >= 400:
        raise StatusError(answer.status, answer.reason, answer.headers)
    encoding = answer.headers.get("Content-Encoding", "identity")
    if encoding.lower() not in ("identity", ""):
        raise NoRangesError(f"expected the bytes of the file, got them encoded: {encoding!r:.80}")
    length: int | None = answer.content_length
    # All of a small file is an answer, too.
    if answer.status == 200 and begin == 0 and length is not None and length <= end:
        return Held(length, length)
    if answer.status != 206:
        raise NoRangesError(f"expected a range, got status {answer.status} and the whole file")
    return held_by(answer.headers.get("Content-Range"), begin)


async def answered(
    get: Callable[[int, NDArray[np.uint8] | None], Coroutine[Any, Any, Reply]],
    begin: int,
    end: int,
    memory: NDArray[np.uint8] | None,
) -> Reply:
    """The bytes `[begin, end)`, in as many answers of `get` as that takes.

    A server may send only the first of the bytes that it is asked for, and say so (RFC 9110, 206
    Partial Content); it is asked for the others then. All answers must be of one version.
    """
    reply = await get(begin, memory)
    told = reply.told
    assert told is not None
    wanted = max(0, min(end, told["size"]) - begin)
    if reply.data.nbytes == wanted:
        return reply
    is_there = memory is not None and memory.nbytes == wanted
    data = memory if memory is not None and is_there else np.empty(wanted, np.uint8)
    done = 0
    for _ in range(_MOST_ANSWERS):
        count = reply.data.nbytes
        if not count or reply.told != told:
            break
        data[done : done + count] = reply.data
        done += count
        if done == wanted:
            return Reply(data, told)
        reply = await get(begin + done, data[done:])
    raise CutShortError(f"expected {wanted} bytes from {begin} on, got the first {done} of them")


async def body(
    chunk: Callable[[], Coroutine[Any, Any, bytes]],
    count: int,
    memory: NDArray[np.uint8] | None,
    stall: "Stall",
) -> NDArray[np.uint8]:
    """The first `count` bytes of an answer, in `memory` if it has room for just these."""
    data = memory if memory is not None and memory.nbytes == count else np.empty(count, np.uint8)
    view, done = data.data, 0
    while done < count:
        part = await chunk()
        if not part:
            raise CutShortError(f"expected {count} bytes, got {done}")
        part = part[: count - done]
        view[done : done + len(part)] = part
        done += len(part)
        stall.moved()
    if count:
        await chunk()  # The end of the answer, after which its connection can be used again.
    return data


@final
class Stall:
    """A block that ends with `TimeoutError` if nothing has moved for so long."""

    def __init__(self, patience: Patience) -> None:
        self._seconds = patience.stall
        self._limit = asyncio.timeout(self._seconds)

    async def __aenter__(self) -> "Stall":
        await self._limit.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> bool | None:
        try:
            return await self._limit.__aexit__(*raised)
        except TimeoutError:
            raise TimeoutError(f"no byte in {self._seconds:g} s") from None

    def moved(self) -> None:
        self._limit.reschedule(asyncio.get_running_loop().time() + self._seconds)
