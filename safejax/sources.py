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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, final

import jax
import numpy as np
from numpy.typing import NDArray

from safejax.dtypes import Dtype, unpack
from safejax.errors import ReadError
from safejax.windows import Window


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
def observe_reads() -> Iterator[ReadLog]:
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
        return _read_only(_show(self._buffer, begin, dtype, window))


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
        super().__init__(mapping or b"", path)
        self._mapping = mapping

    def prefix(self, begin: int, end: int) -> bytes:
        """The bytes `[begin, end)`, as the header's reader asks for them."""
        return self._buffer[begin:end]

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        size = self._mapping.size()
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
        return _read_only(_show(self._flat, 0, dtype, window))


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
        spans = window.spans()
        pieces: list[NDArray[Any]] = []
        for start in spans.starts.tolist():
            first, end = start // 2, (start + spans.length + 1) // 2
            row = Window(first, (end - first,), (1,))
            whole = unpack(self._packed.read(self._begin, np.dtype(np.uint8), row), dtype)
            pieces.append(whole[start - 2 * first :][: spans.length])
        dense = np.concatenate(pieces).view(np.uint8)
        return _show(dense, 0, dtype, window.compact())


@final
class ComputedSource(Source):
    """What a function gives when it is called, seen as flat: the far side of a barrier.

    Any read of it makes the whole.
    """

    def __init__(self, compute: Callable[[], NDArray[Any]], name: str, stable: bool) -> None:
        self.name = name
        self.stable = stable
        self._compute = compute

    def __repr__(self) -> str:
        return f"ComputedSource({self.name!r})"

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        assert begin == 0
        if window.size == 0:
            return np.empty(window.shape, dtype)
        flat = np.ascontiguousarray(self._compute()).reshape(-1)
        return _show(flat.view(np.uint8), 0, dtype, window)


@final
class AbstractSource(Source):
    """No values at all: the source of a leaf that is a shape and a dtype only."""

    name = "abstract leaf"
    stable = True

    def __repr__(self) -> str:
        return "AbstractSource()"

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        raise ReadError(
            f"expected values, got a leaf that is only abstract, {dtype}{list(window.shape)}: "
            "give an array instead of a jax.ShapeDtypeStruct"
        )


def _show(
    buffer: bytes | mmap.mmap | NDArray[np.uint8], begin: int, dtype: Dtype, window: Window
) -> NDArray[Any]:
    size = dtype.itemsize
    strides = tuple(stride * size for stride in window.strides)
    return np.ndarray(window.shape, dtype, buffer, begin + window.offset * size, strides)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
