"""Placing: which bytes are read, on which devices they go, and that no mode changes a bit."""

import os
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

import safejax
from safejax._src.arrays import jax_private
from safejax._src.arrays.content import Content
from safejax._src.arrays.lazy import LazyArray
from safejax._src.arrays.placing import Placement, default_placement, is_worth_a_thread, place
from safejax._src.arrays.precision import NarrowingNotice
from safejax._src.arrays.untraced import run_all_untraced, run_untraced
from safejax._src.leaves.leaf import content_of
from safejax._src.reading.array import ArraySource
from safejax._src.reading.buffer import BufferSource
from safejax._src.reading.concatenation import Concatenation, stack
from safejax._src.reading.file import MappedSource
from safejax._src.reading.log import observe_reads
from safejax._src.reading.memory import aligned_empty
from safejax._src.reading.pointwise import CastTo, Pointwise
from safejax._src.reading.view import Strided, View
from safejax._src.reading.windows import Window
from safejax.errors import PrecisionError, PrecisionWarning, ReadError
from tests.support.leaves import host_bytes, lazy

P = PartitionSpec
DEVICES = jax.devices()
LINE = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
SQUARE = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto, AxisType.Auto))
EXPLICIT = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
HOST = np.arange(128, dtype=np.float32).reshape(8, 16)


def view_of(array: Any) -> View:
    content = content_of(array)
    assert content is not None
    return content.view


def check_same(mine: jax.Array, theirs: jax.Array) -> None:
    """Check dtype, sharding, and every bit on every device."""
    assert type(mine) is type(theirs)
    assert (mine.dtype, mine.shape, mine.sharding, mine.committed) == (
        theirs.dtype, theirs.shape, theirs.sharding, theirs.committed,
    )  # fmt: skip
    assert jax.typeof(mine) == jax.typeof(theirs)
    shards = zip(mine.addressable_shards, theirs.addressable_shards, strict=True)
    for mine_there, theirs_there in shards:
        assert (mine_there.device, mine_there.index) == (theirs_there.device, theirs_there.index)
        assert host_bytes(mine_there.data) == host_bytes(theirs_there.data)


# ---- every dtype, every bit

NARROW = ("int2", "uint2", "int4", "uint4", "float4_e2m1fn")
FLOAT8S = tuple(name for name in dir(ml_dtypes) if name.startswith("float8_"))
DTYPES = [
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32"),
    *("complex64", "bfloat16"),
    *NARROW,
    *FLOAT8S,
]
WIDE = ["int64", "uint64", "float64", "complex128"]


