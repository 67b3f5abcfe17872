"""Pointwise views: a function of each element of a view, such as a cast to another dtype."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.batch import Batch
from safejax._src.reading.requests import Cost
from safejax._src.reading.source import HostArray, Source
from safejax._src.reading.view import View
from safejax._src.reading.windows import BasicIndex


class BlockFunction(ABC):
    """A function of each element of an array, called with blocks of a view; it keeps the shape."""

    __slots__ = ()

    @abstractmethod
    def __call__(self, array: NDArray[Any]) -> NDArray[Any]:
        """The results for the elements of `array`, which is not changed."""

    def into(self, array: NDArray[Any], out: NDArray[Any]) -> None:
        """Put the results into `out`, an array of the same shape and of their dtype."""
        np.copyto(out, self(array))


@final
@dataclass(frozen=True, slots=True)
class Pointwise(View):
    """A function of each element of a view; `function` returns arrays of `dtype`."""

    operand: View
    function: BlockFunction
    dtype: Dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.operand.shape

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.operand.sources

    def with_arrays(self, instead: Callable[[HostArray], HostArray]) -> "Pointwise":
        return self._on(self.operand.with_arrays(instead))

    def cost(self) -> Cost:
        return self.operand.cost()

    def index(self, index: tuple[BasicIndex, ...]) -> View:
        return self._on(self.operand.index(index))

    def transpose(self, axes: tuple[int, ...]) -> View:
        return self._on(self.operand.transpose(axes))

    def expand(self, axis: int) -> View:
        return self._on(self.operand.expand(axis))

    def reshape_in_place(self, shape: tuple[int, ...]) -> View | None:
        operand = self.operand.reshape_in_place(shape)
        return None if operand is None else self._on(operand)

    def read(self) -> NDArray[Any]:
        return self.function(self.operand.read())

    def read_into(self, out: NDArray[Any]) -> None:
        self.function.into(self.operand.read(), out)

    def read_in_batch(self, out: NDArray[Any], batch: Batch) -> None:
        values = batch.empty(self.operand.shape, self.operand.dtype)
        batch.then(lambda: self.function.into(values, out))
        self.operand.read_in_batch(values, batch)

    def _on(self, operand: View) -> "Pointwise":
        return Pointwise(operand, self.function, self.dtype)


@final
@dataclass(frozen=True, slots=True)
class CastTo(BlockFunction):
    """NumPy's conversion to `dtype`, without its warnings about overflow and NaN."""

    dtype: Dtype

    def __call__(self, array: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(all="ignore"):
            return array.astype(self.dtype)

    def into(self, array: NDArray[Any], out: NDArray[Any]) -> None:
        with np.errstate(all="ignore"):
            np.copyto(out, array, casting="unsafe")


def cast_view(view: View, dtype: Dtype) -> View:
    """The view with every element converted to `dtype`, as NumPy converts it."""
    return view if view.dtype == dtype else Pointwise(view, CastTo(dtype), dtype)
