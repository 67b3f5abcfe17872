"""Windows and views against NumPy: values, shapes, dtypes, and the bytes that they need.

Every element of every leaf is a different number, so that the values of an array show which
elements of the sources a read has to request.
"""

import itertools

import ml_dtypes
import numpy as np
from hypothesis import event, example, given, target
from hypothesis import strategies as st

from safejax._src.dtypes import stored_as, to_stored_bytes
from safejax._src.reading.array import ArraySource
from safejax._src.reading.buffer import BufferSource
from safejax._src.reading.concatenation import concatenation, stack
from safejax._src.reading.log import observe_reads
from safejax._src.reading.packed import PackedSource
from safejax._src.reading.pointwise import cast_view
from safejax._src.reading.view import Strided
from safejax._src.reading.windows import Window, explicit_index

MAX_AXES = 5
MAX_SIZE = 300

# Weighted, because an empty array stays empty and shows little about the following operations.
sizes = st.sampled_from([2, 3, 4, 5, 6, 2, 3, 4, 1, 1, 0])
shapes = st.integers(0, 4).flatmap(lambda axes: st.tuples(*[sizes] * axes))


@st.composite
def indices(draw, shape):
    """A basic index on `shape`: integers in range, any slices, and possibly an Ellipsis."""
    lead = draw(st.integers(0, len(shape)))
    trail = draw(st.none() | st.integers(0, len(shape) - lead))
    index = [draw(entries(size)) for size in shape[:lead]]
    if trail is None:
        return tuple(index)
    return (*index, ..., *(draw(entries(size)) for size in shape[len(shape) - trail :]))


def entries(size):
    bounds = st.none() | st.integers(-size - 2, size + 2)
    steps = st.sampled_from([None, 1, 2, 3, -1, -2, -3])
    slices = st.builds(slice, bounds, bounds, steps)
    reversals = st.sampled_from([slice(None, None, -1), slice(None), slice(1, None, 2)])
    return slices | reversals | st.integers(-size, size - 1) if size else slices


@st.composite
def shapes_of_size(draw, size):
    """A shape that holds `size` elements, with a limited number of axes."""
    if size == 0:
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        shape.insert(draw(st.integers(0, len(shape))), 0)
        return tuple(shape)
    shape = []
    while len(shape) < MAX_AXES - 1 and (size > 1 or draw(st.booleans())):
        divisors = [n for n in range(1, size + 1) if size % n == 0]
        shape.append(draw(st.sampled_from(divisors)))
        size //= shape[-1]
        if draw(st.booleans()):
            break
    return (*shape, size) if shape or size != 1 or draw(st.booleans()) else ()


def chains(operations, length):
    # The length is drawn first, because lists of hypothesis are mostly short.
    return st.integers(0, length).flatmap(
        lambda n: st.lists(st.sampled_from(operations), min_size=n, max_size=n)
    )


class Leaves:
    """Leaves whose elements are numbered consecutively."""

    def __init__(self):
        self.count = 0

    def make(self, shape, misaligned):
        size = int(np.prod(shape, dtype=int))
        array = np.arange(self.count, self.count + size, dtype=np.int32).reshape(shape)
        self.count += size
        if misaligned:
            source, begin = BufferSource(b"abc" + array.tobytes(), "bytes"), 3
        else:
            source, begin = ArraySource(array), 0
        return array, Strided(source, begin, array.dtype, Window.whole(shape))


OPERATIONS = ("index", "transpose", "expand", "reshape", "concatenate", "stack", "cast")


