"""Forwarding: which attributes of a lazy leaf are those of the placed array.

It is the class that hands them on: a special method as a method, since Python looks for those in
the type, and any other name as a property.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, cast

HANDED_ON: Final = frozenset({
    "__abs__", "__add__", "__and__", "__array_namespace__",
    "__array_priority__", "__complex__", "__contains__", "__cuda_array_interface__",
    "__divmod__", "__dlpack__", "__dlpack_device__", "__float__", "__floordiv__", "__hex__",
    "__int__", "__invert__", "__iter__", "__lshift__", "__matmul__", "__mod__",
    "__mul__", "__neg__", "__oct__", "__or__", "__pos__", "__pow__", "__radd__", "__rand__",
    "__rdivmod__", "__rfloordiv__", "__rlshift__", "__rmatmul__", "__rmod__",
    "__rmul__", "__ror__", "__round__", "__rpow__", "__rrshift__", "__rshift__", "__rsub__",
    "__rtruediv__", "__rxor__", "__setitem__", "__sub__", "__truediv__", "__xor__",
})  # fmt: skip
"""Special methods that are the placed array's.

Everything else that begins and ends with two underscores is not handed on, so that a protocol
that a new Python or a new JAX brings cannot change an answer: a test fails until it is listed
here or below.
"""

NOT_HANDED_ON: Final[Mapping[str, str]] = MappingProxyType(
    {
        "__annotate__": "belongs to the class",
        "__annotate_func__": "belongs to the class",
        "__annotations__": "belongs to the class",
        "__annotations_cache__": "belongs to the class",
        "__buffer__": "the placed array's has narrowed values; NumPy asks it before __array__",
        "__del__": "the placed array frees itself",
        "__dict__": "belongs to the class",
        "__firstlineno__": "belongs to the class",
        "__module__": "belongs to the class",
        "__numpy_dtype__": "the base class answers it from `dtype`, without reading",
        "__release_buffer__": "goes with __buffer__",
        "__slots__": "belongs to the class",
        "__static_attributes__": "belongs to the class",
        "__weakref__": "belongs to the class",
    }
)
"""Special names of arrays that are not handed on, each with its reason."""

COMPARISONS: Final = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")
# What key arrays have and other arrays have not; JAX 0.8 looks into them without placing them.
ONLY_OF_KEYS: Final = ("_base_array", "_consumed", "_impl", "_is_scalar", "_source_info", "pprint")


def hand_on(cls: type[Any], array_type: type[Any]) -> None:
    """Give `cls` the attributes of `array_type` that it does not define itself.

    Their values are those of the placed array, which the method `placed` of an instance returns.
    """
    own = set(vars(cls))
    names = [
        name
        for name in dir(array_type)
        if name not in own and (name in HANDED_ON or not name.startswith("__"))
    ]
    for name in (*names, *COMPARISONS, *ONLY_OF_KEYS):
        special = name.startswith("__") and callable(getattr(array_type, name, None))
        setattr(cls, name, _method(cls, name) if special else _property(name))


def with_placed(value: Any, cls: type[Any]) -> Any:
    """The value with instances of `cls` placed, one level into tuples, as operators need it.

    JAX's operators return NotImplemented for a type that they do not know, and Python does not
    try the reflected operator where both sides have one type.
    """
    if isinstance(value, cls):
        return value.placed()
    if type(value) is tuple:
        return tuple(with_placed(item, cls) for item in cast("tuple[Any, ...]", value))
    return value


def _method(cls: type[Any], name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        attribute = getattr(self.placed(), name)
        return attribute(*(with_placed(arg, cls) for arg in args), **kwargs)

    method.__name__ = name
    method.__qualname__ = f"{cls.__qualname__}.{name}"
    method.__module__ = cls.__module__
    method.__doc__ = f"`{name}` of the placed array."
    return method


def _property(name: str) -> property:
    def get(self: Any) -> Any:
        return getattr(self.placed(), name)

    return property(get, doc=f"`{name}` of the placed array.")