def dtype_of(name: str) -> Any:
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def every_kind_of_value(dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Values with NaN payloads, infinities, subnormals and both zeros among them."""
    count = int(np.prod(shape))
    noise = np.random.default_rng(0).integers(0, 256, (count * dtype.itemsize,), np.uint8)
    if dtype == np.bool_:
        noise &= 1
    elif dtype.name in NARROW:
        # An element does not use all bits of the byte that NumPy stores it in.
        return (noise % 4).astype(np.int8).astype(dtype).reshape(shape)
    return noise.view(dtype).reshape(shape)


@pytest.mark.parametrize("sharding", [None, NamedSharding(LINE, P("x"))], ids=["one", "rows"])
@pytest.mark.parametrize("name", [*DTYPES, *WIDE])
def test_every_dtype_keeps_every_bit(name: str, sharding: Any) -> None:
    dtype = dtype_of(name)
    placement = None if sharding is None else Placement(sharding, True)
    shapes = [(8, 3), (0, 3), (16,)] if sharding else [(8, 3), (), (0, 3), (5,), (2, 0)]
    with jax.enable_x64(name in WIDE):
        for shape in shapes:
            host = every_kind_of_value(dtype, shape)
            plain = jax.device_put(host, sharding)
            leaf = lazy(host, placement=placement)
            assert leaf.aval == jax.typeof(plain)
            with observe_reads() as log:
                check_same(leaf.placed(), plain)
                assert log.nbytes == host.nbytes
            assert host_bytes(leaf.placed()) == host.tobytes()
            assert host_bytes(leaf) == host.tobytes()


def test_a_dtype_that_jax_lacks_is_available_on_the_host_only() -> None:
    host = np.zeros(3, ml_dtypes.float6_e2m3fn)
    leaf = lazy(host, name="odd")
    assert host_bytes(leaf) == host.tobytes()
    if jax.__version_info__ >= (0, 12):  # a JAX that has the dtype
        placed = leaf.placed()
        assert (placed.dtype, host_bytes(placed)) == (host.dtype, host.tobytes())
        return
    with pytest.raises((TypeError, RuntimeError)) as caught:
        leaf.placed()
    assert caught.value.__notes__ == ["while placing leaf 'odd'"]


# ---- every kind of view

FLAT = np.arange(48, dtype=np.float32)
VIEWS: dict[str, Callable[[View], tuple[View, np.ndarray]]] = {
    "whole": lambda v: (v, FLAT),
    "reshaped": lambda v: (v.reshape((6, 8)), FLAT.reshape(6, 8)),
    "transposed": lambda v: (v.reshape((6, 8)).transpose((1, 0)), FLAT.reshape(6, 8).T),
    "reversed": lambda v: (v.index((slice(None, None, -1),)), FLAT[::-1]),
    "stepped": lambda v: (v.index((slice(1, None, 3),)), FLAT[1::3]),
    "column": lambda v: (v.reshape((6, 8)).index((slice(None), 3)), FLAT.reshape(6, 8)[:, 3]),
    "expanded": lambda v: (v.expand(0), FLAT[None]),
    "repeated": lambda v: (
        Strided(ArraySource(FLAT), 0, FLAT.dtype, Window(4, (3, 5), (0, 1))),
        np.broadcast_to(FLAT[4:9], (3, 5)),
    ),
    "scalar": lambda v: (v.index((7,)), FLAT[7]),
    "empty": lambda v: (v.index((slice(5, 5),)), FLAT[5:5]),
    "concatenated": lambda v: (Concatenation((v, v), 0), np.concatenate([FLAT, FLAT])),
    "stacked": lambda v: (stack((v, v, v), 1), np.stack([FLAT, FLAT, FLAT], 1)),
    "cast": lambda v: (
        Pointwise(v, CastTo(np.dtype(np.float16)), np.dtype(np.float16)),
        FLAT.astype(np.float16),
    ),
    "reshaped with a copy": lambda v: (
        v.reshape((6, 8)).transpose((1, 0)).reshape((48,)),
        FLAT.reshape(6, 8).T.reshape(48),
    ),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_every_kind_of_view_is_placed_as_numpy_sees_it(kind: str) -> None:
    view, expected = VIEWS[kind](view_of(FLAT))
    leaf = LazyArray(Content(view), "w")
    check_same(leaf.placed(), jax.device_put(np.ascontiguousarray(expected).reshape(view.shape)))


@pytest.mark.parametrize("name", ["bool", "int4", "bfloat16", "float64", "complex128"])
@pytest.mark.parametrize("kind", ["transposed", "reversed", "stepped"])
def test_strided_views_of_any_itemsize(kind: str, name: str) -> None:
    dtype = dtype_of(name)
    host = every_kind_of_value(dtype, (8, 6))
    with jax.enable_x64(True):
        view = view_of(host)
        if kind == "transposed":
            view, host = view.transpose((1, 0)), host.T
        else:
            index = (slice(None, None, -1 if kind == "reversed" else 3),) * 2
            view, host = view.index(index), host[index]
        leaf = LazyArray(Content(view), "w")
        check_same(leaf.placed(), jax.device_put(np.ascontiguousarray(host)))
        rows = Placement(NamedSharding(SQUARE, P("y")), True)
        if view.shape[0] % 2 == 0:
            leaf = LazyArray(Content(view), "w", rows)
            check_same(leaf.placed(), jax.device_put(np.ascontiguousarray(host), rows.sharding))


# ---- onto every sharding, reading each part once

# The sharding, and the number of distinct parts into which it splits the shape (8, 16).
SHARDINGS: list[tuple[Any, int]] = [
    (SingleDeviceSharding(DEVICES[0]), 1),
    (SingleDeviceSharding(DEVICES[5]), 1),
    (NamedSharding(LINE, P("x")), 8),
    (NamedSharding(LINE, P(None, "x")), 8),
    (NamedSharding(LINE, P()), 1),
    (NamedSharding(SQUARE, P("x", "y")), 8),
    (NamedSharding(SQUARE, P("y", "x")), 8),
    (NamedSharding(SQUARE, P("x")), 4),
    (NamedSharding(SQUARE, P(None, "y")), 2),
    (NamedSharding(SQUARE, P(("x", "y"))), 8),
    (NamedSharding(SQUARE, P(("y", "x"), None)), 8),
    (NamedSharding(SQUARE, P()), 1),
    (NamedSharding(EXPLICIT, P("x", "y")), 8),
    (NamedSharding(EXPLICIT, P("y")), 2),
    (NamedSharding(EXPLICIT, P()), 1),
    (NamedSharding(jax.make_mesh((1,), ("z",), axis_types=(AxisType.Auto,)), P("z")), 1),
    (
        NamedSharding(
            jax.make_mesh((2,), ("z",), devices=DEVICES[6:], axis_types=(AxisType.Auto,)), P("z")
        ),
        2,
    ),
    (
        NamedSharding(
            jax.make_mesh((8,), ("x",), devices=DEVICES[::-1], axis_types=(AxisType.Auto,)),
            P("x"),
        ),
        8,
    ),
]


@pytest.mark.parametrize(("sharding", "parts"), SHARDINGS, ids=str)
def test_each_device_gets_its_part_and_each_part_is_read_once(sharding: Any, parts: int) -> None:
    plain = jax.device_put(HOST, sharding)
    leaf = lazy(HOST, placement=Placement(sharding, True))
    assert leaf.aval == jax.typeof(plain)
    assert leaf.devices() == plain.devices()
    with observe_reads() as log:
        placed = leaf.placed()
        assert len(log.reads) == parts
        assert [read.nbytes for read in log.reads] == [HOST.nbytes // parts] * parts
    check_same(placed, plain)


@pytest.mark.parametrize(
    "sharding",
    [
        SingleDeviceSharding(DEVICES[2]),
        SingleDeviceSharding(DEVICES[0], memory_kind="pinned_host"),
        *(sharding for sharding, _ in SHARDINGS),
    ],
    ids=str,
)
def test_placing_by_public_functions_gives_what_the_faster_private_one_gives(
    sharding: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A later JAX may not have it; the one that is installed does.
    monkeypatch.setattr(jax_private, "_batched_device_put", None)
    keys = jax.random.split(jax.random.key(1), 8)
    for array in (HOST, HOST.astype(ml_dtypes.bfloat16)):
        plain = jax.device_put(array, sharding)
        check_same(lazy(array, placement=Placement(sharding, True)).placed(), plain)
    if len(sharding.device_set) == 8 and len(getattr(sharding, "spec", ())) < 2:
        placed = lazy(keys, placement=Placement(sharding, True)).placed()
        assert host_bytes(placed) == host_bytes(keys)
    with jax.default_device(DEVICES[3]):
        check_same(lazy(HOST).placed(), jax.device_put(HOST))


def test_a_sharding_that_jit_made_can_be_a_target() -> None:
    rows = jax.device_put(HOST, NamedSharding(LINE, P("x")))
    made = jax.jit(lambda x: x.reshape(2, 4, 16))(rows)
    leaf = lazy(np.asarray(made), placement=Placement(made.sharding, True))
    check_same(leaf.placed(), jax.device_put(np.asarray(made), made.sharding))


@pytest.mark.parametrize("kind", ["pinned_host", "unpinned_host", "device"])
@pytest.mark.parametrize(
    "sharding",
    [
        lambda kind: SingleDeviceSharding(DEVICES[0], memory_kind=kind),
        lambda kind: NamedSharding(LINE, P("x"), memory_kind=kind),
        lambda kind: NamedSharding(LINE, P(), memory_kind=kind),
    ],
)
def test_a_leaf_goes_to_the_memory_kind_of_its_sharding(
    sharding: Callable[[str], Any], kind: str
) -> None:
    target = sharding(kind)
    leaf = lazy(HOST, placement=Placement(target, True))
    plain = jax.device_put(HOST, target)
    assert leaf.aval == plain.aval
    assert leaf.sharding.memory_kind == leaf.placed().sharding.memory_kind == kind
    check_same(leaf.placed(), plain)
    # The traced type shows in which memory JAX expects the values.
    through = [jax.jit(lambda x: x)(array) for array in (plain, leaf, leaf.placed())]
    assert len({array.sharding.memory_kind for array in through}) == 1
    data = [shard.data.sharding.memory_kind for shard in leaf.placed().addressable_shards]
    assert set(data) == {kind}


@pytest.mark.parametrize("kind", ["pinned_host", "unpinned_host"])
def test_keys_go_to_the_memory_kind_of_their_sharding(kind: str) -> None:
    keys = jax.random.split(jax.random.key(1), 8)
    target = NamedSharding(LINE, P("x"), memory_kind=kind)
    leaf = lazy(keys, placement=Placement(target, True))
    placed = leaf.placed()
    assert placed.sharding.memory_kind == kind
    assert leaf.aval == placed.aval == jax.device_put(keys, target).aval
    assert host_bytes(placed) == host_bytes(keys)


@pytest.mark.parametrize("mesh", [SQUARE, EXPLICIT])
def test_a_sharding_that_does_not_divide_the_shape_is_refused(mesh: Any) -> None:
    odd = np.zeros((6, 2), np.float32)
    with pytest.raises(ValueError, match=r"divisible|evenly"):
        lazy(odd, placement=Placement(NamedSharding(mesh, P("x")), True)).placed()


# ---- the default device


def test_default_placement_is_on_the_current_default_device() -> None:
    assert default_placement() == Placement(SingleDeviceSharding(DEVICES[0]), False)
    with jax.default_device(DEVICES[3]):
        assert default_placement() == Placement(SingleDeviceSharding(DEVICES[3]), False)
    with jax.default_device("cpu"):
        assert default_placement() == Placement(SingleDeviceSharding(DEVICES[0]), False)


@pytest.mark.parametrize("device", [0, 3])
def test_uncommitted_leaves_stay_uncommitted(device: int) -> None:
    with jax.default_device(DEVICES[device]):
        leaf = lazy(HOST)
        plain = jnp.asarray(HOST)
    assert not leaf.committed
    check_same(leaf.placed(), plain)


# ---- memory that is shared with others


@pytest.fixture
def mapped(tmp_path: Path) -> MappedSource:
    path = tmp_path / "data"
    path.write_bytes(bytes(64) + HOST.tobytes() + HOST.tobytes())
    return MappedSource(str(path))


def of_mapped(source: MappedSource, begin: int, placement: Placement | None = None) -> LazyArray:
    window = Window.whole(HOST.shape)
    return LazyArray(Content(Strided(source, begin, HOST.dtype, window)), "w", placement)


def address_in(source: MappedSource) -> int:
    return source.read(0, np.dtype(np.uint8), Window.whole((1,))).ctypes.data


def test_an_aligned_mapped_leaf_is_used_in_place(mapped: MappedSource) -> None:
    (block,) = of_mapped(mapped, 64).place_in_this_thread()
    assert block.ctypes.data == address_in(mapped) + 64
    placed = of_mapped(mapped, 64).placed()
    assert placed.unsafe_buffer_pointer() == address_in(mapped) + 64
    assert host_bytes(placed) == HOST.tobytes()
    rows = of_mapped(mapped, 64, Placement(NamedSharding(LINE, P("x")), True)).placed()
    for number, shard in enumerate(rows.addressable_shards):
        assert shard.data.unsafe_buffer_pointer() == address_in(mapped) + 64 + 64 * number


@pytest.mark.parametrize("begin", [60, 65, 96, 127])
def test_an_unaligned_mapped_leaf_is_copied(mapped: MappedSource, begin: int) -> None:
    leaf = of_mapped(mapped, begin)
    expected = Path(mapped.name).read_bytes()[begin : begin + HOST.nbytes]
    assert host_bytes(leaf.placed()) == expected
    first, last = address_in(mapped), address_in(mapped) + Path(mapped.name).stat().st_size
    assert not first <= leaf.placed().unsafe_buffer_pointer() < last
    assert leaf.__copy__().place_in_this_thread() == []  # Nothing is left to bring into memory.
    rows = of_mapped(mapped, begin, Placement(NamedSharding(LINE, P(None, "x")), True))
    assert host_bytes(rows.placed()) == expected


DONORS: dict[str, Callable[[Any], Any]] = {
    "jit": jax.jit(lambda x: x.at[...].set(-1.0), donate_argnums=0),
    "jit of a tree": lambda x: jax.jit(
        lambda t: jax.tree.map(lambda y: y - y - 1, t), donate_argnums=0
    )({"a": x})["a"],
    "compiled": lambda x: jax.jit(lambda y: y - y - 1, donate_argnums=0).lower(x).compile()(x),
    "device_put": lambda x: jax.jit(lambda y: y - y - 1, donate_argnums=0)(
        jax.device_put(x, x.sharding, donate=True)
    ),
    "copy": lambda x: jax.jit(lambda y: y - y - 1, donate_argnums=0)(x.copy()),
    "shards": lambda x: jax.jit(lambda y: y - y - 1, donate_argnums=0)(
        jax.make_array_from_single_device_arrays(
            x.shape, x.sharding, [shard.data for shard in x.addressable_shards]
        )
    ),
}


@pytest.mark.parametrize("begin", [64, 68])
@pytest.mark.parametrize("sharding", [None, NamedSharding(LINE, P("x")), NamedSharding(LINE, P())])
@pytest.mark.parametrize("how", DONORS)
def test_donating_a_mapped_leaf_does_not_change_the_file(
    mapped: MappedSource, how: str, sharding: Any, begin: int
) -> None:
    placement = None if sharding is None else Placement(sharding, True)
    before = Path(mapped.name).read_bytes()
    leaf = of_mapped(mapped, begin, placement)
    for _ in range(2):
        assert host_bytes(DONORS[how](leaf)) == np.full_like(HOST, -1).tobytes()
        assert host_bytes(leaf.placed()) == before[begin : begin + HOST.nbytes]
    assert Path(mapped.name).read_bytes() == before
    assert host_bytes(of_mapped(mapped, 64)) == HOST.tobytes()


@pytest.mark.parametrize("sharding", [None, NamedSharding(LINE, P("x"))])
def test_donating_a_leaf_does_not_change_the_array_that_it_was_made_of(sharding: Any) -> None:
    plain = jax.device_put(HOST, sharding)
    leaf = lazy(plain, placement=None if sharding is None else Placement(sharding, True))
    DONORS["jit"](leaf)
    assert host_bytes(plain) == HOST.tobytes()
    assert host_bytes(leaf) == HOST.tobytes()
    leaf.placed()
    DONORS["jit"](plain)
    assert host_bytes(leaf.placed()) == HOST.tobytes()


def test_a_numpy_array_that_changes_later_does_not_change_what_was_placed() -> None:
    # It is aligned to 64 bytes, so that XLA would use it in place.
    memory = np.zeros(HOST.nbytes + 64, np.uint8)
    offset = -memory.ctypes.data % 64
    host = memory[offset : offset + HOST.nbytes].view(np.float32).reshape(HOST.shape)
    host[...] = HOST
    one = lazy(host).placed()
    rows = lazy(host, placement=Placement(NamedSharding(LINE, P("x")), True)).placed()
    host[...] = 0
    assert host_bytes(one) == host_bytes(rows) == HOST.tobytes()


def test_deserialized_bytes_are_not_changed(mapped: MappedSource) -> None:
    data = bytes(64) + HOST.tobytes()
    view = Strided(BufferSource(data, "bytes"), 64, HOST.dtype, Window.whole(HOST.shape))
    leaf = LazyArray(Content(view), "w")
    DONORS["jit"](leaf)
    assert data == bytes(64) + HOST.tobytes()


def test_a_file_that_was_cut_short_raises_and_does_not_end_the_process(
    mapped: MappedSource,
) -> None:
    leaf = of_mapped(mapped, 64)
    with open(mapped.name, "r+b") as file:
        file.truncate(100)
    with pytest.raises(ReadError, match="cut short"):
        leaf.placed()
    assert not leaf.is_placed


# ---- when threads copy


BIG = np.zeros((512, 1024), np.float32)


def strided(array: np.ndarray, begin: int = 64) -> Strided:
    memory = aligned_empty((begin + array.nbytes,), np.dtype(np.uint8))
    source = BufferSource(memory, "memory")
    return Strided(source, begin, array.dtype, Window.whole(array.shape))


@pytest.mark.parametrize(
    ("view", "sharding", "expected"),
    [
        (strided(BIG), SingleDeviceSharding(DEVICES[0]), False),
        (strided(BIG), NamedSharding(LINE, P("x")), False),
        (strided(BIG), NamedSharding(LINE, P()), False),
        (strided(BIG), NamedSharding(LINE, P(None, "x")), True),
        (strided(BIG, 68), SingleDeviceSharding(DEVICES[0]), True),
        (strided(BIG, 68), NamedSharding(LINE, P("x")), True),
        (strided(BIG).transpose((1, 0)), SingleDeviceSharding(DEVICES[0]), True),
        (strided(HOST, 68), SingleDeviceSharding(DEVICES[0]), False),  # too little to copy
        (strided(BIG.astype(np.float64)), SingleDeviceSharding(DEVICES[0]), True),  # narrowed
        (view_of(BIG), SingleDeviceSharding(DEVICES[0]), True),  # may be on another device
        (Pointwise(view_of(HOST), CastTo(np.dtype("f2")), np.dtype("f2")),
         SingleDeviceSharding(DEVICES[0]), True),
    ],
)  # fmt: skip
def test_threads_are_used_for_what_is_copied(view: View, sharding: Any, expected: bool) -> None:
    dtype = np.dtype(np.float32) if view.dtype == np.float64 else view.dtype
    with observe_reads() as log:
        assert is_worth_a_thread(view, dtype, Placement(sharding, True)) is expected
        assert not log.reads


# ---- 64-bit leaves

SMALL, LARGE = 2**31 - 1, 2**31
FITTING = {
    "int64": [-(2**31), -1, 0, 2**31 - 1],
    "uint64": [0, 1, 2**32 - 1],
}
TOO_LARGE = {
    "int64": [2**31, -(2**31) - 1, 2**40 + 7, -(2**63), 2**63 - 1],
    "uint64": [2**32, 2**64 - 1],
}


@pytest.mark.parametrize("name", FITTING)
def test_integers_that_fit_become_32_bits_wide(name: str) -> None:
    host = np.array(FITTING[name], name)
    leaf = lazy(host)
    assert leaf.dtype == np.dtype(name.replace("64", "32"))
    assert leaf.placed().tolist() == FITTING[name]
    assert host_bytes(leaf) == host.tobytes()
    assert np.asarray(leaf).dtype == host.dtype


@pytest.mark.parametrize("sharding", [None, NamedSharding(LINE, P("x"))], ids=["one", "rows"])
@pytest.mark.parametrize(("name", "value"), [(n, v) for n in TOO_LARGE for v in TOO_LARGE[n]])
def test_an_integer_that_does_not_fit_is_an_error(name: str, value: int, sharding: Any) -> None:
    host = np.ones((8, 2), name)
    host[5, 1] = value
    leaf = lazy(
        host, placement=None if sharding is None else Placement(sharding, True), name="layers.0.ids"
    )
    for use in (LazyArray.placed, jax.jit(lambda x: x), lambda x: x + 1, jnp.sort, jnp.array):
        with pytest.raises(PrecisionError) as caught:
            use(leaf)
        message = str(caught.value)
        assert "'layers.0.ids'" in message
        assert f"got {value} " in message
        assert name in message
        assert "jax.config.update('jax_enable_x64', True)" in message
        assert "numpy.asarray(leaf)" in message
    assert not leaf.is_placed
    assert host_bytes(leaf) == host.tobytes()
    # A part without that value can be placed.
    assert leaf[:5].placed().tolist() == [[1, 1]] * 5
    with jax.enable_x64(True):
        assert lazy(host).placed().tolist() == host.tolist()


def test_empty_integers_fit() -> None:
    for shape in ((0,), (3, 0)):
        assert lazy(np.zeros(shape, np.int64)).placed().shape == shape


@pytest.mark.parametrize("name", ["float64", "complex128"])
def test_floats_are_narrowed_with_one_warning_for_each_notice(name: str) -> None:
    values = [0.1, -0.0, 1e300, 1e-50, np.nan, -np.inf, 2.0**-140, 1 + 2.0**-30]
    host = np.array(values, name)
    notice = NarrowingNotice()
    content = content_of(host)
    assert content is not None
    rows = Placement(NamedSharding(LINE, P("x")), True)
    leaves = [LazyArray(content, f"layers.{n}", None if n else rows, notice) for n in range(3)]
    narrow = "float32" if name == "float64" else "complex64"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for leaf in leaves:
            assert leaf.dtype == narrow
            assert host_bytes(leaf) == host.tobytes()
        assert caught == []
        for leaf in (*leaves, leaves[1][2:5], leaves[2].__copy__()):
            leaf.placed()
    assert [warning.category for warning in caught] == [PrecisionWarning]
    message = str(caught[0].message)
    for part in ("'layers.0'", name, narrow, "jax.config.update('jax_enable_x64', True)"):
        assert part in message
    with np.errstate(all="ignore"):
        expected = host.astype(narrow)
    for leaf in leaves:
        assert host_bytes(leaf.placed()) == expected.tobytes()
        assert host_bytes(leaf) == host.tobytes()
    with pytest.warns(PrecisionWarning):
        lazy(host).placed()


def test_threads_that_narrow_at_once_warn_once() -> None:
    content = content_of(np.ones(3))
    assert content is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(20):
            notice = NarrowingNotice()
            leaves = [LazyArray(content, "w", None, notice) for _ in range(8)]
            gate = threading.Barrier(8)

            def touch(leaf: LazyArray, gate: Any = gate) -> None:
                gate.wait()
                leaf.placed()

            threads = [threading.Thread(target=touch, args=(leaf,)) for leaf in leaves]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(caught) == 20


@pytest.mark.parametrize("placed_wide", [True, False])
@pytest.mark.parametrize("made_wide", [True, False])
@pytest.mark.parametrize("name", WIDE)
@pytest.mark.filterwarnings("ignore::safejax.errors.PrecisionWarning")
def test_the_x64_mode_at_the_time_the_leaf_was_made_decides(
    name: str, made_wide: bool, placed_wide: bool
) -> None:
    host = np.array([[1, 2], [3, 4]] * 4, name) * (1 + 2.0**-40 if name == "float64" else 1)
    host = host.astype(name)
    sharding = NamedSharding(LINE, P("x"))
    with jax.enable_x64(made_wide):
        plain = jnp.asarray(host)
        sharded = jax.device_put(host, sharding)
        leaf = lazy(host)
        rows = lazy(host, placement=Placement(sharding, True))
        aval = leaf.aval
    with jax.enable_x64(placed_wide):
        assert leaf.aval == aval
        # Views of a leaf that are made later have the dtype of the leaf.
        parts = [leaf[2:5], leaf.__copy__(), rows.at_placement(Placement(sharding, True))]
        check_same(leaf.placed(), plain)
        check_same(rows.placed(), sharded)
        check_same(parts[0].placed(), jax.device_put(plain[2:5]))
        check_same(parts[1].placed(), plain)
        check_same(parts[2].placed(), sharded)
        assert host_bytes(jax.jit(lambda x: x)(leaf)) == host_bytes(jax.jit(lambda x: x)(plain))
        # Which of these was called first, and in which mode, does not matter.
        unread = leaf.__copy__()
        row = unread[1]
        assert row.dtype == plain.dtype
        check_same(row.placed(), jax.device_put(plain[1]))
    with jax.enable_x64(not placed_wide):
        assert unread[2].dtype == plain.dtype
        check_same(unread[2].placed(), jax.device_put(plain[2]))
    assert host_bytes(leaf) == host.tobytes()


@pytest.mark.parametrize("wide", [True, False])
def test_the_abstract_value_has_the_requested_dtype(wide: bool) -> None:
    for name in WIDE:
        jax_private.abstract_value.cache_clear()
        sharding = SingleDeviceSharding(DEVICES[0])
        with jax.enable_x64(wide):
            assert jax_private.abstract_value((2,), np.dtype(name), sharding).dtype == name


# ---- run_untraced


def test_untraced_runs_outside_the_callers_trace_and_modes() -> None:
    seen: list[Any] = []

    def task() -> jax.Array:
        seen.append((threading.current_thread(), jax.config.jax_debug_nans,
                     jax.config.jax_disable_jit, jax.config.jax_enable_x64))  # fmt: skip
        return jax.device_put(np.float32(np.nan)) + 1

    @jax.jit
    def traced(x: Any) -> Any:
        value = run_untraced(task)
        assert not isinstance(value, jax.core.Tracer)
        return x + value

    with jax.debug_nans(True), jax.disable_jit(), jax.transfer_guard("disallow"):
        assert np.isnan(run_untraced(task))
    assert np.isnan(traced(1.0))
    for thread, *modes in seen:
        assert thread is not threading.current_thread()
        assert modes == [False, False, False]


@pytest.mark.parametrize("name", ["int32", *WIDE])
def test_untraced_enables_x64_for_64_bit_dtypes_only(name: str) -> None:
    value = np.ones(3, name)
    placed = run_untraced(lambda: jax.device_put(value), np.dtype(name))
    assert placed.dtype == name
    assert not jax.config.jax_enable_x64


def test_untraced_raises_the_error_of_the_task() -> None:
    for error in (ValueError("no"), KeyboardInterrupt(), AttributeError("none"), SystemExit(3)):

        def task(error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            run_untraced(task)
        assert caught.value is error


@pytest.mark.parametrize("workers", [1, 3, 50])
def test_untraced_all_runs_every_task_once(workers: int) -> None:
    done: list[tuple[int, bool]] = []
    tasks = [
        (lambda n=n: done.append((n, jax.config.jax_enable_x64)), np.dtype(["i4", "i8"][n % 2]))
        for n in range(20)
    ]
    run_all_untraced(tasks, workers)
    assert sorted(done) == [(n, n % 2 == 1) for n in range(20)]
    run_all_untraced([], workers)


@pytest.mark.parametrize("workers", [1, 4])
def test_untraced_all_stops_at_the_first_failure(workers: int) -> None:
    done: list[int] = []
    error = ReadError("gone")

    def task(n: int) -> None:
        if n == 10:
            raise error
        done.append(n)

    tasks = [(lambda n=n: task(n), np.dtype(np.int32)) for n in range(1000)]
    with pytest.raises(ReadError) as caught:
        run_all_untraced(tasks, workers)
    assert caught.value is error
    assert set(range(10)) <= set(done)
    assert len(done) < 900
    assert workers > 1 or done == list(range(10))


def test_placing_reads_only_what_a_device_of_the_sharding_holds() -> None:
    # The view is half of the array, and each of the two devices holds two of its rows.
    mesh = jax.make_mesh((2,), ("x",), devices=DEVICES[:2], axis_types=(AxisType.Auto,))
    view = view_of(HOST).index((slice(0, 4),))
    with observe_reads() as log:
        rows = Placement(NamedSharding(mesh, P("x")), True)
        placed = place(Content(view), view.dtype, rows, "w").array
        assert log.nbytes == HOST.nbytes // 2
    assert host_bytes(placed) == HOST[:4].tobytes()


FOLDED = safejax.chain(
    safejax.transpose("*", axes=(1, 0, 2)),
    safejax.reshape("*", (16 * 24 * 8,)),
    safejax.reshape("*", (64, 48)),
)
"""A reshape that no window can show: any part of the result needs the whole leaf."""


@pytest.mark.parametrize("access", ["auto", "read"])
@pytest.mark.parametrize(
    "step",
    [
        FOLDED,
        safejax.chain(FOLDED, safejax.cast("bfloat16")),
        safejax.chain(FOLDED, safejax.transpose("*"), safejax.reshape("*", (64, 48))),
        safejax.chain(FOLDED, safejax.stack(["w", "v"], "both")),
    ],
    ids=["folded", "cast", "twice", "stacked"],
)
def test_a_reshape_that_no_window_can_show_reads_a_leaf_once_for_all_devices(
    tmp_path: Path, step: safejax.Transform, access: Any
) -> None:
    w = np.arange(16 * 24 * 8, dtype=np.float32).reshape(16, 24, 8)
    safejax.save({"w": w, "v": -w}, tmp_path / "m")
    whole = safejax.load(tmp_path / "m", transform=step)
    for spec in (("x",), (None, "x")):

        def sharding(_: str, aval: Any, spec: tuple[Any, ...] = spec) -> NamedSharding:
            return NamedSharding(LINE, P(*(None,) * (len(aval.shape) - 2), *spec))

        with observe_reads() as log:
            tree = safejax.load(tmp_path / "m", transform=step, sharding=sharding, access=access)
            placed = safejax.materialize(tree)
            assert log.nbytes == 2 * w.nbytes
        for name, array in placed.items():
            assert host_bytes(array) == host_bytes(whole[name])


ONE_OF_TWO = """
import os
import sys
import jax
number, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, number)
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P, SingleDeviceSharding
from safejax._src.arrays.lazy import LazyArray
from safejax._src.leaves.leaf import content_of
from safejax._src.arrays.placing import Placement
from safejax._src.reading.log import observe_reads

