"""Sources: where a leaf's values come from, and a log of the bytes requested from them.

A source is a flat run of bytes. `read(begin, dtype, window)` returns the elements that the
window shows of a tensor that begins at byte `begin`. "Bytes read" always means bytes requested
here: of a mapped file, the operating system faults in whole pages when the values are first
touched.
"""

import mmap
import os
import stat
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, final

import jax
import numpy as np
from numpy.typing import NDArray

from safejax.dtypes import Dtype, unpack
from safejax.errors import ReadError
from safejax.memory import address, is_aligned
from safejax.windows import Spans, Window


@final
class Read(NamedTuple):
    """One request: the name of a source, and the number of bytes requested from it."""

    source: str
    nbytes: int


@final
@dataclass(slots=True)
class ReadLog:
    """The requests made while the log was open, in order."""

    reads: list[Read] = field(default_factory=list[Read])

    @property
    def nbytes(self) -> int:
        """Total bytes requested so far."""
        return sum(read.nbytes for read in self.reads)

    def clear(self) -> None:
        """Discard the requests recorded so far."""
        self.reads.clear()


_open_logs: Final[list[ReadLog]] = []
_open_logs_lock: Final = threading.Lock()


@contextmanager
def observe_reads() -> Generator[ReadLog]:
    """Log every request for leaf data that any thread of this process makes inside the block.

    >>> import safejax, jax.numpy as jnp
    >>> tree = safejax.deserialize(safejax.serialize({"w": jnp.ones((4, 2))}))
    >>> with safejax.observe_reads() as log:
    ...     shape, before = tree["w"].shape, log.nbytes
    ...     row = tree["w"][0] + 1
    >>> before, log.nbytes
    (0, 8)
    """
    log = ReadLog()
    with _open_logs_lock:
        _open_logs.append(log)
    try:
        yield log
    finally:
        with _open_logs_lock:
            # Compare by identity: two open logs may be equal.
            _open_logs[:] = [other for other in _open_logs if other is not log]


class Source(ABC):
    """A flat run of bytes that leaves show windows of.

    `name` identifies the source in errors and in `repr`. `stable` is true if nobody changes the
    bytes, so that an array may go on using them in place.
    """

    name: str
    stable: bool

    @abstractmethod
    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        """The elements that `window` shows of the `dtype` tensor that begins at byte `begin`.

        The array is read-only where it shares the source's own memory.
        """

    def look(self, begin: int, dtype: Dtype, window: Window, alignment: int) -> NDArray[Any] | None:
        """What `read` returns if it is usable without a copy; else None, and nothing is read.

        That requires a C-ordered array in memory that begins on a multiple of `alignment` bytes
        and never changes.
        """
        array = self.peek(begin, dtype, window, alignment)
        if array is not None:
            self._log(array.nbytes)
        return array

    def peek(self, begin: int, dtype: Dtype, window: Window, alignment: int) -> NDArray[Any] | None:
        """What `look` returns, but not logged: for callers that log their reads or read nothing."""
        del begin, dtype, window, alignment
        return None

    def read_into(self, begin: int, dtype: Dtype, window: Window, out: NDArray[Any]) -> None:
        """Copy what `read` returns into `out`, an array of the same shape and dtype."""
        np.copyto(out, self.read(begin, dtype, window))

    def cost(self, dtype: Dtype, window: Window) -> tuple[int, int]:
        """The bytes of files that a read of `window` requests, and the number of their runs."""
        if window.size == 0:
            return 0, 0
        firsts, _ = window.runs()
        return window.distinct * dtype.itemsize, firsts.size

    def _log(self, nbytes: int) -> None:
        if _open_logs:
            with _open_logs_lock:
                for log in _open_logs:
                    log.reads.append(Read(self.name, nbytes))


