"""Windows follow NumPy's rules for which elements an array shows, without the array."""

import itertools

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from safejax._src.reading.windows import MAX_AXES, Window, explicit_index


def elements(window):
    """The numbers of the source's elements that a window shows, as an array."""
    numbers = np.arange(1000)
    strides = tuple(stride * numbers.itemsize for stride in window.strides)
    return as_strided(numbers[window.offset :], window.shape, strides)


def listed(spans):
    return [n for start in spans.starts.tolist() for n in range(start, start + spans.length)]


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((), ()), ((5,), (1,)), ((2, 3), (3, 1)), ((2, 0, 3), (3, 3, 1)), ((1, 4, 1), (4, 1, 1))],
)
def test_whole_shows_a_c_ordered_array(shape, strides):
    window = Window.whole(shape)
    assert window == Window(0, shape, strides)
    assert window.size == window.distinct == np.prod(shape, dtype=int)


@pytest.mark.parametrize(
    ("index", "window"),
    [
        ((), Window(0, (4, 6), (6, 1))),
        ((1,), Window(6, (6,), (1,))),
        ((-1, -1), Window(23, (), ())),
        ((..., 2), Window(2, (4,), (6,))),
        ((slice(None, None, -1),), Window(18, (4, 6), (-6, 1))),
        ((slice(3, 0, -2), slice(1, 5, 3)), Window(19, (2, 2), (-12, 3))),
        ((slice(-100, 100), slice(4, None)), Window(4, (4, 2), (6, 1))),
    ],
)
def test_index(index, window):
    assert Window.whole((4, 6)).index(index) == window


@pytest.mark.parametrize("part", [slice(2, 2), slice(5, 1), slice(1, 5, -1), slice(9, 20)], ids=str)
def test_an_empty_slice_shows_nothing(part):
    window = Window.whole((4, 6)).index((part, slice(None, None, -1)))
    assert window.shape == (0, 6)
    assert (window.size, window.distinct, window.spans().count) == (0, 0, 0)
    assert window.compact().shape == (0, 6)


@pytest.mark.parametrize("index", [(4,), (-5,), (0, 6), (0, 0, 0)], ids=str)
def test_an_index_out_of_range_raises_numpys_error(index):
    with pytest.raises(IndexError):
        Window.whole((4, 6)).index(index)


def test_transpose_and_expand():
    window = Window.whole((2, 3)).transpose((1, 0))
    assert window == Window(0, (3, 2), (1, 3))
    assert window.expand(1) == Window(0, (3, 1, 2), (1, 0, 3))
    assert window.expand(2, 4) == Window(0, (3, 2, 4), (1, 3, 0))
    assert window.expand(0, 4).distinct == 6
    assert window.expand(0, 0).distinct == 0


@pytest.mark.parametrize(
    ("window", "shape", "reshaped"),
    [
        (Window.whole((4, 6)), (2, 2, 3, 2), Window(0, (2, 2, 3, 2), (12, 6, 2, 1))),
        (Window.whole((4, 6)), (24,), Window(0, (24,), (1,))),
        (Window(0, (6, 4), (1, 6)), (3, 2, 4), Window(0, (3, 2, 4), (2, 1, 6))),
        (Window(0, (6, 4), (1, 6)), (6, 2, 2), Window(0, (6, 2, 2), (1, 12, 6))),
        (Window(0, (6, 4), (1, 6)), (24,), None),
        (Window(0, (6, 4), (1, 6)), (4, 6), None),
        (Window(5, (6,), (-1,)), (2, 3), Window(5, (2, 3), (-3, -1))),
        (Window(3, (2, 3), (0, 0)), (6,), Window(3, (6,), (0,))),
        (Window(9, (), ()), (1, 1), Window(9, (1, 1), (1, 1))),
        (Window(9, (1, 1), (1, 1)), (), Window(9, (), ())),
    ],
)
def test_reshape_shows_the_same_elements_or_returns_none(window, shape, reshaped):
    assert window.reshape(shape) == reshaped


def test_reshape_of_nothing():
    window = Window.whole((4, 6)).transpose((1, 0)).index((slice(0, 0),)).reshape((3, 0, 5))
    assert window is not None
    assert (window.shape, window.size) == ((3, 0, 5), 0)


