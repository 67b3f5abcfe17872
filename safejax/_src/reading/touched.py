"""Touched: the part of an array, a range along each axis, that a window on its elements touches."""

import math
from collections.abc import Sequence
from typing import NamedTuple, final

from safejax._src.reading.windows import Window


@final
class Along(NamedTuple):
    """Elements along an axis: `length` of them from `begin` on, every `step`-th."""

    begin: int
    length: int
    step: int


def located(
    window: Window, shape: Sequence[int], blocks: Sequence[int]
) -> tuple[tuple[Along, ...], Window]:
    """The box that a non-empty window touches of an array of `shape`, and the window within it.

    `blocks` are sizes along each axis: a box begins at a multiple of them, and ends at one or with
    the axis. Where such a size is 0, it may have every second element, or every third one.
    """
    strides = Window.whole(tuple(shape)).strides
    found = _by_axis(window, shape, strides)
    if found is None:
        return _of_run(window, shape, strides, blocks)
    first, moves, axis_of = found
    box: list[Along] = []
    for axis, (at, size, block) in enumerate(zip(first, shape, blocks, strict=True)):
        steps = [move for move in moves[axis] if move[0]]
        low = at + sum(step * (count - 1) for step, count in steps if step < 0)
        high = at + sum(step * (count - 1) for step, count in steps if step > 0)
        if block == 0:
            step = math.gcd(*(step for step, _ in steps)) or 1
            box.append(Along(low, (high - low) // step + 1, step))
        else:
            box.append(_rounded(low, high + 1, size, block))
    own = Window.whole(tuple(along.length for along in box)).strides
    offset = sum(
        (at - along.begin) // along.step * stride
        for at, along, stride in zip(first, box, own, strict=True)
    )
    within = tuple(
        0 if axis is None else stride // strides[axis] // box[axis].step * own[axis]
        for stride, axis in zip(window.strides, axis_of, strict=True)
    )
    return tuple(box), Window(offset, window.shape, within)


def _by_axis(
    window: Window, shape: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[list[tuple[int, int]]], list[int | None]] | None:
    """Where the window begins, by which `(step, count)` it moves along each axis, and which axis
    each of its own axes moves along; None if a step may lead from one row into the next.
    """
    first = _place(window.offset, shape, strides)
    moves: list[list[tuple[int, int]]] = [[] for _ in shape]
    axis_of: list[int | None] = []
    for size, stride in zip(window.shape, window.strides, strict=True):
        if size == 1 or stride == 0:
            axis_of.append(None)
            continue
        axis = next(
            (
                axis
                for axis, own in enumerate(strides)
                if shape[axis] > 1 and own <= abs(stride) < own * shape[axis]
            ),
            None,
        )
        if axis is None or stride % strides[axis]:
            return None
        axis_of.append(axis)
        moves[axis].append((stride // strides[axis], size))
    for at, size, own in zip(first, shape, moves, strict=True):
        low = at + sum(min(step, 0) * (count - 1) for step, count in own)
        high = at + sum(max(step, 0) * (count - 1) for step, count in own)
        if low < 0 or high >= size:
            return None
    return first, moves, axis_of


def _of_run(
    window: Window, shape: Sequence[int], strides: Sequence[int], blocks: Sequence[int]
) -> tuple[tuple[Along, ...], Window]:
    """The box of all elements from the first to the last one, as far as they are whole rows."""
    pairs = list(zip(window.shape, window.strides, strict=True))
    low = window.offset + sum(min(stride, 0) * (size - 1) for size, stride in pairs)
    high = window.offset + sum(max(stride, 0) * (size - 1) for size, stride in pairs)
    firsts, lasts = _place(low, shape, strides), _place(high, shape, strides)
    differs = next(axis for axis in range(len(shape)) if firsts[axis] != lasts[axis])
    box = tuple(
        _rounded(firsts[axis], lasts[axis] + 1, size, block)
        if axis <= differs
        else Along(0, size, 1)
        for axis, (size, block) in enumerate(zip(shape, blocks, strict=True))
    )
    own = Window.whole(tuple(along.length for along in box)).strides
    offset = window.offset
    for axis in range(differs):
        offset += (firsts[axis] - box[axis].begin) * own[axis] - firsts[axis] * strides[axis]
    return box, Window(offset - box[differs].begin * strides[differs], window.shape, window.strides)


def _place(element: int, shape: Sequence[int], strides: Sequence[int]) -> list[int]:
    return [element // stride % size for size, stride in zip(shape, strides, strict=True)]


def _rounded(begin: int, end: int, size: int, block: int) -> Along:
    block = max(block, 1)
    begin = begin // block * block
    return Along(begin, min(size, -(-end // block) * block) - begin, 1)
