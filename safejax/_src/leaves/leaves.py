"""Leaves: a mapping from names to leaves, with the tree's structure and the user's metadata."""

import sys
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from types import MappingProxyType
from typing import Any, Final, TypeAlias, final

import jax
import numpy as np
from numpy.typing import NDArray

from safejax._src.arrays.lazy import LazyArray
from safejax._src.format.markup import html_lines, html_table
from safejax._src.format.record import RECORD_KEY
from safejax._src.leaves.leaf import Unsupported, describe, is_array
from safejax._src.public import set_module
from safejax._src.pytrees.names import METADATA_NAME, check_name
from safejax._src.pytrees.structure import Empty, Scalar, Structure
from safejax.errors import LeafError, SafejaxError, TransformError

_SHOWN: Final = 60
"""The most leaves that a notebook shows."""

_Array: TypeAlias = "jax.Array | NDArray[Any] | np.generic[Any] | jax.ShapeDtypeStruct"
Leaf: TypeAlias = "_Array | Scalar | Empty | Unsupported | None"


@set_module("safejax")
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
        entries = dict(entries)
        if METADATA_NAME in entries or set(map(type, entries)) != {str} or not _is_ascii(entries):
            for name in entries:
                check_name(name)
        object.__setattr__(self, "_entries", entries)
        object.__setattr__(self, "structure", structure or Structure())
        object.__setattr__(self, "metadata", MappingProxyType(checked_metadata(metadata or {})))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Leaves is immutable: make another one instead of setting {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Leaves, (self._entries, self.structure, dict(self.metadata))

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

    def _repr_html_(self) -> str:
        """What notebooks show: the names, and what is known of each leaf; nothing is read."""
        rows = [(name, describe(leaf), _state(leaf)) for name, leaf in list(self.items())[:_SHOWN]]
        more = [f"… {len(self) - _SHOWN:,} more"] if len(self) > _SHOWN else []
        lines = [*more, *(f"metadata {key}: {value:.200}" for key, value in self.metadata.items())]
        title = html_lines([f"Leaves: {len(self):,}"])
        return f"{title}{html_table(('name', 'leaf', ''), rows, ())}{html_lines(lines)}"

    def __treescope_repr__(self, path: str | None, render: Callable[..., Any]) -> Any:
        """Treescope shows the leaves as it shows a dict of them; unread ones are not read."""
        treescope: Any = sys.modules["treescope.repr_lib"]  # It is treescope that asks.
        return treescope.render_dictionary_wrapper(Leaves, self._entries, path, render)

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

        Raises `TransformError`, which names the leaf, if `function` raises an error that is not
        one of safejax.
        """

        def applied(name: str, leaf: Any) -> Any:
            try:
                return function(name, leaf)
            except (SafejaxError, Warning):  # A warning that the user has made an error.
                raise
            except Exception as error:
                raise TransformError(
                    f"leaf {name!r}: expected a function of {describe(leaf)}, it raised "
                    f"{type(error).__name__}: {error}: leave this leaf as it is, or correct the "
                    "function"
                ) from error

        return self.replace(
            {name: applied(name, leaf) if is_array(leaf) else leaf for name, leaf in self.items()}
        )


def _state(leaf: Any) -> str:
    is_lazy = isinstance(leaf, LazyArray)
    return ("placed" if leaf.is_placed else "unread") if is_lazy else type(leaf).__name__


def _is_ascii(names: Iterable[str]) -> bool:
    return "".join(names).isascii()


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