@pytest.mark.parametrize("shape", [(5,), (2, 2), (6, 0), (6, *(1,) * MAX_AXES)], ids=str)
def test_reshape_to_an_impossible_shape_is_an_error(shape):
    with pytest.raises(ValueError, match=r"cannot reshape|maximum supported dimension"):
        Window.whole((6,)).reshape(shape)


def test_the_standard_attention_import_needs_no_copy():
    weight = np.arange(8 * 6).reshape(8, 6)  # out = heads * dim, in
    window = Window.whole((8, 6)).transpose((1, 0)).reshape((6, 2, 4))
    assert window is not None
    assert (elements(window) == weight.T.reshape(6, 2, 4)).all()


def test_windows_on_sources_larger_than_memory():
    # The arithmetic is on addresses that do not exist, some of them negative.
    size = 1 << 60
    forward = Window.whole((size,))
    backward = forward.index((slice(None, None, -1),))
    assert backward == Window(size - 1, (size,), (-1,))
    assert backward.index((slice(size // 2, None),)) == Window(size // 2 - 1, (size // 2,), (-1,))
    assert backward.index((-1,)) == Window(0, (), ())
    assert backward.index((slice(None, None, -1),)) == forward
    assert backward.reshape((2, size // 2)) == Window(size - 1, (2, size // 2), (-size // 2, -1))


@pytest.mark.parametrize(
    ("window", "starts", "length"),
    [
        (Window.whole((2, 3)), [0], 6),
        (Window(0, (3, 2), (1, 3)), [0], 6),  # A transpose needs every element.
        (Window(5, (2, 3), (-3, -1)), [0], 6),
        (Window(1, (4, 2), (6, 1)), [1, 7, 13, 19], 2),
        (Window(19, (4, 2), (-6, 1)), [1, 7, 13, 19], 2),
        (Window(0, (2, 2), (2, 5)), [0, 2, 5, 7], 1),
        (Window(4, (7,), (0,)), [4], 1),
        (Window(4, (7, 2), (0, 3)), [4, 7], 1),
        (Window(4, (1,), (100,)), [4], 1),
        (Window(4, (), ()), [4], 1),
        (Window(4, (0,), (1,)), [], 0),
    ],
)
def test_spans(window, starts, length):
    spans = window.spans()
    assert (spans.starts.tolist(), spans.length) == (starts, length)
    assert spans.count == window.distinct == len(listed(spans))


STEPS = [slice(None), slice(None, None, -1), slice(1, None, 2), slice(None, 0, -2), slice(2, 2)]


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))), ids=str)
def test_spans_and_compact_of_every_slice_of_every_transpose(axes):
    whole = Window.whole((3, 4, 5)).transpose(axes)
    for index in itertools.product(STEPS, repeat=3):
        for window in (whole.index(index), whole.index(index).expand(1, 2)):
            shown = elements(window)
            spans = window.spans()
            assert listed(spans) == np.unique(shown).tolist()
            dense = np.array(listed(spans), int)
            assert dense.size == window.distinct
            if dense.size:
                assert (dense[elements(window.compact())] == shown).all()
            assert window.compact().shape == window.shape


@pytest.mark.parametrize(
    ("index", "shape", "entries"),
    [
        ((), (2, 3), ((0, 1, 2), (0, 1, 3))),
        ((-1,), (2, 3), (1, (0, 1, 3))),
        ((..., -1), (2, 3), ((0, 1, 2), 2)),
        ((0, ..., 1), (2, 3), (0, 1)),
        ((slice(None, None, -2),), (5,), ((4, -2, 3),)),
        ((slice(3, 3),), (5,), ((3, 1, 0),)),
        ((slice(1, 3, -1),), (5,), ((1, -1, 0),)),
        ((slice(-9, 9, 3),), (5,), ((0, 3, 2),)),
        ((...,), (), ()),
    ],
)
def test_explicit_index(index, shape, entries):
    assert explicit_index(index, shape) == entries


def test_a_row_equals_the_result_of_the_index() -> None:
    window = Window.whole((4, 3, 2)).index((slice(None, None, -1), slice(1, None), 1))
    for number in range(4):
        assert window.row(number) == window.index((number,))
    assert Window.whole((5,)).row(3) == Window(3, (), ())
