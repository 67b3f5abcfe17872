"""`encode` and `decode`, checked against the `safetensors` package."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.flax
import safetensors.numpy
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import safejax
from safejax import (
    EMPTY,
    InvalidFileError,
    LazyArray,
    LeafError,
    Leaves,
    cast,
    decode,
    encode,
    flatten,
    observe_reads,
    transpose,
)
from safejax._src.checkpoint.decoding import open_leaves
from safejax._src.storage.local import LocalStore
from safejax.testing import ALL_DTYPES, assert_same_bits
from tests.support.files import data_begin, file_of, header_of

RNG = np.random.default_rng(7)


def filled(dtype: np.dtype[Any], shape: tuple[int, ...] = (3, 5)) -> np.ndarray[Any, Any]:
    """An array of random bits, so that NaNs of every payload, -0.0 and subnormals occur."""
    raw = RNG.integers(0, 256, math.prod(shape) * dtype.itemsize, np.uint8)
    if dtype == np.bool_:
        return (raw % 2 == 0).reshape(shape)
    if dtype.name in {"int1", "int2", "int4", "uint1", "uint2", "uint4"}:
        bits = int(dtype.name[-1])
        low = -(1 << (bits - 1)) if dtype.name.startswith("i") else 0
        return ((raw % (1 << bits)).astype(np.int8) + low).astype(dtype).reshape(shape)
    if dtype.name.startswith(("float4", "float6")):
        raw &= 0x0F if dtype.name.startswith("float4") else 0x3F
    return raw.view(dtype).reshape(shape)


def equal_bits(actual: Any, expected: Any) -> bool:
    actual, expected = np.asarray(actual), np.asarray(expected)
    return (
        actual.dtype == expected.dtype
        and actual.shape == expected.shape
        and actual.tobytes() == expected.tobytes()
    )


# ---- round trip


@pytest.mark.parametrize("shape", [(3, 5), (), (0,), (2, 0, 3), (1,), (64,), (4, 2)])
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_every_dtype_comes_back_bit_for_bit(dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    array = filled(dtype, shape)
    leaf = decode(encode(Leaves({"w": array})))["w"]
    assert isinstance(leaf, LazyArray)
    assert_same_bits(leaf, array)
    # Encoding again gives the same bytes, so nothing was narrowed in between.
    assert encode(Leaves({"w": leaf})) == encode(Leaves({"w": array}))


def special(dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Both zeros, infinities, the smallest and largest subnormals and NaN payloads of a dtype."""
    bits, mantissa = 8 * dtype.itemsize, ml_dtypes.finfo(dtype).nmant
    top = (1 << (bits - 1 - mantissa)) - 1
    fractions = (0, 1, 1 << (mantissa - 1), (1 << mantissa) - 1)
    patterns = [
        sign << (bits - 1) | exponent << mantissa | fraction
        for sign in (0, 1)
        for exponent in (0, 1, top)
        for fraction in fractions
    ]
    return np.array(patterns, f"uint{bits}").view(dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_zeros_and_nans_keep_their_sign_and_payload(dtype: str) -> None:
    array = special(np.dtype(dtype))
    with np.errstate(invalid="ignore"):
        assert np.isnan(array).sum() == 6
        assert np.signbit(array[array == 0]).tolist() == [False, True]
    tree = {"w": array, "t": array.reshape(2, -1).T, "c": array.repeat(2).reshape(-1, 2)}
    data = encode(flatten(tree))
    for name, info in safetensors.deserialize(data):
        assert bytes(info["data"]) == np.ascontiguousarray(tree[name]).tobytes()
    for name, leaf in decode(data).items():
        assert_same_bits(leaf, tree[name])
        if dtype != "float64":  # x64 is off
            assert np.asarray(leaf.placed()).tobytes() == tree[name].tobytes()


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("count", [None, 0, 3])
def test_typed_key_arrays_come_back(implementation: str, count: int | None) -> None:
    key = jax.random.key(7, impl=implementation)
    if count is not None:
        key = jax.random.split(key, 3)[:count]
    leaf = decode(encode(Leaves({"k": key})))["k"]
    assert leaf.dtype == key.dtype
    assert leaf.shape == key.shape
    assert equal_bits(jax.random.key_data(leaf), jax.random.key_data(key))
    assert jax.random.key_impl(leaf) == jax.random.key_impl(key)


def test_every_kind_of_leaf_comes_back() -> None:
    leaves = flatten(
        {"a": [jnp.ones(2), 1, -0.0, "x", None, {}, ()], "n": {1: np.int8(3)}, "x.y": {"z": 1j}}
    ).replace(metadata={"k": "v"})
    again = decode(encode(leaves))
    assert set(again) == set(leaves)
    assert again.structure.kinds == leaves.structure.kinds
    assert again.structure.paths == leaves.structure.paths
    assert dict(again.metadata) == {"k": "v"}
    for name, leaf in leaves.items():
        assert_same_bits(again[name], leaf, name)
    assert again["a.5"] is EMPTY
    assert encode(again) == encode(leaves)


def test_encode_and_decode_are_inverse() -> None:
    assert encode.inverse == decode
    assert decode.inverse == encode


# ---- every kind of input array

MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)
MESH = jax.make_mesh((2, 4), ("x", "y"))
GRID = np.arange(64, dtype=np.float32).reshape(8, 8)


