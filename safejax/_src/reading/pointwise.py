"""Pointwise views: a function of each element of a view, such as a cast to another dtype."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.source import Source
from safejax._src.reading.view import View
from safejax._src.reading.windows import BasicIndex


@final
@dataclass(frozen=True, slots=True)
class Pointwise(View):
    """A function of each element of a view; `function` keeps the shape and returns `dtype`."""

    operand: View
    function: Callable[[NDArray[Any]], NDArray[Any]]
    dtype: Dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.operand.shape

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.operand.sources

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
        if isinstance(self.function, CastTo):
            self.function.into(self.operand.read(), out)
        else:
            super(Pointwise, self).read_into(out)

    def _on(self, operand: View) -> "Pointwise":
        return Pointwise(operand, self.function, self.dtype)


@final
@dataclass(frozen=True, slots=True)
class CastTo:
    """NumPy's conversion to `dtype`, without its warnings about overflow and NaN."""

    dtype: Dtype

    def __call__(self, array: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(all="ignore"):
            return array.astype(self.dtype)

    def into(self, array: NDArray[Any], out: NDArray[Any]) -> None:
        """Convert the values of `array` into `out`, an array of `dtype`."""
        with np.errstate(all="ignore"):
            np.copyto(out, array, casting="unsafe")


def cast_view(view: View, dtype: Dtype) -> View:
    """The view with every element converted to `dtype`, as NumPy converts it."""
    return view if view.dtype == dtype else Pointwise(view, CastTo(dtype), dtype)
