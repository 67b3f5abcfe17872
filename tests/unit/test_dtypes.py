"""Every dtype of JAX is stored without loss, under a code that readers know."""

import re

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
from jax._src import dtypes as jax_dtypes

from safejax._src.dtypes import (
    BITS,
    Stored,
    dtype_of_code,
    is_floating,
    is_packed,
    restored,
    stored_as,
    to_stored_bytes,
    unpack,
)
from safejax._src.format.written_header import write_header
from tests.support.files import file_of

JAX_DTYPES = [np.dtype(scalar) for scalar in jax_dtypes._jax_types]
SHAPES = [(), (0,), (2, 0, 3), (3,), (4,), (2, 3), (5, 1, 3), (2, 2, 2)]
NARROW = {
    "bool": 1, "int1": 1, "uint1": 1, "int2": 2, "uint2": 2, "int4": 4, "uint4": 4,
    "float4_e2m1fn": 4, "float6_e2m3fn": 6, "float6_e3m2fn": 6,
}  # fmt: skip


def bits(array):
    """The bits of each element, without those that its dtype does not use."""
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return raw & ((1 << NARROW.get(array.dtype.name, 8)) - 1)


def every_bit_pattern(dtype, shape):
    """Elements of random bits, among them NaN payloads, infinities and subnormals."""
    count = int(np.prod(shape))
    raw = np.random.default_rng(count).integers(0, 256, count * dtype.itemsize, np.uint8)
    raw &= (1 << NARROW.get(dtype.name, 8)) - 1
    return raw.view(dtype).reshape(shape)


def read_back(raw, stored):
    """The array that a reader makes from the stored bytes."""
    if stored.recorded is None:
        dtype, shape = dtype_of_code(stored.code), stored.shape
    else:
        dtype, shape = restored(stored.recorded, stored.code, stored.shape)
    elements = unpack(raw) if is_packed(stored.code) else raw
    return elements.view(dtype).reshape(shape)


def test_the_list_of_jax_dtypes_has_the_expected_dtypes():
    names = {dtype.name for dtype in JAX_DTYPES}
    assert {"bool", "int4", "uint2", "bfloat16", "float8_e8m0fnu", "complex128"} <= names
    assert len(names) >= 28


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", JAX_DTYPES, ids=lambda dtype: dtype.name)
def test_a_leaf_of_any_jax_dtype_comes_back_bit_by_bit(dtype, shape, tmp_path):
    array = every_bit_pattern(dtype, shape)
    stored = stored_as(dtype, shape)
    raw = to_stored_bytes(array, stored)
    assert raw.dtype == np.uint8
    assert raw.shape == (stored.nbytes,)
    back = read_back(raw, stored)
    assert (back.dtype, back.shape) == (dtype, shape)
    assert bits(back).tobytes() == bits(array).tobytes()

    path = tmp_path / "x.safetensors"
    path.write_bytes(write_header({"x": stored}, {}, "x") + raw.tobytes())
    with safetensors.safe_open(path, "numpy") as file:
        tensor = file.get_slice("x")
        assert (tensor.get_dtype(), tuple(tensor.get_shape())) == (stored.code, stored.shape)


@pytest.mark.parametrize("name", ["int4", "uint4", "int2", "uint2"])
def test_equal_values_are_stored_as_equal_bytes(name):
    # Narrow integers have unused bits in memory, which NumPy and JAX fill in different ways.
    dtype = np.dtype(getattr(ml_dtypes, name))
    values = np.arange(-2 if name.startswith("i") else 0, 2).astype(np.int8)
    numpy_array, jax_array = values.astype(dtype), np.asarray(jnp.asarray(values).astype(dtype))
    stored = stored_as(dtype, values.shape)
    assert (jax_array == numpy_array).all()
    assert to_stored_bytes(jax_array, stored).tobytes() == values.tobytes()
    assert to_stored_bytes(numpy_array, stored).tobytes() == values.tobytes()


def test_the_codes_are_those_of_the_reference_reader():
    with pytest.raises(safetensors.SafetensorError, match="unknown variant") as refusal:
        safetensors.deserialize(one_tensor("none", [0], 0))
    variants = str(refusal.value).partition("expected one of")[2]
    assert set(re.findall(r"`(\w+)`", variants)) == set(BITS)


def one_tensor(code, shape, nbytes):
    table = {"x": {"dtype": code, "shape": shape, "data_offsets": [0, nbytes]}}
    return file_of(table, bytes(nbytes))


