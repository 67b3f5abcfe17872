"""The law of shares: however an array is divided, each byte of its file is written exactly once."""

from collections.abc import Callable
from typing import Any, cast

import jax
import ml_dtypes
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from safejax import Leaves, decode, encode
from safejax._src.arrays.content import Content
from safejax._src.arrays.lazy import LazyArray
from safejax._src.arrays.parts import boxes_of, view_of_array, view_of_share
from safejax._src.checkpoint.layout import layout
from safejax._src.checkpoint.ours import ours_of, write_share
from safejax._src.checkpoint.stream import to_bytes
from safejax._src.reading.concatenation import concatenation
from safejax._src.reading.pointwise import cast_view
from safejax._src.reading.shares import Stripes, shares
from safejax._src.reading.view import View
from safejax._src.reading.windows import Window
from safejax.errors import LeafError

DTYPES = ["float32", "int4", "bool", "bfloat16", "complex128", "uint8", "float4_e2m1fn", "int64"]


class Written:
    """A file in memory that refuses to write a byte twice."""

    def __init__(self, nbytes: int) -> None:
        self.data = np.zeros(nbytes, np.uint8)
        self.times = np.zeros(nbytes, np.uint8)

    def write_runs(self, begins: list[int], data: memoryview, nbytes: int) -> None:
        assert data.nbytes == len(begins) * nbytes
        for number, begin in enumerate(begins):
            place = slice(begin, begin + nbytes)
            self.data[place] = np.frombuffer(data[number * nbytes :][:nbytes], np.uint8)
            self.times[place] += 1


@st.composite
def shardings(draw: st.DrawFn) -> tuple[NamedSharding, int]:
    """A sharding over some of eight devices in any order, and how many axes it needs."""
    sizes = draw(st.sampled_from([(1,), (2,), (4,), (8,), (2, 2), (2, 4), (4, 2), (2, 2, 2)]))
    count = int(np.prod(sizes))
    devices = draw(st.permutations(jax.devices()))[:count]
    names = "xyz"[: len(sizes)]
    mesh = jax.sharding.Mesh(
        np.array(devices).reshape(sizes), tuple(names), axis_types=(AxisType.Auto,) * len(sizes)
    )
    entries: list[Any] = []
    left = list(draw(st.permutations(list(names))))
    for _ in range(draw(st.integers(0, 3))):
        taken = [left.pop() for _ in range(draw(st.integers(0, min(2, len(left)))))]
        entries.append(tuple(taken) or None)
    return NamedSharding(mesh, PartitionSpec(*entries)), len(entries)


@st.composite
def divided_arrays(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], NamedSharding]:
    sharding, least = draw(shardings())
    ndim = draw(st.integers(least, max(least, 3)))
    parts = [
        int(np.prod([sharding.mesh.shape[name] for name in entry or ()]))
        for entry in (*sharding.spec, *(None,) * (ndim - len(sharding.spec)))
    ]
    long = draw(st.integers(0, ndim))  # One axis may be long, so that there are several stripes.
    shape = tuple(
        part
        * draw(st.integers(500, 3000) if axis == long else st.integers(0 if ndim > 1 else 1, 4))
        for axis, part in enumerate(parts)
    )
    name = draw(st.sampled_from(DTYPES))
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    values = np.arange(int(np.prod(shape))) % 7
    return values.reshape(shape).astype(dtype), sharding


Change = Callable[[View], View]


@st.composite
def changes(draw: st.DrawFn, view: View) -> tuple[list[str], list[Change]]:
    """Some of what transforms do to a view, and the kinds of it."""
    kinds: list[str] = []
    made: list[Change] = []
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["transpose", "slice", "reshape", "cast", "concat", "expand"]))
        change = draw(one_change(kind, view))
        if change is not None:
            kinds.append(kind)
            made.append(change)
            view = change(view)
    return kinds, made


