"""Boxes: the part of an array with several axes that a window on its flat elements shows.

What is stored in chunks is read by indices along each axis, and not by positions. A window comes
from slices, transposes and reshapes of the array, so that nearly always each step along one of its
axes is a step along axes of the array, and the window shows a part of a box.
"""

import math
from typing import NamedTuple, final

from safejax._src.reading.windows import Window


@final
class Box(NamedTuple):
    """A box of an array, and the window that shows, on the box's flat elements, what is asked.

    `slices` has `(begin, end, step)` for each axis of the array: half-open, `step` at least 1.
    """

    slices: tuple[tuple[int, int, int], ...]
    window: Window

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the box, in elements."""
        return tuple(-((begin - end) // step) for begin, end, step in self.slices)


def box_of(shape: tuple[int, ...], window: Window) -> Box:
    """The smallest box known to hold what a window, which is not empty, shows of an array.

    `shape` is that of the array, whose flat elements in C order the window is on. Where a step of
    the window crosses the end of an axis, the box has all rows from its first to its last element.
    """
    return _exact(shape, window) or _rows(shape, window)


def _exact(shape: tuple[int, ...], window: Window) -> Box | None:
    """The box, if no step of the window carries from one axis of the array into another."""
    strides = Window.whole(shape).strides
    lowest = window.offset + sum(
        stride * (size - 1)
        for size, stride in zip(window.shape, window.strides, strict=True)
        if stride < 0
    )
    start = _digits(lowest, shape, strides)
    axes = [
        part
        for size, stride in zip(window.shape, window.strides, strict=True)
        if size > 1 and stride
        for part in _split(size, abs(stride), shape, strides)
    ]
    moves = [(size, _digits(stride, shape, strides)) for size, stride in axes]
    slices: list[tuple[int, int, int]] = []
    for axis, length in enumerate(shape):
        reach = sum((size - 1) * digits[axis] for size, digits in moves)
        if start[axis] + reach >= length:
            return None
        step = math.gcd(*(digits[axis] for _, digits in moves)) or 1
        slices.append((start[axis], start[axis] + reach + 1, step))
    box = Box(tuple(slices), window)
    inner = Window.whole(box.shape).strides
    steps = [step for _, _, step in slices]

    def stride_in_box(stride: int) -> int:
        digits = _digits(abs(stride), shape, strides)
        moved = sum(d // step * own for d, step, own in zip(digits, steps, inner, strict=True))
        return -moved if stride < 0 else moved

    # An axis that was split has the same stride in the box, if it has one there at all.
    kept = tuple(
        stride_in_box(stride) if size > 1 else 0
        for size, stride in zip(window.shape, window.strides, strict=True)
    )
    for size, stride, own in zip(window.shape, window.strides, kept, strict=True):
        if size > 1 and stride and not _is_even(size, abs(stride), abs(own), box, shape, strides):
            return None
    offset = sum(-own * (size - 1) for size, own in zip(window.shape, kept, strict=True) if own < 0)
    return box._replace(window=Window(offset, window.shape, kept))


def _digits(position: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> list[int]:
    """A position, or a stride, as steps along each axis of the array."""
    digits: list[int] = []
    for length, stride in zip(shape, strides, strict=True):
        steps, position = divmod(position, stride) if length > 1 else (0, position)
        digits.append(steps)
    return digits


def _split(
    size: int, stride: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> list[tuple[int, int]]:
    """An axis of a window as several, of which each moves within one axis of the array.

    A reshape that joins axes gives an axis that runs through all of them.
    """
    parts: list[tuple[int, int]] = []
    for length, own in zip(reversed(shape), reversed(strides), strict=True):
        whole = length * own
        if size > 1 and stride < whole and whole % stride == 0:
            steps = whole // stride
            if size > steps and size % steps == 0 and steps > 1:
                parts.append((steps, stride))
                size, stride = size // steps, whole
    parts.append((size, stride))
    return parts


def _is_even(
    size: int, stride: int, own: int, box: Box, shape: tuple[int, ...], strides: tuple[int, ...]
) -> bool:
    """Whether a step of the window is as long in the box wherever it is made."""
    inner = Window.whole(box.shape).strides
    for steps, part in _split(size, stride, shape, strides):
        del steps
        digits = _digits(part, shape, strides)
        moved = sum(
            d // step * each
            for d, (_, _, step), each in zip(digits, box.slices, inner, strict=True)
        )
        if moved * stride != own * part:
            return False
    return True


def _rows(shape: tuple[int, ...], window: Window) -> Box:
    """The box of all rows from that of the first element to that of the last one."""
    strides = Window.whole(shape).strides
    spans = list(zip(window.shape, window.strides, strict=True))
    first = window.offset + sum(stride * (size - 1) for size, stride in spans if stride < 0)
    last = window.offset + sum(stride * (size - 1) for size, stride in spans if stride > 0)
    begin, end = _digits(first, shape, strides), _digits(last, shape, strides)
    axis = next((k for k, pair in enumerate(zip(begin, end, strict=True)) if pair[0] != pair[1]), 0)
    slices = tuple(
        (begin[k], end[k] + 1, 1) if k <= axis else (0, length, 1) for k, length in enumerate(shape)
    )
    origin = sum(low * stride for (low, _, _), stride in zip(slices, strides, strict=True))
    return Box(slices, Window(window.offset - origin, window.shape, window.strides))
