"""Sources: where a leaf's values come from.

A source is a flat run of bytes. `read(begin, dtype, window)` returns the elements that the
window shows of a tensor that begins at byte `begin`, and each request is reported to the logs
that are open. This module has the interfaces, of sources and of those that are whole files.
"""

import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.log import Read, open_logs, open_logs_lock
from safejax._src.reading.memory import is_aligned
from safejax._src.reading.requests import FREE, Cost, runs_cost
from safejax._src.reading.windows import Window


class HostArray(Protocol):
    """An array whose values NumPy can have: its own, or one of another library."""

    @property
    def dtype(self) -> Any: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __array__(self) -> NDArray[Any]: ...


@final
class Part(NamedTuple):
    """A part of a source: what `window` shows of the `dtype` tensor that begins at `begin`."""

    begin: int
    dtype: Dtype
    window: Window


class Gathering(Protocol):
    """What gathers parts of sources so as to read them together: a `Batch`."""

    is_dry: bool

    def empty(self, shape: tuple[int, ...], dtype: Dtype) -> NDArray[Any]: ...

    def takes(self, nbytes: int) -> bool: ...

    def add(self, source: "Source", part: Part, out: NDArray[Any]) -> None: ...

    def then(self, task: Callable[[], None], cost: Cost = FREE) -> None: ...


class Source(ABC):
    """A flat run of bytes that leaves show windows of.

    `name` identifies the source in errors and in `repr`. What a source can do is asked of it:

    - `immutable`: nobody changes the bytes, so that an array may go on using them in place.
    - `has_values`: there are values to read.
    - `in_memory`: the bytes have an address in this process before anybody reads them, as those
      of a buffer or a mapped file; nothing is fetched or computed for a read.
    - `is_mapped`: they are pages of a file, which the system brings in when they are touched.
    - `is_barrier`: the whole of an operand is read for any part; `operand` is the view of it.
    - `plans_reads`: what is needed at one time should be read by one `read_many`, which takes as
      few requests as it can.
    - `elsewhere`: some of the values are in other processes only; then `has_values` is false.
    - `holders`: the processes that have the bytes; None if each has them, for itself.
    """

    name: str
    immutable: bool
    has_values: bool = True
    in_memory: bool = False
    is_mapped: bool = False
    is_barrier: bool = False
    plans_reads: bool = False
    operand: object | None = None
    elsewhere: bool = False
    holders: tuple[int, ...] | None = None

    @abstractmethod
    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        """The elements that `window` shows of the `dtype` tensor that begins at byte `begin`.

        The array is read-only where it shares the source's own memory.
        """

    def in_place(
        self, begin: int, dtype: Dtype, window: Window, alignment: int
    ) -> NDArray[Any] | None:
        """The array that `read` returns, if it can be used where it lies; else None, and no read.

        That requires a C-ordered array in memory that begins on a multiple of `alignment` bytes
        and never changes. It is logged as a read.
        """
        del begin, dtype, window, alignment
        return None

    def is_in_place(self, begin: int, dtype: Dtype, window: Window, alignment: int) -> bool:
        """Whether `in_place` returns an array, as far as that is known without a read."""
        del begin, dtype, window, alignment
        return False

    def rows(
        self, begin: int, dtype: Dtype, window: Window
    ) -> Callable[[int], NDArray[Any]] | None:
        """A function that returns row `number >= 0` of what `read` returns, as `read` would.

        None unless the source is in memory. For a loop over rows, this is the fast way.
        """
        del begin, dtype, window
        return None

    @property
    def arrays(self) -> tuple[HostArray, ...]:
        """The arrays that the values are taken from, which their owners may change or delete."""
        return ()

    def with_arrays(self, instead: Callable[[HostArray], HostArray]) -> "Source":
        """The source that takes its values from `instead(array)` for each of its `arrays`."""
        del instead
        return self

    def kept(self) -> AbstractContextManager[None]:
        """A block in which the operand of a barrier is read once, however many parts are read."""
        return nullcontext()

    def read_into(self, begin: int, dtype: Dtype, window: Window, out: NDArray[Any]) -> None:
        """Copy what `read` returns into `out`, an array of the same shape and dtype."""
        np.copyto(out, self.read(begin, dtype, window))

    def read_many(self, reads: Sequence[tuple[Part, NDArray[Any]]]) -> None:
        """Copy what `read` returns for each part into the array that is with it."""
        for part, out in reads:
            self.read_into(*part, out)

    def begin_many(self, reads: Sequence[tuple[Part, NDArray[Any]]], batch: Gathering) -> bool:
        """Have `batch` read what the parts need of another source, and do the rest after that.

        False if the source reads by itself: then nothing is done here.
        """
        del reads, batch
        return False

    def place_of(self, byte: int) -> "tuple[Source, int]":
        """The source that a byte is requested of, and where it is there."""
        return self, byte

    def cost(self, dtype: Dtype, window: Window) -> Cost:
        """What a read of `window` requests of files."""
        return runs_cost(dtype, window)

    def cost_of_many(self, parts: Sequence[Part]) -> Cost:
        """What `read_many` requests of files for these parts."""
        total = FREE
        for _, dtype, window in parts:
            total += self.cost(dtype, window)
        return total

    def _log_all(self, sizes: Sequence[int]) -> None:
        """Log requests of so many bytes each."""
        if open_logs:
            with open_logs_lock:
                for log in open_logs:
                    log.reads.extend(Read(self.name, nbytes) for nbytes in sizes)

    def _log(self, nbytes: int) -> None:
        if open_logs:
            with open_logs_lock:
                for log in open_logs:
                    log.reads.append(Read(self.name, nbytes))

    def _log_excess(self, nbytes: int) -> None:
        """Log that `nbytes` of the reads were requested without being needed."""
        if open_logs:
            with open_logs_lock:
                for log in open_logs:
                    log.excess += nbytes


class Extent(Protocol):
    """A tensor's part of a file, `[begin, end)`."""

    @property
    def begin(self) -> int: ...

    @property
    def end(self) -> int: ...


class File(Source):
    """A source that holds a whole file: its size is known, and so is where its header is."""

    nbytes: int

    def learn(self, tensors: Iterable[Extent]) -> None:
        """Learn where the tensors of the file are: a part of one may be read otherwise than all."""
        del tensors

    @abstractmethod
    def prefix(self, begin: int, end: int) -> bytes:
        """The bytes `[begin, end)`, for the header's reader; they are not logged."""

    def inside(self, begin: int, end: int) -> bytes:
        """Like `prefix`, where headers are anywhere in the file."""
        return self.prefix(begin, end)


def strided_array(
    buffer: bytes | mmap.mmap | NDArray[np.uint8], begin: int, dtype: Dtype, window: Window
) -> NDArray[Any]:
    """The elements that `window` shows of the tensor that begins at byte `begin` of `buffer`."""
    size = dtype.itemsize
    strides = [stride * size for stride in window.strides]
    return np.ndarray(window.shape, dtype, buffer, begin + window.offset * size, strides)


def usable_in_place(array: NDArray[Any], alignment: int) -> NDArray[Any] | None:
    """The array, read-only, if it is C-ordered and begins on `alignment` bytes; else None."""
    return read_only(array) if is_aligned(array, alignment) else None


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