def step(draw, operation, array, view, leaves):
    """One operation, on the array by NumPy and on the view by safejax."""
    axes = array.ndim
    if operation == "index":
        index = draw(indices(array.shape))
        return array[(*index, ...) if ... not in index else index], view.index(index)
    if operation == "transpose":
        order = tuple(draw(st.permutations(range(axes))))
        return array.transpose(order), view.transpose(order)
    if operation == "expand" and axes < MAX_AXES:
        axis = draw(st.integers(0, axes))
        return np.expand_dims(array, axis), view.expand(axis)
    if operation == "reshape":
        shape = draw(shapes_of_size(array.size))
        return array.reshape(shape), view.reshape(shape)
    if operation in ("concatenate", "stack") and array.size < MAX_SIZE:
        stacked = operation == "stack"
        if axes == MAX_AXES if stacked else axes == 0:
            return array, view
        axis = draw(st.integers(0, axes if stacked else axes - 1))
        arrays, views = [array], [view]
        for _ in range(draw(st.integers(0, 2))):
            shape = list(array.shape)
            if not stacked:
                shape[axis] = draw(sizes)
            other, of_other = leaves.make(tuple(shape), draw(st.booleans()))
            arrays.append(other.astype(array.dtype))
            views.append(cast_view(of_other, array.dtype))
        order = draw(st.permutations(range(len(arrays))))
        arrays, views = [arrays[n] for n in order], tuple(views[n] for n in order)
        if stacked:
            return np.stack(arrays, axis), stack(views, axis)
        return np.concatenate(arrays, axis), concatenation(views, axis)
    if operation == "cast":
        dtype = np.dtype(draw(st.sampled_from([np.int64, np.float64, np.int32])))
        return array.astype(dtype), cast_view(view, dtype)
    return array, view


@given(st.data())
def test_a_chain_of_operations_shows_what_numpys_chain_shows(data):
    leaves = Leaves()
    array, view = leaves.make(data.draw(shapes), data.draw(st.booleans()))
    for operation in data.draw(chains(OPERATIONS, 8)):
        with observe_reads() as log:
            array, view = step(data.draw, operation, array, view, leaves)
        assert log.reads == [], "building a view reads nothing"
        assert (view.shape, view.dtype) == (array.shape, array.dtype)
        with observe_reads() as log:
            read = view.read()
        assert (read.shape, read.dtype) == (array.shape, array.dtype)
        assert read.tobytes() == array.tobytes()
        if view.has_barrier:
            event("behind a barrier")
            continue
        event(f"{type(view).__name__}, read exactly")
        needed = 4 * np.unique(array).size
        if array.size:
            assert log.nbytes == needed
        else:
            assert log.nbytes == 0


@given(st.data())
def test_a_view_of_other_arrays_shows_what_they_hold(data):
    leaves = Leaves()
    array, view = leaves.make(data.draw(shapes), data.draw(st.booleans()))
    for operation in data.draw(chains(OPERATIONS, 6)):
        array, view = step(data.draw, operation, array, view, leaves)
    with observe_reads() as log:
        copied = view.with_arrays(np.array)
    assert log.reads == []
    assert (copied.shape, copied.dtype) == (view.shape, view.dtype)
    assert copied.has_barrier == view.has_barrier
    assert len(copied.arrays) == len(view.arrays)
    assert not {*map(id, copied.arrays)} & {*map(id, view.arrays)}
    expected = array.tobytes()
    for of_view in view.arrays:  # The array that NumPy made of them may be one of these.
        of_view[...] = -1
    assert copied.read().tobytes() == expected


@given(st.data(), st.integers(1, 200))
def test_blocks_make_up_the_view_in_c_order(data, nbytes):
    leaves = Leaves()
    array, view = leaves.make(data.draw(shapes), misaligned=False)
    for operation in data.draw(chains(OPERATIONS, 5)):
        array, view = step(data.draw, operation, array, view, leaves)
    with observe_reads() as whole:
        view.read()
    with observe_reads() as log:
        blocks = [block.read() for block in view.blocks(nbytes)]
    assert b"".join(block.tobytes() for block in blocks) == array.tobytes()
    assert max(block.nbytes for block in blocks) <= max(nbytes, array.itemsize)
    # Nothing is requested twice, not even behind a barrier.
    assert log.nbytes == whole.nbytes
    target(len(blocks))


WINDOW_OPERATIONS = ("index", "transpose", "expand", "reshape", "repeat")