@pytest.mark.parametrize("code", BITS)
def test_an_element_is_as_wide_as_the_reference_reader_has_it(code, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(one_tensor(code, [8, 3], BITS[code] * 3))
    with safetensors.safe_open(path, "numpy") as file:
        assert file.get_slice("x").get_dtype() == code
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(one_tensor(code, [8, 3], BITS[code] * 3 + 1))
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(one_tensor(code, [8, 3], BITS[code] * 3 - 1))


@pytest.mark.parametrize("code", BITS)
def test_the_dtype_of_a_code_is_as_wide_as_the_code(code):
    dtype = dtype_of_code(code)
    if code.startswith("F6_"):
        assert dtype is None
    else:
        assert dtype.itemsize == -(-BITS[code] // 8)
        assert stored_as(dtype, (2,)) == Stored(code, (2,), None, BITS[code] * 2 // 8)


@pytest.mark.parametrize(
    ("dtype", "shape", "stored"),
    [
        ("float32", (4, 3), Stored("F32", (4, 3), None, 48)),
        ("bool", (), Stored("BOOL", (), None, 1)),
        ("int4", (3,), Stored("I8", (3,), "int4", 3)),
        ("uint2", (0, 3), Stored("U8", (0, 3), "uint2", 0)),
        ("float8_e4m3b11fnuz", (2,), Stored("U8", (2,), "float8_e4m3b11fnuz", 2)),
        ("float4_e2m1fn", (2, 3), Stored("F4", (2, 3), None, 3)),
        ("float4_e2m1fn", (3, 3), Stored("U8", (3, 3), "float4_e2m1fn", 9)),
        ("float4_e2m1fn", (), Stored("U8", (), "float4_e2m1fn", 1)),
        ("float4_e2m1fn", (0, 3), Stored("F4", (0, 3), None, 0)),
        ("complex64", (5,), Stored("C64", (5,), None, 40)),
        ("complex128", (), Stored("F64", (2,), "complex128", 16)),
        ("complex128", (5, 0), Stored("F64", (5, 0, 2), "complex128", 0)),
        ("longlong", (1,), Stored("I64", (1,), None, 8)),
    ],
)
def test_how_a_leaf_is_stored(dtype, shape, stored):
    scalar = getattr(ml_dtypes, dtype, None) or dtype
    assert stored_as(np.dtype(scalar), shape) == stored


@pytest.mark.parametrize(
    "dtype",
    [">f4", "O", "S3", "U2", "M8[s]", "m8[s]", np.longdouble, np.clongdouble, "V4"],
    ids=str,
)
def test_a_dtype_that_jax_lacks_cannot_be_stored(dtype):
    assert stored_as(np.dtype(dtype), (2,)) is None


@pytest.mark.parametrize(
    ("recorded", "code", "shape"),
    [
        ("int4", "U8", (2,)),
        ("uint4", "I8", (2,)),
        ("float8_e3m4", "I8", (2,)),
        ("float32", "F32", (2,)),  # The code is enough, and nothing is recorded.
        ("complex128", "F64", (3,)),
        ("complex128", "F64", ()),
        ("complex128", "C64", (2,)),
        ("object", "U8", (2,)),
        ("", "U8", (2,)),
    ],
)
def test_a_recorded_dtype_that_contradicts_the_code_is_refused(recorded, code, shape):
    assert restored(recorded, code, shape) is None


def test_the_first_of_two_packed_elements_is_in_the_low_bits():
    array = np.array([0.5, 1.0, -6.0, 0.0], ml_dtypes.float4_e2m1fn)
    raw = to_stored_bytes(array, stored_as(array.dtype, array.shape))
    assert raw.tolist() == [0x21, 0x0F]
    assert unpack(raw).view(array.dtype).tolist() == [0.5, 1.0, -6.0, 0.0]


def test_bytes_of_a_contiguous_block_are_not_copied():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.shares_memory(to_stored_bytes(array, stored_as(array.dtype, array.shape)), array)


def test_a_block_in_any_layout_is_stored_in_c_order():
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    moved = array.transpose(2, 0, 1)[::-1, :, ::2]
    raw = to_stored_bytes(moved, stored_as(moved.dtype, moved.shape))
    assert raw.tobytes() == moved.tobytes(order="C")


@pytest.mark.parametrize("dtype", JAX_DTYPES, ids=lambda dtype: dtype.name)
def test_floating_dtypes_are_those_that_jax_calls_floating(dtype):
    assert is_floating(dtype) == jnp.issubdtype(dtype, jnp.floating)
