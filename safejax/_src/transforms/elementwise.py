"""`elementwise`: a user's function, applied to every element of leaves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from safejax._src.arrays.content import Content
from safejax._src.collector import collector_resumed
from safejax._src.dtypes import Dtype, is_floating, stored_as
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import Transform
from safejax._src.public import set_module
from safejax._src.pytrees.choices import Where, show_where
from safejax._src.reading.pointwise import BlockFunction, Pointwise
from safejax._src.transforms.selection import fault, map_contents, required_where
from safejax.errors import TransformError

Function: TypeAlias = Callable[[NDArray[Any]], Any]

_PROBE: Final = ((1, 0, 1, 1), (0, 0, 1, 0))
"""The values on which a function is tried; every dtype and most functions have these.

They differ along each axis, so that a function that mixes elements along any of them shows.
"""

_SAMPLES: Final = (0.0117, -0.3, 0.75, 1.5, -2.5, 6.0)
"""Values on which it is tried whether an inverse gives back what the function was given."""


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

    @collector_resumed()  # The function is the user's.
    def _apply(self, name: str, content: Content) -> Content:
        if content.key is not None:
            raise fault(
                self, f"leaf {name!r}: expected numbers, got typed keys: narrow the pattern"
            )
        probe = np.array(_PROBE, content.view.dtype)
        on_any = _OnBlocks(self.function, None, repr(self), name)
        with np.errstate(all="ignore"):
            result = on_any(probe)
            # What the function does with each value alone.
            alone = [on_any(probe[:1, at : at + 1]) for at in (0, 1)]
        if stored_as(result.dtype, ()) is None:
            raise fault(
                self,
                f"leaf {name!r}: expected the function to return a dtype that JAX has, "
                f"got {result.dtype} for {probe.dtype}: convert its result with astype",
            )
        if not alike(result, np.where(probe.astype(bool), alone[0], alone[1])):
            raise fault(
                self,
                f"leaf {name!r}: expected the function to work on each element by "
                f"itself, but for {probe.tolist()} it returned {result.tolist()}, and "
                f"{alone[0].item()!r} and {alone[1].item()!r} for 1 and 0 alone: parts of a leaf "
                "are read by themselves; apply it to loaded arrays instead",
            )
        self._check_backward(name, result.dtype, content.view.dtype)
        on_blocks = _OnBlocks(self.function, result.dtype, repr(self), name)
        weak_type = content.weak_type and result.dtype == probe.dtype
        return Content(Pointwise(content.view, on_blocks, result.dtype), None, weak_type)

    def _check_backward(self, name: str, result: Dtype, dtype: Dtype) -> None:
        """Raise `TransformError` if the inverse loses much of what a narrow floating dtype holds.

        For example, `x + 1` in bfloat16, from which less than a hundredth does not come back.
        """
        if self.backward is None or result != dtype or not is_floating(dtype) or dtype.itemsize > 2:
            return
        values = np.array(_SAMPLES).astype(dtype)
        there = _OnBlocks(self.function, dtype, repr(self), name)
        back = _OnBlocks(self.backward, None, repr(self), name)
        with np.errstate(all="ignore"):
            try:
                middle = there(values)
                returned = back(middle)
            except TransformError:  # It is for other values, positive ones for example.
                return
            lost = returned.astype(np.float64) - values.astype(np.float64)
            off = np.abs(lost) > 4 * float(ml_dtypes.finfo(dtype).eps) * np.abs(
                values.astype(np.float64)
            )
        off &= np.isfinite(middle.astype(np.float64)) & np.isfinite(lost)
        if off.any():
            at = int(np.argmax(off))
            raise fault(
                self,
                f"leaf {name!r}: expected an inverse that gives back what {dtype.name} holds, but "
                f"for {values[at]!s} the function returned {middle[at]!s}, and the inverse is off "
                f"by {lost[at]:.3g}: cast it to float32 first, use offset or scale, or leave out "
                "the inverse",
            )

    @property
    def inverse(self) -> "Elementwise":
        if self.backward is None:
            raise self._not_invertible(
                "expected a function that reverses it, got none: elementwise(f, where, inverse=g)"
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
    """The function, applied to a block that was read; its result is checked.

    `dtype` is that of the result, or None if it is not known yet.
    """

    function: Function
    dtype: Dtype | None
    step: str
    name: str

    def __call__(self, array: NDArray[Any]) -> NDArray[Any]:
        block = f"{array.dtype}{list(array.shape)}"
        try:
            result = np.asarray(self.function(array))
        except Warning:  # One that the user has made an error.
            raise
        except Exception as error:
            raise fault(
                self.step,
                f"leaf {self.name!r}: expected a function of {block}, it raised "
                f"{type(error).__name__}: {error}: narrow the pattern, or correct the function",
            ) from error
        if result.shape != array.shape or self.dtype not in (None, result.dtype):
            expected = f"{self.dtype or ''}{list(array.shape)}"
            raise fault(
                self.step,
                f"leaf {self.name!r}: expected the function to return {expected} for "
                f"{block}, got {result.dtype}{list(result.shape)}: it must work on each element by "
                "itself",
            )
        return result


def alike(actual: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Whether the values are the same, up to rounding, which may depend on the block's length."""
    if actual.dtype != expected.dtype:
        return False
    if actual.dtype.kind in "biu":
        return bool(np.array_equal(actual, expected))
    wide = np.complex128 if actual.dtype.kind == "c" else np.float64
    with np.errstate(all="ignore"):
        return bool(np.allclose(actual.astype(wide), expected.astype(wide), 1e-3, equal_nan=True))


@set_module("safejax")
def elementwise(
    function: Function, where: Where, *, inverse: Function | None = None, must_match: bool = True
) -> Elementwise:
    """A transform that applies `function` to every element of leaves when they are read.

    `function` is called with NumPy arrays of any shape, which are blocks of a leaf; it must not
    change them, and it returns arrays of the same shape. The result for an element must depend
    neither on other elements nor on its position, which is checked by calling `function` with
    ones and zeros together and alone; the result also gives the new dtype. A lazy leaf stays lazy,
    and a part of it reads only its own bytes. `inverse` is the function that reverses it. Python
    scalars are kept. `where` is a pattern, or a function of the name; a pattern that matches no
    leaf is an error, unless `must_match` is false.

    >>> import jax.numpy as jnp
    >>> from safejax import elementwise, flatten
    >>> t = elementwise(lambda x: x + 1, "*.scale", inverse=lambda x: x - 1)
    >>> t(flatten({"norm": {"scale": jnp.zeros(2)}}))["norm.scale"].tolist()
    [1.0, 1.0]

    Raises `TransformError` when it is built with anything that is not callable, and when it is
    applied to a leaf for which the function raises an error, returns another number of elements,
    or returns another value for an element next to others than for the element alone; or one of
    16 bits or fewer, of which `inverse` gives back other values.
    """
    for called in (function,) if inverse is None else (function, inverse):
        if not callable(called):
            raise TransformError(f"elementwise: expected a function of an array, got {called!r}")
    where = required_where("elementwise", where)
    return Elementwise(function, where, inverse, must_match)
