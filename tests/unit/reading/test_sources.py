"""Sources: what each returns, how many bytes are requested from it, and what it does not touch."""

import itertools
import threading

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from safejax._src.dtypes import stored_as, to_stored_bytes
from safejax._src.reading.array import AbstractSource, ArraySource
from safejax._src.reading.buffer import BufferSource
from safejax._src.reading.computed import ComputedSource
from safejax._src.reading.file import MappedSource
from safejax._src.reading.log import Read, observe_reads
from safejax._src.reading.packed import PackedSource
from safejax._src.reading.windows import Window
from safejax.errors import LeafError, ReadError

FLOAT4 = np.dtype(ml_dtypes.float4_e2m1fn)
SLICES = [slice(None), slice(None, None, -1), slice(1, None, 2), slice(-1, 0, -3), slice(2, 2)]


def file_of(tmp_path, data):
    path = tmp_path / "data"
    path.write_bytes(data)
    return MappedSource(str(path))


@pytest.mark.parametrize("begin", [0, 1, 3])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "complex128", "float8_e5m2", "int4"])
def test_a_tensor_may_begin_at_any_byte(name, begin, tmp_path):
    # The files of the safetensors package are not aligned.
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    raw = np.random.default_rng(0).integers(0, 256, 12 * dtype.itemsize, np.uint8)
    expected = raw.view(dtype).reshape(3, 4)[::-1, 1:3]
    window = Window.whole((3, 4)).index((slice(None, None, -1), slice(1, 3)))
    data = bytes(begin) + raw.tobytes()
    for source in (BufferSource(data, "bytes"), file_of(tmp_path, data)):
        with observe_reads() as log:
            array = source.read(begin, dtype, window)
        assert (array.dtype, array.shape) == (dtype, (3, 2))
        assert array.tobytes() == expected.tobytes()
        assert log.reads == [Read(source.name, 6 * dtype.itemsize)]
        with np.errstate(all="ignore"):
            assert np.array_equal(
                array.astype(np.complex64), expected.astype(np.complex64), equal_nan=True
            )


def test_a_buffer_is_read_in_place_and_cannot_be_written(tmp_path):
    buffer = np.arange(16, dtype=np.uint8)
    array = BufferSource(buffer, "buffer").read(4, np.dtype(np.int16), Window.whole((5,)))
    assert np.shares_memory(array, buffer)
    for shown in (array, file_of(tmp_path, bytes(16)).read(4, array.dtype, Window.whole((5,)))):
        with pytest.raises(ValueError, match="read-only"):
            shown[0] = 1
    assert buffer.flags.writeable


@pytest.mark.parametrize(
    "source", [BufferSource(bytes(64), "bytes"), ArraySource(np.zeros(16, np.float32))], ids=repr
)
def test_a_repeated_element_is_requested_once(source):
    with observe_reads() as log:
        array = source.read(0, np.dtype(np.float32), Window(3, (5, 2), (0, 1)))
    assert (array.shape, log.nbytes) == ((5, 2), 8)


