"""`transpose`: leaves with their axes permuted."""

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
from safejax._src.transforms.selection import fault, map_contents, required_where
from safejax.errors import TransformError


@final
@dataclass(frozen=True, slots=True)
class Transpose(Transform):
    """Chosen leaves with their axes permuted; see `transpose`."""

    where: Where
    axes: tuple[int, ...] | None = None
    must_match: bool = True

    def __call__(self, leaves: Leaves, /) -> Leaves:
        return map_contents(self, leaves, self.where, self.must_match, Alike(self._transpose))

    def _transpose(self, name: str, content: Content) -> Content:
        count = len(content.shape)
        axes = (1, 0) if self.axes is None else self.axes
        if len(axes) != count:
            known = f"{len(axes)} axes"
            swapped = (*range(count - 2), count - 1, count - 2)
            given = f"axes, for example {swapped}" if count > 2 else "axes"
            raise fault(
                self,
                f"leaf {name!r}: expected {known}, got the shape "
                f"{list(content.shape)}: narrow the pattern, or give {given}",
            )
        own = range(count, count + content.key_axes)
        return content.of(content.view.transpose((*axes, *own)))

    @property
    def inverse(self) -> "Transpose":
        if self.axes is None:
            return self
        axes = tuple(self.axes.index(axis) for axis in range(len(self.axes)))
        return Transpose(self.where, axes, self.must_match)

    def __repr__(self) -> str:
        axes = "" if self.axes is None else f", axes={self.axes}"
        must_match = "" if self.must_match else ", must_match=False"
        return f"transpose({show_where(self.where)}{axes}{must_match})"


@set_module("safejax")
def transpose(
    where: Where, *, axes: Sequence[int] | None = None, must_match: bool = True
) -> Transpose:
    """A transform that permutes the axes of the leaves that `where` matches.

    `axes` is a permutation of all axes, as in `numpy.transpose`. Without it, the leaves are
    matrices: which axes of a convolution's kernel, or of a stack, go where has to be said. A lazy
    leaf stays lazy, and a part of it reads only the bytes of that part. The inverse permutes the
    axes back. Python scalars are kept. A pattern that matches no leaf is an error, unless
    `must_match` is false.

    >>> import jax.numpy as jnp
    >>> from safejax import flatten, transpose
    >>> transpose("*.kernel")(flatten({"mlp": {"kernel": jnp.ones((2, 3))}}))["mlp.kernel"].shape
    (3, 2)

    Raises `TransformError` when it is built with axes that are not a permutation, and when it is
    applied to a leaf with another number of axes.
    """
    where = required_where("transpose", where)
    try:
        permutation = None if axes is None else tuple(map(operator.index, axes))
    except TypeError:
        permutation = ()
    if permutation is not None and (
        not permutation or sorted(permutation) != list(range(len(permutation)))
    ):
        raise TransformError(
            f"transpose: expected axes to be a permutation of 0 to n-1, got {axes!r}"
        )
    return Transpose(where, permutation, must_match)
