"""`permute`: leaves with their elements along an axis in another order."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import numpy as np

from safejax._src.arrays.content import Content
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import Transform
from safejax._src.public import set_module
from safejax._src.pytrees.choices import Where, show_where
from safejax._src.reading.gathered import Order, gathered
from safejax._src.transforms.selection import checked_axis, fault, map_contents, required_where
from safejax.errors import TransformError

_MOST_SHOWN = 16


@final
@dataclass(frozen=True, slots=True)
class Permute(Transform):
    """Chosen leaves with another order along an axis; see `permute`."""

    where: Where
    axis: int
    indices: tuple[int, ...]
    must_match: bool = True

    def __call__(self, leaves: Leaves, /) -> Leaves:
        return map_contents(self, leaves, self.where, self.must_match, self._permute)

    def _permute(self, name: str, content: Content) -> Content:
        axis = checked_axis(self, self.axis, len(content.shape), name)
        size, block = content.shape[axis], len(self.indices)
        if size % block:
            raise fault(
                self,
                f"leaf {name!r}: expected a multiple of {block}, the number of indices, "
                f"along axis {axis}, got the shape {list(content.shape)}: narrow the pattern, or "
                f"correct the indices",
            )
        order = _order(self.indices, size)
        return content.of(gathered(content.view, axis, order))

    @property
    def inverse(self) -> "Permute":
        back = tuple(np.argsort(self.indices).tolist())
        return Permute(self.where, self.axis, back, self.must_match)

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self.indices[:_MOST_SHOWN]))
        more = f", … {len(self.indices)} in all" if len(self.indices) > _MOST_SHOWN else ""
        must_match = "" if self.must_match else ", must_match=False"
        return f"permute({show_where(self.where)}, {self.axis}, [{shown}{more}]{must_match})"


# Many leaves have the same size along the axis.
@lru_cache(maxsize=16)
def _order(indices: tuple[int, ...], size: int) -> Order:
    """The order of all elements along an axis, block by block."""
    begins = np.arange(0, size, len(indices))[:, None]
    return Order((begins + np.array(indices, np.intp)).reshape(-1))


@set_module("safejax")
def permute(where: Where, axis: int, indices: Iterable[int], *, must_match: bool = True) -> Permute:
    """A transform that puts the elements along an axis into another order.

    Element `i` of the result is element `indices[i]`, as in `numpy.take`; `indices` is a
    permutation of 0 to n-1. Where the axis has a multiple of n elements, each n of them are
    permuted by themselves, for example those of each head. So the two halves of a rotary embedding
    become pairs. The inverse restores the order. A lazy leaf stays lazy, and a part of it reads
    only its own bytes. A pattern that matches no leaf is an error, unless `must_match` is false.

    >>> import jax.numpy as jnp
    >>> from safejax import flatten, permute
    >>> pairs = permute("*.q", 0, [0, 2, 1, 3])
    >>> pairs(flatten({"attention": {"q": jnp.arange(8)}}))["attention.q"].tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    >>> pairs.inverse
    permute('*.q', 0, [0, 2, 1, 3])

    Raises `TransformError` when it is built with indices that are not a permutation, and when it
    is applied to a leaf without that axis, or of another size along it.
    """
    where = required_where("permute", where)
    try:
        order = tuple(map(operator.index, indices))
    except TypeError:
        order = ()
    if not order or sorted(order) != list(range(len(order))):
        raise TransformError(
            f"permute: expected indices to be a permutation of 0 to n-1, got {indices!r:.200}"
        )
    return Permute(where, checked_axis("permute", axis), order, must_match)
