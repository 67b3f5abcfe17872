"""Sources: where a leaf's values come from, and the count of what was asked of them.

A source is a flat run of bytes. It answers `read(begin, dtype, window)` with the elements
that the window shows of a tensor that begins at byte `begin`. "Bytes read" always means bytes
requested here: of a mapped file the operating system faults in whole pages, when the values
are first touched.
"""

import mmap
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, final

import jax
import numpy as np
from numpy.typing import NDArray

from safejax.dtypes import Dtype, unpack
from safejax.errors import ReadError
from safejax.windows import Spans, Window


@final
@dataclass(frozen=True, slots=True)
class Read:
    """One request: how many bytes were asked of which source."""

    source: str
    nbytes: int


@final
@dataclass(slots=True)
class ReadLog:
    """The requests that were made while the log was open, in order."""

    reads: list[Read] = field(default_factory=list[Read])

    @property
    def nbytes(self) -> int:
        """Bytes requested so far, in all."""
        return sum(read.nbytes for read in self.reads)

    def clear(self) -> None:
        """Forget what was read so far."""
        self.reads.clear()


_open_logs: Final[list[ReadLog]] = []
_open_logs_lock: Final = threading.Lock()


@contextmanager
def observe_reads() -> Generator[ReadLog]:
    """Log every request for leaf data in this process, of whatever thread, inside the block.

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
            # By identity: two open logs may be equal.
            _open_logs[:] = [other for other in _open_logs if other is not log]


class Source(ABC):
    """A flat run of bytes that leaves show windows of.

    `name` is what errors and `repr` call it. `stable` says that nobody changes the bytes, so
    that an array may keep looking at them in place.
    """

    name: str
    stable: bool

    @abstractmethod
    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        """The elements that `window` shows of the `dtype` tensor that begins at byte `begin`.

        Read-only where the array looks at the source's own memory.
        """

    def _log(self, nbytes: int) -> None:
        if _open_logs:
            with _open_logs_lock:
                for log in _open_logs:
                    log.reads.append(Read(self.name, nbytes))


class BufferSource(Source):
    """Bytes in memory, read in place."""

    stable = True

    def __init__(self, buffer: bytes | mmap.mmap | NDArray[np.uint8], name: str) -> None:
        self.name = name
        self._buffer = buffer

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        if window.size == 0:
            return np.empty(window.shape, dtype)
        self._log(window.distinct * dtype.itemsize)
        return _read_only(show(self._buffer, begin, dtype, window))


@final
class MappedSource(BufferSource):
    """A file mapped into memory, read in place.

    The mapping lives as long as a leaf, or an array placed without a copy, looks at it. A
    file that was cut short since is told by its size before each read, and is a `ReadError`;
    one that is cut short afterwards, while an array looks at it in place, ends the process
    with SIGBUS when the lost part is touched. `save` never does that: it writes a new file.
    """

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self.nbytes = os.fstat(file.fileno()).st_size
            # What is empty cannot be mapped; the header's reader says what it lacks.
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.nbytes else None
        super().__init__(b"" if mapping is None else mapping, path)
        self._mapping = mapping

    def prefix(self, begin: int, end: int) -> bytes:
        """The bytes `[begin, end)`, as the header's reader asks for them."""
        return b"" if self._mapping is None else self._mapping[begin:end]

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        size = 0 if self._mapping is None else self._mapping.size()
        if size < self.nbytes:
            raise ReadError(
                f"{self.name}: expected the {self.nbytes} bytes that the file had when it was "
                f"opened, got {size}: it was cut short since; load it again"
            )
        return super().read(begin, dtype, window)


@final
class ArraySource(Source):
    """An array in memory, NumPy's or JAX's, seen as flat and C-ordered.

    Nothing is fetched from a device before the first read. A NumPy array may change under us,
    so it is not stable.
    """

    name = "array in memory"

    def __init__(self, array: NDArray[Any] | jax.Array) -> None:
        self._array = array
        self._flat: NDArray[np.uint8] | None = None
        self.stable = isinstance(array, jax.Array)

    def __repr__(self) -> str:
        return f"ArraySource({self._array.dtype}{list(self._array.shape)})"

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        assert begin == 0
        if window.size == 0:
            return np.empty(window.shape, dtype)
        self._log(window.distinct * dtype.itemsize)
        if self._flat is None:
            host = np.asarray(self._array)
            native = host.astype(host.dtype.newbyteorder("="), copy=False)
            self._flat = np.ascontiguousarray(native).reshape(-1).view(np.uint8)
        return _read_only(show(self._flat, 0, dtype, window))


@final
class PackedSource(Source):
    """A tensor of 4-bit elements, two a byte, seen as one element a byte."""

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
        if all(stride % 2 == 0 for stride in firsts.strides):
            halves = self._even(firsts, length)
        else:
            halves = self._scattered(window.spans())
        return show(np.ascontiguousarray(halves), 0, dtype, window.compact())

    def _even(self, firsts: Window, length: int) -> NDArray[np.uint8]:
        """The elements of runs that all begin in the same half of a byte, in one read."""
        odd = firsts.offset % 2
        width = (odd + length + 1) // 2
        strides = tuple(stride // 2 for stride in firsts.strides)
        rows = Window(firsts.offset // 2, (*firsts.shape, width), (*strides, 1))
        packed = np.ascontiguousarray(self._bytes(rows)).reshape(-1)
        return unpack(packed).reshape(-1, 2 * width)[:, odd : odd + length].reshape(-1)

    def _scattered(self, spans: Spans) -> NDArray[np.uint8]:
        """The elements of any runs; runs whose bytes touch are read as one."""
        begins, ends = spans.starts // 2, (spans.starts + spans.length + 1) // 2
        leads = np.concatenate([[True], begins[1:] > ends[:-1]])
        begins, ends = begins[leads], ends[np.roll(leads, -1)]
        rows = [
            self._bytes(Window(begin, (end - begin,), (1,)))
            for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
        ]
        # How far the elements of each read have moved up, where the reads lie side by side.
        moved = begins - np.concatenate([[0], np.cumsum(ends - begins)[:-1]])
        starts = spans.starts - 2 * moved[np.cumsum(leads) - 1]
        places = starts[:, None] + np.arange(spans.length)
        return unpack(np.concatenate(rows))[places.reshape(-1)]

    def _bytes(self, window: Window) -> NDArray[np.uint8]:
        return self._packed.read(self._begin, np.dtype(np.uint8), window)


@final
class ComputedSource(Source):
    """What a function gives when it is called, seen as flat: the far side of a barrier.

    Any read of it makes the whole, unless it was made before and is `kept`.
    """

    def __init__(self, compute: Callable[[], NDArray[Any]], name: str, stable: bool) -> None:
        self.name = name
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
        """Inside the block, what the function gave first is kept for the reads that follow."""
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
    """No values at all: the source of a leaf that is a shape and a dtype only."""

    name = "abstract leaf"
    stable = True

    def __repr__(self) -> str:
        return "AbstractSource()"

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
    strides = tuple(stride * size for stride in window.strides)
    return np.ndarray(window.shape, dtype, buffer, begin + window.offset * size, strides)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
