"""Precision: what becomes of 64-bit values while JAX's x64 mode is off."""

import threading
import weakref
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.memory import Allocator
from safejax._src.reading.pointwise import CastTo
from safejax._src.warn import warn_caller
from safejax.errors import PrecisionError, PrecisionWarning

_WIDE: Final = frozenset(map(np.dtype, ("int64", "uint64", "float64", "complex128")))


@final
class NarrowingNotice:
    """Warns once, for all the leaves of a load, that 64-bit floats become narrower."""

    __slots__ = ("_first",)

    def __init__(self) -> None:
        # Taken by the thread that warns, and never let go.
        self._first = threading.Lock()

    def give(self, name: str, stored: Dtype, placed: Any) -> None:
        """Warn that leaf `name` is placed as a narrower dtype, unless it was reported before."""
        if self._first.acquire(blocking=False):
            warn_caller(
                f"leaf {name!r} is stored as {stored} and placed as {placed}, since JAX's x64 "
                "mode is off (this is reported once for each load); turn it on with "
                "jax.config.update('jax_enable_x64', True), or take numpy.asarray(leaf), "
                "which has all bits",
                PrecisionWarning,
            )


_stored: Final[dict[int, tuple[weakref.ref[Any], Dtype]]] = {}


def remember_stored(array: Any, dtype: Dtype) -> None:
    """Remember that an array, as long as it lives, holds integers that are stored as `dtype`."""
    key = id(array)
    _stored[key] = (weakref.ref(array, lambda _: _stored.pop(key, None)), dtype)


def stored_dtype(array: Any) -> Dtype | None:
    """The wider dtype that the integers of an array were stored as; None if there is none."""
    found = _stored.get(id(array))
    return found[1] if found is not None and found[0]() is array else None


def needs_x64(dtype: Dtype) -> bool:
    """Whether JAX makes arrays of `dtype` only in its x64 mode."""
    return dtype in _WIDE


def narrowed(block: NDArray[Any], dtype: Dtype, name: str, empty: Allocator) -> NDArray[Any]:
    """The block in the narrower dtype that JAX uses while x64 is off."""
    if dtype.kind in "iu" and block.size:
        limits = np.iinfo(dtype)
        low, high = int(block.min()), int(block.max())
        if low < limits.min or high > limits.max:
            outside = low if low < limits.min else high
            raise PrecisionError(
                f"leaf {name!r}: expected values that {dtype} holds, since JAX's x64 mode is "
                f"off, got {outside} in a leaf of {block.dtype}: turn it on with "
                "jax.config.update('jax_enable_x64', True), or take numpy.asarray(leaf), which "
                "has all bits"
            )
    out = empty(block.shape, dtype)
    CastTo(dtype).into(block, out)
    return out
