"""Local files as sources: mapped into memory, or read by calls of the system."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.buffer import Buffer, BufferSource
from safejax._src.reading.descriptors import Descriptor, LocalFile
from safejax._src.reading.landing import Landing, is_one_run
from safejax._src.reading.mapping import map_file
from safejax._src.reading.pieces import Pieces
from safejax._src.reading.requested import RequestedFile
from safejax._src.reading.requests import NEAR, Requests
from safejax._src.reading.source import Extent, strided_array
from safejax._src.reading.windows import Spans, Window
from safejax._src.system import CAN_READ, no_read_ahead


@final
class MappedSource(BufferSource):
    """A file mapped into memory, and read in place or, unless `in_place`, copied from there.

    The mapping lives as long as a leaf, or an array placed without a copy, uses it. Each read
    first checks that the file has not been changed since it was opened, and raises `ReadError`
    if it has. If it is changed later, an array that uses it in place changes too, and if it is
    truncated, touching the lost part ends the process with SIGBUS. `save` never changes a file:
    it writes a new one.
    """

    is_mapped = True

    def __init__(self, path: str, *, in_place: bool = True) -> None:
        descriptor = Descriptor(path)
        self._file = LocalFile(path, descriptor)
        size = self._file.status.st_size
        # An empty file cannot be mapped; the header's reader reports what is missing.
        super().__init__(map_file(descriptor.number, size) if size else b"", path)
        # Unless `in_place`, arrays use the mapping only until they are copied.
        self.immutable = in_place
        self._pieces = Pieces(self._file)

    def prefix(self, begin: int, end: int) -> bytes:
        # Through the mapping, the system would read megabytes around a header.
        descriptor = self._file.descriptor() if CAN_READ else None
        if descriptor is not None:
            return _prefix(descriptor, begin, end, self._file)
        data = super().prefix(begin, end)
        self._check()
        return data

    def learn(self, tensors: Iterable[Extent]) -> None:
        self._pieces.learn(tensors)

    def read_into(self, begin: int, dtype: Dtype, window: Window, out: NDArray[Any]) -> None:
        worth = out.nbytes >= _WORTH_A_CALL and CAN_READ and is_one_run(window, out)
        # A system call copies without faulting in the mapping page by page. If the file is closed
        # and its path that of another one by now, only the mapping is left.
        descriptor = self._file.descriptor() if worth else None
        if descriptor is None:
            super().read_into(begin, dtype, window, out)
            return
        self._log(out.nbytes)
        self._pieces.memory(begin, dtype, window)  # A piece is brought in without more.
        _read_runs(descriptor, begin + window.offset * dtype.itemsize, [out], self._file)
        self._check()

    def _memory(self, begin: int, dtype: Dtype, window: Window) -> Buffer:
        piece = self._pieces.memory(begin, dtype, window)
        return self._buffer if piece is None else piece

    def _row_of(self, begin: int, dtype: Dtype, window: Window) -> Callable[[int], NDArray[Any]]:
        usual = strided_array(self._buffer, begin, dtype, window)
        return self._pieces.rows(begin, dtype, window, usual) or usual.__getitem__

    def _check(self) -> None:
        self._file.check()

    def _check_often(self) -> None:
        self._file.check_often()


@final
class FileSource(RequestedFile):
    """A file that is read and never mapped: if a network file is lost, a mapping raises SIGBUS.

    Each read is followed by a check that the file has not been changed since it was opened, and
    raises `ReadError` if it has.
    """

    reach = NEAR

    def __init__(self, path: str) -> None:
        self.name = path
        self._file = LocalFile(path, Descriptor(path))
        self.nbytes = self._file.status.st_size

    def __repr__(self) -> str:
        return f"FileSource({self.name!r})"

    def prefix(self, begin: int, end: int) -> bytes:
        return _prefix(self._descriptor(), begin, end, self._file)

    def _fetch(self, requests: Requests, landing: Landing) -> None:
        descriptor = self._descriptor()
        target = landing.targets[0]
        begins, ends = requests.begins.tolist(), requests.ends.tolist()
        # There may be many, and each has its row.
        rows = len(landing.targets) == 1 and _are_spans(requests, target.spans)

        def read(first: int, last: int) -> None:
            for number in range(first, last):
                begin, end = begins[number], ends[number]
                if rows:
                    _read_runs(descriptor, begin, [target.rows[number]], self._file)
                    continue
                places = landing.places(begin, end, _MOST_PLACES)
                if places is not None:
                    _read_runs(descriptor, begin, places, self._file)
                    continue
                data = np.empty(end - begin, np.uint8)
                _read_runs(descriptor, begin, [data], self._file)
                landing.land(begin, data)

        _in_threads(read, len(begins), requests.nbytes)
        self._file.check()

    def _descriptor(self) -> Descriptor:
        descriptor = self._file.descriptor()
        if descriptor is None:
            raise self._file.replaced()
        return descriptor


def _are_spans(requests: Requests, spans: Spans) -> bool:
    """Whether each of the requests is one of the spans, and nothing else."""
    return not requests.cost.excess and np.array_equal(requests.begins, spans.starts)


_WORTH_A_CALL: Final = 1 << 16
"""Bytes from which a read is worth a system call; less is copied from the mapping."""

_MOST_AT_A_TIME: Final = 1 << 30
"""Most bytes per system call; the system accepts no more than 2 GiB."""


_MOST_PLACES: Final = 64
"""Places that one system call fills; copying is faster where there are more, and they small."""

_THREADS: Final = 4
_WORTH_A_THREAD: Final = 2 << 20
"""Bytes: less is read before another thread has begun."""


def _prefix(descriptor: Descriptor, begin: int, end: int, file: LocalFile) -> bytes:
    """The bytes of the file that are in `[begin, end)`, checked; nothing is read after them."""
    data = np.empty(max(0, min(end, file.status.st_size) - begin), np.uint8)
    if data.nbytes:
        with no_read_ahead(descriptor.number):
            _read_runs(descriptor, begin, [data], file)
    file.check()
    return data.tobytes()


def _read_runs(
    descriptor: Descriptor, begin: int, outs: Sequence[NDArray[Any]], file: LocalFile
) -> None:
    """Fill the arrays, one after the other, with the bytes of the file that start at `begin`."""
    left = deque(out.reshape(-1).view(np.uint8) for out in outs)
    while left:
        parts: list[Any] = list(left)
        if left[0].nbytes > _MOST_AT_A_TIME:
            parts = [left[0][:_MOST_AT_A_TIME]]
        count = os.preadv(descriptor.number, parts, begin)
        if not count:
            raise file.changed(os.fstat(descriptor.number).st_size)
        begin += count
        while left and count >= left[0].nbytes:
            count -= left.popleft().nbytes
        if count:
            left[0] = left[0][count:]


def _in_threads(read: Callable[[int, int], None], count: int, nbytes: int) -> None:
    """Call `read` for all of `range(count)`, in threads where so many bytes are worth it."""
    threads = min(_THREADS, count, nbytes // _WORTH_A_THREAD)
    if threads < 2:
        read(0, count)
        return
    step = -(-count // (threads * 4))
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(read, at, min(at + step, count)) for at in range(0, count, step)]:
            done.result()