@st.composite
def windows(draw):
    """A window after some operations, and the numbers of the elements that it shows."""
    shape = draw(shapes)
    numbers = np.arange(int(np.prod(shape, dtype=int))).reshape(shape)
    window = Window.whole(shape)
    for operation in draw(chains(WINDOW_OPERATIONS, 6)):
        axes = numbers.ndim
        if operation == "index":
            index = draw(indices(numbers.shape))
            window = window.index(index)
            numbers = numbers[(*index, ...) if ... not in index else index]
        elif operation == "transpose":
            order = tuple(draw(st.permutations(range(axes))))
            window, numbers = window.transpose(order), numbers.transpose(order)
        elif operation in ("expand", "repeat") and axes < MAX_AXES and numbers.size < MAX_SIZE:
            axis = draw(st.integers(0, axes))
            repeats = draw(st.integers(0, 3)) if operation == "repeat" else 1
            window = window.expand(axis, repeats)
            target_shape = (*numbers.shape[:axis], repeats, *numbers.shape[axis:])
            numbers = np.broadcast_to(np.expand_dims(numbers, axis), target_shape)
        elif operation == "reshape":
            wanted = draw(shapes_of_size(numbers.size))
            reshaped = window.reshape(wanted)
            try:
                # NumPy decides where a copy is needed. Its strides differ and are not compared.
                in_place = numbers.reshape(wanted, copy=False)
            except ValueError:
                assert reshaped is None
            else:
                assert reshaped is not None
                window, numbers = reshaped, in_place
    return window, numbers


@given(windows())
def test_a_window_shows_the_elements_that_numpys_array_shows(case):
    window, numbers = case
    source = np.arange(window.offset + 2000)
    flat = [
        window.offset + sum(i * s for i, s in zip(at, window.strides, strict=True))
        for at in itertools.product(*map(range, window.shape))
    ]
    assert window.shape == numbers.shape
    assert flat == numbers.reshape(-1).tolist()
    assert window.size == numbers.size
    assert window.distinct == np.unique(numbers).size
    assert source.size > max(flat, default=0)


@given(windows())
@example((Window(0, (2, 2), (3, 2)), np.array([[0, 2], [3, 5]])))  # runs that touch
def test_spans_hold_each_distinct_element_once_in_order(case):
    window, numbers = case
    spans = window.spans()
    begins = spans.starts
    assert ((begins[1:] - begins[:-1]) >= spans.length).all(), "ascending and disjoint"
    listed = (begins[:, None] + np.arange(spans.length)).reshape(-1)
    assert listed.tolist() == np.unique(numbers).tolist()
    assert spans.count == window.distinct


@given(windows())
def test_compact_shows_the_same_elements_of_the_dense_copy(case):
    window, numbers = case
    spans = window.spans()
    dense = (spans.starts[:, None] + np.arange(spans.length)).reshape(-1).astype(np.int64)
    compact = window.compact()
    assert compact.shape == window.shape
    source = BufferSource(dense.tobytes(), "dense")
    assert (source.read(0, dense.dtype, compact) == numbers).all()
    assert compact.distinct == dense.size
    if dense.size:
        again = compact.spans()
        assert (again.starts.tolist(), again.length) == ([0], dense.size), "nothing left out"


@given(windows(), st.integers(0, 3))
def test_packed_elements_are_those_of_the_unpacked_array(case, begin):
    window, numbers = case
    dtype = np.dtype(ml_dtypes.float4_e2m1fn)
    count = 2 * (int(numbers.max(initial=0)) // 2 + 1)
    raw = (np.arange(count) * 7 % 16).astype(np.uint8)
    data = to_stored_bytes(raw.view(dtype), stored_as(dtype, (count,))).tobytes()
    source = PackedSource(BufferSource(bytes(begin) + data, "bytes"), begin)
    with observe_reads() as log:
        read = source.read(0, dtype, window)
    assert (read.shape, read.dtype) == (numbers.shape, dtype)
    assert (read.view(np.uint8) == raw[numbers]).all()
    assert log.nbytes == np.unique(numbers // 2).size


@given(st.data(), shapes)
def test_an_explicit_index_chooses_what_the_index_does(data, shape):
    index = data.draw(indices(shape))
    numbers = np.arange(int(np.prod(shape, dtype=int))).reshape(shape)
    chosen = explicit_index(index, shape)
    assert len(chosen) == len(shape)
    lists = [[e] if isinstance(e, int) else [e[0] + e[1] * n for n in range(e[2])] for e in chosen]
    kept = tuple(entry[2] for entry in chosen if not isinstance(entry, int))
    expected = numbers[(*index, ...) if ... not in index else index]
    assert kept == expected.shape
    assert numbers[np.ix_(*lists)].reshape(-1).tolist() == expected.reshape(-1).tolist()
