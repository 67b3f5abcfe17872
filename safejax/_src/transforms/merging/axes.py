"""Axes of a merge: which elements of its leaves an element of the result depends on.

`i j, i/128 j/128 -> i j` are the axes of two leaves and of the result: a name is an axis, `i/128`
has one element for each 128 of `i`, `_` is an axis that is always there as a whole, 1 is an axis
of size 1, and `...` is any number of axes in front.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, final

from safejax._src.reading.merged import Axis, AxisMap
from safejax.errors import TransformError

_AXIS: Final = re.compile(r"(?P<name>[^\W\d]\w*)(/(?P<step>[1-9]\d*))?|1|_|\.\.\.")
ONE: Final = Axis(None, 1)
WHOLE: Final = Axis(None, 0)
_REST: Final = Axis("...")


@final
class MergeAxes(NamedTuple):
    """The axes of the leaves that are merged, and of those that they become."""

    text: str
    sources: tuple[tuple[Axis, ...], ...]
    targets: tuple[tuple[Axis, ...], ...]

    @property
    def turned(self) -> "MergeAxes":
        """The axes of the inverse."""
        return MergeAxes(self.text, self.targets, self.sources)

    def of(self, shapes: Sequence[tuple[int, ...]]) -> "AxisMap | str":
        """The axes of leaves of these shapes, with the sizes of all names; or what is at fault."""
        rest = 0
        for axes, shape in zip(self.sources, shapes, strict=True):
            if _REST in axes:
                rest = len(shape) - len(axes) + 1
        operands = [_without_rest(axes, rest) for axes in self.sources]
        for axes, shape in zip(operands, shapes, strict=True):
            if len(axes) != len(shape):
                return f"expected {len(axes)} axes, {show(axes)!r}, got the shape {list(shape)}"
        sizes: dict[str, int] = {}
        exact: set[str] = set()
        for axes, shape in zip(operands, shapes, strict=True):
            for (name, step), size in zip(axes, shape, strict=True):
                if name is None:
                    if step == 1 and size != 1:
                        return f"expected size 1 where {show(axes)!r} has 1, got {list(shape)}"
                elif name not in exact:
                    sizes[name] = (
                        size if step == 1 else min(sizes.get(name, size * step), size * step)
                    )
                    exact |= {name} if step == 1 else set()
        for axes, shape in zip(operands, shapes, strict=True):
            for axis, size in zip(axes, shape, strict=True):
                if axis.name is not None and axis.count(sizes[axis.name]) != size:
                    return (
                        f"expected {axis.count(sizes[axis.name])} for {show((axis,))!r}, since "
                        f"{axis.name!r} is {sizes[axis.name]}, got {list(shape)}"
                    )
        results = tuple(
            tuple(axis if axis.name is None or axis.name in sizes else WHOLE for axis in axes)
            for axes in (_without_rest(each, rest) for each in self.targets)
        )
        return AxisMap(tuple(operands), results, sizes)


def parse_merge_axes(text: object, sources: int) -> MergeAxes:
    """The axes of `sources` leaves, and after an arrow those of one leaf; else `TransformError`."""
    if not isinstance(text, str):
        raise TransformError(f"merge: expected axes to be a string, got {text!r}")
    left, arrow, right = text.partition("->")
    before, after = (tuple(map(_parsed, side.split(","))) for side in (left, right))
    if not arrow or len(before) != sources or len(after) != 1:
        raise TransformError(
            f"merge: expected axes of {sources} leaves and, after an arrow, those of one, as in "
            f"{', '.join(['i'] * sources)!r} -> 'i', got {text!r}"
        )
    for axes in (*before, *after):
        names = [axis.name for axis in axes if axis.name is not None]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise TransformError(
                f"merge: axes {text!r}: expected each name once in a leaf, got {twice[0]!r} twice"
            )
        if _REST in axes[1:]:
            raise TransformError(f"merge: axes {text!r}: expected '...' in front of all axes")
    if _REST in after[0] and not any(_REST in axes for axes in before):
        raise TransformError(f"merge: axes {text!r}: expected '...' on the left, too")
    return MergeAxes(text, before, after)


def _parsed(text: str) -> tuple[Axis, ...]:
    axes: list[Axis] = []
    for token in text.split():
        found = _AXIS.fullmatch(token)
        if found is None:
            raise TransformError(
                f"merge: axes {text.strip()!r}: expected names of axes, such as i, i/128, _, 1 and "
                f"..., with spaces between them, got {token!r}"
            )
        if token == "1":
            axes.append(ONE)
        elif token == "_":
            axes.append(WHOLE)
        elif token == "...":
            axes.append(_REST)
        else:
            axes.append(Axis(found["name"], int(found["step"] or 1)))
    return tuple(axes)


def show(axes: Sequence[Axis]) -> str:
    """The axes as they are written."""
    plain: Mapping[Axis, str] = {ONE: "1", WHOLE: "_"}
    return " ".join(
        plain.get(axis) or f"{axis.name}{'' if axis.step == 1 else f'/{axis.step}'}"
        for axis in axes
    )


def _without_rest(axes: tuple[Axis, ...], rest: int) -> tuple[Axis, ...]:
    if _REST not in axes:
        return axes
    return (*(Axis(f"...{number}") for number in range(rest)), *axes[1:])
