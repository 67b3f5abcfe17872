"""Views: the values of a leaf on the host, read only on request and only as far as requested.

A view is one of three: a **strided** window on a flat source, a **concatenation** of views
along an axis, or a **pointwise** function of a view. Indexing, transposing, expanding and
copy-free reshapes are pushed down to the operands at once, so a view of a view is still one
of the three, and reading a part requests only that part's bytes. A reshape that no window can
express is a barrier: any part of it reads the whole operand. Here are interface and strided view.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.batch import Batch
from safejax._src.reading.bools import proper_bools
from safejax._src.reading.computed import barrier
from safejax._src.reading.requests import Cost
from safejax._src.reading.source import HostArray, Part, Source
from safejax._src.reading.windows import BasicIndex, Window


class View(ABC):
    """An array with a shape and a dtype, whose values are read only on request."""

    __slots__ = ()

    dtype: Dtype

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that `read` returns."""

    @property
    def size(self) -> int:
        """The number of elements that the view shows."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size in bytes of the array that `read` returns."""
        return self.size * self.dtype.itemsize

    @property
    @abstractmethod
    def sources(self) -> tuple[Source, ...]:
        """The sources that `read` requests bytes from."""

    @property
    def immutable(self) -> bool:
        """Whether nobody changes the bytes that are used in place."""
        return all(source.immutable for source in self.sources)

    @property
    def has_values(self) -> bool:
        """Whether there are values to read."""
        return all(source.has_values for source in self.sources)

    @property
    def elsewhere(self) -> bool:
        """Whether some of the values are in other processes only."""
        return any(source.elsewhere for source in self.sources)

    @property
    def is_mapped(self) -> bool:
        """Whether some of the values are pages of a file, brought in when they are touched."""
        return any(source.is_mapped for source in self.sources)

    @property
    def has_barrier(self) -> bool:
        """Whether the whole of an operand is read for some of the elements."""
        return any(source.is_barrier for source in self.sources)

    @property
    def is_window(self) -> bool:
        """Whether the view is one window on one source, so that each row is one as well."""
        return False

    @property
    def in_memory(self) -> bool:
        """Whether the view is a window on memory: nothing is fetched or computed for a read."""
        return False

    @property
    def arrays(self) -> tuple[HostArray, ...]:
        """The arrays that the values are taken from, which their owners may change or delete."""
        return tuple(array for source in self.sources for array in source.arrays)

    @abstractmethod
    def with_arrays(self, instead: Callable[[HostArray], HostArray]) -> "View":
        """The view that takes its values from `instead(array)` for each of its `arrays`."""

    @abstractmethod
    def cost(self) -> Cost:
        """What `read` requests of files."""

    @abstractmethod
    def index(self, index: tuple[BasicIndex, ...]) -> "View":
        """The view of `array[index]`: ints in range, slices, at most one Ellipsis."""

    def row(self, number: int) -> "View":
        """The view of `array[number]` for `number >= 0`."""
        return self.index((number,))

    @abstractmethod
    def transpose(self, axes: tuple[int, ...]) -> "View":
        """The view of `array.transpose(axes)`, for a permutation of all axes."""

    @abstractmethod
    def expand(self, axis: int) -> "View":
        """The view with a new axis of size 1 at `axis`, in `range(ndim + 1)`."""

    @abstractmethod
    def reshape_in_place(self, shape: tuple[int, ...]) -> "View | None":
        """The view of `array.reshape(shape)` if no copy is needed, else None."""

    @abstractmethod
    def read(self) -> NDArray[Any]:
        """The values; read-only where the array shares a source's own memory."""

    def in_place(self, alignment: int) -> NDArray[Any] | None:
        """The array that `read` returns, if it can be used where it lies; else None, and no read.

        That requires a C-ordered array in memory that begins on a multiple of `alignment` bytes
        and never changes. It is logged as a read.
        """
        del alignment
        return None

    def is_in_place(self, alignment: int) -> bool:
        """Whether `in_place` returns an array, as far as that is known without a read."""
        del alignment
        return False

    def rows(self) -> Callable[[int], NDArray[Any]] | None:
        """A function that returns row `number >= 0` as `read` would: the fast way, for a loop.

        None unless the rows are in memory already, and have one axis or more.
        """
        return None

    def read_into(self, out: NDArray[Any]) -> None:
        """Copy what `read` returns into `out`, an array of the same shape and dtype."""
        np.copyto(out, self.read())

    @property
    def plans_reads(self) -> bool:
        """Whether what is needed at one time should be read together, by a batch."""
        return any(source.plans_reads for source in self.sources)

    def read_in_batch(self, out: NDArray[Any], batch: Batch) -> None:
        """Have `batch` copy what `read` returns into `out`, an array of the same shape and dtype.

        Here it is read after what is read together.
        """
        batch.then(lambda: self.read_into(out), self.cost())

    def reshape(self, shape: tuple[int, ...]) -> "View":
        """The view of `array.reshape(shape)`: without a copy, or behind a barrier."""
        if Window.whole(shape).size != self.size:
            raise ValueError(f"cannot reshape {list(self.shape)} to {list(shape)}")
        in_place = self.reshape_in_place(shape)
        if in_place is not None:
            return in_place
        name = " and ".join(source.name for source in self.sources)
        source = barrier(self, f"reshaped {name}")
        return Strided(source, 0, self.dtype, Window.whole(shape))

    @contextmanager
    def kept(self) -> Generator[None]:
        """Inside the block, a barrier's operand is read once, however many parts are read."""
        with ExitStack() as stack:
            for source in self.sources:
                stack.enter_context(source.kept())
            yield

    def blocks(self, nbytes: int) -> Iterator["View"]:
        """Views of at most about `nbytes` each that together make up this one, in C order.

        Read each view before requesting the next: a barrier's operand is then read once.
        """
        if self.nbytes <= nbytes or self.size <= 1:
            yield self
            return
        axis = next(axis for axis, size in enumerate(self.shape) if size > 1)
        rows = max(1, nbytes // (self.nbytes // self.shape[axis]))
        lead = (0,) * axis
        kept = ExitStack()
        try:
            for begin in range(0, self.shape[axis], rows):
                part = self.index((*lead, slice(begin, begin + rows)))
                # Each part takes over what the last one kept, which ends when no part needs it.
                following = ExitStack()
                following.enter_context(part.kept())
                kept.close()
                kept = following
                yield from part.blocks(nbytes)
        finally:
            kept.close()


@final
@dataclass(frozen=True, slots=True)
class Strided(View):
    """A strided window on the tensor of `dtype` that begins at byte `begin` of `source`."""

    source: Source
    begin: int
    dtype: Dtype
    window: Window

    @property
    def shape(self) -> tuple[int, ...]:
        return self.window.shape

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.source,)

    @property
    def has_values(self) -> bool:
        return self.source.has_values

    @property
    def is_mapped(self) -> bool:
        return self.source.is_mapped

    @property
    def plans_reads(self) -> bool:
        return self.source.plans_reads

    @property
    def is_window(self) -> bool:
        return True

    @property
    def in_memory(self) -> bool:
        return self.source.in_memory

    def with_arrays(self, instead: Callable[[HostArray], HostArray]) -> "Strided":
        return Strided(self.source.with_arrays(instead), self.begin, self.dtype, self.window)

    def cost(self) -> Cost:
        return self.source.cost(self.dtype, self.window)

    def index(self, index: tuple[BasicIndex, ...]) -> "Strided":
        return self._show(self.window.index(index))

    def row(self, number: int) -> "Strided":
        return self._show(self.window.row(number))

    def transpose(self, axes: tuple[int, ...]) -> View:
        return self._show(self.window.transpose(axes))

    def expand(self, axis: int) -> View:
        return self._show(self.window.expand(axis))

    def reshape_in_place(self, shape: tuple[int, ...]) -> View | None:
        window = self.window.reshape(shape)
        return None if window is None else self._show(window)

    def read(self) -> NDArray[Any]:
        read = self.source.read(self.begin, self.dtype, self.window)
        return proper_bools(read) if self.dtype.kind == "b" else read

    def is_in_place(self, alignment: int) -> bool:
        return self.source.is_in_place(self.begin, self.dtype, self.window, alignment)

    def in_place(self, alignment: int) -> NDArray[Any] | None:
        array = self.source.in_place(self.begin, self.dtype, self.window, alignment)
        if array is not None and self.dtype.kind == "b" and proper_bools(array) is not array:
            return None
        return array

    def rows(self) -> Callable[[int], NDArray[Any]] | None:
        # The bytes of bools may be invalid, and NumPy returns scalars for the rows of one axis.
        if self.dtype.kind == "b" or len(self.shape) < 2 or not self.size:
            return None
        return self.source.rows(self.begin, self.dtype, self.window)

    def read_into(self, out: NDArray[Any]) -> None:
        self.source.read_into(self.begin, self.dtype, self.window, out)
        if self.dtype.kind == "b":
            np.copyto(out, proper_bools(out))

    def read_in_batch(self, out: NDArray[Any], batch: Batch) -> None:
        if self.dtype.kind == "b":
            batch.then(lambda: np.copyto(out, proper_bools(out)))
        batch.add(self.source, Part(self.begin, self.dtype, self.window), out)

    def _show(self, window: Window) -> "Strided":
        return Strided(self.source, self.begin, self.dtype, window)