class BufferSource(Source):
    """Bytes in memory that are read in place."""

    stable = True

    def __init__(self, buffer: bytes | mmap.mmap | NDArray[np.uint8], name: str) -> None:
        self.name = name
        if isinstance(buffer, np.ndarray):
            buffer = _read_only(buffer.view())
        # The buffer is read-only, and so are the arrays that share its memory.
        self._buffer = buffer
        self._address = address(np.frombuffer(buffer, np.uint8)) if len(buffer) else 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        if window.size == 0:
            return np.empty(window.shape, dtype)
        self._check()
        if _open_logs:
            self._log(window.distinct * dtype.itemsize)
        return self.show(begin, dtype, window)

    def show(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        """The array that `read` returns, not logged: callers log each use of it with `asked`."""
        return show(self._buffer, begin, dtype, window)

    def asked(self, nbytes: int) -> None:
        """Log a read of `nbytes` bytes that a caller is about to take from an array of `show`."""
        self._check()
        self._log(nbytes)

    def look(self, begin: int, dtype: Dtype, window: Window, alignment: int) -> NDArray[Any] | None:
        self._check()
        return super().look(begin, dtype, window, alignment)

    def peek(self, begin: int, dtype: Dtype, window: Window, alignment: int) -> NDArray[Any] | None:
        first = self._address + begin + window.offset * dtype.itemsize
        if first % alignment or window.size == 0 or not self.stable:
            return None
        array = show(self._buffer, begin, dtype, window)
        return array if array.flags.c_contiguous else None

    def _check(self) -> None:
        """Raise `ReadError` if the bytes are no longer there."""


@final
class MappedSource(BufferSource):
    """A file mapped into memory, and read in place or, unless `in_place`, copied from there.

    The mapping lives as long as a leaf, or an array placed without a copy, uses it. Each read
    first checks the file's size and raises `ReadError` if the file was truncated since it was
    opened. If it is truncated later, while an array uses it in place, touching the lost part
    ends the process with SIGBUS. `save` never truncates a file: it writes a new one.
    """

    def __init__(self, path: str, *, in_place: bool = True) -> None:
        with open(path, "rb") as file:
            self._status = os.fstat(file.fileno())
            self.nbytes = self._status.st_size
            # An empty file cannot be mapped; the header's reader reports what is missing.
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.nbytes else None
        super().__init__(b"" if mapping is None else mapping, path)
        self._mapping = mapping
        # Unless `in_place`, arrays use the mapping only until they are copied.
        self.stable = in_place

    def prefix(self, begin: int, end: int) -> bytes:
        """The bytes `[begin, end)`, for the header's reader."""
        return b"" if self._mapping is None else self._mapping[begin:end]

    def read_into(self, begin: int, dtype: Dtype, window: Window, out: NDArray[Any]) -> None:
        if out.nbytes < _WORTH_A_CALL or not CAN_READ or not _is_one_run(window, out):
            super().read_into(begin, dtype, window, out)
            return
        # A system call copies without faulting in the mapping page by page. No descriptor is kept
        # open for it, so the path may be that of another file by now.
        try:
            descriptor = os.open(self.name, os.O_RDONLY)
        except OSError:
            super().read_into(begin, dtype, window, out)
            return
        try:
            if not os.path.samestat(os.fstat(descriptor), self._status):
                super().read_into(begin, dtype, window, out)
                return
            self._log(out.nbytes)
            _read_run(descriptor, begin + window.offset * dtype.itemsize, out, self)
        finally:
            os.close(descriptor)

    def _check(self) -> None:
        size = 0 if self._mapping is None else self._mapping.size()
        if size < self.nbytes:
            raise _cut_short(self, size)


@final
class FileSource(Source):
    """A file that is read and never mapped: if a network file is lost, a mapping raises SIGBUS."""

    stable = True

    def __init__(self, path: str) -> None:
        self.name = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(f"{path}: expected a safetensors file, got a folder")
        self.nbytes = status.st_size

    def __repr__(self) -> str:
        return f"FileSource({self.name!r})"

    def prefix(self, begin: int, end: int) -> bytes:
        """The bytes `[begin, end)`, for the header's reader."""
        data = np.empty(end - begin, np.uint8)
        _read_run(self._descriptor, begin, data, self)
        return data.tobytes()

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        if window.size == 0:
            return np.empty(window.shape, dtype)
        spans = window.spans()
        self._log(spans.count * dtype.itemsize)
        dense = np.empty((len(spans.starts), spans.length * dtype.itemsize), np.uint8)
        starts = (begin + spans.starts * dtype.itemsize).tolist()
        for start, row in zip(starts, dense, strict=True):
            _read_run(self._descriptor, start, row, self)
        return show(dense.reshape(-1), 0, dtype, window.compact())

    def read_into(self, begin: int, dtype: Dtype, window: Window, out: NDArray[Any]) -> None:
        if not _is_one_run(window, out):
            super().read_into(begin, dtype, window, out)
            return
        self._log(out.nbytes)
        _read_run(self._descriptor, begin + window.offset * dtype.itemsize, out, self)


@final
class ArraySource(Source):
    """A NumPy or JAX array in memory, as flat bytes in C order.

    Nothing is fetched from a device before the first read. A NumPy array may be changed by its
    owner, so it is not stable.
    """

    name = "array in memory"

    def __init__(self, array: NDArray[Any] | jax.Array) -> None:
        self._array = array
        self._flat: NDArray[np.uint8] | None = None
        self.stable = isinstance(array, jax.Array)

    def __repr__(self) -> str:
        return f"ArraySource({self._array.dtype}{list(self._array.shape)})"

    def cost(self, dtype: Dtype, window: Window) -> tuple[int, int]:
        del dtype, window
        return 0, 0

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        assert begin == 0
        if window.size == 0:
            return np.empty(window.shape, dtype)
        self._log(window.distinct * dtype.itemsize)
        return _read_only(show(self._bytes(), 0, dtype, window))

    def look(self, begin: int, dtype: Dtype, window: Window, alignment: int) -> NDArray[Any] | None:
        assert begin == 0
        if window.size == 0 or not self.stable:
            return None
        array = usable_in_place(show(self._bytes(), 0, dtype, window), alignment)
        if array is not None:
            self._log(array.nbytes)
        return array

    def _bytes(self) -> NDArray[np.uint8]:
        if self._flat is None:
            host = np.asarray(self._array)
            native = host.astype(host.dtype.newbyteorder("="), copy=False)
            self._flat = np.ascontiguousarray(native).reshape(-1).view(np.uint8)
        return self._flat


@final
class PackedSource(Source):
    """A tensor of 4-bit elements, stored two per byte, shown as one element per byte."""

    def __init__(self, packed: Source, begin: int) -> None:
        self.name = packed.name
        self.stable = True
        self._packed = packed
        self._begin = begin

    def __repr__(self) -> str:
        return f"PackedSource({self._packed!r})"

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        assert begin == 0
        if window.size == 0:
            return np.empty(window.shape, dtype)
        firsts, length = window.runs()
        if _all_even(firsts):
            halves = self._even(firsts, length)
        else:
            halves = self._scattered(window.spans())
        return show(np.ascontiguousarray(halves), 0, dtype, window.compact())

    def cost(self, dtype: Dtype, window: Window) -> tuple[int, int]:
        del dtype
        if window.size == 0:
            return 0, 0
        firsts, length = window.runs()
        if _all_even(firsts):
            rows = [_packed_rows(firsts, length)]
        else:
            rows, _, _ = _packed_runs(window.spans())
        costs = [self._packed.cost(np.dtype(np.uint8), row) for row in rows]
        return sum(nbytes for nbytes, _ in costs), sum(runs for _, runs in costs)

    def _even(self, firsts: Window, length: int) -> NDArray[np.uint8]:
        """The elements of runs that all begin in the same half of a byte, from one read."""
        odd = firsts.offset % 2
        rows = _packed_rows(firsts, length)
        packed = np.ascontiguousarray(self._bytes(rows)).reshape(-1)
        return unpack(packed).reshape(-1, 2 * rows.shape[-1])[:, odd : odd + length].reshape(-1)

    def _scattered(self, spans: Spans) -> NDArray[np.uint8]:
        """The elements of arbitrary runs; runs whose bytes touch are read as one."""
        runs, begins, leads = _packed_runs(spans)
        rows = [self._bytes(run) for run in runs]
        # How many bytes each read moves towards the front when the reads are concatenated.
        sizes = [row.size for row in rows]
        moved = begins - np.concatenate([[0], np.cumsum(sizes)[:-1]])
        starts = spans.starts - 2 * moved[np.cumsum(leads) - 1]
        places = starts[:, None] + np.arange(spans.length)
        return unpack(np.concatenate(rows))[places.reshape(-1)]

    def _bytes(self, window: Window) -> NDArray[np.uint8]:
        return self._packed.read(self._begin, np.dtype(np.uint8), window)


def _all_even(firsts: Window) -> bool:
    """Whether all runs begin in the same half of a byte."""
    return all(stride % 2 == 0 for stride in firsts.strides)


def _packed_rows(firsts: Window, length: int) -> Window:
    """The bytes of runs that all begin in the same half of a byte, one row per run."""
    width = (firsts.offset % 2 + length + 1) // 2
    strides = tuple(stride // 2 for stride in firsts.strides)
    return Window(firsts.offset // 2, (*firsts.shape, width), (*strides, 1))


def _packed_runs(
    spans: Spans,
) -> tuple[list[Window], NDArray[np.int64], NDArray[np.bool_]]:
    """The bytes of any runs, merged where they touch; where each begins; which runs start one."""
    begins, ends = spans.starts // 2, (spans.starts + spans.length + 1) // 2
    leads = np.concatenate([[True], begins[1:] > ends[:-1]])
    begins, ends = begins[leads], ends[np.roll(leads, -1)]
    rows = [
        Window(begin, (end - begin,), (1,))
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
    ]
    return rows, begins, leads


@final
class ComputedSource(Source):
    """The flat result of a function that is called when it is read: the far side of a barrier.

    Any read computes the whole result, unless an earlier one is `kept`. `operand` is the view
    that the function reads, for callers that want to know its cost.
    """

    def __init__(
        self,
        compute: Callable[[], NDArray[Any]],
        name: str,
        stable: bool,
        operand: object = None,
    ) -> None:
        self.name = name
        self.operand = operand
        self.stable = stable
        self._compute = compute
        self._lock = threading.Lock()
        self._keepers = 0
        self._made: NDArray[np.uint8] | None = None

    def __repr__(self) -> str:
        return f"ComputedSource({self.name!r})"

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        assert begin == 0
        if window.size == 0:
            return np.empty(window.shape, dtype)
        return show(self._flat(), 0, dtype, window)

    @contextmanager
    def kept(self) -> Generator[None]:
        """Inside the block, the function's first result is kept for the reads that follow."""
        with self._lock:
            self._keepers += 1
        try:
            yield
        finally:
            with self._lock:
                self._keepers -= 1
                if not self._keepers:
                    self._made = None

    def _flat(self) -> NDArray[np.uint8]:
        if not self._keepers:
            return self._make()
        with self._lock:
            if self._made is None:
                self._made = _read_only(self._make())
            return self._made

    def _make(self) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self._compute()).reshape(-1).view(np.uint8)


@final
class AbstractSource(Source):
    """A source without values, for a leaf that is only a shape and a dtype."""

    name = "abstract leaf"
    stable = True

    def __repr__(self) -> str:
        return "AbstractSource()"

    def cost(self, dtype: Dtype, window: Window) -> tuple[int, int]:
        del dtype, window
        return 0, 0

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        del begin
        raise ReadError(
            f"expected values, got a leaf that is only abstract, {dtype}{list(window.shape)}: "
            "give an array instead of a jax.ShapeDtypeStruct"
        )


def show(
    buffer: bytes | mmap.mmap | NDArray[np.uint8], begin: int, dtype: Dtype, window: Window
) -> NDArray[Any]:
    """The elements that `window` shows of the tensor that begins at byte `begin` of `buffer`."""
    size = dtype.itemsize
    strides = [stride * size for stride in window.strides]
    return np.ndarray(window.shape, dtype, buffer, begin + window.offset * size, strides)


def usable_in_place(array: NDArray[Any], alignment: int) -> NDArray[Any] | None:
    """The array, read-only, if it is C-ordered and begins on `alignment` bytes; else None."""
    return _read_only(array) if is_aligned(array, alignment) else None


def _is_one_run(window: Window, out: NDArray[Any]) -> bool:
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


CAN_READ: Final = hasattr(os, "preadv")
"""Whether the system can read at an offset into existing memory; Windows cannot."""

_WORTH_A_CALL: Final = 1 << 16
"""Bytes from which a read is worth a system call; less is copied from the mapping."""

_MOST_AT_A_TIME: Final = 1 << 30
"""Most bytes per system call; the system accepts no more than 2 GiB."""


def _read_run(
    descriptor: int, begin: int, out: NDArray[Any], source: "MappedSource | FileSource"
) -> None:
    """Fill `out` with the bytes of the file that start at `begin`."""
    flat = out.reshape(-1).view(np.uint8)
    done = 0
    while done < flat.nbytes:
        part = flat[done : done + _MOST_AT_A_TIME]
        count = os.preadv(descriptor, [part.data], begin + done)
        if not count:
            raise _cut_short(source, os.fstat(descriptor).st_size)
        done += count


def _cut_short(source: "MappedSource | FileSource", size: int) -> ReadError:
    return ReadError(
        f"{source.name}: expected the {source.nbytes} bytes that the file had when it was "
        f"opened, got {size}: it was cut short since; load it again"
    )


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
