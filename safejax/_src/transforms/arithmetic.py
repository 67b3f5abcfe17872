"""`offset` and `scale`: a number that is added to leaves, or that they are multiplied by, exactly.

A sum or a product is exact if what is left over is zero: that of a sum is found as by Knuth, and
that of a product as by Dekker and Veltkamp, both in float64, in which every smaller dtype fits.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.arrays.content import Content
from safejax._src.dtypes import Dtype, is_floating
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import Transform
from safejax._src.public import set_module
from safejax._src.pytrees.choices import Where, show_where
from safejax._src.reading.pointwise import BlockFunction, Pointwise
from safejax._src.transforms.selection import fault, map_contents, required_where
from safejax.errors import PrecisionError, TransformError

Operation: TypeAlias = Literal["+", "-", "*", "/"]

_BACK: Final[dict[str, Operation]] = {"+": "-", "-": "+", "*": "/", "/": "*"}
_SPLITTER: Final = float(2**27 + 1)


@final
@dataclass(frozen=True, slots=True)
class Arithmetic(Transform):
    """A number that chosen leaves are combined with; see `offset` and `scale`."""

    where: Where
    operation: Operation
    by: int | float
    exact: bool = True
    must_match: bool = True

    def __call__(self, leaves: Leaves, /) -> Leaves:
        return map_contents(self, leaves, self.where, self.must_match, self._apply)

    def _apply(self, name: str, content: Content) -> Content:
        dtype = content.view.dtype
        floating = is_floating(dtype)
        if content.key is not None or not (floating or dtype.kind in "iu" or "int" in dtype.name):
            found = "typed keys" if content.key is not None else dtype.name
            raise fault(self, f"leaf {name!r}: expected numbers, got {found}: narrow the pattern")
        if not floating and not isinstance(self.by, int):
            raise fault(
                self,
                f"leaf {name!r}: expected a floating dtype for {self.by!r}, got {dtype.name}: "
                "narrow the pattern, or cast it first",
            )
        if floating and float(self.by) != self.by:
            raise fault(
                self,
                f"leaf {name!r}: expected a number that float64 has for {dtype.name}, got "
                f"{self.by!r}: give a float",
            )
        return content.of(Pointwise(content.view, _OnBlocks(self, dtype, name), dtype))

    @property
    def inverse(self) -> "Arithmetic":
        if not self.exact:
            raise self._not_invertible(
                "expected a step with exact results, these are rounded: leave out exact=False"
            )
        return Arithmetic(self.where, _BACK[self.operation], self.by, self.exact, self.must_match)

    def __repr__(self) -> str:
        step = "offset" if self.operation in "+-" else "scale"
        exact = "" if self.exact else ", exact=False"
        must_match = "" if self.must_match else ", must_match=False"
        inverse = "" if self.operation in "+*" else ".inverse"
        return f"{step}({show_where(self.where)}, {self.by!r}{exact}{must_match}){inverse}"


@final
@dataclass(frozen=True, slots=True)
class _OnBlocks(BlockFunction):
    step: Arithmetic
    dtype: Dtype
    name: str

    def __call__(self, array: NDArray[Any]) -> NDArray[Any]:
        operation, by = self.step.operation, self.step.by
        with np.errstate(all="ignore"):
            function = _floats if is_floating(self.dtype) else _integers
            result, is_exact = function(array, operation, by, self.dtype)
        if self.step.exact and not is_exact.all():
            value = array.reshape(-1)[int(np.argmin(is_exact.reshape(-1)))]
            wider = "float32" if self.dtype.itemsize < 4 else "float64"
            is_narrow = is_floating(self.dtype) and self.dtype.itemsize < 8
            remedy = f"cast it to {wider} first" if is_narrow else "correct it"
            raise PrecisionError(
                f"leaf {self.name!r}: expected {value!s} {operation} {by!r} to be exact "
                f"in {self.dtype.name}, as {int(is_exact.sum())} of {is_exact.size} results are, "
                f"got a value that it lacks: {remedy}, or pass exact=False to round; in "
                f"{self.step!r}"
            )
        return result


def _floats(
    array: NDArray[Any], operation: Operation, by: int | float, dtype: Dtype
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The results, rounded once, and which of them are exact."""
    x, b = array.astype(np.float64), np.float64(by)
    if operation in "+-":
        b = b if operation == "+" else -b
        wide = x + b
        own = wide - x
        left = (x - (wide - own)) + (b - own)
    elif operation == "*":
        wide = x * b
        # Where a product underflows nothing is left over, but the quotient is another.
        left = np.where(wide / b == x, _left_of_product(x, b, wide), np.nan)
    else:
        wide = x / b
        back = wide * b
        left = np.where(back == x, _left_of_product(wide, b, back), np.nan)
    result = wide.astype(dtype)
    is_exact = (left == 0) & (result.astype(np.float64) == wide)
    return result, is_exact | ~np.isfinite(x)