SOURCES = {
    "buffer": lambda: BufferSource(b"", "bytes"),
    "array": lambda: ArraySource(np.zeros((3, 0), np.float32)),
    "packed": lambda: PackedSource(BufferSource(b"", "bytes"), 0),
    "computed": lambda: ComputedSource(lambda: pytest.fail("computed"), "computed", True),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_nothing_is_read_for_an_empty_window(kind):
    with observe_reads() as log:
        array = SOURCES[kind]().read(0, FLOAT4, Window.whole((3, 0)))
    assert (array.shape, array.dtype, log.reads) == ((3, 0), FLOAT4, [])


# ---- mapped files


def test_the_first_bytes_of_a_mapped_file_can_be_read(tmp_path):
    source = file_of(tmp_path, b"0123456789")
    assert (source.nbytes, source.prefix(2, 5), source.prefix(8, 99)) == (10, b"234", b"89")
    assert source.immutable
    assert source.name == str(tmp_path / "data")


def test_an_empty_file_can_be_mapped(tmp_path):
    source = file_of(tmp_path, b"")
    assert (source.nbytes, source.prefix(0, 8)) == (0, b"")


def test_a_file_that_was_cut_short_is_an_error_before_its_memory_is_touched(tmp_path):
    source = file_of(tmp_path, bytes(10_000))
    with open(source.name, "r+b") as file:
        file.truncate(9_999)
    with pytest.raises(ReadError, match=r"data: expected the 10000 bytes .* got 9999: .* again"):
        source.read(0, np.dtype(np.uint8), Window.whole((4,)))


def test_a_mapped_file_may_be_deleted_while_it_is_read(tmp_path):
    source = file_of(tmp_path, b"abcd")
    (tmp_path / "data").unlink()
    assert source.read(1, np.dtype(np.uint8), Window.whole((2,))).tobytes() == b"bc"


# ---- arrays in memory

ARRAYS = {
    "c order": np.arange(24, dtype=np.int32).reshape(2, 3, 4),
    "fortran order": np.asfortranarray(np.arange(24, dtype=np.int32).reshape(2, 3, 4)),
    "strided": np.arange(96, dtype=np.int32).reshape(4, 6, 4)[::2, ::-2],
    "big-endian": np.arange(24, dtype=">i4").reshape(2, 3, 4),
    "big-endian strided": np.arange(48, dtype=">f8").reshape(2, 3, 8)[..., ::-2],
    "broadcast": np.broadcast_to(np.arange(4, dtype=np.uint16), (2, 3, 4)),
    "unaligned": np.frombuffer(bytes(range(97)), np.uint8)[1:].view(np.int32).reshape(2, 3, 4),
    "bfloat16": np.arange(24).astype(ml_dtypes.bfloat16).reshape(2, 3, 4),
    "int4": (np.arange(24) % 16 - 8).astype(ml_dtypes.int4).reshape(2, 3, 4),
    "bool": (np.arange(24) % 3 == 0).reshape(2, 3, 4),
    "jax": jnp.arange(24).reshape(2, 3, 4),
    "jax bfloat16": jnp.arange(24).astype(jnp.bfloat16).reshape(2, 3, 4),
    "jax int4": (jnp.arange(24) % 16 - 8).astype(jnp.int4).reshape(2, 3, 4),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_of_any_layout_is_a_flat_source_in_native_byte_order(kind):
    array = ARRAYS[kind]
    dtype = np.dtype(array.dtype).newbyteorder("=")
    source = ArraySource(array)
    assert source.immutable == isinstance(array, jax.Array)
    expected = np.asarray(array).astype(dtype)
    for index in itertools.product(SLICES, repeat=3):
        part = expected[index]
        with observe_reads() as log:
            read = source.read(0, dtype, Window.whole((2, 3, 4)).index(index))
        assert (read.dtype, read.shape) == (dtype, part.shape)
        assert read.tobytes() == part.tobytes()
        assert log.nbytes == part.nbytes
        # A write could change the caller's array.
        assert read.size == 0 or not read.flags.writeable


@pytest.mark.parametrize("array", [np.array(3.5, ">f8"), jnp.array(3.5), np.float16(3.5)], ids=repr)
def test_an_array_without_axes(array):
    source = ArraySource(np.asarray(array) if isinstance(array, np.generic) else array)
    read = source.read(0, np.dtype(array.dtype).newbyteorder("="), Window.whole(()))
    assert read.shape == ()
    assert read == 3.5


def test_nothing_is_fetched_from_a_device_before_the_first_read():
    array = jnp.arange(3)
    source = ArraySource(array)
    assert repr(source) == "ArraySource(int32[3])"
    array.delete()
    with pytest.raises(LeafError, match=r"one that was deleted, .* give the save a copy"):
        source.read(0, np.dtype(np.int32), Window.whole((3,)))


# ---- packed elements


def packed_bytes(elements):
    return to_stored_bytes(elements, stored_as(FLOAT4, elements.shape)).tobytes()


@pytest.mark.parametrize("shape", [(24,), (4, 6), (6, 4), (2, 3, 4), (4, 3, 2), (8, 3)], ids=str)
@pytest.mark.parametrize("begin", [0, 5])
def test_every_slice_of_packed_elements_requests_each_byte_once(shape, begin):
    raw = np.random.default_rng(1).integers(0, 16, 24, np.uint8)
    elements = raw.view(FLOAT4)
    source = PackedSource(BufferSource(bytes(begin) + packed_bytes(elements), "bytes"), begin)
    numbers = np.arange(24).reshape(shape)
    slices = [*SLICES, slice(0, 2), slice(1, 3), slice(1, 2)]
    for axes in ((*range(len(shape)),), (*reversed(range(len(shape))),)):
        for index in itertools.product(slices, repeat=len(shape)):
            window = Window.whole(shape).transpose(axes).index(index)
            shown = numbers.transpose(axes)[index]
            with observe_reads() as log:
                read = source.read(0, FLOAT4, window)
            assert (read.dtype, read.shape) == (FLOAT4, shown.shape)
            assert (read.view(np.uint8) == raw[shown]).all()
            assert log.nbytes == np.unique(shown // 2).size


def test_rows_of_packed_elements_are_one_request():
    elements = np.zeros((64, 32), np.uint8).view(FLOAT4)
    source = PackedSource(BufferSource(packed_bytes(elements), "bytes"), 0)
    with observe_reads() as log:
        source.read(0, FLOAT4, Window.whole((64, 32)).index((slice(None), slice(3, 9))))
    assert log.reads == [Read("bytes", 64 * 4)]


def test_runs_of_packed_elements_whose_bytes_touch_are_one_request():
    elements = np.arange(24).astype(np.uint8).view(FLOAT4)
    source = PackedSource(BufferSource(packed_bytes(elements), "bytes"), 0)
    with observe_reads() as log:
        source.read(0, FLOAT4, Window.whole((8, 3)).index((slice(None), slice(0, 2))))
    assert log.reads == [Read("bytes", 12)]


def test_a_repeated_packed_element():
    elements = np.array([1, 2, 3, 4], np.uint8).view(FLOAT4)
    source = PackedSource(BufferSource(packed_bytes(elements), "bytes"), 0)
    read = source.read(0, FLOAT4, Window(1, (2, 3), (2, 0)))
    assert read.view(np.uint8).tolist() == [[2, 2, 2], [4, 4, 4]]


# ---- computed and abstract


def counting():
    calls = []

    def compute():
        calls.append(1)
        return np.arange(6, dtype=np.int16).reshape(2, 3).T

    return ComputedSource(compute, "computed", True), calls


def test_a_computed_source_is_flat_and_in_c_order():
    source, calls = counting()
    read = source.read(0, np.dtype(np.int16), Window.whole((6,)))
    assert (read.tolist(), len(calls)) == ([0, 3, 1, 4, 2, 5], 1)


def test_a_computed_source_is_computed_once_while_it_is_held():
    source, calls = counting()
    window = Window.whole((6,))

    def read():
        return source.read(0, np.dtype(np.int16), window).tolist()

    assert read() == read()
    assert len(calls) == 2
    with source.kept():
        assert len(calls) == 2  # it is not computed before it is needed
        with source.kept():
            assert read() == read()
            assert len(calls) == 3
        assert read() == [0, 3, 1, 4, 2, 5]
        assert len(calls) == 3
        with pytest.raises(ValueError, match="read-only"):
            source.read(0, np.dtype(np.int16), window)[0] = 1
    read()
    assert len(calls) == 4


def test_a_computed_source_is_released_after_an_error():
    source, calls = counting()
    keeping = source.kept()
    keeping.__enter__()
    source.read(0, np.dtype(np.int16), Window.whole((6,)))
    assert keeping.__exit__(KeyError, KeyError(), None) is False
    source.read(0, np.dtype(np.int16), Window.whole((6,)))
    assert len(calls) == 2


def test_an_abstract_leaf_has_no_values():
    with pytest.raises(ReadError, match=r"only abstract, float32\[2, 3\]: give an array"):
        AbstractSource().read(0, np.dtype(np.float32), Window.whole((2, 3)))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (BufferSource(b"", "x"), "BufferSource('x')"),
        (PackedSource(BufferSource(b"", "x"), 3), "PackedSource(BufferSource('x'))"),
        (counting()[0], "ComputedSource('computed')"),
        (AbstractSource(), "AbstractSource()"),
        (ArraySource(np.zeros((2, 3))), "ArraySource(float64[2, 3])"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_repr_names_the_source_and_shows_no_values(source, text):
    assert repr(source) == text


# ---- the log


def read_some(nbytes):
    source = BufferSource(bytes(100), "bytes")
    source.read(0, np.dtype(np.uint8), Window.whole((nbytes,)))


def test_a_log_counts_what_is_read_while_it_is_open():
    read_some(1)
    with observe_reads() as log:
        read_some(2)
        read_some(3)
    read_some(4)
    assert (log.nbytes, log.reads) == (5, [Read("bytes", 2), Read("bytes", 3)])
    log.clear()
    assert (log.nbytes, log.reads) == (0, [])


def test_logs_nest_and_are_closed_independently():
    with observe_reads() as outer:
        with observe_reads() as inner:  # Both are empty, and therefore equal.
            pass
        read_some(2)
        with observe_reads() as second:
            read_some(3)
    assert (outer.nbytes, inner.nbytes, second.nbytes) == (5, 0, 3)


def test_a_log_is_closed_by_an_error():
    with pytest.raises(KeyError), observe_reads() as log:
        raise KeyError
    read_some(1)
    assert log.reads == []


def test_a_log_sees_every_thread():
    with observe_reads() as log:
        threads = [threading.Thread(target=read_some, args=(n,)) for n in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(read.nbytes for read in log.reads) == list(range(1, 9))
