"""`pad` and `crop`: leaves with more, or fewer, rows along an axis."""

import operator
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from safejax._src.arrays.content import Content
from safejax._src.dtypes import Dtype
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import Transform
from safejax._src.public import set_module
from safejax._src.pytrees.choices import Where, show_where
from safejax._src.reading.concatenation import concatenation
from safejax._src.reading.constant import constant
from safejax._src.transforms.selection import (
    checked_axis,
    fault,
    map_contents,
    required_where,
)
from safejax.errors import TransformError


@final
@dataclass(frozen=True, slots=True)
class Resize(Transform):
    """Chosen leaves that are padded, or cropped, to a size along an axis; see `pad` and `crop`."""

    where: Where
    axis: int
    to: int
    value: int | float | bool
    source: int | None
    grows: bool
    must_match: bool = True

    def __call__(self, leaves: Leaves, /) -> Leaves:
        return map_contents(self, leaves, self.where, self.must_match, self._resize)

    def _resize(self, name: str, content: Content) -> Content:
        shape = content.shape
        axis = checked_axis(self, self.axis, len(shape), name)
        size = shape[axis]
        if self.source is not None and size != self.source:
            raise fault(
                self,
                f"leaf {name!r}: expected the size {self.source} of axis {axis}, got "
                f"{list(shape)}: narrow the pattern, or correct source",
            )
        if (size > self.to) if self.grows else (size < self.to):
            bound, other = ("at most", "crop") if self.grows else ("at least", "pad")
            raise fault(
                self,
                f"leaf {name!r}: expected a size of {bound} {self.to} of axis {axis}, "
                f"got {list(shape)}: narrow the pattern, correct to, or use {other}",
            )
        if size == self.to:
            return content
        if not self.grows:
            index = (*(slice(None),) * axis, slice(0, self.to))
            return content.of(content.view.index(index))
        if content.key is not None:
            raise fault(
                self, f"leaf {name!r}: expected numbers, got typed keys: narrow the pattern"
            )
        added = (*shape[:axis], self.to - size, *shape[axis + 1 :])
        padding = constant(self._fill(name, content.view.dtype), added)
        return content.of(concatenation((content.view, padding), axis))

    def _fill(self, name: str, dtype: Dtype) -> np.ndarray[Any, Any]:
        with np.errstate(all="ignore"):
            try:
                fill = np.asarray(self.value).astype(dtype)
            except (TypeError, ValueError, OverflowError):
                fill = None
            # A floating dtype may round the value, and any other must hold it.
            kept = fill is not None and (
                dtype.kind in "fcV" or fill.astype(np.asarray(self.value).dtype) == self.value
            )
        if not kept or fill is None:
            raise fault(
                self,
                f"leaf {name!r}: expected a value that {dtype} holds, got "
                f"{self.value!r}: give another value",
            )
        return fill

    @property
    def inverse(self) -> "Resize":
        if self.source is None:
            raise self._not_invertible(
                f"expected a size to go back to, got none: give the size before it, for "
                f"example source={self.to - 1 if self.grows else self.to + 1}"
            )
        return Resize(
            self.where, self.axis, self.source, self.value, self.to, not self.grows, self.must_match
        )

    def __repr__(self) -> str:
        value = "" if not self.value else f", value={self.value!r}"
        source = "" if self.source is None else f", source={self.source}"
        must_match = "" if self.must_match else ", must_match=False"
        return (
            f"{'pad' if self.grows else 'crop'}({show_where(self.where)}, axis={self.axis}, "
            f"to={self.to}{value}{source}{must_match})"
        )


@set_module("safejax")
def pad(
    where: Where,
    *,
    axis: int,
    to: int,
    value: int | float | bool = 0,
    source: int | None = None,
    must_match: bool = True,
) -> Resize:
    """A transform that pads leaves at the end of an axis with `value`, to the size `to`.

    For example, an embedding of 50,257 rows becomes one of 50,304, which 128 divides, so that it
    can be sharded. `source` is the size of the axis before; with it, the transform has an inverse,
    which crops. A part of a padded leaf reads only its own bytes. A leaf that has the size already
    is kept. Floating dtypes round `value`; any other must hold it. A pattern that matches no leaf
    is an error, unless `must_match` is false.

    >>> import jax.numpy as jnp
    >>> from safejax import flatten, pad
    >>> t = pad("embed", axis=0, to=8, source=5)
    >>> t(flatten({"embed": jnp.ones((5, 2))}))["embed"].shape
    (8, 2)
    >>> t.inverse
    crop('embed', axis=0, to=5, source=8)

    Raises `TransformError` when it is built with a size that is none, and when it is applied to a
    leaf that is larger, to one whose dtype cannot hold `value`, and to typed keys.
    """
    where = required_where("pad", where)
    sizes = _sizes("pad", to, source)
    if not isinstance(value, int | float | bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TransformError(f"pad: expected value to be a number, got {value!r}")
    return Resize(where, checked_axis("pad", axis), sizes[0], value, sizes[1], True, must_match)


@set_module("safejax")
def crop(
    where: Where,
    *,
    axis: int,
    to: int,
    source: int | None = None,
    must_match: bool = True,
) -> Resize:
    """A transform that keeps the first `to` rows of leaves along an axis; the others are not read.

    `source` is the size of the axis before; with it, the transform has an inverse, which pads with
    zeros. A leaf that has the size already is kept. A pattern that matches no leaf is an error,
    unless `must_match` is false.

    >>> import jax.numpy as jnp
    >>> from safejax import crop, flatten
    >>> crop("embed", axis=0, to=5)(flatten({"embed": jnp.ones((8, 2))}))["embed"].shape
    (5, 2)

    Raises `TransformError` when it is built with a size that is none, and when it is applied to a
    leaf that is smaller.
    """
    where = required_where("crop", where)
    sizes = _sizes("crop", to, source)
    return Resize(where, checked_axis("crop", axis), sizes[0], 0, sizes[1], False, must_match)


def _sizes(step: str, to: object, source: object) -> tuple[int, int | None]:
    try:
        sizes = [operator.index(size) for size in (to, source) if size is not None]  # pyright: ignore[reportArgumentType]
    except TypeError:
        sizes = []
    if to is None or not sizes or min(sizes) < 0:
        raise TransformError(
            f"{step}: expected to and source to be sizes of an axis, got to={to!r}, "
            f"source={source!r}"
        )
    if source is not None and (sizes[1] > sizes[0]) == (step == "pad") and sizes[0] != sizes[1]:
        relation = "at most" if step == "pad" else "at least"
        raise TransformError(
            f"{step}: expected source to be {relation} to, got to={to!r}, source={source!r}"
        )
    return sizes[0], sizes[1] if source is not None else None