devices = jax.devices()
host = np.arange(32, dtype=np.float32).reshape(8, 4)
keys = jax.random.split(jax.random.key(0), 8)
whole = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
second = jax.make_mesh((2,), ("x",), devices=devices[2:], axis_types=(AxisType.Auto,))
for values, sharding, mine in [
    (host, NamedSharding(whole, P("x")), 0.5),
    (host, NamedSharding(whole, P()), 1),
    (host, NamedSharding(second, P("x")), number),
    (host, SingleDeviceSharding(devices[3]), number),
    (keys, NamedSharding(whole, P("x")), 0.5),
    (keys, NamedSharding(second, P()), number),
    (keys, SingleDeviceSharding(devices[3]), number),
]:
    leaf = LazyArray(content_of(values), "w", Placement(sharding, True))
    with observe_reads() as log:
        placed = leaf.placed()
        nbytes = host.nbytes if values is host else 64
        assert log.nbytes == nbytes * mine, (sharding, log)
    assert placed.sharding.is_equivalent_to(sharding, placed.ndim)
    assert (placed.dtype, placed.shape) == (leaf.dtype, leaf.shape)
    for shard in placed.addressable_shards:
        pair = [shard.data, values[shard.index[0]]]
        if values is keys:
            pair = [jax.random.key_data(array) for array in pair]
        assert np.asarray(pair[0]).tobytes() == np.asarray(pair[1]).tobytes()
rows = LazyArray(content_of(host), "w", Placement(NamedSharding(whole, P("x")), True))
other = jax.device_put(rows, NamedSharding(whole, P(None, "x")))
assert float(jax.jit(lambda x: x.sum())(rows)) == float(jax.jit(lambda x: x.sum())(other)) == 496

# From JAX's default device onto devices of both processes (R9), as plain arrays go.
for sharding in (NamedSharding(whole, P("x")), NamedSharding(whole, P(None, "x"))):
    leaf = LazyArray(content_of(host), "w")
    for moved in (jax.device_put(leaf, sharding), jax.device_put({"a": leaf}, sharding)["a"]):
        plain = jax.device_put(jax.numpy.asarray(host), sharding)
        assert moved.sharding == plain.sharding and moved.committed == plain.committed
        for one, other in zip(moved.addressable_shards, plain.addressable_shards, strict=True):
            assert one.device == other.device
            assert np.asarray(one.data).tobytes() == np.asarray(other.data).tobytes()
"""


def test_a_process_reads_only_what_its_own_devices_hold() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_TWO, str(number), port],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
