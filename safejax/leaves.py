"""Leaves: a mapping from names to leaves, with the tree's structure and the user's metadata."""

from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, TypeAlias, cast, final

import jax
import numpy as np
from jax.core import Tracer
from numpy.typing import NDArray

from safejax.contents import Content, key_dtype
from safejax.dtypes import stored_as
from safejax.errors import LeafError, TransformError
from safejax.header import METADATA_NAME
from safejax.lazy import content_of
from safejax.structure import EMPTY, Empty, Structure

Scalar: TypeAlias = bool | int | float | complex | str
Leaf: TypeAlias = (
    "jax.Array | NDArray[Any] | np.generic[Any] | jax.ShapeDtypeStruct | Scalar | Empty | None"
)

RECORD_KEY: Final = "safejax"
"""The key in a file's metadata under which safejax stores its record."""

_SCALARS: Final = (bool, int, float, complex, str)
_ARRAYS: Final = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)


@final
class Leaves(Mapping[str, Any]):
    """An immutable mapping from names to leaves, which transforms take and return.

    A leaf is a JAX array (lazy or not), a NumPy array, a `jax.ShapeDtypeStruct`, a Python scalar
    or string, None, or `EMPTY` for a container without children. Lazy leaves need not have been
    read. `structure` is that of the tree that the leaves come from, and `metadata` holds the
    user's own strings.

    Raises `TransformError` for a name that no file can hold, and `LeafError` for metadata that
    does not map strings to strings.
    """

    __slots__ = ("_entries", "metadata", "structure")

    _entries: dict[str, Any]
    structure: Structure
    metadata: Mapping[str, str]

    def __init__(
        self,
        entries: Mapping[str, Leaf],
        structure: Structure | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        for name in entries:
            if type(name) is not str or name == METADATA_NAME or not name.isascii():
                check_name(name)
        object.__setattr__(self, "_entries", dict(entries))
        object.__setattr__(self, "structure", structure or Structure())
        object.__setattr__(self, "metadata", MappingProxyType(checked_metadata(metadata or {})))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Leaves is immutable: make another one instead of setting {name!r}")

    def __getitem__(self, name: str) -> Any:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    # The methods of Mapping would look up each leaf by its name.

    def keys(self) -> KeysView[str]:
        return self._entries.keys()

    def values(self) -> ValuesView[Any]:
        return self._entries.values()

    def items(self) -> ItemsView[str, Any]:
        return self._entries.items()

    def __repr__(self) -> str:
        shown = [f"{name!r}: {describe(leaf)}" for name, leaf in list(self.items())[:8]]
        more = [f"… {len(self) - 8} more"] if len(self) > 8 else []
        return f"Leaves({{{', '.join(shown + more)}}})"

    def replace(
        self,
        entries: Mapping[str, Leaf] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> "Leaves":
        """The Leaves with other entries or other metadata, and the same structure."""
        return Leaves(
            dict(self) if entries is None else entries,
            self.structure,
            self.metadata if metadata is None else metadata,
        )

    def map(self, function: Callable[[str, Any], Leaf]) -> "Leaves":
        """The Leaves with each array `leaf` replaced by `function(name, leaf)`.

        Scalars, strings, None and empty containers are kept.
        """
        return self.replace(
            {name: function(name, leaf) if is_array(leaf) else leaf for name, leaf in self.items()}
        )


def is_array(leaf: object) -> bool:
    """Whether a leaf is a JAX array (lazy or not), a NumPy array or an abstract array."""
    return isinstance(leaf, _ARRAYS)


def is_scalar(leaf: object) -> bool:
    """Whether a leaf is a Python scalar or a string, and not of a subclass."""
    return type(leaf) in _SCALARS


def check_leaf(name: str, leaf: object) -> None:
    """Raise `LeafError` if Leaves cannot hold `leaf`."""
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        if isinstance(leaf, Tracer):
            raise LeafError(
                f"leaf {name!r}: expected an array with values, got a tracer, {leaf}: safejax "
                "cannot be called inside jit, grad or vmap; call it on their results"
            )
    elif isinstance(leaf, np.ndarray | np.generic):
        dtype = cast("NDArray[Any]", leaf).dtype
        if not _is_storable(dtype) or isinstance(leaf, np.ma.MaskedArray):
            raise LeafError(
                f"leaf {name!r}: expected an array of a dtype that JAX has, got "
                f"{type(leaf).__module__}.{type(leaf).__qualname__} of {dtype}: convert it "
                "first, for example with astype"
            )
    elif not (is_scalar(leaf) or leaf is None or leaf is EMPTY):
        raise LeafError(
            f"leaf {name!r}: expected an array, a Python scalar, a string or None, got "
            f"{type(leaf).__module__}.{type(leaf).__qualname__}: convert it with numpy.asarray, "
            "or leave it out of the tree"
        )


@lru_cache(maxsize=256)
def _is_storable(dtype: np.dtype[Any]) -> bool:
    return stored_as(dtype.newbyteorder("="), ()) is not None


def content_at(name: str, leaf: Any) -> Content:
    """The unread content of an array leaf; `LeafError`, with its name, if it has none."""
    try:
        content = content_of(leaf)
    except LeafError as error:
        raise LeafError(f"leaf {name!r}: {error}") from None
    assert content is not None
    return content


def aval_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype that an array leaf will have once it is placed; reads nothing."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    if isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    content = content_of(leaf)
    assert content is not None
    if content.key is not None:
        return jax.ShapeDtypeStruct(content.shape, key_dtype(content.key))
    return jax.ShapeDtypeStruct(content.shape, jax.dtypes.canonicalize_dtype(content.view.dtype))


def describe(leaf: Any) -> str:
    """A short description of a leaf for messages: `float32[4,3]`, `int 3`, `None`."""
    if is_array(leaf):
        name = getattr(leaf.dtype, "name", str(leaf.dtype))
        return f"{name}[{','.join(map(str, leaf.shape))}]"
    if is_scalar(leaf):
        # Python refuses to write very long ints in decimal.
        long = isinstance(leaf, int) and leaf.bit_length() > 128
        return f"{type(leaf).__name__} {hex(leaf) if long else repr(leaf):.80}"
    return "an empty container" if leaf is EMPTY else repr(leaf)


def check_name(name: object) -> None:
    """Raise `TransformError` if `name` cannot be stored in the header of a file."""
    if not isinstance(name, str):
        raise TransformError(f"expected names to be strings, got {type(name).__name__} {name!r}")
    if name == METADATA_NAME:
        raise TransformError(f"expected a name other than {name!r}, which the format reserves")
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            raise TransformError(
                f"name {name!r}: expected UTF-8, got half a surrogate pair"
            ) from None


def checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """A copy of the user's metadata; `LeafError` unless it maps strings to strings."""
    if not isinstance(metadata, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise LeafError(
            f"metadata: expected a mapping of strings to strings, got {type(metadata).__name__}"
        )
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise LeafError(
                f"metadata {key!r}: expected strings to strings, got {type(value).__name__} "
                f"{value!r}: convert it to a string, for example with json.dumps"
            )
        if key == RECORD_KEY:
            raise LeafError(
                f"metadata {key!r}: expected another key, since safejax stores its record there"
            )
    return dict(metadata)