def read_only(array: Any) -> Any:
    array = array.copy()
    array.flags.writeable = False
    return array


INPUTS: dict[str, tuple[Callable[[], Any], Any]] = {
    "contiguous": (lambda: MATRIX, MATRIX),
    "Fortran": (lambda: np.asfortranarray(MATRIX), MATRIX),
    "transposed": (lambda: MATRIX.T, MATRIX.T),
    "strided": (lambda: MATRIX[::2, 1::2], MATRIX[::2, 1::2]),
    "backwards": (lambda: MATRIX[::-1, ::-1], MATRIX[::-1, ::-1]),
    "broadcast": (lambda: np.broadcast_to(MATRIX[:, :1], (3, 4)), MATRIX[:, [0, 0, 0, 0]]),
    "big-endian": (lambda: MATRIX.astype(">f4"), MATRIX),
    "big-endian, strided": (lambda: MATRIX.astype(">f4")[:, ::2], MATRIX[:, ::2]),
    "big-endian, 0-d": (lambda: np.array(5, ">i4"), np.int32(5)),
    "read-only": (lambda: read_only(MATRIX), MATRIX),
    "misaligned": (lambda: np.frombuffer(b"x" + MATRIX.tobytes(), np.uint8)[1:].view("f4"),
                   MATRIX.reshape(-1)),
    "generic": (lambda: np.float32(2.5), np.float32(2.5)),
    "generic bool": (lambda: np.bool_(True), np.bool_(True)),
    "generic bfloat16": (lambda: ml_dtypes.bfloat16(3), np.array(3, ml_dtypes.bfloat16)),
    "subclass": (lambda: MATRIX.view(np.recarray), MATRIX),
    "jax": (lambda: jnp.asarray(MATRIX), MATRIX),
    "jax weak": (lambda: jnp.asarray(2.5), np.float32(2.5)),
    "jax transposed": (lambda: jnp.asarray(MATRIX).T, MATRIX.T),
    "jax bits": (lambda: jnp.asarray(MATRIX, jnp.int4), MATRIX.astype(ml_dtypes.int4)),
    "custom layout": (
        lambda: jax.device_put(
            MATRIX, Format(Layout((1, 0)), SingleDeviceSharding(jax.devices()[0]))
        ),
        MATRIX,
    ),
    "custom layout by jit": (
        lambda: jax.jit(
            lambda x: x * 1,
            out_shardings=Format(Layout((1, 0)), SingleDeviceSharding(jax.devices()[0])),
        )(MATRIX),
        MATRIX,
    ),
    "another device": (lambda: jax.device_put(MATRIX, jax.devices()[3]), MATRIX),
    **{
        f"sharded {spec}": (
            lambda spec=spec: jax.device_put(GRID, NamedSharding(MESH, spec)), GRID
        )
        for spec in (
            PartitionSpec("x"), PartitionSpec(None, "y"), PartitionSpec("y", "x"),
            PartitionSpec(("x", "y")), PartitionSpec(),
        )
    },
    "lazy": (lambda: decode(encode(Leaves({"w": MATRIX})))["w"], MATRIX),
    "lazy slice": (lambda: decode(encode(Leaves({"w": GRID})))["w"][2:7:2, ::-1],
                   GRID[2:7:2, ::-1]),
}  # fmt: skip


