"""The result of a call, in a form that is equal if all bits and facts of its arrays are equal."""

import dataclasses
import functools
import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final

import jax
import numpy as np

from safejax._src.arrays.lazy import LazyArray
from tests.support.leaves import is_key

_ARRAY_TYPE: Final = type(jax.numpy.zeros(()))
_ARRAY_NAMES: Final = re.compile(r"[\w.]*(?:ArrayImpl|LazyArray|PRNGKeyArray)")
_ADDRESS: Final = re.compile(r"0x[0-9a-f]{6,}")
_DEEPEST: Final = 8


def outcome(call: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
    """What the call returned or raised, and the classes of the warnings that it gave meanwhile."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = ("gave", form(call(*arguments)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what is compared
            result = ("raised", type(error), message(error))
    return (*result, tuple(sorted({warning.category.__name__ for warning in caught})))


def is_refusal(result: tuple[Any, ...]) -> bool:
    """Whether the call raised an error."""
    return result[0] == "raised"


def message(error: object) -> str:
    """The error's message, without the name of the array's class and without addresses."""
    return _ADDRESS.sub("0x…", _ARRAY_NAMES.sub("ARRAY", str(error)))


def form(value: Any, depth: int = 0) -> Any:
    """The value as something that `==` compares down to the last bit."""
    if depth > _DEEPEST:
        return "too deep"
    if isinstance(value, jax.core.Tracer):
        return ("tracer", str(value.aval))
    if type(value) is LazyArray:
        return _lazy_form(value)
    if isinstance(value, jax.Array):
        return _array_form(value)
    if isinstance(value, np.ndarray | np.generic):
        return _numpy_form(value, depth)
    return _other_form(value, depth)


def _lazy_form(leaf: LazyArray) -> Any:
    reported = _around(leaf)
    placed = _array_form(leaf.placed())
    return placed if placed[1] == reported else ("a leaf that reported", reported, "and is", placed)


def _array_form(array: jax.Array) -> tuple[Any, ...]:
    if array.is_deleted():
        return ("array", _around(array), "deleted")
    data = jax.random.key_data(array) if is_key(array) else array
    if not data.is_fully_addressable:
        return ("array", _around(array), "elsewhere")
    return ("array", _around(array), np.asarray(data).tobytes())


def _around(array: Any) -> tuple[Any, ...]:
    """The facts of an array without its values."""
    if is_key(array):
        # From call to call, JAX gives the sharding of keys with or without the axes that are not
        # split, so that only the devices are compared.
        devices = tuple(sorted(device.id for device in array.devices()))
        return ("key", array.shape, array.dtype, devices, array.committed)
    return (
        "values", array.shape, array.dtype, array.weak_type, array.sharding, array.committed,
        array.aval,
    )  # fmt: skip


def _numpy_form(value: Any, depth: int) -> Any:
    if isinstance(value, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(value)
        return ("masked", type(value), form(value.filled(0), depth + 1), form(mask, depth + 1))
    if value.dtype.hasobject:
        items = [form(item, depth + 1) for item in np.asarray(value).ravel().tolist()]
        return ("numpy", type(value), value.dtype, value.shape, items)
    if value.dtype.char in "gG":  # the padding bytes of a long double are not set
        return ("numpy", type(value), value.dtype, value.shape, repr(value.tolist()))
    return ("numpy", type(value), value.dtype, value.shape, value.tobytes())


def _other_form(value: Any, depth: int) -> Any:
    deeper = depth + 1
    kind = type(value)
    if isinstance(value, dict):
        return (kind, [(form(k, deeper), form(v, deeper)) for k, v in value.items()])
    if isinstance(value, list | tuple):
        return (kind, [form(item, deeper) for item in value])
    if isinstance(value, set | frozenset):
        return (kind, sorted(repr(form(item, deeper)) for item in value))
    if isinstance(value, bool | int | str | bytes | bytearray | type(None) | slice | type):
        if _is_class_of_arrays(value):
            return (kind, "an array's class")
        return (kind, _ARRAY_NAMES.sub("ARRAY", value) if isinstance(value, str) else value)
    if isinstance(value, float | complex):
        return (kind, repr(value))
    if isinstance(value, memoryview):
        return (kind, value.format, value.shape, value.tobytes())
    if isinstance(value, functools.partial):
        return (kind, form([value.func, value.args, value.keywords], deeper))
    if isinstance(value, BaseException):
        return (kind, form(value.args, deeper))
    if isinstance(value, Iterator):
        return (kind, [form(item, deeper) for item in itertools.islice(value, 20)])
    if kind.__name__ == "Shard":
        return (kind, value.device, value.index, value.replica_id, form(value.data, deeper))
    if not jax.tree_util.all_leaves([value]):
        leaves, treedef = jax.tree.flatten(value)
        return (kind, _ADDRESS.sub("0x…", str(treedef)), [form(leaf, deeper) for leaf in leaves])
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value)]
        return (kind, [(name, form(getattr(value, name, None), deeper)) for name in fields])
    if kind.__eq__ is not object.__eq__ and kind.__hash__ is not None:
        return (kind, value)
    text = repr(value)
    if _ADDRESS.search(text) is None and "rray(" not in text and not _ARRAY_NAMES.search(text):
        return (kind, text)
    if hasattr(value, "__dict__") and not callable(value):
        names = vars(value)
        return (kind, [(name, form(item, deeper)) for name, item in sorted(names.items())])
    return (kind, "opaque")


def _is_class_of_arrays(value: Any) -> bool:
    return value is LazyArray or value is _ARRAY_TYPE


def difference(expected: tuple[Any, ...], got: tuple[Any, ...]) -> str | None:
    """In which respect two outcomes differ, in a few words; None if they are equal."""
    if expected[0] != got[0]:
        return "an error, plain gives a value" if is_refusal(got) else "a value, plain is refused"
    if is_refusal(expected):
        if expected[1] is not got[1]:
            return f"{got[1].__name__}, plain raises {expected[1].__name__}"
        return "warnings" if expected[-1] != got[-1] else None
    same = _same(expected[1], got[1])
    if same is not None:
        return same
    return "warnings" if expected[-1] != got[-1] else None


_AROUND: Final = ("kind", "shape", "dtype", "weak type", "sharding", "commitment", "aval")
_AROUND_KEY: Final = ("kind", "shape", "dtype", "devices", "commitment")


def _same(a: Any, b: Any) -> str | None:
    if isinstance(a, tuple) and isinstance(b, tuple) and a and b:
        if isinstance(b[0], str) and b[0] == "a leaf that reported":
            return "what the leaf reported before it was placed"
        if isinstance(a[0], str) and a[0] == "array" and isinstance(b[0], str) and b[0] == "array":
            names = _AROUND_KEY if a[1][0] == "key" else _AROUND
            differing = [n for n, x, y in zip(names, a[1], b[1], strict=False) if x != y]
            if differing:
                return ", ".join(differing)
            return None if a[2] == b[2] else "values"
    if isinstance(a, tuple) and isinstance(b, tuple) and a and b and a[0] != b[0]:
        return f"{b[0]}, plain gives {a[0]}"
    if isinstance(a, list | tuple) and type(a) is type(b) and len(a) == len(b):
        for x, y in zip(a, b, strict=True):
            same = _same(x, y)
            if same is not None:
                return same
        return None
    try:
        equal = bool(a == b)
    except Exception:  # noqa: BLE001 - what cannot be compared is not compared
        equal = type(a) is type(b)
    if equal or repr(a) == repr(b):
        return None
    return f"type {b}, plain {a}" if isinstance(a, type) or isinstance(b, type) else "values"
