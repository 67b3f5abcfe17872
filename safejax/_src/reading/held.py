"""What a process holds of an array that several processes have together.

Each part of such an array is in one or more processes, its *holders*. In a process that is one
of them, the source of the part is a `HeldSource`, which has the values and knows the holders; in
any other one it is an `AbsentSource`. A source without holders is in every process alike.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, final

from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.concatenation import Concatenation
from safejax._src.reading.pointwise import Pointwise
from safejax._src.reading.requests import Cost
from safejax._src.reading.source import HostArray, Source
from safejax._src.reading.view import Strided, View
from safejax._src.reading.windows import Window


@final
class HeldSource(Source):
    """A source whose bytes the processes `holders`, in rising order, have, and no other ones."""

    def __init__(self, source: Source, holders: tuple[int, ...]) -> None:
        self._source = source
        self._holders = self.holders = holders
        self.name = source.name
        self.immutable = source.immutable
        self.has_values = source.has_values
        self.in_memory = source.in_memory
        self.is_mapped = source.is_mapped
        self.is_barrier = source.is_barrier

    def __repr__(self) -> str:
        return f"HeldSource({self._source!r}, {self.holders!r})"

    @property
    def arrays(self) -> tuple[HostArray, ...]:
        return self._source.arrays

    def with_arrays(self, instead: Callable[[HostArray], HostArray]) -> "HeldSource":
        return HeldSource(self._source.with_arrays(instead), self._holders)

    def cost(self, dtype: Dtype, window: Window) -> Cost:
        return self._source.cost(dtype, window)

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        return self._source.read(begin, dtype, window)

    def read_into(self, begin: int, dtype: Dtype, window: Window, out: NDArray[Any]) -> None:
        self._source.read_into(begin, dtype, window, out)

    def in_place(
        self, begin: int, dtype: Dtype, window: Window, alignment: int
    ) -> NDArray[Any] | None:
        return self._source.in_place(begin, dtype, window, alignment)

    def is_in_place(self, begin: int, dtype: Dtype, window: Window, alignment: int) -> bool:
        return self._source.is_in_place(begin, dtype, window, alignment)

    def rows(
        self, begin: int, dtype: Dtype, window: Window
    ) -> Callable[[int], NDArray[Any]] | None:
        return self._source.rows(begin, dtype, window)

    def kept(self) -> AbstractContextManager[None]:
        return self._source.kept()


def held_by(view: View, holders: tuple[int, ...]) -> View:
    """The view as one that only the processes `holders` have."""
    if isinstance(view, Concatenation):
        return Concatenation(tuple(held_by(part, holders) for part in view.parts), view.axis)
    if isinstance(view, Pointwise):
        return Pointwise(held_by(view.operand, holders), view.function, view.dtype)
    assert isinstance(view, Strided)
    return Strided(HeldSource(view.source, holders), view.begin, view.dtype, view.window)
