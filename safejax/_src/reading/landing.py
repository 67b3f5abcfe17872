"""Landing: the bytes that arrive from a file are put where they are needed.

A read may hold a part of one span or thousands of spans of several windows. Each byte is copied
once, into the memory of the array that it is for, or arrives there.
"""

from collections.abc import Sequence
from functools import cached_property
from operator import itemgetter
from typing import Any, Final, final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from safejax._src.reading.requests import byte_spans
from safejax._src.reading.source import Part, strided_array
from safejax._src.reading.windows import Spans, Window

Bytes = NDArray[np.uint8]


@final
class Target:
    """The memory for what a part, which is not empty, shows: that of `out`, or its own."""

    def __init__(self, part: Part, out: NDArray[Any] | None = None) -> None:
        self.spans: Final[Spans] = byte_spans(*part)
        self._dtype = part.dtype
        self._compact = part.window.compact()
        self._copied_to = None if out is None or is_one_run(self._compact, out) else out
        self._out = out

    @cached_property
    def _memory(self) -> Bytes:
        if self._out is None or self._copied_to is not None:
            return np.empty(self.spans.count, np.uint8)
        return self._out.reshape(-1).view(np.uint8)

    @cached_property
    def rows(self) -> Bytes:
        """The memory, with a span in each row."""
        return self._memory.reshape(-1, self.spans.length)

    @property
    def array(self) -> NDArray[Any]:
        """What the part shows, in the memory of the target."""
        return strided_array(self._memory, 0, self._dtype, self._compact)

    def finish(self) -> None:
        """Copy what the part shows into `out`, if that could not be the memory itself."""
        if self._copied_to is not None:
            np.copyto(self._copied_to, self.array)

    def span_of(self, begin: int, end: int) -> int | None:
        """The number of the span that has all bytes `[begin, end)` of the file, if there is one."""
        starts, length = self.spans.starts, self.spans.length
        number = int(np.searchsorted(starts, begin, "right")) - 1
        return None if number < 0 or end > int(starts[number]) + length else number

    def memory(self, begin: int, end: int) -> Bytes | None:
        """The memory for the bytes `[begin, end)` of the file; None unless a span has them all."""
        number = self.span_of(begin, end)
        if number is None:
            return None
        at = begin - int(self.spans.starts[number])
        return self.rows[number, at : at + end - begin]

    def places(self, begin: int, end: int, most: int) -> list[tuple[int, Bytes]] | None:
        """Where bytes of `[begin, end)` begin that are needed, each with its memory, in order.

        None if there are more than `most`.
        """
        starts, length = self.spans.starts, self.spans.length
        first = int(np.searchsorted(starts, begin - length, "right"))
        last = int(np.searchsorted(starts, end, "left"))
        if last - first > most:
            return None
        found: list[tuple[int, Bytes]] = []
        for number, start in enumerate(starts[first:last].tolist(), first):
            low, high = max(start, begin), min(start + length, end)
            found.append((low, self.rows[number, low - start : high - start]))
        return found

    def land(self, begin: int, data: Bytes) -> None:
        """Take what is needed of `data`, the bytes of the file that start at `begin`."""
        starts, length, end = self.spans.starts, self.spans.length, begin + data.nbytes
        # The spans that have a byte of it; all but the first and the last are inside of it.
        first = int(np.searchsorted(starts, begin - length, "right"))
        last = int(np.searchsorted(starts, end, "left")) - 1
        if first <= last and starts[first] < begin:
            self._land_part(first, begin, data)
            first += 1
        if first <= last and starts[last] + length > end:
            self._land_part(last, begin, data)
            last -= 1
        if first > last:
            return
        at = starts[first : last + 1] - begin
        found = sliding_window_view(data, length)
        step = int(at[1] - at[0]) if len(at) > 1 else 1
        # Most windows have the same distance between all spans, and slices are copied faster.
        if len(at) < 3 or bool((np.diff(at) == step).all()):
            self.rows[first : last + 1] = found[int(at[0]) : int(at[-1]) + 1 : step]
        else:
            self.rows[first : last + 1] = found[at]

    def _land_part(self, number: int, begin: int, data: Bytes) -> None:
        """Take what `data` has of a span that is not all in it."""
        start = int(self.spans.starts[number])
        low, high = max(start, begin), min(start + self.spans.length, begin + data.nbytes)
        self.rows[number, low - start : high - start] = data[low - begin : high - begin]


@final
class Landing:
    """The targets of bytes that are read together."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets: Final = targets
        count = len(targets)
        self._lows = np.fromiter((each.spans.starts[0] for each in targets), np.int64, count)
        self._highs = np.fromiter(
            (each.spans.starts[-1] + each.spans.length for each in targets), np.int64, count
        )

    def memory(self, begin: int, end: int) -> Bytes | None:
        """Where the bytes `[begin, end)` of the file can arrive; None if they have to be copied."""
        near = self._near(begin, end)
        return self.targets[near[0]].memory(begin, end) if len(near) == 1 else None

    def places(self, begin: int, end: int, most: int) -> list[Bytes] | None:
        """Memory for all bytes `[begin, end)` of the file, in order, also for what is not needed.

        None if there are more than `most` places for what is needed, or two for the same bytes.
        """
        found: list[tuple[int, Bytes]] = []
        near = self._near(begin, end)
        if len(near) > most:
            return None
        for number in near:
            more = self.targets[number].places(begin, end, most - len(found))
            if more is None:
                return None
            found += more
        memory: list[Bytes] = []
        at = begin
        for start, place in sorted(found, key=itemgetter(0)):
            if start < at:
                return None
            if start > at:
                memory.append(np.empty(start - at, np.uint8))
            memory.append(place)
            at = start + place.nbytes
        if at < end:
            memory.append(np.empty(end - at, np.uint8))
        return memory

    def holds(self, begin: int, end: int) -> bool:
        """Whether there is memory where the bytes `[begin, end)` of the file can arrive."""
        near = self._near(begin, end)
        return len(near) == 1 and self.targets[near[0]].span_of(begin, end) is not None

    def land(self, begin: int, data: Bytes) -> None:
        """Put the bytes of the file that start at `begin` into all targets that need them."""
        for number in self._near(begin, begin + data.nbytes):
            self.targets[number].land(begin, data)

    def _near(self, begin: int, end: int) -> list[int]:
        return np.flatnonzero((self._lows < end) & (self._highs > begin)).tolist()


def is_one_run(window: Window, out: NDArray[Any]) -> bool:
    """Whether the elements are contiguous in the source, in the order of `out`."""
    return (
        out.size > 0
        and out.flags.c_contiguous
        and all(
            size == 1 or stride == whole
            for size, stride, whole in zip(
                window.shape, window.strides, Window.whole(window.shape).strides, strict=True
            )
        )
    )
