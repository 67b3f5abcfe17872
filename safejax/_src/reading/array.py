"""Arrays in memory as sources, and the sources of what has a shape and no values here."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.log import open_logs
from safejax._src.reading.requests import FREE, Cost
from safejax._src.reading.source import HostArray, Source, read_only, strided_array, usable_in_place
from safejax._src.reading.windows import Window
from safejax.errors import LeafError, ReadError

DELETED: Final = (
    "expected an array with values, got one that was deleted, or donated to a jitted function: "
    "save what that function returned, or, where it runs while another thread saves, give the "
    "save a copy, jax.tree.map(jax.numpy.copy, tree)"
)


@final
class ArraySource(Source):
    """A NumPy or JAX array in memory, as flat bytes in C order.

    Nothing is fetched from a device before the first read. A NumPy array may be changed by its
    owner, so it is not immutable.
    """

    name = "array in memory"

    def __init__(self, array: HostArray) -> None:
        self._array = array
        self._flat: NDArray[np.uint8] | None = None
        self.immutable = not isinstance(array, np.ndarray)

    def __repr__(self) -> str:
        return f"ArraySource({self._array.dtype}{list(self._array.shape)})"

    @property
    def arrays(self) -> tuple[HostArray, ...]:
        return (self._array,)

    def with_arrays(self, instead: Callable[[HostArray], HostArray]) -> "ArraySource":
        return ArraySource(instead(self._array))

    def cost(self, dtype: Dtype, window: Window) -> Cost:
        del dtype, window
        return FREE

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        assert begin == 0
        if window.size == 0:
            return np.empty(window.shape, dtype)
        if open_logs:
            self._log(window.distinct * dtype.itemsize)
        array = self._host_array(dtype, window)
        return read_only(strided_array(self._bytes(), 0, dtype, window)) if array is None else array

    def _host_array(self, dtype: Dtype, window: Window) -> NDArray[Any] | None:
        """The whole array as it lies on the host, if that is what `window` shows of it.

        Many arrays are small and are read once: to have them as flat bytes would take longer.
        """
        if self._flat is not None or window is not Window.whole(self._array.shape):
            return None
        host = on_the_host(self._array)
        return read_only(host.view()) if host.dtype == dtype else None

    def in_place(
        self, begin: int, dtype: Dtype, window: Window, alignment: int
    ) -> NDArray[Any] | None:
        assert begin == 0
        if window.size == 0 or not self.immutable:
            return None
        array = usable_in_place(strided_array(self._bytes(), 0, dtype, window), alignment)
        if array is not None:
            self._log(array.nbytes)
        return array

    def _bytes(self) -> NDArray[np.uint8]:
        if self._flat is None:
            host = on_the_host(self._array)
            if not host.dtype.isnative:
                host = host.astype(host.dtype.newbyteorder("="))
            self._flat = np.ascontiguousarray(host).reshape(-1).view(np.uint8)
        return self._flat


def on_the_host(array: HostArray) -> NDArray[Any]:
    """The array as NumPy's, without a copy where that is possible; `LeafError` if it is deleted."""
    try:
        return np.asarray(array)
    except Exception as error:
        if getattr(array, "is_deleted", bool)():
            raise LeafError(DELETED) from error
        raise


class _WithoutValues(Source):
    """A source of which nothing can be read: `read` raises what `fault` says."""

    immutable = True
    has_values = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def cost(self, dtype: Dtype, window: Window) -> Cost:
        del dtype, window
        return FREE

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        del begin
        raise ReadError(self.fault(f"{dtype}{list(window.shape)}"))

    @abstractmethod
    def fault(self, asked: str) -> str:
        """The message for a read of what is asked, described by its dtype and shape."""


@final
class AbstractSource(_WithoutValues):
    """A source without values, for a leaf that is only a shape and a dtype."""

    name = "abstract leaf"

    def fault(self, asked: str) -> str:
        return (
            f"expected values, got a leaf that is only abstract, {asked}: "
            "give an array instead of a jax.ShapeDtypeStruct"
        )


@final
class AbsentSource(_WithoutValues):
    """The source of a part of an array that only other processes hold."""

    name = "array of other processes"
    elsewhere = True

    def fault(self, asked: str) -> str:
        return f"expected values of this process, got {asked} that only other processes hold"