@st.composite
def one_change(draw: st.DrawFn, kind: str, view: View) -> Change | None:
    axes = list(range(len(view.shape)))
    if kind == "transpose":
        order = tuple(draw(st.permutations(axes)))
        return lambda view: view.transpose(order)
    if kind == "slice" and axes and view.size:
        axis = draw(st.sampled_from(axes))
        begin, end = sorted(draw(st.integers(0, view.shape[axis])) for _ in range(2))
        step = draw(st.sampled_from([1, 2, -1]))
        part = slice(begin, end, step) if step > 0 else slice(None, begin, step)
        return lambda view: view.index((*(slice(None),) * axis, part))
    if kind == "reshape" and len(axes) > 1:
        axis = draw(st.integers(0, len(axes) - 2))
        joined = view.shape[axis] * view.shape[axis + 1]
        shape = (*view.shape[:axis], joined, *view.shape[axis + 2 :])
        return lambda view: view.reshape(shape)
    if kind == "cast" and view.dtype.kind in "fiu":
        return lambda view: cast_view(view, np.dtype(np.float32))
    if kind == "concat" and axes:
        axis = draw(st.sampled_from(axes))
        return lambda view: concatenation((view, view), axis)
    if kind == "expand":
        axis = draw(st.integers(0, len(axes)))
        return lambda view: view.expand(axis)
    return None


def written_by(processes: int, views: list[View]) -> tuple[Written, bytes, list[int]]:
    """What all processes write of a leaf, given the view of each; the bytes of each, too."""
    files = [
        layout(Leaves({"w": LazyArray(Content(view), "w")}), "f", by_all=True) for view in views
    ]
    written = Written(files[0].nbytes)
    counts: list[int] = []
    for process, each in enumerate(files):
        assert each.head == files[0].head
        ours = ours_of(each, process, processes)
        for share in ours.shares[""]:
            total = sum(write_share(share, cast("Any", written)))
            assert total == share.nbytes
        counts.append(ours.nbytes)
    return written, files[0].head, counts


def is_refused_with_reason(text: str, dtype: str, kinds: list[str]) -> bool:
    if "whole bytes" in text:
        return dtype == "float4_e2m1fn"
    return "one process can read alone" in text and "reshape" in kinds


@given(divided_arrays(), st.sampled_from([1, 2, 4, 8]), st.data())
def test_every_byte_is_written_once(
    array: tuple[np.ndarray[Any, Any], NamedSharding], processes: int, data: st.DataObject
) -> None:
    values, sharding = array
    each = 8 // processes
    holders = {
        box: tuple(sorted({device.id // each for device in devices}))
        for box, devices in boxes_of(sharding, values.shape).items()
    }
    whole = view_of_array(values)
    kinds, made = data.draw(changes(whole))

    def changed(view: View) -> View:
        for change in made:
            view = change(view)
        return view

    views = [changed(view_of_share(whole, holders, process)) for process in range(processes)]
    try:
        written, head, counts = written_by(processes, views)
    except LeafError as error:
        assert is_refused_with_reason(str(error), values.dtype.name, kinds)  # noqa: PT017
        return
    assert (written.times[len(head) :] == 1).all()
    assert (written.times[: len(head)] == 0).all()
    file = layout(Leaves({"w": LazyArray(Content(changed(whole)), "w")}), "f")
    assert head + written.data[len(head) :].tobytes() == to_bytes(file)
    assert sum(counts) == file.nbytes - len(head)


def test_what_all_hold_is_divided_evenly() -> None:
    values = np.arange(1 << 20, dtype=np.float32).reshape(1024, 1024)
    whole = view_of_array(values)
    for processes in (2, 3, 7):
        everyone = tuple(range(processes))
        for each in (whole, view_of_share(whole, {((0, 1024), (0, 1024)): everyone}, 0)):
            views = [each] * processes
            _, _, counts = written_by(processes, views)
            assert max(counts) - min(counts) <= values.nbytes / processes / 8
    _, _, counts = written_by(4, [view_of_array(values[:8])] * 4)
    assert sum(count > 0 for count in counts) > 1


def test_what_is_read_from_a_file_is_written_by_process_0() -> None:
    leaf = decode(encode(Leaves({"w": np.arange(1 << 16)})))["w"]
    _, _, counts = written_by(3, [leaf.content.view] * 3)
    assert counts == [8 << 16, 0, 0]


def test_neighbours_in_a_row_are_written_at_once() -> None:
    values = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    columns = [((0, 64), (begin, begin + 8)) for begin in range(0, 64, 8)]
    holders = {box: (0,) if 1 < number < 6 else (1,) for number, box in enumerate(columns)}
    view = view_of_share(view_of_array(values), holders, 0)
    (region,) = shares(view, Stripes(4096, values.nbytes, 32), 0, 2)
    assert region.at.runs() == (Window(16, (64,), (64,)), 32)
    assert np.array_equal(region.view.read(), values[:, 16:48])
