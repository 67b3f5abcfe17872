"""Leaves of one family share their facts, and each equals a leaf that was made by itself."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import safejax
from safejax._src.arrays.content import Content
from safejax._src.arrays.families import Rows, Tensors
from safejax._src.reading.array import ArraySource
from safejax._src.reading.buffer import BufferSource
from safejax._src.reading.concatenation import stack
from safejax._src.reading.log import observe_reads
from safejax._src.reading.view import Strided, View
from safejax._src.reading.windows import Window

HOST = np.arange(120, dtype=np.float32).reshape(4, 6, 5)


def view_of(array: np.ndarray) -> Strided:
    flat = np.frombuffer(bytes(64) + array.tobytes(), np.uint8)
    return Strided(BufferSource(flat, "memory"), 64, array.dtype, Window.whole(array.shape))


VIEWS: dict[str, tuple[View, np.ndarray]] = {
    "whole": (view_of(HOST), HOST),
    "transposed": (view_of(HOST).transpose((2, 0, 1)), HOST.transpose(2, 0, 1)),
    "reversed": (view_of(HOST).index((slice(None, None, -1),)), HOST[::-1]),
    "stepped": (view_of(HOST).index((slice(1, None, 2), slice(4, None, -3))), HOST[1::2, 4::-3]),
    "repeated": (
        Strided(view_of(HOST).source, 64, HOST.dtype, Window(3, (2, 4), (0, 1))),
        np.broadcast_to(HOST.reshape(-1)[3:7], (2, 4)),
    ),
    "bfloat16": (
        view_of(HOST.astype(ml_dtypes.bfloat16)), HOST.astype(ml_dtypes.bfloat16),
    ),
    "one axis": (view_of(HOST[0, 0]), HOST[0, 0]),
    "bools that are not 0 or 1": (
        Strided(
            BufferSource(np.array([0, 1, 2, 255, 0, 7], np.uint8), "memory"),
            0, np.dtype(bool), Window.whole((2, 3)),
        ),
        np.array([[0, 1, 1], [1, 0, 1]], bool),
    ),
    "behind a barrier": (
        view_of(HOST).transpose((1, 0, 2)).reshape((24, 5)),
        HOST.transpose(1, 0, 2).reshape(24, 5),
    ),
    "in an array": (Strided(ArraySource(HOST), 0, HOST.dtype, Window.whole(HOST.shape)), HOST),
}  # fmt: skip


COPIED = ("bools that are not 0 or 1", "behind a barrier")
"""Views whose rows are computed; the rows of all others share read-only memory."""


@pytest.mark.parametrize("kind", VIEWS)
def test_a_row_is_what_indexing_gives(kind: str) -> None:
    view, host = VIEWS[kind]
    rows = Rows.of(Content(view))
    assert rows is not None
    assert rows.size == len(host)
    for number, expected in enumerate(host):
        by_index = view.index((number,))
        assert rows.content(number) == Content(by_index)
        with observe_reads() as log:
            row = rows.read(number)
            asked = log.nbytes
            log.clear()
            by_index.read()
            assert asked == log.nbytes
        assert (row.dtype, row.shape) == (expected.dtype, expected.shape)
        assert row.tobytes() == expected.tobytes()
        assert row.flags.writeable == (kind in COPIED)


@pytest.mark.parametrize(
    "content",
    [
        Content(view_of(np.zeros((2, 2), np.uint32)), "threefry2x32"),
        Content(view_of(np.zeros(()))),
        Content(view_of(np.zeros((0, 2)))),
        Content(view_of(np.zeros((3, 0, 2)))),
        Content(stack([view_of(HOST), view_of(HOST)], 0)),
    ],
)
def test_keys_scalars_empty_arrays_and_stacks_have_no_rows(content: Content) -> None:
    assert Rows.of(content) is None


def test_tensors_of_one_family_are_identified_by_their_offsets() -> None:
    source = BufferSource(HOST.tobytes(), "memory")
    tensors = Tensors(source, HOST.dtype, Window.whole((6, 5)))
    for number in range(4):
        content = tensors.content(number * 120)
        assert content == Content(Strided(source, number * 120, HOST.dtype, Window.whole((6, 5))))
        assert tensors.read(number * 120).tobytes() == HOST[number].tobytes()
    other = BufferSource(HOST[::-1].tobytes(), "other")
    assert tensors.in_source(source) is tensors
    assert tensors.in_source(other).read(0).tobytes() == HOST[3].tobytes()


SHAPES = [(6, 4), (3, 5, 2), (7,), (1, 3), (4, 0), (0, 4)]


@pytest.mark.parametrize("access", ["map", "copy", "read"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool", "int8"])
def test_rows_of_a_leaf_in_a_file(tmp_path: Path, dtype: str, access: Any) -> None:
    path = str(tmp_path / "rows.safetensors")
    tree = {
        str(shape): jnp.ones(shape, dtype).at[..., ::2].set(jnp.zeros((), dtype))
        for shape in SHAPES
    }
    safejax.save(tree, path)
    loaded = safejax.load(path, access=access)
    for name, plain in tree.items():
        leaf, host = loaded[name], np.asarray(plain)
        for number in [*range(-len(host), len(host)), *range(len(host))]:
            with observe_reads() as log:
                row = leaf[number]
                assert isinstance(row, safejax.LazyArray)
                assert (row.shape, row.dtype) == (plain[number].shape, plain.dtype)
                assert row.name == leaf.name
                assert not log.reads
                assert np.array(row).tobytes() == host[number].tobytes()
                assert log.nbytes == host[number].nbytes
            assert np.asarray(row, np.float64).tobytes() == host[number].astype("f8").tobytes()
            assert np.asarray(row.placed()).tobytes() == host[number].tobytes()
            # A row of a row as well.
            for inner in range(row.shape[0] if row.shape else 0):
                assert np.asarray(row[inner]).tobytes() == host[number][inner].tobytes()
        if len(host):
            assert leaf[len(host)].tolist() == plain[len(host)].tolist()  # JAX clamps indices


def test_rows_go_to_the_default_device_at_the_time_of_indexing() -> None:
    leaf = safejax.deserialize(safejax.serialize({"w": jnp.ones((4, 3))}))["w"]
    devices = jax.devices()
    first = leaf[1]
    with jax.default_device(devices[5]):
        there, there_too = leaf[1], leaf[2]
    with jax.default_device(devices[6]):
        elsewhere = leaf[1]
    again = leaf[1]
    found = [row.devices() for row in (first, there, there_too, elsewhere, again)]
    assert found == [{devices[number]} for number in (0, 5, 5, 6, 0)]
    assert not any(row.committed for row in (first, there, elsewhere))
    assert [row.placed().devices() for row in (there, again)] == [{devices[5]}, {devices[0]}]