@pytest.mark.parametrize("case", INPUTS)
def test_every_kind_of_array_is_stored_with_the_values_that_it_shows(case: str) -> None:
    make, expected = INPUTS[case]
    data = encode(Leaves({"w": make()}))
    assert_same_bits(decode(data)["w"], expected)
    # The reference reader gives the same bytes.
    ((_, info),) = safetensors.deserialize(data)
    stored = np.asarray(expected)
    if stored.dtype == ml_dtypes.int4:
        stored = stored.astype(np.int8)
    assert bytes(info["data"]) == stored.tobytes()
    assert tuple(info["shape"]) == stored.shape


def test_a_lazy_leaf_is_stored_unplaced_and_with_all_its_bits() -> None:
    wide = np.array([2**40, -1])
    leaf = decode(encode(Leaves({"w": wide})))["w"]
    assert leaf.dtype == np.int32
    with observe_reads() as log:
        data = encode(Leaves({"v": leaf}))
        assert log.nbytes == wide.nbytes
    assert not leaf.is_placed
    assert equal_bits(decode(data)["v"], wide)


def test_encoding_reads_every_byte_once_and_decoding_reads_none() -> None:
    leaves = decode(encode(flatten({"a": MATRIX, "b": [GRID, np.int8(3)]})))
    with observe_reads() as log:
        data = encode(leaves)
        assert log.nbytes == MATRIX.nbytes + GRID.nbytes + 1
        log.clear()
        again = decode(data)
        repr(again)
        assert not log.reads
    assert set(again) == set(leaves)


# ---- against the reference reader and writer


NATIVE = {
    "BOOL", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "F16", "F32", "F64", "C64"
}  # fmt: skip
SHAPES = {"a": (3, 5), "b.c": (), "b.é.": (2, 0), "": (4,)}


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_the_reference_reader_reads_what_we_write(dtype: np.dtype[Any], tmp_path: Any) -> None:
    arrays = {name: filled(dtype, shape) for name, shape in SHAPES.items()}
    path = tmp_path / "m.safetensors"
    path.write_bytes(encode(Leaves(arrays, metadata={"k": "é"})))
    with safetensors.safe_open(path, "np") as file:
        assert sorted(file.keys()) == sorted(arrays)
        assert file.metadata()["k"] == "é"
        assert file.metadata()["format"] == "pt"
        for name, array in arrays.items():
            stored = file.get_slice(name)
            assert stored.get_shape() == list(stored_shape(array, stored.get_dtype()))
            if stored.get_dtype() in NATIVE:
                assert file.get_tensor(name).tobytes() == stored_bytes(array, stored.get_dtype())
    infos = dict(safetensors.deserialize(path.read_bytes()))
    for name, array in arrays.items():
        assert bytes(infos[name]["data"]) == stored_bytes(array, infos[name]["dtype"])


def stored_shape(array: Any, code: str) -> tuple[int, ...]:
    return (*array.shape, 2) if array.dtype == np.complex128 else array.shape


def stored_bytes(array: Any, code: str) -> bytes:
    """The bytes that store an array: narrow integers one in each byte, F4 two in each byte."""
    if array.dtype.name in {"int1", "int2", "int4", "uint1", "uint2", "uint4"}:
        assert code == ("I8" if array.dtype.name.startswith("i") else "U8")
        return array.astype(np.int8).tobytes()
    if code == "F4":
        flat = array.reshape(-1).view(np.uint8)
        return bytes(low | high << 4 for low, high in zip(flat[::2], flat[1::2], strict=True))
    return array.tobytes()


BOTH = [
    "bool",
    "uint8",
    "int8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "float16",
    "float32",
    "bfloat16",
]


