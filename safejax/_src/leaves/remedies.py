"""What to do about a leaf that no file can hold: one remedy for each kind."""

import datetime
import decimal
import enum
import fractions
import os
import types
import uuid
from collections.abc import Mapping, Set
from typing import Any, Final

import jax
import numpy as np
from numpy.typing import NDArray

_LEAVE_OUT: Final = "or leave it out of the tree"

# The first one that a leaf is an instance of; the leaf is `x` in each.
_OF_TYPES: Final[tuple[tuple[tuple[type[Any], ...], str], ...]] = (
    ((enum.Enum,), "store x.value"),
    ((bytes, bytearray, memoryview), "store numpy.frombuffer(x, numpy.uint8)"),
    ((set, frozenset, Set), "store sorted(x), a list"),
    ((range,), "store list(x)"),
    ((Mapping,), "store dict(x)"),
    ((slice,), "store (x.start, x.stop, x.step)"),
    (
        (
            datetime.date,
            datetime.time,
            datetime.timedelta,
            os.PathLike,
            decimal.Decimal,
            fractions.Fraction,
            uuid.UUID,
            np.dtype,
        ),
        "store str(x)",
    ),
    ((str,), "store str.__str__(x)"),
    ((int,), "store int(x)"),
    ((float,), "store float(x)"),
    ((complex,), "store complex(x)"),
)

_CODE: Final = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    type,
)

# By the first part of the name of the module that has the class; none of them is imported.
# Each remedy is for objects that have the attribute, since such a package has other classes, too;
# the first of them counts. Columns of a table are stored one by one, since an array of them all has
# one dtype, which may not hold each value.
_COLUMNS: Final = "{name: x[name].to_numpy() for name in x.columns}"
_TABLES: Final = (
    ("collect", "store the columns of x.collect()"),
    ("columns", f"store its columns, {_COLUMNS}"),
    ("to_numpy", "store x.to_numpy()"),
)
_OF_MODULES: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "torch": (
        (
            "detach",
            "store x.detach().cpu().numpy(), or jax.numpy.from_dlpack(x) for a bfloat16 one",
        ),
    ),
    "PIL": (("__array_interface__", "store numpy.asarray(x)"),),
    "tensorflow": (("numpy", "store x.numpy()"),),
    "pandas": _TABLES,
    "polars": _TABLES,
    "scipy": (("toarray", "store x.toarray()"),),
    "objax": (("__class__", "store a VarCollection with safejax.objax.serialize"),),
}


def remedy_for(leaf: object) -> str:
    """What to do about a leaf that is neither an array nor a scalar."""
    for kinds, remedy in _OF_TYPES:
        if isinstance(leaf, kinds):
            return f"{remedy}, {_LEAVE_OUT}"
    for attribute, remedy in _OF_MODULES.get(type(leaf).__module__.partition(".")[0], ()):
        if hasattr(leaf, attribute):
            return f"{remedy}, {_LEAVE_OUT}"
    if isinstance(leaf, _CODE) or callable(leaf):
        return "leave it out of the tree; for a model that holds functions, use safejax.equinox"
    if hasattr(leaf, "__array__"):
        return f"store numpy.asarray(x), {_LEAVE_OUT}"
    return (
        "make its class a pytree with jax.tree_util.register_dataclass, store its arrays in a "
        f"dict, {_LEAVE_OUT}"
    )


def remedy_for_dtype(array: NDArray[Any] | np.generic) -> str:
    """What to do about a NumPy array whose dtype JAX does not have."""
    if isinstance(array, np.ma.MaskedArray):
        return "store x.data and numpy.ma.getmaskarray(x), or x.filled(value)"
    dtype = array.dtype
    if dtype == jax.dtypes.float0:
        return "store numpy.zeros(x.shape), since a derivative of integers is zero"
    if dtype.names is not None:
        return "store its fields, {name: x[name] for name in x.dtype.names}"
    match dtype.kind:
        case "M" | "m":
            return "store x.astype(numpy.int64), which counts its unit"
        case "U" | "T" | "S":
            # Scalars of NumPy's have no elements.
            strings = "numpy.char.decode(x)" if dtype.kind == "S" else "x"
            return f"store numpy.asarray({strings}).tolist(), the strings"
        case "O":
            return (
                "store numpy.asarray(x.tolist()) if all are numbers of one kind, or x.tolist(), "
                "a list of leaves"
            )
        case "V":
            return "store numpy.frombuffer(x, numpy.uint8)"
        case "c":
            return "store x.astype(numpy.complex128), if it holds the values"
        case _:
            return "store x.astype(numpy.float64), if it holds the values"
