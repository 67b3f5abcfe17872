"""Boxes and chunks: what a window on the flat elements of an array shows, read by indices."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from safejax import observe_reads
from safejax._src.reading.boxes import box_of
from safejax._src.reading.chunked import ChunkCache, ChunkedSource, Chunks
from safejax._src.reading.source import Part
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


# ---- chunks


class InMemory(Chunks):
    """An array of NumPy's in chunks, which counts how often each is decoded."""

    def __init__(self, array: np.ndarray, chunk: int) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self.chunk = (chunk,) * array.ndim
        self.decoded: list[tuple[slice, ...]] = []
        self._array = array

    def begin(
        self, slices: tuple[slice, ...], out: np.ndarray | None = None
    ) -> Callable[[], np.ndarray]:
        self.decoded.append(slices)
        found = self._array[slices].copy()
        if out is None:
            return lambda: found

        def wait() -> np.ndarray:
            np.copyto(out, found)
            return out

        return wait


@given(windows(), st.integers(1, 3), st.sampled_from([0, 100, 10_000]))
def test_chunks_are_read_as_the_array_would_be(
    case: tuple[tuple[int, ...], list[tuple[str, Any]]], size: int, cache_bytes: int
) -> None:
    shape, steps = case
    array = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    chunks = InMemory(array, size)
    source = ChunkedSource(chunks, "it", ChunkCache(cache_bytes))
    window, whole = applied(Window.whole(shape), steps), Window.whole(shape)
    right = shown(array.reshape(-1), window)
    cost = source.cost(array.dtype, window)
    with observe_reads() as log:
        assert np.array_equal(source.read(0, array.dtype, window), right)
    assert (cost.nbytes, cost.requests, cost.needed) == (log.nbytes, len(log.reads), log.needed)
    assert len(chunks.decoded) == cost.requests
    # Together, each chunk is decoded once, whoever needs it, unless the cache has it.
    parts = [Part(0, array.dtype, each) for each in (window, whole, window)]
    outs = [np.empty(part.window.shape, array.dtype) for part in parts]
    chunks.decoded.clear()
    source.read_many(list(zip(parts, outs, strict=True)))
    for out, values in zip(outs, (right, array, right), strict=True):
        assert np.array_equal(out, values)
    seen = {str(slices) for slices in chunks.decoded}
    assert len(seen) == len(chunks.decoded)
    # The last chunk that was used is kept in any case.
    assert cache_bytes or len(seen) >= math.prod(-(-length // size) for length in shape) - 1


def test_the_cache_holds_the_chunks_that_were_used_last() -> None:
    array = np.arange(64, dtype=np.int64).reshape(8, 8)
    chunks = InMemory(array, 4)
    source = ChunkedSource(chunks, "it", ChunkCache(2 * 16 * 8))
    rows = [Window.whole((8, 8)).row(number) for number in range(8)]
    for number in range(8):
        assert np.array_equal(source.read(0, array.dtype, rows[number]), array[number])
    # A row has parts of two chunks; each is decoded once, and gone when all of it was taken.
    assert len(chunks.decoded) == 4
    source.read(0, array.dtype, rows[7])
    source.read(0, array.dtype, rows[0])
    source.read(0, array.dtype, rows[7])
    assert len(chunks.decoded) == 10
