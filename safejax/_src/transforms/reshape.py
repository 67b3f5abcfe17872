"""`reshape`: leaves in another shape, with their elements in C order."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from safejax._src.arrays.content import Content
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import Transform
from safejax._src.public import set_module
from safejax._src.pytrees.choices import Where, show_where
from safejax._src.transforms.alike import Alike
from safejax._src.transforms.selection import checked_axis, fault, map_contents, required_where
from safejax.errors import TransformError


@final
@dataclass(frozen=True, slots=True)
class Reshape(Transform):
    """Chosen leaves in another shape; see `reshape`."""

    where: Where
    shape: tuple[int, ...]
    source: tuple[int, ...] | None = None
    axis: int | None = None
    must_match: bool = True

    def __call__(self, leaves: Leaves, /) -> Leaves:
        return map_contents(self, leaves, self.where, self.must_match, Alike(self._reshape))

    def _reshape(self, name: str, content: Content) -> Content:
        whole = content.shape
        begin, end = self._range(name, whole)
        found = whole[begin:end]
        if self.source is not None and not _fits(self.source, found):
            raise fault(
                self,
                f"leaf {name!r}: expected the shape {list(self.source)}{self._at()}, got "
                f"{list(whole)}: narrow the pattern, or correct source",
            )
        shape = _resolved(self.shape, math.prod(found))
        if shape is None:
            raise fault(
                self,
                f"leaf {name!r}: expected a shape that holds the {math.prod(found)} "
                f"elements of {list(found)}, got {list(self.shape)}: narrow the pattern, or "
                f"correct the shape",
            )
        own = content.view.shape[end:]
        return content.of(content.view.reshape((*whole[:begin], *shape, *own)))

    def _range(self, name: str, shape: tuple[int, ...]) -> tuple[int, int]:
        """The axes that get another shape, half-open."""
        if self.axis is None:
            return 0, len(shape)
        assert self.source is not None
        count = len(self.source)
        axis = self.axis + (len(shape) - count + 1 if self.axis < 0 else 0)
        if not 0 <= axis <= len(shape) - count:
            raise fault(
                self,
                f"leaf {name!r}: expected {count} axes from axis {self.axis} on, got the "
                f"shape {list(shape)}: narrow the pattern, or correct axis",
            )
        return axis, axis + count

    def _at(self) -> str:
        return "" if self.axis is None else f" from axis {self.axis} on"

    @property
    def inverse(self) -> "Reshape":
        if self.source is None:
            raise self._not_invertible(
                "expected a reshape whose inverse has a target, this one takes any "
                "shape: give the shape before it, as in source=(-1, 768)"
            )
        return Reshape(self.where, self.source, self.shape, self.axis, self.must_match)

    def __repr__(self) -> str:
        is_one_axis = self.axis is not None and self.source == (-1,)
        source = "" if self.source is None or is_one_axis else f", source={self.source}"
        source += "" if self.axis is None else f", axis={self.axis}"
        must_match = "" if self.must_match else ", must_match=False"
        return f"reshape({show_where(self.where)}, {self.shape}{source}{must_match})"


@set_module("safejax")
def reshape(
    where: Where,
    shape: Sequence[int],
    *,
    source: Sequence[int] | None = None,
    axis: int | None = None,
    must_match: bool = True,
) -> Reshape:
    """A transform that gives leaves another shape, as `numpy.reshape` does, in C order.

    `shape` may contain one -1, the size that remains. `source` is the shape that the leaves must
    have before, and may contain one -1 as well; with it, the transform has an inverse. With `axis`,
    only that axis gets the shape, or as many axes from there on as `source` has, and any others
    stay: `reshape("*.q", (32, -1), axis=0)`. A negative `axis` counts the last of them from the
    end. A reshape
    that NumPy can do without a copy, for example `W.T.reshape(in, heads, dim)`, reads only the
    bytes of the part that is needed. Any other, for example one that merges the axes of a
    transposed leaf, reads the whole leaf whenever a part of it is read. Typed keys keep the axes
    of their data. A pattern that matches no leaf is an error, unless `must_match` is false.

    >>> import jax.numpy as jnp
    >>> from safejax import flatten, reshape
    >>> heads = reshape("*.query", (-1, 4, 8), source=(-1, 32))
    >>> heads(flatten({"attention": {"query": jnp.ones((16, 32))}}))["attention.query"].shape
    (16, 4, 8)
    >>> heads.inverse
    reshape('*.query', (-1, 32), source=(-1, 4, 8))

    Raises `TransformError` when it is built with anything that is not a shape, and when it is
    applied to a leaf of another size, or of a shape that does not match `source`.
    """
    where = required_where("reshape", where)
    target = _shape("shape", shape)
    before = None if source is None else _shape("source", source)
    at = None if axis is None else checked_axis("reshape", axis)
    if at is not None and before is None:
        before = (-1,)
    if at is not None and not (target and before):
        raise TransformError("reshape: expected one size or more with axis, got none")
    return Reshape(where, target, before, at, must_match)


def _shape(argument: str, shape: Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(map(operator.index, shape))
    except TypeError:
        sizes = (-2,)
    if any(size < -1 for size in sizes) or sizes.count(-1) > 1:
        raise TransformError(
            f"reshape: expected {argument} to be sizes, one of which may be -1, got {shape!r}"
        )
    if -1 in sizes and 0 in sizes:
        raise TransformError(
            f"reshape: expected {argument} to determine the size at -1, got a 0 next to it in "
            f"{shape!r}"
        )
    return sizes


def _fits(pattern: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(pattern) == len(shape) and all(
        wanted in (-1, size) for wanted, size in zip(pattern, shape, strict=True)
    )


def _resolved(shape: tuple[int, ...], size: int) -> tuple[int, ...] | None:
    """The shape with its -1 replaced; None if it does not have `size` elements."""
    known = math.prod(axis for axis in shape if axis != -1)
    if -1 not in shape:
        return shape if known == size else None
    return (
        tuple(size // known if axis == -1 else axis for axis in shape)
        if size % known == 0
        else None
    )
