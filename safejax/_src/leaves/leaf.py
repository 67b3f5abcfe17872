"""One leaf: its kind, the values that it holds, its abstract value, and its description."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, cast, final

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import SingleDeviceSharding
from numpy.typing import NDArray

from safejax._src.arrays.content import (
    KEY_IMPLEMENTATIONS,
    Content,
    is_key,
    key_data_shape,
    key_dtype,
)
from safejax._src.arrays.jax_private import concrete_array_type
from safejax._src.arrays.lazy import LazyArray
from safejax._src.arrays.parts import view_of_array
from safejax._src.arrays.placing import Placement
from safejax._src.arrays.precision import stored_dtype
from safejax._src.dtypes import stored_as
from safejax._src.leaves.remedies import remedy_for, remedy_for_dtype
from safejax._src.pytrees.patterns import exactly
from safejax._src.pytrees.structure import EMPTY
from safejax._src.reading.array import DELETED, AbstractSource
from safejax._src.reading.pointwise import cast_view
from safejax._src.reading.view import Strided
from safejax._src.reading.windows import Window
from safejax.errors import InvalidFileError, LeafError

_SCALARS: Final = (bool, int, float, complex, str)
# References to arrays, which hold other values from time to time; what they hold is stored.
_REFS: Final[tuple[type[Any], ...]] = (jax.Ref,) if hasattr(jax, "Ref") else ()
# Classes that are seldom asked for come last: those of JAX take long to ask.
_OF_NUMPY: Final = (np.ndarray, np.generic)
_OF_JAX: Final = (jax.Array, jax.ShapeDtypeStruct)
_ARRAYS: Final = (*_OF_NUMPY, *_OF_JAX, *_REFS)
# What most leaves are, exactly: to ask for a class of JAX takes as long as all else, and a lazy
# leaf that is asked for another class than its own has to look who asks.
_ARRAY_OF_JAX: Final = concrete_array_type()
_EXACTLY: Final = frozenset({np.ndarray, _ARRAY_OF_JAX, LazyArray})


@final
@dataclass(frozen=True, slots=True)
class Unsupported:
    """A leaf of a file whose dtype JAX lacks: it can be dropped and renamed, and nothing else.

    `reader` is the library that reads it.
    """

    file: str
    name: str
    code: str
    shape: tuple[int, ...]
    reader: str = "safetensors"

    def error(self) -> InvalidFileError:
        """The error for a use of the leaf."""
        return InvalidFileError(
            f"{self.file}: tensor {self.name!r}: expected a dtype that JAX can hold, got "
            f"{self.code}: leave it out with transform=drop({exactly(self.name)!r}), and read it "
            f"with {self.reader}"
        )


def is_array(leaf: object) -> bool:
    """Whether a leaf is a JAX array (lazy or not), a NumPy array or an abstract array.

    A `jax.Ref` counts as the array that it refers to.
    """
    return type(leaf) in _EXACTLY or isinstance(leaf, _ARRAYS)


def is_tensor(leaf: object) -> bool:
    """Whether a leaf is one of the tensors of a file, also if JAX cannot hold it."""
    return is_array(leaf) or isinstance(leaf, Unsupported)


def is_scalar(leaf: object) -> bool:
    """Whether a leaf is a Python scalar or a string, and not of a subclass."""
    return type(leaf) in _SCALARS


def check_leaves(leaves: Mapping[str, Any]) -> None:
    """Raise `LeafError` if Leaves cannot hold one of these."""
    for name, leaf in leaves.items():
        kind = type(leaf)
        if kind is np.ndarray:
            if not _is_storable(leaf.dtype):
                check_leaf(name, leaf)
        elif kind is not _ARRAY_OF_JAX:
            check_leaf(name, leaf)


def check_leaf(name: str, leaf: object) -> None:
    """Raise `LeafError` if Leaves cannot hold `leaf`."""
    if isinstance(leaf, _OF_NUMPY):
        fault = _fault_of_numpy(cast("NDArray[Any]", leaf))
        if fault is not None:
            raise LeafError(f"leaf {name!r}: {fault}")
    elif isinstance(leaf, _OF_JAX):
        if isinstance(leaf, Tracer):
            raise LeafError(f"leaf {name!r}: {_no_values(leaf)}")
    elif isinstance(leaf, Unsupported):
        raise leaf.error()
    elif not (is_scalar(leaf) or leaf is None or leaf is EMPTY or isinstance(leaf, _REFS)):
        raise LeafError(
            f"leaf {name!r}: expected an array, a Python scalar, a string or None, got "
            f"{type(leaf).__module__}.{type(leaf).__qualname__}: {remedy_for(leaf)}"
        )


def _no_values(tracer: object) -> str:
    """The message of the error for a leaf that has no values yet, since a trace is running."""
    return (
        f"expected an array with values, got a tracer, {tracer}: safejax cannot be called inside "
        "jit, grad or vmap; call it on their results"
    )


def _fault_of_numpy(array: NDArray[Any]) -> str | None:
    """What is wrong with an array of NumPy that no file can hold; None for any other."""
    dtype = array.dtype
    if _is_storable(dtype) and not isinstance(array, np.ma.MaskedArray):
        return None
    return (
        f"expected an array of a dtype that JAX has, got {type(array).__module__}."
        f"{type(array).__qualname__} of {dtype}: {remedy_for_dtype(array)}"
    )


@lru_cache(maxsize=256)
def _is_storable(dtype: np.dtype[Any]) -> bool:
    return stored_as(dtype.newbyteorder("="), ()) is not None


def content_of(leaf: object) -> Content | None:
    """What an array, or an abstract one, holds; None for anything that is not an array.

        Of an array that other processes hold a part of, that part has no values here. Raises
    `LeafError` for arrays whose values cannot be had: tracers, arrays that were deleted, and
    arrays of NumPy that no file can hold.
    """
    if isinstance(leaf, LazyArray):
        return leaf.content
    if isinstance(leaf, _OF_NUMPY):
        array = cast("NDArray[Any]", leaf)
        fault = _fault_of_numpy(array)
        if fault is not None:
            raise LeafError(fault)
        return Content(view_of_array(np.asarray(array)))
    if isinstance(leaf, _REFS):
        leaf = cast("Any", leaf)[...]  # What it refers to now.
    if isinstance(leaf, Tracer):
        raise LeafError(_no_values(leaf))
    if isinstance(leaf, jax.Array):
        key = None
        if leaf.is_deleted():
            raise LeafError(DELETED)
        if is_key(leaf.dtype):
            key = str(jax.random.key_impl(leaf))
            leaf = jax.random.key_data(leaf)
        view = view_of_array(leaf)
        wider = None if key is not None else stored_dtype(leaf)
        if wider is not None:  # Loaded from a file, while JAX had no integers of 64 bits.
            view = cast_view(view, wider)
        return Content(view, key, key is None and leaf.weak_type)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        shape: tuple[int, ...] = leaf.shape
        dtype: Any = leaf.dtype
        key = None
        if is_key(dtype):
            key = key_of_dtype(dtype)
            shape, dtype = (*shape, *key_data_shape(key)), np.dtype(np.uint32)
        window = Window.whole(shape)
        view = Strided(AbstractSource(), 0, np.dtype(dtype), window)
        return Content(view, key, key is None and leaf.weak_type)
    return None


def is_simple(leaf: Any) -> bool:
    """Whether a leaf is an array in memory, in one piece, with the values that a file stores.

    It is then one of NumPy, in the machine's order of bytes, or one of JAX on a single device, not
    deleted. Its content is what it says of itself, so that it need not be made: a tree may have
    100,000 leaves.
    """
    kind = type(leaf)
    if kind is np.ndarray:
        return leaf.dtype.isnative
    return (
        kind is _ARRAY_OF_JAX
        and isinstance(leaf.sharding, SingleDeviceSharding)
        and leaf.is_fully_addressable
        and not leaf.is_deleted()
        and stored_dtype(leaf) is None
    )


def like_leaf(leaf: Any, content: Content, name: str) -> Any:
    """A leaf that holds `content`, as abstract, or as bound for its devices, as `leaf` is."""
    if isinstance(leaf, LazyArray):
        return leaf if content is leaf.content else LazyArray(content, name)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        dtype = content.view.dtype if content.key is None else key_dtype(content.key)
        return jax.ShapeDtypeStruct(content.shape, dtype, weak_type=content.weak_type)
    return LazyArray(content, name)


def named(leaf: Any, name: str) -> Any:
    """The leaf under another name, which a lazy one prints; read no more than it was."""
    return leaf.named(name) if isinstance(leaf, LazyArray) and leaf.name != name else leaf


def with_weak_type(leaf: Any, weak_type: bool, name: str) -> Any:
    """The array leaf, unread, weakly typed or not; itself if it is so already."""
    if isinstance(leaf, LazyArray):
        return leaf.with_weak_type(weak_type)
    if is_weakly_typed(leaf) == weak_type:
        return leaf
    content = content_at(name, leaf)._replace(weak_type=weak_type)
    if isinstance(leaf, jax.Array):
        return LazyArray(content, name, Placement(leaf.sharding, leaf.committed))
    return like_leaf(leaf, content, name)


def key_of_dtype(dtype: Any) -> str:
    """The name of the implementation whose keys have this dtype."""
    for key in KEY_IMPLEMENTATIONS:
        if key_dtype(key) == dtype:
            return key
    raise LeafError(f"expected keys of an implementation that JAX ships, got {dtype}")


def content_at(name: str, leaf: Any) -> Content:
    """The unread content of an array leaf; `LeafError`, with its name, if it has none."""
    try:
        content = content_of(leaf)
    except LeafError as error:
        raise LeafError(f"leaf {name!r}: {error}") from None
    assert content is not None
    return content


def aval_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape and type that an array leaf will have once it is placed; reads nothing."""
    if isinstance(leaf, (jax.ShapeDtypeStruct, jax.Array, *_REFS)):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=is_weakly_typed(leaf))
    content = content_of(leaf)
    assert content is not None
    return jax.ShapeDtypeStruct(content.shape, jax.dtypes.canonicalize_dtype(content.view.dtype))


def is_weakly_typed(leaf: Any) -> bool:
    """Whether an array leaf is weakly typed; those of NumPy and keys never are."""
    return getattr(leaf, "weak_type", False)


def describe(leaf: Any) -> str:
    """A short description of a leaf for messages: `float32[4,3]`, `int 3`, `None`.

    A weakly typed array has a tilde before its dtype, as in JAX.
    """
    if is_array(leaf):
        name = getattr(leaf.dtype, "name", str(leaf.dtype))
        weak = "~" if is_weakly_typed(leaf) else ""
        return f"{weak}{name}[{','.join(map(str, leaf.shape))}]"
    if is_scalar(leaf):
        # Python refuses to write very long ints in decimal.
        long = isinstance(leaf, int) and leaf.bit_length() > 128
        return f"{type(leaf).__name__} {hex(leaf) if long else repr(leaf):.80}"
    if isinstance(leaf, Unsupported):
        return f"{leaf.code}[{','.join(map(str, leaf.shape))}], which JAX cannot hold"
    return "an empty container" if leaf is EMPTY else repr(leaf)
