"""`elementwise`: a user's function, applied to every element of leaves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.arrays.content import Content
from safejax._src.dtypes import Dtype, stored_as
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import Transform
from safejax._src.pytrees.patterns import Where
from safejax._src.reading.pointwise import BlockFunction, Pointwise
from safejax._src.transforms.selection import map_contents, required_where, show_where
from safejax.errors import NotInvertibleError, TransformError

Function: TypeAlias = Callable[[NDArray[Any]], Any]

_PROBE = (1, 2)
"""The shape of the array on which a function is tried: not square, and not empty."""


@final
@dataclass(frozen=True, slots=True)
class Elementwise(Transform):
    """A function applied to the elements of chosen leaves; see `elementwise`."""

    function: Function
    where: Where
    backward: Function | None = None
    must_match: bool = True

    def __call__(self, leaves: Leaves, /) -> Leaves:
        return map_contents(self, leaves, self.where, self.must_match, self._apply)

    def _apply(self, name: str, content: Content) -> Content:
        if content.key is not None:
            raise TransformError(
                f"{self!r}: leaf {name!r}: expected numbers, got typed keys: narrow the pattern"
            )
        dtype = content.view.dtype
        with np.errstate(all="ignore"):
            result = np.asarray(self.function(np.ones(_PROBE, dtype)))
        if result.shape != _PROBE or stored_as(result.dtype, ()) is None:
            raise TransformError(
                f"{self!r}: leaf {name!r}: expected the function to return {list(_PROBE)} elements "
                f"of a dtype that JAX has for {dtype}{list(_PROBE)}, got {result.dtype}"
                f"{list(result.shape)}: it must work on each element by itself"
            )
        on_blocks = _OnBlocks(self.function, result.dtype, repr(self), name)
        return Content(Pointwise(content.view, on_blocks, result.dtype))

    @property
    def inverse(self) -> "Elementwise":
        if self.backward is None:
            raise NotInvertibleError(
                f"{self!r}: expected a function that reverses it, got none: "
                "elementwise(f, where, inverse=g)"
            )
        return Elementwise(self.backward, self.where, self.function, self.must_match)

    def __repr__(self) -> str:
        function = getattr(self.function, "__qualname__", repr(self.function))
        backward = ""
        if self.backward is not None:
            backward = f", inverse={getattr(self.backward, '__qualname__', repr(self.backward))}"
        must_match = "" if self.must_match else ", must_match=False"
        return f"elementwise({function}, {show_where(self.where)}{backward}{must_match})"


@final
@dataclass(frozen=True, slots=True)
class _OnBlocks(BlockFunction):
    """The function, applied to a block that was read; its result is checked."""

    function: Function
    dtype: Dtype
    step: str
    name: str

    def __call__(self, array: NDArray[Any]) -> NDArray[Any]:
        result = np.asarray(self.function(array))
        if (result.shape, result.dtype) != (array.shape, self.dtype):
            raise TransformError(
                f"{self.step}: leaf {self.name!r}: expected the function to return "
                f"{self.dtype}{list(array.shape)} for a block of that shape, as it did when it "
                f"was tried, got {result.dtype}{list(result.shape)}"
            )
        return result


def elementwise(
    function: Function, where: Where, *, inverse: Function | None = None, must_match: bool = True
) -> Elementwise:
    """A transform that applies `function` to every element of leaves when they are read.

    `function` is called with NumPy arrays of any shape, which are blocks of a leaf; it must not
    change them, and it returns arrays of the same shape. The result for an element must depend
    neither on other elements nor on its position. The new dtype is found by calling `function`
    with two ones. A lazy leaf stays lazy, and a part of it reads only its own bytes. `inverse`
    is the function that reverses it. Python scalars are kept. `where` is a pattern, or a function
    of the name; a pattern that matches no leaf is an error, unless `must_match` is false.

    >>> import jax.numpy as jnp
    >>> from safejax import elementwise, flatten
    >>> t = elementwise(lambda x: x + 1, "*.scale", inverse=lambda x: x - 1)
    >>> t(flatten({"norm": {"scale": jnp.zeros(2)}}))["norm.scale"].tolist()
    [1.0, 1.0]

    Raises `TransformError` when it is built with anything that is not callable, and when it is
    applied to a leaf for which the function returns another number of elements.
    """
    for called in (function,) if inverse is None else (function, inverse):
        if not callable(called):
            raise TransformError(f"elementwise: expected a function of an array, got {called!r}")
    required_where("elementwise", where)
    return Elementwise(function, where, inverse, must_match)
