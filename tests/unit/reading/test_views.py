"""Views: a view of a view is still one view, and a part of it reads only its own bytes."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from safejax._src.reading.array import AbstractSource, ArraySource
from safejax._src.reading.buffer import BufferSource
from safejax._src.reading.concatenation import Concatenation, concatenation, stack
from safejax._src.reading.file import MappedSource
from safejax._src.reading.log import observe_reads
from safejax._src.reading.pointwise import BlockFunction, CastTo, Pointwise, cast_view
from safejax._src.reading.requests import FREE, Cost
from safejax._src.reading.view import Strided
from safejax._src.reading.windows import Window


def leaf(*shape, dtype=np.int32, start=0):
    """An array of distinct elements, and the view of it."""
    array = np.arange(start, start + int(np.prod(shape, dtype=int)), dtype=dtype).reshape(shape)
    return array, Strided(ArraySource(array), 0, array.dtype, Window.whole(array.shape))


def assert_shows(view, array, *, nbytes=None):
    """Check that the view shows the array; reading it requests `nbytes`, by default its own."""
    assert (view.shape, view.dtype) == (array.shape, array.dtype)
    assert (view.size, view.nbytes) == (array.size, array.nbytes)
    with observe_reads() as log:
        read = view.read()
    assert (read.shape, read.dtype) == (array.shape, array.dtype)
    assert read.tobytes() == array.tobytes()
    assert log.nbytes == (array.nbytes if nbytes is None else nbytes)


# ---- the standard import of a foreign model


def test_the_attention_import_is_one_window_and_a_shard_reads_only_its_bytes():
    weight, view = leaf(8, 6)  # out = heads * dim, in
    imported = view.transpose((1, 0)).reshape((6, 2, 4))
    assert isinstance(imported, Strided)
    assert not imported.has_barrier
    assert imported.source is view.source
    assert_shows(imported, weight.T.reshape(6, 2, 4))
    shard = (slice(None), 1, slice(0, 2))
    assert_shows(imported.index(shard), weight.T.reshape(6, 2, 4)[shard], nbytes=6 * 2 * 4)


def test_a_shard_of_transposed_stacked_and_cast_layers_reads_only_its_bytes():
    layers = [leaf(4, 6, start=24 * n) for n in range(5)]
    arrays = np.stack([array.T for array, _ in layers], 1).astype(np.float64)
    views = stack(tuple(view.transpose((1, 0)) for _, view in layers), 1)
    whole = cast_view(views, np.dtype(np.float64))
    assert_shows(whole, arrays, nbytes=5 * 24 * 4)
    shard = (slice(3, 6), slice(1, 3), slice(0, 4, 3))
    assert_shows(whole.index(shard), arrays[shard], nbytes=3 * 2 * 2 * 4)


# ---- barriers


def test_a_reshape_that_no_window_can_show_reads_the_whole_operand():
    array, view = leaf(4, 6)
    reshaped = view.transpose((1, 0)).reshape((24,))
    assert reshaped.has_barrier
    assert_shows(reshaped, array.T.reshape(24))
    assert_shows(reshaped.index((slice(3, 5),)), array.T.reshape(24)[3:5], nbytes=array.nbytes)
    assert_shows(reshaped.index((slice(3, 3),)), array.T.reshape(24)[3:3], nbytes=0)


def test_a_barrier_behind_a_barrier():
    array, view = leaf(4, 6)
    reshaped = view.transpose((1, 0)).reshape((4, 6)).transpose((1, 0)).reshape((24,))
    assert_shows(reshaped, array.T.reshape(4, 6).T.reshape(24))
    with observe_reads() as log, reshaped.kept():
        for at in range(3):
            reshaped.index((at,)).read()
    assert log.nbytes == array.nbytes


def test_a_reshape_to_another_size_is_an_error():
    with pytest.raises(ValueError, match=r"cannot reshape \[4, 6\] to \[5, 5\]"):
        leaf(4, 6)[1].reshape((5, 5))


def test_building_a_barrier_reads_nothing():
    with observe_reads() as log:
        view = leaf(4, 6)[1].transpose((1, 0)).reshape((24,))
        assert "ComputedSource" in repr(view)
        with view.kept():
            pass
    assert log.reads == []


@pytest.mark.parametrize("immutable", [True, False])
def test_a_barrier_is_as_immutable_as_what_is_behind_it(immutable):
    source = BufferSource(bytes(96), "bytes")
    source.immutable = immutable
    view = Strided(source, 0, np.dtype(np.int32), Window.whole((4, 6)))
    assert view.immutable is immutable
    assert view.transpose((1, 0)).reshape((24,)).immutable is immutable
    assert concatenation((view, view), 0).immutable is immutable


# ---- what a view says of itself


def test_a_view_says_what_it_is_made_of(tmp_path):
    array, in_array = leaf(4, 6)
    path = tmp_path / "data"
    path.write_bytes(array.tobytes())
    window = Window.whole((4, 6))
    in_buffer, mapped, abstract = (
        Strided(source, 0, array.dtype, window)
        for source in (
            BufferSource(array.tobytes(), "bytes"), MappedSource(str(path)), AbstractSource(),
        )
    )  # fmt: skip
    cast = cast_view(mapped, np.dtype(np.float16))
    joined = concatenation((in_buffer, mapped), 0)
    barrier = in_buffer.transpose((1, 0)).reshape((24,))
    for view, is_window, in_memory, is_mapped, has_barrier in [
        (in_array, True, False, False, False),
        (in_buffer, True, True, False, False),
        (mapped, True, True, True, False),
        (mapped.transpose((1, 0)), True, True, True, False),
        (cast, False, False, True, False),
        (joined, False, False, True, False),
        (barrier, True, False, False, True),
        (cast_view(concatenation((barrier, barrier), 0), cast.dtype), False, False, False, True),
    ]:
        assert (view.is_window, view.in_memory) == (is_window, in_memory)
        assert (view.is_mapped, view.has_barrier) == (is_mapped, has_barrier)
        assert view.has_values
        # Rows that are in memory are what reading them gives, also to a log.
        rows = view.rows()
        assert (rows is not None) == in_memory
        if rows is not None:
            with observe_reads() as log:
                assert rows(1).tobytes() == view.row(1).read().tobytes()
            fast, usual = log.reads
            assert fast == usual
        for alignment in (1, 1 << 40):
            usable = view.in_place(alignment)
            assert view.is_in_place(alignment) == (usable is not None)
            assert usable is None or np.shares_memory(usable, view.read())
        assert view.is_in_place(1) == (view in (in_buffer, mapped))
        assert view.row(1).read().tobytes() == view.read()[1].tobytes()
    for view in (
        abstract,
        concatenation((in_buffer, abstract), 0),
        cast_view(abstract, cast.dtype),
    ):
        assert not view.has_values


def test_the_cost_of_a_view_is_what_reading_it_requests():
    array = np.arange(24, dtype=np.int32).reshape(4, 6)
    view = Strided(BufferSource(array.tobytes(), "bytes"), 0, array.dtype, Window.whole((4, 6)))
    columns = view.index((slice(None), slice(2, 4)))
    for each, runs in [
        (view, 1),
        (columns, 4),
        (cast_view(columns, np.dtype(np.float16)), 4),
        (concatenation((view, columns), 1), 5),
        (view.transpose((1, 0)).reshape((24,)), 1),
        (columns.transpose((1, 0)).reshape((8,)).index((slice(0, 1),)), 4),
        (columns.transpose((1, 0)).reshape((8,)).index((slice(0, 0),)), 0),
        (view.index((slice(0, 0),)), 0),
    ]:
        with observe_reads() as log:
            cost = each.cost()
            assert log.reads == []
            each.read()
        assert cost == Cost(log.nbytes, runs, log.needed)
    assert leaf(4, 6)[1].cost() == FREE  # It is in no file.


# ---- concatenations


def test_adjacent_parts():
    (a, u), (b, v), (c, w) = leaf(2, 3), leaf(2, 1, start=10), leaf(2, 2, start=20)
    array = np.concatenate([a, b, c], 1)
    view = concatenation((u, v, w), 1)
    assert_shows(view, array)
    for index in [
        (0,),
        (..., 3),
        (1, -1),
        (slice(None), slice(2, 5)),
        (slice(None, None, -1), slice(None, None, -2)),
        (..., slice(4, 0, -3)),
        (..., slice(0, 0)),
        (slice(2, 2),),
        (slice(1, None), slice(-100, 100, 4)),
    ]:
        assert_shows(view.index(index), array[index])
    assert_shows(view.transpose((1, 0)), array.T)
    for axis in range(3):
        assert_shows(view.expand(axis), np.expand_dims(array, axis))


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_parts_in_any_order_of_axes(axis, order):
    (a, u), (b, v) = leaf(2, 3, 4), leaf(2, 3, 4, start=50)
    array = np.concatenate([a, b], axis).transpose(order)
    view = concatenation((u, v), axis).transpose(order)
    assert_shows(view, array)
    for at in range(4):
        assert_shows(view.expand(at), np.expand_dims(array, at))
    for index in [(1,), (slice(None), 1), (..., 1), (..., slice(None, None, -1), slice(1, 2))]:
        assert_shows(view.index(index), array[index])


def test_an_index_within_one_part_is_a_view_of_only_that_part():
    (_, u), (_, v) = leaf(2, 3), leaf(2, 4, start=10)
    view = concatenation((u, v), 1)
    assert view.index((slice(None), slice(4, 6))) == v.index((slice(None), slice(1, 3)))
    assert view.index((slice(None), 1)) == u.index((slice(None), 1))
    assert concatenation((u,), 1) is u


def test_sources_are_named_once():
    _, view = leaf(2, 3)
    both = concatenation((view, view, view.transpose((1, 0)).reshape((2, 3))), 0)
    assert len(both.sources) == 2
    assert both.sources[0] is view.source


@pytest.mark.parametrize(
    ("axis", "shape", "in_place"),
    [
        (0, (5, 2, 3), True),  # (5, 6): an axis other than that of the parts is split
        (0, (5, 6, 1), True),
        (0, (1, 5, 6), True),
        (0, (30,), True),  # the parts' axis is merged with those behind it
        (0, (15, 2), True),  # parts of 12 and 18 elements, in rows of 2
        (0, (3, 10), False),  # in rows of 10
        (1, (5, 6, 1), True),
        (1, (5, 1, 6), True),
        (1, (1, 5, 6), True),
        (1, (5, 3, 2), True),  # parts of 2 and 4 columns, in rows of 2
        (1, (5, 2, 3), False),
        (1, (30,), False),
        (1, (3, 10), False),
    ],
)
def test_reshape_of_a_concatenation(axis, shape, in_place):
    sizes = {0: [(2, 6), (3, 6)], 1: [(5, 2), (5, 4)]}[axis]
    (a, u), (b, v) = leaf(*sizes[0]), leaf(*sizes[1], start=50)
    view = concatenation((u, v), axis).reshape(shape)
    assert view.has_barrier is not in_place
    assert_shows(view, np.concatenate([a, b], axis).reshape(shape))


def test_stacked_layers_are_split_and_merged_in_place():
    layers = [leaf(6, 4, start=24 * n) for n in range(3)]
    stacked = stack(tuple(view for _, view in layers), 0)
    array = np.stack([array for array, _ in layers])
    for shape in [(3, 24), (18, 4), (3, 2, 3, 4), (1, 3, 6, 2, 2), (72,)]:
        view = stacked.reshape(shape)
        assert not view.has_barrier
        assert_shows(view, array.reshape(shape))
    fused = stacked.transpose((2, 0, 1)).reshape((4, 18))
    assert not fused.has_barrier
    assert_shows(fused.index((1, slice(4, 9))), array.transpose(2, 0, 1).reshape(4, 18)[1, 4:9])


def test_reshape_of_a_concatenation_of_nothing():
    (a, u), (b, v) = leaf(0, 3), leaf(2, 0)
    assert_shows(concatenation((u, u), 1).reshape((0, 3, 2)), np.empty((0, 3, 2), np.int32))
    assert_shows(concatenation((u, u), 0).reshape((7, 0)), np.concatenate([a, a]).reshape(7, 0))
    assert_shows(concatenation((v, v), 1).reshape((0,)), np.concatenate([b, b], 1).reshape(0))


# ---- functions of elements


def test_a_function_is_called_only_on_the_elements_that_are_read():
    array, view = leaf(4, 6)
    seen = []

    class Halve(BlockFunction):
        def __call__(self, array):
            seen.append(array.size)
            return array / 2

    half = Pointwise(view, Halve(), np.dtype(np.float64))
    part = half.transpose((1, 0)).index((slice(1, 3),)).expand(0).reshape((2, 4))
    assert seen == []
    assert_shows(part, (array / 2).T[1:3], nbytes=2 * 4 * 4)
    assert seen == [8]
    out = np.empty((2, 4))
    part.read_into(out)
    assert out.tobytes() == (array / 2).T[1:3].tobytes()


def test_casts_do_not_fuse_across_a_lossy_one():
    array = np.array([1 + 2**-20, 3e38], np.float32)
    view = Strided(ArraySource(array), 0, array.dtype, Window.whole((2,)))
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    there = cast_view(view, bfloat16)
    assert_shows(cast_view(there, array.dtype), array.astype(bfloat16).astype(array.dtype))
    assert cast_view(view, array.dtype) is view


@pytest.mark.parametrize(
    ("values", "source", "target"),
    [
        ([np.nan, np.inf, -1e30, 3e9], np.float32, np.int32),
        ([1e300, -1e300, 1e-300, np.nan], np.float64, np.float16),
        ([1e300, np.nan], np.float64, ml_dtypes.bfloat16),
        ([1e30, np.nan, np.inf], np.float32, ml_dtypes.float8_e4m3fn),
        ([300, -300], np.int32, np.int8),
    ],
)
def test_a_cast_equals_numpys_without_its_warnings(values, source, target):
    array = np.array(values, source)
    with np.errstate(all="ignore"):
        expected = array.astype(target)
    assert CastTo(np.dtype(target))(array).tobytes() == expected.tobytes()


# ---- bools


BOOL_BYTES = np.array([0, 1, 2, 255, 0, 128], np.uint8)


@pytest.mark.parametrize(
    "window",
    [
        Window.whole((6,)),
        Window.whole((2, 3)).transpose((1, 0)),
        Window(5, (3,), (-2,)),
        Window(1, (2, 4), (2, 0)),
        Window(2, (), ()),
        Window(0, (), ()),
        Window(0, (0, 2), (2, 1)),
        Window(0, (2,), (1,)),
    ],
    ids=str,
)
def test_a_bool_is_true_or_false_whatever_its_byte(window):
    strides = window.strides
    raw = np.lib.stride_tricks.as_strided(BOOL_BYTES[window.offset :], window.shape, strides)
    source = BufferSource(BOOL_BYTES.tobytes(), "bytes")
    read = Strided(source, 0, np.dtype(bool), window).read()
    assert isinstance(read, np.ndarray)
    assert (read.shape, read.dtype) == (window.shape, bool)
    assert read.tobytes() == (raw != 0).tobytes()


def test_proper_bools_are_not_copied():
    buffer = np.array([0, 1, 1], np.uint8)
    view = Strided(BufferSource(buffer, "buffer"), 0, np.dtype(bool), Window.whole((3,)))
    assert np.shares_memory(view.read(), buffer)


# ---- blocks


@pytest.mark.parametrize("nbytes", [1, 4, 7, 8, 24, 50, 95, 96, 1000])
@pytest.mark.parametrize("shape", [(24,), (4, 6), (1, 24, 1), (2, 1, 3, 4), (0, 6), ()], ids=str)
def test_blocks_make_up_the_view_and_each_is_bounded(shape, nbytes):
    array, view = leaf(*shape)
    blocks = [block.read() for block in view.blocks(nbytes)]
    assert b"".join(block.tobytes() for block in blocks) == array.tobytes()
    assert all(block.nbytes <= max(nbytes, 4) for block in blocks)
    assert len(blocks) == 1 or array.nbytes > nbytes


def test_blocks_request_each_byte_once_also_from_behind_a_barrier():
    layers = [leaf(4, 6, start=24 * n) for n in range(3)]
    views = [view.transpose((1, 0)).reshape((3, 8)) for _, view in layers]
    stacked = cast_view(stack(tuple(views), 0), np.dtype(np.float64))
    array = np.stack([array.T.reshape(3, 8) for array, _ in layers]).astype(np.float64)
    with observe_reads() as log:
        blocks = [block.read().tobytes() for block in stacked.blocks(32)]
    assert b"".join(blocks) == array.tobytes()
    assert len(blocks) == 18
    assert log.nbytes == 3 * 24 * 4


def test_blocks_hold_no_more_barriers_than_a_block_needs():
    views = [leaf(4, 6)[1].transpose((1, 0)).reshape((24,)) for _ in range(3)]
    held = []
    blocks = stack(tuple(views), 0).blocks(32)
    for block in blocks:
        block.read()
        held.append(sum(view.sources[0]._made is not None for view in views))
    assert set(held) == {1}
    assert all(view.sources[0]._made is None for view in views)


def test_interleaved_blocks_compute_the_operand_of_a_barrier_once():
    array, view = leaf(4, 6)
    reshaped = view.transpose((1, 0)).reshape((24,))
    with observe_reads() as log:
        blocks = [block.read() for block in stack((reshaped, leaf(24)[1]), 1).blocks(4)]
    assert [block.item() for block in blocks[::2]] == array.T.reshape(-1).tolist()
    assert log.nbytes == 2 * array.nbytes


def test_blocks_that_are_abandoned_halfway_release_their_memory():
    view = leaf(4, 6)[1].transpose((1, 0)).reshape((24,))
    blocks = view.blocks(32)
    next(blocks).read()
    assert view.sources[0]._made is not None
    blocks.close()
    assert view.sources[0]._made is None


# ---- values


def test_views_are_values():
    _, view = leaf(2, 3)
    assert view.index((0,)) == view.index((0,)) != view.index((1,))
    assert stack((view, view), 0) == stack((view, view), 0)
    assert cast_view(view, np.dtype(float)) == cast_view(view, np.dtype(float))
    assert repr(Concatenation((view,), 0)).startswith("Concatenation(parts=(Strided(source=Array")
