"""Requests: known windows, and the figures that they are planned with; the laws are elsewhere."""

import numpy as np
import pytest

from safejax._src.reading.requests import (
    FAR,
    FREE,
    NEAR,
    Cost,
    Reach,
    byte_spans,
    planned,
    runs_cost,
)
from safejax._src.reading.windows import Spans, Window

F32 = np.dtype(np.float32)
SQUARE = Window.whole((4096, 4096))
SIZE = 64 << 20


def columns(number: int, of: int = 8) -> Window:
    width = 4096 // of
    return SQUARE.index((slice(None), slice(number * width, (number + 1) * width)))


def ranges(spans: Spans, reach: Reach) -> list[tuple[int, int]]:
    requests = planned([spans], reach)
    return list(zip(requests.begins.tolist(), requests.ends.tolist(), strict=True))


def test_a_whole_leaf_is_cut() -> None:
    requests = planned([byte_spans(100, F32, SQUARE)], FAR)
    assert requests.cost == Cost(SIZE, 8, SIZE)
    assert requests.begins.tolist() == [100 + k * FAR.piece for k in range(8)]
    assert requests.ends.tolist() == [100 + (k + 1) * FAR.piece for k in range(8)]


def test_all_columns_together_are_the_whole_leaf() -> None:
    wanted = [byte_spans(0, F32, columns(number)) for number in range(8)]
    assert planned(wanted, FAR).cost == Cost(SIZE, 8, SIZE)


@pytest.mark.parametrize("number", range(8))
def test_an_eighth_of_the_columns_is_no_more_than_the_leaf(number: int) -> None:
    cost = planned([byte_spans(0, F32, columns(number))], FAR).cost
    assert cost.requests <= 8
    assert cost.needed == SIZE // 8
    assert cost.nbytes <= FAR.factor * cost.needed


def test_leaves_that_are_neighbours_are_one_read() -> None:
    size = 16 << 10
    wanted = [Spans(np.array([k * (size + 64)]), size) for k in range(1000)]
    cost = planned(wanted, FAR).cost
    assert cost == Cost(1000 * (size + 64) - 64, 2, 1000 * size)


def test_what_overlaps_is_needed_once() -> None:
    wanted = [
        Spans(np.array([0, 100]), 50), Spans(np.array([20]), 300), Spans(np.array([40]), 5),
    ]  # fmt: skip
    assert planned(wanted, Reach(0, 0, 1, 1000)).cost == Cost(320, 1, 320)


def test_runs_are_one_read_if_they_are_near_or_dense() -> None:
    reach = Reach(gap=10, dense_gap=100, factor=3, piece=1000)
    near = Spans(np.array([0, 12, 24]), 2)
    assert ranges(near, reach) == [(0, 26)]
    assert ranges(Spans(np.array([0, 13, 24]), 2), reach) == [(0, 2), (13, 26)]
    # 90 of 160 bytes are needed.
    assert ranges(Spans(np.array([0, 65, 130]), 30), reach) == [(0, 160)]
    assert ranges(Spans(np.array([0, 95, 190]), 18), reach) == [(0, 18), (95, 113), (190, 208)]
    # Dense, but farther apart than what may be read for nothing.
    assert ranges(Spans(np.array([0, 400]), 299), reach) == [(0, 299), (400, 699)]


def test_nothing_is_planned_for_nothing() -> None:
    for wanted in ([], [Spans(np.zeros(0, np.int64), 0)]):
        assert planned(wanted, NEAR).cost == FREE
    assert runs_cost(F32, Window.whole((3, 0))) == FREE


def test_runs_by_themselves() -> None:
    assert runs_cost(F32, columns(3)) == Cost(SIZE // 8, 4096, SIZE // 8)
    assert runs_cost(F32, SQUARE.transpose((1, 0))) == Cost(SIZE, 1, SIZE)


@pytest.mark.parametrize("stride", [16 << 10, 200 << 10])
def test_many_runs_are_planned_without_a_loop_over_all_that_they_could_be(stride: int) -> None:
    """32,768 runs are the columns of a leaf over 8 devices; with wide gaps, none are merged."""
    starts = np.arange(4096, dtype=np.int64) * stride
    wanted = [Spans(starts + number * 2048, 2048) for number in range(8)]
    requests = planned(wanted, FAR)
    assert requests.needed == 32_768 * 2048
    assert len(requests.begins) == (8 if stride == 16 << 10 else 4096)