@pytest.mark.parametrize("dtype", [*BOTH, "int64", "uint64", "float64", "complex64"])
def test_we_read_what_the_reference_writes_for_numpy(dtype: str) -> None:
    arrays = {name: filled(np.dtype(dtype), shape)
              for name, shape in {"a.b": (3, 5), "": (), "é": (0, 2)}.items()}  # fmt: skip
    leaves = decode(safetensors.numpy.save(arrays, {"k": "v"}))
    assert dict(leaves.metadata) == {"k": "v"}
    assert set(leaves) == set(arrays)
    for name, array in arrays.items():
        assert equal_bits(leaves[name], array)


@pytest.mark.parametrize("dtype", BOTH)
def test_we_read_what_the_reference_writes_for_flax(dtype: str, tmp_path: Any) -> None:
    arrays = {"a.b": jnp.asarray(filled(np.dtype(dtype))), "c": jnp.zeros((), dtype)}
    leaves = decode(safetensors.flax.save(arrays))
    assert dict(leaves.metadata) == {}
    for name, array in arrays.items():
        assert_same_bits(leaves[name], array, name)
    path = tmp_path / "m.safetensors"
    path.write_bytes(encode(leaves))
    again = safetensors.flax.load_file(path)
    for name, array in arrays.items():
        assert equal_bits(again[name], array)


# ---- the layout of the file

ALIGNED: list[tuple[dict[str, Any], int]] = [
    ({}, 64),
    ({"a": np.zeros(3, np.int8)}, 64),
    ({"a": np.zeros((1 << 20) - 64, np.int8)}, 64),
    ({"a": np.zeros(1 << 20, np.int8)}, 4096),
    ({"a": np.zeros(1 << 18, np.float32), "b": np.zeros(3, np.int8)}, 4096),
    ({f"n{i}": np.int8(1) for i in range(500)}, 64),
]


@pytest.mark.parametrize(("tree", "alignment"), ALIGNED, ids=range(len(ALIGNED)))
def test_data_begins_aligned(tree: Any, alignment: int) -> None:
    data = encode(Leaves(tree))
    begin = data_begin(data)
    assert begin % alignment == 0
    if alignment == 64 and len(data) < 4096:
        assert len(data) - begin == sum(leaf.nbytes for leaf in tree.values())


def test_every_tensor_is_aligned_for_its_dtype() -> None:
    tree = {
        "odd": np.zeros(3, np.int8), "halves": np.zeros(3, np.float16), "none": np.zeros((0, 3)),
        "wide": np.zeros(3), "row": np.zeros(16, np.float32), "rows": np.zeros((64, 3), np.int8),
    }  # fmt: skip
    header = header_of(encode(Leaves(tree)))
    begins = {name: info["data_offsets"][0] for name, info in header.items()}
    assert list(header) == ["none", "row", "rows", "wide", "halves", "odd"]
    for name, array in tree.items():
        assert begins[name] % array.dtype.itemsize == 0
        if array.nbytes % 64 == 0:
            assert begins[name] % 64 == 0
    assert sorted(begins.values()) == list(begins.values())


def test_the_same_leaves_give_the_same_bytes() -> None:
    one = encode(
        flatten({"b": MATRIX, "a": [1, {"x": GRID}], "m": {}}).replace(
            metadata={"k": "v", "j": "w"}
        )
    )
    other = encode(
        flatten({"m": {}, "a": [1, {"x": GRID}], "b": MATRIX}).replace(
            metadata={"j": "w", "k": "v"}
        )
    )
    assert one == other


@pytest.mark.parametrize(
    "tree", [{"a": {"b": MATRIX}}, {"a": MATRIX, "1": GRID}, {"w": MATRIX, "v.0": np.int8(1)}]
)
def test_no_metadata_where_there_is_nothing_to_record(tree: Any) -> None:
    data = encode(Leaves(dict(flatten(tree))))
    assert "__metadata__" not in header_of(data)
    assert dict(decode(data).metadata) == {}


# ---- errors of encode and decode


def deleted() -> jax.Array:
    array = jnp.ones(2)
    array.delete()
    return array


UNSTORABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "abstract": (
        lambda: jax.ShapeDtypeStruct((2,), "float32"),
        "expected values to store, got Shape",
    ),
    "abstract, transposed": (
        lambda: transpose("w")(Leaves({"w": jax.ShapeDtypeStruct((2, 3), "float32")}))["w"],
        "expected values to store",
    ),
    "abstract key": (lambda: jax.ShapeDtypeStruct((), jax.random.key(0).dtype), "expected values"),
    "deleted": (deleted, "deleted, or donated"),
    "object": (object, "expected an array"),
    "strings": (lambda: np.array(["a"]), "dtype that JAX has"),
}


@pytest.mark.parametrize("case", UNSTORABLE)
def test_a_leaf_that_cannot_be_stored_is_an_error_that_names_it(case: str) -> None:
    make, message = UNSTORABLE[case]
    with pytest.raises(LeafError, match=rf"leaf 'w': .*{message}"):
        encode(Leaves({"a": MATRIX, "w": make()}))


def test_a_tracer_is_an_error_that_names_the_leaf() -> None:
    def function(x: jax.Array) -> jax.Array:
        with pytest.raises(LeafError, match=r"leaf 'w': .* tracer"):
            encode(Leaves({"w": x}))
        with pytest.raises(LeafError, match=r"leaf 'a\.w': .* tracer"):
            flatten({"a": {"w": x}})
        with pytest.raises(LeafError, match=r"leaf 'w': .* tracer"):
            cast("bfloat16")(Leaves({"w": x}))
        return x

    jax.jit(function)(jnp.ones(2))


BUFFERS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "memoryview of a part": lambda data: memoryview(b"xx" + data + b"yy")[2:-2],
    "memoryview of floats": lambda data: memoryview(bytearray(data)).cast("f"),
}


@pytest.mark.parametrize("case", BUFFERS)
def test_every_kind_of_buffer_is_decoded(case: str) -> None:
    data = encode(Leaves({"w": MATRIX}))
    assert equal_bits(decode(BUFFERS[case](data))["w"], MATRIX)


def test_a_buffer_that_changes_is_copied() -> None:
    data = bytearray(encode(Leaves({"w": MATRIX})))
    leaf = decode(data)["w"]
    data[-MATRIX.nbytes :] = bytes(MATRIX.nbytes)
    assert equal_bits(leaf, MATRIX)


@pytest.mark.parametrize("data", ["path", 3, None, {"w": MATRIX}, MATRIX])
def test_anything_but_bytes_is_refused(data: Any) -> None:
    with pytest.raises(TypeError, match="expected the bytes of a safetensors file"):
        decode(data)


@pytest.mark.parametrize(
    "data", [b"", b"x", b"PK\x03\x04" * 10, b"{}" * 10, b"\x00" * 16, b"\xff" * 64]
)
def test_bytes_of_anything_but_a_safetensors_file_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidFileError, match=r"^<bytes>: ") as caught:
        decode(data)
    assert isinstance(caught.value, safetensors.SafetensorError)


@pytest.mark.parametrize("code", ["F6_E2M3", "F6_E3M2"])
def test_a_code_that_jax_has_no_dtype_for_is_an_error_that_names_it(code: str) -> None:
    data = file_of({"w": {"dtype": code, "shape": [4], "data_offsets": [0, 3]}}, bytes(3))
    with pytest.raises(InvalidFileError, match=f"tensor 'w': expected a dtype .* got {code}: "):
        safejax.unflatten(decode(data))


def test_the_path_of_a_renamed_leaf_is_not_written() -> None:
    leaves = flatten({"a": {"b": MATRIX}, "a.b": GRID})
    renamed = leaves.replace({"a.b": leaves["a.b"], "c": leaves["a.b~1"]})
    again = decode(encode(renamed))
    assert again.structure.paths == {}
    assert set(again) == {"a.b", "c"}


def test_opening_a_file_reads_no_data(tmp_path: Any) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(encode(flatten({"a": MATRIX, "k": jax.random.key(1)})))
    with observe_reads() as log:
        leaves = open_leaves(LocalStore().source(str(path)))
        assert sorted(leaves) == ["a", "k"]
        assert [leaf.shape for leaf in leaves.values()] == [(3, 4), ()]
        assert not log.reads
