"""Consumers of a lazy leaf's memory get the stored values unplaced, or a clear error (S1)."""

import sys
from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import safejax
from safejax import LazyArray, observe_reads
from safejax._src.reading.patience import Patience

HAS_BUFFERS = sys.version_info >= (3, 12)
"""Whether a class that is written in Python can offer a buffer (PEP 688)."""

# Each dtype, and whether the format strings of Python's buffers can express it.
DTYPES: dict[Any, bool] = {
    **dict.fromkeys(map(np.dtype, ["?", "i1", "u2", "i4", "u8", "i8", "f2", "f4", "f8"]), True),
    **dict.fromkeys(map(np.dtype, ["c8", "c16"]), True),
    np.dtype(ml_dtypes.bfloat16): False,
    np.dtype(ml_dtypes.float8_e4m3fn): False,
    np.dtype(ml_dtypes.int4): False,
}


def host_of(dtype: Any) -> Any:
    return np.arange(6).reshape(2, 3).astype(dtype)


def leaf_of(host: Any) -> LazyArray:
    return safejax.deserialize(safejax.serialize({"w": host}))["w"]


# What each consumer returns, as bytes, and whether it needs a buffer.
CONSUMERS: dict[str, tuple[Callable[[Any], bytes], bool]] = {
    "numpy.asarray": (lambda x: np.asarray(x).tobytes(), False),
    "numpy.array": (lambda x: np.array(x).tobytes(), False),
    "bytes": (bytes, False),
    "memoryview": (lambda x: memoryview(x).tobytes(), True),
    "bytearray": (lambda x: bytes(bytearray(x)), True),
    "numpy.frombuffer": (lambda x: np.frombuffer(x, np.uint8).tobytes(), True),
    "bytes.join": (lambda x: b"".join([b"", x]), True),
}


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_consumer_gets_the_stored_values_or_an_error(
    dtype: Any, consumer: str, x64: bool
) -> None:
    host = host_of(dtype)
    take, needs_buffer = CONSUMERS[consumer]
    with jax.enable_x64(x64):
        leaf = leaf_of(host)
        with observe_reads() as log:
            if not needs_buffer or (HAS_BUFFERS and DTYPES[dtype]):
                assert take(leaf) == host.tobytes()
                assert {read.nbytes for read in log.reads} == {host.nbytes}
            else:
                with pytest.raises((TypeError, BufferError, safejax.PrecisionWarning)):
                    take(leaf)
            # Without a buffer, bytearray iterates over the elements instead, and refuses these.
            assert not leaf.is_placed or (consumer == "bytearray" and not HAS_BUFFERS)


@pytest.mark.skipif(not HAS_BUFFERS, reason="such a class has no buffer before Python 3.12")
def test_a_buffer_is_of_the_stored_dtype_and_shape_and_cannot_be_written() -> None:
    host = host_of("i8")
    view = memoryview(leaf_of(host))
    assert (view.shape, view.itemsize, view.readonly) == ((2, 3), 8, True)
    assert view.tolist() == host.tolist()


@pytest.mark.skipif(not HAS_BUFFERS, reason="such a class has no buffer before Python 3.12")
def test_a_dtype_that_buffers_cannot_express_is_an_error_with_the_remedy() -> None:
    leaf = leaf_of(host_of(ml_dtypes.bfloat16))
    with pytest.raises(BufferError, match=r"leaf 'w'.*bfloat16.*numpy\.asarray\(leaf\)"):
        memoryview(leaf)
    assert not leaf.is_placed


def test_numpy_reads_a_leaf_once() -> None:
    for dtype in DTYPES:
        leaf = leaf_of(host_of(dtype))
        with observe_reads() as log:
            np.asarray(leaf)
            assert len(log.reads) == 1, dtype


class Failing(MemoryFileSystem):
    """Counts the requests, and fails for the moment, for ever."""

    fails = False
    asked = 0

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        self.asked += 1
        if self.fails:
            raise ConnectionResetError(path)
        return super().cat_file(path, start, end, **options)


def test_numpy_asks_once_for_values_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python 3.12 on it asks for a buffer first, and forgets the error of that."""
    patience = Patience(attempts=3, pause=0.001)
    # A private name, since what fails for good would take seconds.
    monkeypatch.setattr("safejax._src.reading.patience.PATIENCE", patience)
    fs = Failing(skip_instance_cache=True)
    fs.store, fs.pseudo_dirs = {}, [""]  # Its own.
    fs.pipe("/w.safetensors", safejax.serialize({"w": host_of("f4")}))
    leaf = safejax.load("/w.safetensors", fs=fs)["w"]
    fs.fails, fs.asked = True, 0
    with pytest.raises(safejax.ReadError, match="after 3 attempts"):
        np.asarray(leaf)
    assert fs.asked == patience.attempts
    with pytest.raises(BufferError if HAS_BUFFERS else TypeError):
        memoryview(leaf)
    assert fs.asked == patience.attempts
    fs.fails = False
    assert np.asarray(leaf).tolist() == host_of("f4").tolist()


@pytest.mark.parametrize("value", [np.int32(3), np.uint8(200), np.bool_(True)])
def test_bytes_of_an_integer_scalar_equal_those_of_a_plain_array(value: Any) -> None:
    assert bytes(leaf_of(value)) == bytes(jax.device_put(value))


def test_dlpack_exports_the_placed_array_with_the_dtype_of_the_leaf() -> None:
    leaf = leaf_of(host_of("i8"))
    taken = np.from_dlpack(leaf)
    assert taken.dtype == leaf.dtype == np.int32
    assert taken.tolist() == host_of("i8").tolist()
    assert leaf.is_placed


def test_dlpack_refuses_values_that_do_not_fit_the_dtype_of_the_leaf() -> None:
    leaf = leaf_of(np.array([1 << 40]))
    with pytest.raises(safejax.PrecisionError, match=r"'w'.*1099511627776"):
        np.from_dlpack(leaf)
