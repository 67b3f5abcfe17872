"""Calling the function of a merge: on blocks that were read, and on small ones to try it out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype, stored_as
from safejax._src.reading.merged import Axis, AxisMap
from safejax._src.transforms.elementwise import alike
from safejax._src.transforms.merging.axes import ONE
from safejax._src.transforms.selection import fault

Function: TypeAlias = Callable[..., Any]


@final
@dataclass(frozen=True, slots=True)
class Calling:
    """The function of the leaf `name`, whose results are checked; `many` if it returns several.

    `avals` are the dtypes of the results, and the sizes of their axes that have no name; None as
    long as they are not known.
    """

    function: Function
    name: str
    many: bool
    avals: tuple[tuple[Dtype, tuple[int, ...]], ...] | None = None

    def __call__(self, operands: Sequence[NDArray[Any]], axes: AxisMap) -> list[NDArray[Any]]:
        blocks = ", ".join(_described(operand) for operand in operands)
        try:
            returned = self.function(*operands)
            parts = tuple(returned) if self.many else (returned,)
            results = [np.asarray(part) for part in parts]
        except Warning:  # One that the user has made an error.
            raise
        except Exception as error:
            raise fault(
                "merge",
                f"leaf {self.name!r}: expected a function of {blocks}, it raised "
                f"{type(error).__name__}: {error}: correct the function, or narrow the template",
            ) from error
        if len(results) != len(axes.results):
            raise fault(
                "merge",
                f"leaf {self.name!r}: expected the function to return {len(axes.results)} "
                f"arrays, got {len(results)}",
            )
        for number, (result, own) in enumerate(zip(results, axes.results, strict=True)):
            known = None if self.avals is None else self.avals[number]
            expected = expected_shape(own, axes, result.shape if known is None else known[1])
            dtype = result.dtype if known is None else known[0]
            if (result.shape, result.dtype) != (expected, dtype):
                raise fault(
                    "merge",
                    f"leaf {self.name!r}: expected the function to return "
                    f"{dtype}{list(expected)} for {blocks}, got {_described(result)}: correct the "
                    "function, or axes",
                )
        return results


def expected_shape(own: tuple[Axis, ...], axes: AxisMap, whole: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a result; `whole` has the sizes of the axes of which the leaves have none."""
    if len(own) != len(whole):
        whole = (1,) * len(own)
    return tuple(
        axis.count(axes.sizes[axis.name]) if axis.name is not None else (1 if axis == ONE else size)
        for axis, size in zip(own, whole, strict=True)
    )


def tried(
    calling: Calling, dtypes: Sequence[Dtype], shapes: Sequence[Any], axes: AxisMap
) -> Calling:
    """The function, with the avals that it returns for two blocks along each axis.

    Raises `TransformError` if it returns anything else for a block by itself, or what JAX lacks.
    """
    sizes = {
        name: min(size, 2 * axes.block(name)) if axes.is_divided(name) else size
        for name, size in axes.sizes.items()
    }
    small = AxisMap(axes.operands, axes.results, sizes)
    operands = [
        _pattern(dtype, tuple(
            size if axis.name is None else axis.count(sizes[axis.name])
            for axis, size in zip(own, shape, strict=True)
        ))
        for dtype, own, shape in zip(dtypes, axes.operands, shapes, strict=True)
    ]  # fmt: skip
    with np.errstate(all="ignore"):
        results = calling(operands, small)
        for name, size in sizes.items():
            block = axes.block(name)
            if block < size and axes.is_divided(name):
                _check_by_itself(calling, operands, small, results, name)
    for result in results:
        if stored_as(result.dtype, ()) is None:
            raise fault(
                "merge",
                f"leaf {calling.name!r}: expected the function to return a dtype that JAX "
                f"has, got {result.dtype}: convert its result with astype",
            )
    avals = tuple((result.dtype, result.shape) for result in results)
    return Calling(calling.function, calling.name, calling.many, avals)


def _check_by_itself(
    calling: Calling,
    operands: Sequence[NDArray[Any]],
    axes: AxisMap,
    results: Sequence[NDArray[Any]],
    name: str,
) -> None:
    """Raise `TransformError` if the first block along an axis is another one by itself."""
    block = axes.block(name)
    first = AxisMap(axes.operands, axes.results, {**axes.sizes, name: block})
    parts = [
        _first(operand, own, name, block)
        for operand, own in zip(operands, axes.operands, strict=True)
    ]
    for alone, result, own in zip(calling(parts, first), results, axes.results, strict=True):
        divided = any(axis.name == name for axis in own)
        if divided and not alike(alone, _first(result, own, name, block)):
            raise fault(
                "merge",
                f"leaf {calling.name!r}: expected the function to work on each block of "
                f"{block} along {name!r} by itself, but for {_described(parts[0])} it returned "
                f"other values than for the same elements in {_described(operands[0])}: parts of "
                "a leaf are read by themselves; write _ for an axis that must be whole",
            )


def _first(array: NDArray[Any], own: tuple[Axis, ...], name: str, block: int) -> NDArray[Any]:
    return array[
        tuple(slice(axis.count(block)) if axis.name == name else slice(None) for axis in own)
    ]


def _pattern(dtype: Dtype, shape: tuple[int, ...]) -> NDArray[Any]:
    """Ones and twos in no regular order: every dtype has these, and tables have such places."""
    count = math.prod(shape)
    return (
        (1 + (np.arange(count) * 2654435761 >> 9) % 2).astype(np.int8).astype(dtype).reshape(shape)
    )


def _described(array: NDArray[Any]) -> str:
    return f"{array.dtype}{list(array.shape)}"
