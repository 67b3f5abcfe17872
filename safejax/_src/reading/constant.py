"""The source of padding: one value, which is in no file."""

from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.requests import FREE, Cost
from safejax._src.reading.source import Source, strided_array
from safejax._src.reading.view import Strided, View
from safejax._src.reading.windows import Window


@final
class ConstantSource(Source):
    """One value. To read it costs nothing, and is not logged."""

    name = "padding"
    immutable = True

    def __init__(self, value: NDArray[Any]) -> None:
        self._data = value.tobytes()

    def __repr__(self) -> str:
        return f"ConstantSource({self._data!r})"

    def cost(self, dtype: Dtype, window: Window) -> Cost:
        del dtype, window
        return FREE

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        if window.size == 0:
            return np.empty(window.shape, dtype)
        return strided_array(self._data, begin, dtype, window)


def constant(value: NDArray[Any], shape: tuple[int, ...]) -> View:
    """A view of `shape` that has the 0-d array `value` everywhere."""
    window = Window(0, shape, (0,) * len(shape))
    return Strided(ConstantSource(value), 0, value.dtype, window)
