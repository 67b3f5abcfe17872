"""File dtype codes and NumPy dtypes: which correspond, and how other dtypes are stored.

The safetensors format names a fixed set of element types. JAX has more: these are stored
under a code of the same width, and the record in the file's metadata names their dtype.
Source of the codes: the safetensors format description and its reference reader.
"""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias, final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Dtype: TypeAlias = np.dtype[Any]

BITS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
        "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
        "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
        "C64": 64, "F64": 64, "I64": 64, "U64": 64,
    }
)  # fmt: skip
"""Bits per element, for every code that the reference reader knows."""

_OF_CODE: Final[dict[str, Dtype]] = {
    code: np.dtype(scalar)
    for code, scalar in {
        "BOOL": np.bool_,
        "U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64,
        "I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64,
        "F16": np.float16, "F32": np.float32, "F64": np.float64, "C64": np.complex64,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz, "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu, "F4": ml_dtypes.float4_e2m1fn,
    }.items()
}  # fmt: skip
_TO_CODE: Final[dict[Dtype, str]] = {dtype: code for code, dtype in _OF_CODE.items()}

# Stored under another code, losslessly, and named in the record.
_BY_VALUE: Final[dict[str, str]] = {
    "int1": "I8", "int2": "I8", "int4": "I8", "uint1": "U8", "uint2": "U8", "uint4": "U8",
}  # fmt: skip
_SMALL_FLOATS: Final = ("float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn")
_BY_BITS: Final = ("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", *_SMALL_FLOATS)


def _recorded_codes() -> dict[Dtype, str]:
    codes = {"complex128": "F64", **_BY_VALUE, **dict.fromkeys(_BY_BITS, "U8")}
    known = {"complex128": np.complex128}
    # An older ml_dtypes lacks the newest names; JAX then lacks them too.
    scalars = {name: known.get(name) or getattr(ml_dtypes, name, None) for name in codes}
    return {np.dtype(scalar): codes[name] for name, scalar in scalars.items() if scalar}


_RECORDED: Final[dict[Dtype, str]] = _recorded_codes()
_RECORDED_BY_NAME: Final[dict[str, Dtype]] = {dtype.name: dtype for dtype in _RECORDED}


@final
class Stored(NamedTuple):
    """How a leaf is stored in the file.

    `code` and `shape` are the header's; `recorded` is the name of the true dtype if the code
    does not imply it, else None; `nbytes` is the size of the data in bytes.
    """

    code: str
    shape: tuple[int, ...]
    recorded: str | None
    nbytes: int


# Most leaves have the dtype and the shape of another one.
@lru_cache(maxsize=1024)
def stored_as(dtype: Dtype, shape: tuple[int, ...]) -> Stored | None:
    """How an array of `dtype` and `shape` is stored; None if no file can hold it."""
    count = 1
    for size in shape:
        count *= size
    if dtype in _TO_CODE:
        code = _TO_CODE[dtype]
        bits = count * BITS[code]
        if bits % 8 == 0:
            return Stored(code, shape, None, bits // 8)
    if dtype not in _RECORDED:
        return None
    trailing = (2,) if dtype == np.complex128 else ()
    return Stored(_RECORDED[dtype], shape + trailing, dtype.name, count * dtype.itemsize)


def can_exist(dtype: Dtype, shape: tuple[int, ...]) -> bool:
    """Whether NumPy can make an array of this shape; also one without elements has a limit."""
    nbytes = max(dtype.itemsize, 1)
    for size in shape:
        if type(size) is not int or size < 0:
            return False
        nbytes *= max(size, 1)
        if nbytes >= 1 << 63:
            return False
    return len(shape) <= _MAX_AXES


def dtype_of_code(code: str) -> Dtype | None:
    """The NumPy dtype of a file code; None if NumPy has no dtype for it."""
    return _OF_CODE.get(code)


def restored(
    recorded: str, code: str, shape: tuple[int, ...]
) -> tuple[Dtype, tuple[int, ...]] | None:
    """The dtype and shape of a leaf that is stored in the file as `code` and `shape`.

    None if the record cannot be true: the dtype's name is unknown, or is never stored like that.
    """
    dtype = _RECORDED_BY_NAME.get(recorded)
    if dtype is None or _RECORDED[dtype] != code:
        return None
    if dtype == np.complex128:
        return (dtype, shape[:-1]) if shape[-1:] == (2,) else None
    return dtype, shape


_MAX_AXES: Final = 64
"""How many axes an array of NumPy 2 has at most."""

_BELOW_A_BYTE: Final = frozenset({*_BY_VALUE, *_SMALL_FLOATS})


@lru_cache(maxsize=256)
def is_below_a_byte(dtype: Dtype) -> bool:
    """Whether elements of this dtype have fewer than 8 bits, so that XLA may pack them."""
    return dtype.name in _BELOW_A_BYTE


def is_packed(code: str) -> bool:
    """Whether elements of this code share bytes."""
    return BITS[code] % 8 != 0


_LOW: Final = np.uint8(0xF)
_HALF_BYTE: Final = np.uint8(4)


def to_element_bytes(block: NDArray[Any], stored: Stored) -> NDArray[np.uint8]:
    """The bytes of the elements of a block of a leaf; flat, and not copied if possible.

    They are those that are stored in the file, except that no two elements share a byte.
    """
    if stored.recorded in _BY_VALUE:
        block = block.astype(dtype_of_code(stored.code))
    return np.ascontiguousarray(block).reshape(-1).view(np.uint8)


def to_stored_bytes(block: NDArray[Any], stored: Stored) -> NDArray[np.uint8]:
    """The bytes, as stored in the file, of a block of a leaf; flat, and not copied if possible.

    A block of a packed leaf must hold a whole number of bytes. The block may be what
    `to_element_bytes` returns, too.
    """
    flat = to_element_bytes(block, stored)
    if is_packed(stored.code):
        # The first element of a pair takes the low half of the byte, as in PyTorch.
        return (flat[0::2] & _LOW) | (flat[1::2] << _HALF_BYTE)
    return flat


def stored_bytes(block: NDArray[Any], stored: Stored) -> bytes:
    """A copy of what `to_stored_bytes` returns, which takes less time for a small block."""
    if stored.recorded is None and BITS[stored.code] >= 8:
        return block.tobytes()
    return to_stored_bytes(block, stored).tobytes()


def unpack(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The elements of packed bytes, two per byte, low half first, each in a byte of its own."""
    halves = np.empty(2 * packed.size, np.uint8)
    halves[0::2] = packed & _LOW
    halves[1::2] = packed >> _HALF_BYTE
    return halves


def is_floating(dtype: Dtype) -> bool:
    """Whether `dtype` is a real floating type, float8 and narrower included."""
    return dtype.kind == "f" or (dtype.kind == "V" and dtype.name.startswith(("bfloat", "float")))
