"""Boxes: a window on the flat elements of an array is a part of a box of it, whatever it shows."""

import math
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from safejax._src.reading.boxes import box_of
from safejax._src.reading.windows import Window

SHAPES = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@st.composite
def windows(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[str, Any]]]:
    """A shape, and what is done to an array of it: slices, transposes, reshapes, new axes."""
    shape = draw(SHAPES)
    steps: list[tuple[str, Any]] = []
    now = np.empty(shape, np.int8)
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["index", "transpose", "reshape", "expand"]))
        argument: Any
        if kind == "index":
            argument = tuple(
                draw(
                    st.one_of(
                        st.integers(0, size - 1),
                        st.builds(
                            slice,
                            st.integers(0, size - 1),
                            st.none(),
                            st.integers(1, 3) if draw(st.booleans()) else st.just(1),
                        ),
                        st.builds(slice, st.none(), st.none(), st.just(-1)),
                    )
                )
                for size in now.shape
            )
            now = now[(*argument, ...)]
        elif kind == "transpose":
            argument = tuple(draw(st.permutations(range(now.ndim))))
            now = now.transpose(argument)
        elif kind == "expand":
            argument = draw(st.integers(0, now.ndim))
            now = np.expand_dims(now, argument)
        else:
            size = now.size
            divisors = [n for n in range(1, size + 1) if size % n == 0]
            first = draw(st.sampled_from(divisors))
            second = draw(st.sampled_from([n for n in divisors if (size // first) % n == 0]))
            argument = (first, second, size // first // second)
            now = now.reshape(argument)
        steps.append((kind, argument))
    return shape, steps


def applied(window: Window, steps: list[tuple[str, Any]]) -> Window:
    for kind, argument in steps:
        if kind == "index":
            window = window.index(argument)
        elif kind == "transpose":
            window = window.transpose(argument)
        elif kind == "expand":
            window = window.expand(argument)
        else:
            window = window.reshape(argument) or window
            if window.shape != argument:
                break  # No window shows it.
    return window


def shown(flat: np.ndarray, window: Window) -> np.ndarray:
    strides = [stride * flat.itemsize for stride in window.strides]
    return np.ndarray(window.shape, flat.dtype, flat, window.offset * flat.itemsize, strides)


@given(windows())
@example(((4, 6), [("reshape", (1, 1, 24))]))
@example(((4, 6), [("reshape", (24, 1, 1)), ("index", (slice(5, None, None), 0, 0))]))
@example(((3, 4, 5), [("reshape", (12, 1, 5)), ("index", (slice(None), 0, slice(1, 3)))]))
@example(((6, 6), [("index", (slice(None, None, 2), slice(None, None, -1)))]))
def test_the_part_of_the_box_is_what_the_window_shows(
    case: tuple[tuple[int, ...], list[tuple[str, Any]]],
) -> None:
    shape, steps = case
    window = applied(Window.whole(shape), steps)
    array = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    box = box_of(shape, window)
    inside = array[tuple(slice(*each) for each in box.slices)]
    assert inside.shape == box.shape
    found = shown(np.ascontiguousarray(inside).reshape(-1), box.window)
    assert np.array_equal(found, shown(array.reshape(-1), window))


@given(windows())
def test_without_reshapes_the_box_has_nothing_else(
    case: tuple[tuple[int, ...], list[tuple[str, Any]]],
) -> None:
    shape, steps = case
    window = applied(Window.whole(shape), [step for step in steps[:1] if step[0] == "index"])
    assert math.prod(box_of(shape, window).shape) == window.distinct


def test_reshapes_that_split_or_join_whole_axes_keep_to_the_box() -> None:
    """The columns of a matrix of heads, and those of layers that are joined."""
    heads = Window.whole((64, 96)).reshape((64, 8, 12))
    assert heads is not None
    one = heads.index((slice(None), 3))
    assert box_of((64, 96), one).slices == ((0, 64, 1), (36, 48, 1))
    joined = Window.whole((4, 8, 16)).reshape((32, 16))
    assert joined is not None
    columns = joined.index((slice(None), slice(4, 8)))
    assert box_of((4, 8, 16), columns).slices == ((0, 4, 1), (0, 8, 1), (4, 8, 1))
