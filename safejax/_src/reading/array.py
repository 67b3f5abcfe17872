"""Arrays in memory as sources, and the sources of what has a shape and no values here."""

from typing import Any, Final, Protocol, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.source import Source, read_only, strided_array, usable_in_place
from safejax._src.reading.windows import Window
from safejax.errors import LeafError, ReadError

DELETED: Final = (
    "expected an array with values, got one that was deleted, or donated to a jitted function: "
    "save what that function returned, or, where it runs while another thread saves, give the "
    "save a copy, jax.tree.map(jax.numpy.copy, tree)"
)


class HostArray(Protocol):
    """An array of another library whose values NumPy can have, such as a `jax.Array`."""

    @property
    def dtype(self) -> Any: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __array__(self) -> NDArray[Any]: ...


@final
class ArraySource(Source):
    """A NumPy or JAX array in memory, as flat bytes in C order.

    Nothing is fetched from a device before the first read. A NumPy array may be changed by its
    owner, so it is not immutable.
    """

    name = "array in memory"

    def __init__(self, array: NDArray[Any] | HostArray) -> None:
        self._array = array
        self._flat: NDArray[np.uint8] | None = None
        self.immutable = not isinstance(array, np.ndarray)

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
        return read_only(strided_array(self._bytes(), 0, dtype, window))

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
            host = self._on_the_host()
            native = host.astype(host.dtype.newbyteorder("="), copy=False)
            self._flat = np.ascontiguousarray(native).reshape(-1).view(np.uint8)
        return self._flat

    def _on_the_host(self) -> NDArray[Any]:
        """The array as NumPy's; `LeafError` if it was deleted since the source was made."""
        try:
            return np.asarray(self._array)
        except Exception as error:
            if getattr(self._array, "is_deleted", bool)():
                raise LeafError(DELETED) from error
            raise


@final
class AbstractSource(Source):
    """A source without values, for a leaf that is only a shape and a dtype."""

    name = "abstract leaf"
    immutable = True
    has_values = False

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


@final
class AbsentSource(Source):
    """The source of a part of an array that only other processes hold."""

    name = "array of other processes"
    immutable = True
    has_values = False
    elsewhere = True

    def __repr__(self) -> str:
        return "AbsentSource()"

    def cost(self, dtype: Dtype, window: Window) -> tuple[int, int]:
        del dtype, window
        return 0, 0

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        del begin
        raise ReadError(
            f"expected values of this process, got {dtype}{list(window.shape)} that only other "
            "processes hold"
        )