def _left_of_product(a: NDArray[Any], b: Any, product: NDArray[Any]) -> NDArray[Any]:
    """What the exact product has beyond `product`, its nearest float64."""
    high, b_high = (_SPLITTER * each - (_SPLITTER * each - each) for each in (a, b))
    low, b_low = a - high, b - b_high
    return ((high * b_high - product) + high * b_low + low * b_high) + low * b_low


def _integers(
    array: NDArray[Any], operation: Operation, by: int | float, dtype: Dtype
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The results, without what overflows, and which of them are exact."""
    # Python's own integers tell what 64 bits would not hold.
    is_small = dtype.itemsize < 8 and abs(by) < 2**31
    wide = array.astype(np.int64 if is_small else object)
    rest: Any = 0
    if operation in "+-":
        wide = wide + (by if operation == "+" else -by)
    elif operation == "*":
        wide = wide * by
    else:
        wide, rest = wide // by, wide % by
    low, high = _bounds(dtype)
    is_exact = np.asarray((wide >= low) & (wide <= high) & (rest == 0)).astype(bool)
    nearest = np.minimum(np.maximum(wide, low), high)
    return nearest.astype(np.int64 if low else np.uint64).astype(dtype), is_exact


def _bounds(dtype: Dtype) -> tuple[int, int]:
    bits = int("".join(filter(str.isdigit, dtype.name)))
    return (
        (0, 2**bits - 1)
        if dtype.name.startswith("u")
        else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )


@set_module("safejax")
def offset(
    where: Where, by: int | float, *, exact: bool = True, must_match: bool = True
) -> Arithmetic:
    """A transform that adds a number to every element of leaves, exactly.

    For example, the weights of a norm that is stored less 1. The dtype is kept: an element whose
    sum it does not have is a `PrecisionError` when it is read, so that the inverse, which
    subtracts, gives back every value; `-0.0` comes back as `0.0`. `exact=False` rounds instead, and
    there is no inverse. A part of a lazy leaf reads only its own bytes. A pattern that matches no
    leaf is an error, unless `must_match` is false.

    >>> import jax.numpy as jnp
    >>> from safejax import cast, chain, flatten, offset
    >>> leaves = flatten({"norm": {"scale": jnp.array([0.0, 0.01], "bfloat16")}})
    >>> t = chain(cast("float32", source="bfloat16"), offset("*.scale", 1))
    >>> t(leaves)["norm.scale"].tolist()
    [1.0, 1.010009765625]
    >>> t.inverse(t(leaves))["norm.scale"].tolist() == leaves["norm.scale"].tolist()
    True

    Raises `TransformError` when it is built with anything that is not a finite number, and when it
    is applied to leaves that are not numbers, or to integers with a fraction.
    """
    return Arithmetic(
        required_where("offset", where), "+", _number("offset", by), exact, must_match
    )


@set_module("safejax")
def scale(
    where: Where, by: int | float, *, exact: bool = True, must_match: bool = True
) -> Arithmetic:
    """A transform that multiplies every element of leaves by a number, exactly.

    The dtype is kept: an element whose product it does not have is a `PrecisionError` when it is
    read, so that the inverse, which divides, gives back every value. A power of two is exact in
    every floating dtype, within its range. `exact=False` rounds instead, and there is no inverse.
    A part of a lazy leaf reads only its own bytes. A pattern that matches no leaf is an error,
    unless `must_match` is false.

    >>> import jax.numpy as jnp
    >>> from safejax import flatten, scale
    >>> t = scale("embed", 8)
    >>> t(flatten({"embed": jnp.array([0.5, 3.0])}))["embed"].tolist()
    [4.0, 24.0]
    >>> t.inverse
    scale('embed', 8).inverse

    Raises `TransformError` when it is built with anything that is not a finite number, or with 0,
    and when it is applied to leaves that are not numbers, or to integers with a fraction.
    """
    where = required_where("scale", where)
    number = _number("scale", by)
    if not number:
        raise TransformError("scale: expected a number other than 0, from which nothing comes back")
    return Arithmetic(where, "*", number, exact, must_match)


def _number(step: str, by: Any) -> int | float:
    number = by.item() if isinstance(by, np.integer | np.floating) else by
    if type(number) is int and abs(number) < 2**128:
        return number
    if type(number) is not float or not math.isfinite(number):
        raise TransformError(
            f"{step}: expected a finite float, or an int of at most 128 bits, got {by!r:.200}"
        )
    return number
