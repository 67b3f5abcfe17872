"""Held sources: those that they are in front of, and who holds them."""

import numpy as np

from safejax._src.reading.buffer import BufferSource
from safejax._src.reading.concatenation import stack
from safejax._src.reading.held import HeldSource, held_by
from safejax._src.reading.log import observe_reads
from safejax._src.reading.pointwise import cast_view
from safejax._src.reading.view import Strided
from safejax._src.reading.windows import Window

VALUES = np.arange(32, dtype=np.float32)
WINDOW = Window(1, (3, 2), (4, 2))


def test_a_held_source_does_what_its_source_does() -> None:
    source = BufferSource(VALUES.view(np.uint8), "m")
    held = HeldSource(source, (1, 3))
    for name in ("name", "immutable", "has_values", "in_memory", "is_mapped", "is_barrier"):
        assert getattr(held, name) == getattr(source, name)
    whole = Window.whole(VALUES.shape)
    dtype = VALUES.dtype
    assert held.cost(dtype, WINDOW) == source.cost(dtype, WINDOW)
    assert held.is_in_place(0, dtype, whole, 4)
    with observe_reads() as log:
        assert np.array_equal(held.read(0, dtype, WINDOW), source.read(0, dtype, WINDOW))
        out = np.empty((3, 2), dtype)
        held.read_into(0, dtype, WINDOW, out)
        in_place = held.in_place(0, dtype, whole, 4)
        rows = held.rows(0, dtype, WINDOW)
        assert rows is not None
        row = rows(2)
    assert [read.nbytes for read in log.reads] == [24, 24, 24, 128, 8]
    assert np.array_equal(out, source.read(0, dtype, WINDOW))
    assert in_place is not None
    assert np.array_equal(in_place, VALUES)
    assert np.array_equal(row, out[2])
    with held.kept():
        assert repr(held) == f"HeldSource({source!r}, (1, 3))"


def test_every_view_can_be_held() -> None:
    view = Strided(BufferSource(VALUES.view(np.uint8), "m"), 0, VALUES.dtype, WINDOW)
    for each in (view, cast_view(view, np.dtype(np.int8)), stack((view, view), 0)):
        held = held_by(each, (2,))
        assert np.array_equal(held.read(), each.read())
        assert {source.holders for source in held.sources} == {(2,)}
        assert {source.holders for source in each.sources} == {None}
