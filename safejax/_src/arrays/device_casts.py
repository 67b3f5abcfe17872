"""Casts between bfloat16 and float32 that are done on a device, with the bits of NumPy's.

Of a cast to float32, half as many bytes go over the link. Both are done on integers, since what
devices make of NaNs and subnormals in their own casts is not the same everywhere. The rounding is
that of Eigen's `float_to_bfloat16_rtne`, which ml_dtypes uses: to nearest, ties to even, and each
NaN to the quiet one of its sign. The other way appends zeros.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.pointwise import CastTo, Pointwise
from safejax._src.reading.view import View

_BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)
_FLOAT32: Final = np.dtype(np.float32)


@jax.jit
def _to_float32(array: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(array, jnp.uint16).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(bits << jnp.uint32(16), jnp.float32)


@jax.jit
def _to_bfloat16(array: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(array, jnp.uint32)
    upper = bits >> jnp.uint32(16)
    rounded = (bits + jnp.uint32(0x7FFF) + (upper & jnp.uint32(1))) >> jnp.uint32(16)
    quiet = (upper & jnp.uint32(0x8000)) | jnp.uint32(0x7FC0)
    is_nan = (bits & jnp.uint32(0x7FFFFFFF)) > jnp.uint32(0x7F800000)
    narrow = jnp.where(is_nan, quiet, rounded).astype(jnp.uint16)
    return jax.lax.bitcast_convert_type(narrow, jnp.bfloat16)


_CASTS: Final[dict[tuple[Dtype, Dtype], Callable[[jax.Array], jax.Array]]] = {
    (_BFLOAT16, _FLOAT32): _to_float32,
    (_FLOAT32, _BFLOAT16): _to_bfloat16,
}


def cast_on_device(view: View, device: Any) -> tuple[View, Callable[[jax.Array], jax.Array]] | None:
    """What a cast converts, and the function that does so on the device, with the same bits.

    None for a view that is no such cast, and where the device does not give NumPy's bits. To be
    called outside of any trace.
    """
    if not isinstance(view, Pointwise) or view.function != CastTo(view.dtype):
        return None
    pair = (view.operand.dtype, view.dtype)
    return (view.operand, _CASTS[pair]) if pair in _CASTS and _agrees(pair, device) else None


@lru_cache(maxsize=64)
def _agrees(pair: tuple[Dtype, Dtype], device: Any) -> bool:
    """Whether a device gives the bits that NumPy gives, for values of all kinds that there are."""
    values = _values(pair[0])
    with np.errstate(all="ignore"):
        expected = values.astype(pair[1])
    found = np.asarray(_CASTS[pair](jax.device_put(values, device)))
    return found.tobytes() == expected.tobytes()


def _values(dtype: Dtype) -> NDArray[Any]:
    """All bfloat16s; or each upper half of a float32 with the lower halves that round otherwise."""
    upper = np.arange(1 << 16, dtype=np.uint32)
    if dtype == _BFLOAT16:
        return upper.astype(np.uint16).view(dtype)
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    return ((upper << 16)[:, None] | lower).reshape(-1).view(dtype)
