"""`cast`: floating-point leaves to another dtype."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, final

import numpy as np

from safejax._src.arrays.content import Content
from safejax._src.dtypes import Dtype, is_floating, stored_as
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import Transform
from safejax._src.public import set_module
from safejax._src.pytrees.choices import Where, show_where
from safejax._src.reading.pointwise import cast_view
from safejax._src.transforms.alike import Alike
from safejax._src.transforms.selection import checked_where, fault, map_contents
from safejax.errors import TransformError


@final
@dataclass(frozen=True, slots=True)
class Cast(Transform):
    """Leaves of dtype `source`, or all floating-point leaves, to `target`; see `cast`."""

    target: Dtype
    source: Dtype | None = None
    where: Where | None = None
    must_match: bool = True

    def __call__(self, leaves: Leaves, /) -> Leaves:
        return map_contents(self, leaves, self.where, self.must_match, Alike(self._cast))

    def _cast(self, name: str, content: Content) -> Content:
        dtype = content.view.dtype
        meant = is_floating(dtype) if self.source is None else dtype == self.source
        if content.key is not None:
            return content
        # NumPy's dtype of None is float64.
        if dtype == self.target and self.source is not None and dtype != self.source:
            raise fault(
                self,
                f"leaf {name!r}: expected leaves of {self.source}, and none that are "
                f"{dtype.name} already, since the inverse would make {self.source} of these, too: "
                f"choose by where={self._one_way()}",
            )
        if not meant:
            return content
        if not _is_convertible(dtype, self.target):
            raise fault(
                self,
                f"leaf {name!r}: expected a dtype that NumPy converts to "
                f"{self.target.name}, got {dtype.name}: cast it to float32 first",
            )
        return Content(cast_view(content.view, self.target))

    def _one_way(self) -> str:
        """The remedy for a cast that need not be undone, where there is one."""
        if self.source is None or not (is_floating(self.source) and is_floating(self.target)):
            return ""
        return f", or pass cast({self.target.name!r}) if it need not be undone"

    @property
    def inverse(self) -> "Cast":
        if self.source is None:
            raise self._not_invertible(
                f"expected a cast whose inverse has a target, this one converts any "
                f"floating dtype: name one, as in cast({self.target.name!r}, source='float32')"
            )
        return Cast(self.source, self.target, self.where, self.must_match)

    def __repr__(self) -> str:
        arguments = [repr(self.target.name)]
        if self.source is not None:
            arguments.append(f"source={self.source.name!r}")
        if self.where is not None:
            arguments.append(f"where={show_where(self.where)}")
        if not self.must_match:
            arguments.append("must_match=False")
        return f"cast({', '.join(arguments)})"


@set_module("safejax")
def cast(
    dtype: Any, *, source: Any = None, where: Where | None = None, must_match: bool = True
) -> Cast:
    """A transform that converts floating-point leaves, float8 included, to `dtype`.

    Integers, bools, complex numbers, typed keys and Python scalars are kept. With `source`,
    exactly the leaves of that dtype are converted, of whatever kind it is, and the inverse
    converts `dtype` back to `source`; none may have `dtype` already. Both may be names, short ones
    included: `"bf16"`, `"fp16"`, `"fp32"`, `"fp64"`, `"f8_e4m3"`, `"f8_e5m2"`. `where` (a pattern,
    or a function of the name) selects among them; a pattern that matches no leaf is an error,
    unless `must_match` is false.

    Values are converted as by NumPy's `astype`: to the nearest value, ties to even, and beyond
    the range to infinity or NaN, whichever the dtype has. A NaN stays a NaN, but its payload may
    change. A lazy leaf stays lazy; it is converted when it is read.

    >>> import jax.numpy as jnp
    >>> from safejax import cast, flatten
    >>> leaves = cast("bfloat16", where="*.kernel")(flatten({"mlp": {"kernel": jnp.ones((2, 2))}}))
    >>> leaves["mlp.kernel"].dtype.name
    'bfloat16'

    Raises `TransformError` for a dtype that JAX does not have and, without `source`, for one that
    is not a floating-point dtype; and when it is applied, with `source`, to a leaf that has `dtype`
    already, of which the inverse would make another one.
    """
    target = _dtype("dtype", dtype)
    checked = None if source is None else _dtype("source", source)
    if checked is None and not is_floating(target):
        raise TransformError(
            f"cast({target.name!r}): expected a floating dtype, since only floating leaves are "
            f"cast: name the dtype to cast from, cast({target.name!r}, source=...)"
        )
    return Cast(target, checked, checked_where(where), must_match)


@lru_cache(maxsize=1024)
def _is_convertible(source: Dtype, target: Dtype) -> bool:
    """Whether NumPy converts between the dtypes; between some of ml_dtypes it does not."""
    if source.kind == "c":
        return True  # To every dtype, with a warning that is given when the leaf is read.
    try:
        np.zeros(0, source).astype(target)
    except TypeError:
        return False
    return True


_SHORT: Final = {
    "bf16": "bfloat16", "fp16": "float16", "f16": "float16", "fp32": "float32", "f32": "float32",
    "fp64": "float64", "f64": "float64", "f8_e4m3": "float8_e4m3fn", "f8_e5m2": "float8_e5m2",
}  # fmt: skip
"""Names that configurations and the headers of files use."""


def _dtype(argument: str, dtype: Any) -> Dtype:
    if isinstance(dtype, str):
        dtype = _SHORT.get(dtype.lower(), dtype)
    try:
        # NumPy would read None as float64.
        parsed = None if dtype is None else np.dtype(dtype)
    except (TypeError, ValueError):
        parsed = None
    if parsed is None or stored_as(parsed, ()) is None:
        raise TransformError(
            f"cast: expected {argument} to be a dtype that JAX has, got {dtype!r}: name one, for "
            "example 'bfloat16', 'float16' or 'float32'"
        )
    return parsed
