"""Children: what is in one container of a pytree, by which segments, and what kind it is of."""

import contextlib
import operator
from collections import OrderedDict
from collections.abc import Container, Mapping
from typing import Any, Final, cast

import jax
import numpy as np
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from safejax._src.collector import collector_resumed
from safejax._src.pytrees.names import SEPARATOR, join
from safejax._src.pytrees.structure import Kind, Segments
from safejax.errors import LeafError

# Asking JAX whether an object of one of these types is a leaf takes ten times as long.
LEAF_TYPES: Final = frozenset({np.ndarray, jax.ShapeDtypeStruct, bool, int, float, complex, str})
# JAX flattens these with its own code, and may flatten any other type with a user's.
_CONTAINER_TYPES: Final = frozenset({dict, list, tuple, OrderedDict, type(None)})


def plain_keys(node: Any) -> list[str] | None:
    """The sorted keys of a dict if they are strings of ASCII; None for any other node."""
    if type(node) is not dict or set(map(type, cast("dict[Any, Any]", node))) != {str}:
        return None
    keys = sorted(cast("dict[str, Any]", node))
    return keys if "".join(keys).isascii() else None


def children_of(node: Any, segments: Segments) -> list[tuple[Any, Any]] | None:
    """The key entry and value of each child, in JAX's order; None for a leaf.

    The entry of a string in a dict may be the string itself.
    """
    if type(node) in LEAF_TYPES or isinstance(node, jax.Array):
        return None
    if type(node) is dict and all(type(key) is str for key in cast("dict[Any, Any]", node)):
        # As JAX does it, in less time.
        return [(key, node[key]) for key in sorted(cast("dict[str, Any]", node))]
    if type(node) in (list, tuple):
        return [(str(number), child) for number, child in enumerate(cast("list[Any]", node))]
    of_the_user = type(node) not in _CONTAINER_TYPES
    # Only the node itself is flattened, and nothing in it, not even if it contains itself.
    is_leaf = iter([False])
    try:
        with collector_resumed() if of_the_user else contextlib.nullcontext():
            pairs, _ = jax.tree_util.tree_flatten_with_path(
                node, is_leaf=lambda _: next(is_leaf, True)
            )
    except (TypeError, ValueError) as error:
        found = sorted({type(key).__name__ for key in node}) if isinstance(node, dict) else error
        raise LeafError(
            f"container {join(segments)!r}: expected dict keys that JAX can sort, or a node that "
            f"it can flatten, got {found}: use keys of one type"
        ) from error
    if len(pairs) == 1 and not pairs[0][0]:
        return None
    named = [(path[0], child) for path, child in pairs]
    if of_the_user and isinstance(node, Mapping):
        return _by_key(cast("Mapping[Any, Any]", node), named) or named
    return named


def _by_key(
    mapping: Mapping[Any, Any], children: list[tuple[Any, Any]]
) -> list[tuple[Any, Any]] | None:
    """The values by key of a mapping whose keys JAX does not see; None if it has other leaves.

    JAX flattens Haiku's maps to their leaves, which would be named by their positions.
    """
    if not all(isinstance(entry, FlattenedIndexKey) for entry, _ in children):
        return None
    try:
        items = [(DictKey(key), mapping[key]) for key in sorted(mapping)]
    except (TypeError, KeyError):
        return None
    own, of_jax = (
        jax.tree_util.tree_leaves([child for _, child in each]) for each in (items, children)
    )
    same = len(own) == len(of_jax) and all(map(operator.is_, own, of_jax))
    return items if same else None


def named_children(children: list[tuple[Any, Any]]) -> list[tuple[str, Any, Any]]:
    """The segment, the dict key (the segment in other containers) and the value of each child."""
    named: list[tuple[str, Any, Any]] = []
    taken: set[str] = set()
    for entry, child in children:
        match entry:
            case str():
                key = entry
            case DictKey():
                key = _plain_key(entry.key)
            case GetAttrKey():
                key = entry.name
            case SequenceKey():
                key = str(entry.idx)
            case FlattenedIndexKey():
                key = str(entry.key)
            case _:
                key = str(entry)
        text = key if isinstance(key, str) else str(key)
        if not text.isascii():
            # UTF-8 cannot hold half a surrogate pair; the record holds the key itself.
            text = text.encode(errors="backslashreplace").decode()
        segment = text if text not in taken else free_name(text, taken)
        taken.add(segment)
        named.append((segment, key, child))
    return named


def free_name(wanted: str, taken: Container[str], *reserved: str) -> str:
    name, number = wanted, 0
    while name in taken or name in reserved:
        number += 1
        name = f"{wanted}~{number}"
    return name


def kind_of(segments: Segments, node: Any, named: list[tuple[str, Any, Any]]) -> Kind:
    cls = cast("type[Any]", type(node))
    is_plain = cls in (dict, list, tuple)
    name = cls.__name__ if is_plain else f"{cls.__module__}.{cls.__qualname__}"
    dict_like = isinstance(node, dict)
    keys = tuple((segment, key) for segment, key, _ in named if segment != key)
    for _, key in keys:
        if not _is_storable_key(key):
            raise LeafError(
                f"container {join(segments)!r}: expected dict keys of str, int, bool, float, "
                f"None, bytes or tuples of these, got {type(key).__name__} {key!r}: rename it"
            )
    order = tuple(segment for segment, _, _ in named) if isinstance(node, OrderedDict) else None
    flat = (
        dict_like
        and any(SEPARATOR in segment for segment, _, _ in named)
        and all(is_entry(child) for _, _, child in named)
    )
    all_int = named and all(type(key) is int and text == str(key) for text, key, _ in named)
    return Kind(name, "int" if all_int else keys, order, flat)


def is_entry(child: Any) -> bool:
    if type(child) in LEAF_TYPES or isinstance(child, jax.Array):
        return True
    return child is not None and jax.tree_util.all_leaves([child])


def _plain_key(key: Any) -> Any:
    """The key as the type that a record holds, if it is of a subclass or a scalar of NumPy's.

    So `IntEnum`s and `numpy.int64`s are stored as ints; as dict keys both are equal to theirs.
    """
    if type(key) in _KEY_TYPES or key is None:
        return key
    if isinstance(key, tuple):
        return tuple(_plain_key(part) for part in cast("tuple[Any, ...]", key))
    if isinstance(key, np.bool_):
        return bool(key)
    if isinstance(key, int | np.integer):
        return int(cast("int", key))
    if isinstance(key, float | np.floating):
        plain = float(cast("float", key))
        return plain if plain == key or plain != plain else key
    if isinstance(key, bytes):
        return bytes(key)
    return str.__str__(key) if isinstance(key, str) else key


_KEY_TYPES: Final = (str, int, bool, float, bytes)


def _is_storable_key(key: Any) -> bool:
    if isinstance(key, tuple):
        return all(_is_storable_key(part) for part in cast("tuple[Any, ...]", key))
    return key is None or type(key) in _KEY_TYPES
