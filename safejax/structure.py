"""Structure: pytrees to names and back, with no arrays in sight.

A tree is walked one container at a time. What the names alone do not tell is kept in a
`Structure`: the kind of each container that is no plain dict of strings, and the path of each
name that does not split into it. Transforms never rewrite a structure; a kind is used where
the children that are there fit it, and elsewhere a dict is built.
"""

import contextlib
import json
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast, final

import jax
import numpy as np
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from safejax.errors import LeafError, TransformError
from safejax.header import METADATA_NAME
from safejax.names import SEPARATOR, join, split
from safejax.strict_json import collector_paused

Segments: TypeAlias = tuple[str, ...]

MAX_DEPTH: Final = 500
"""Containers within each other, at most: beyond it JAX itself runs out of stack."""


@final
class Empty:
    """Stands in Leaves for a container without children; `EMPTY` is the only one."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "EMPTY"


EMPTY: Final = Empty()


@final
class Kind(NamedTuple):
    """What a container is, beyond a dict with string keys.

    `type` is `dict`, `list`, `tuple` or a qualified class name. `keys` pairs a child's segment
    with the dict key that it stands for, where that is another; `"int"` says that all are ints
    in decimal. `order` lists the segments of a container that keeps its own order. In a `flat`
    one every child is a leaf, and the rest of a name is one key, dots and all. `aliases` pairs
    segments of children that are not stored with those of the children that they are.
    """

    type: str = "dict"
    keys: tuple[tuple[str, Any], ...] | Literal["int"] = ()
    order: Segments | None = None
    flat: bool = False
    aliases: tuple[tuple[str, str], ...] = ()


@final
class Structure(NamedTuple):
    """All that is needed to make a tree of names.

    `kinds` by container key (`container_key`), `paths` by name. A tree that was flattened in
    this process has its `treedef` (JAX's `PyTreeDef`), the `names` of its leaves in order and
    what stands for `nothing` (None, or `EMPTY`) by name, too, so that it comes back as it was,
    whatever its node types.
    """

    kinds: Mapping[str, Kind] = {}
    paths: Mapping[str, Segments] = {}
    names: tuple[str, ...] = ()
    nothing: Mapping[str, Empty | None] = {}
    treedef: Any = None

    def fits(self, entries: Mapping[str, Any]) -> bool:
        """Whether the treedef is that of these entries: its leaves, and nothing where it has."""
        return (
            self.treedef is not None
            and len(entries) == len(self.names) + len(self.nothing)
            and all(_is_something(entries.get(name)) for name in self.names)
            and all(entries.get(name, self) is item for name, item in self.nothing.items())
        )


def _is_something(entry: Any) -> bool:
    return entry is not None and entry is not EMPTY


def container_key(segments: Segments) -> str:
    """A string that names the container at these segments and no other.

    It is the name where splitting that gives the segments back, else a JSON list.
    """
    if not segments:
        return ""
    name = join(segments)
    plain = name != "" and not name.startswith("[") and split(name) == segments
    return name if plain else json.dumps(segments, separators=(",", ":"))


def container_segments(key: str) -> Segments:
    """The segments of the container that `container_key` gave `key` to.

    Raises `ValueError` for a key that it gives to none.
    """
    if not key:
        return ()
    if not key.startswith("["):
        return split(key)
    segments = json.loads(key)
    if isinstance(segments, list) and all(isinstance(part, str) for part in segments):
        segments = tuple(cast("list[str]", segments))
        if container_key(segments) == key:
            return segments
    raise ValueError(f"expected the segments of a container, got {key!r:.80}")


def name_in(container: str, segment: str) -> str:
    """The name of the leaf that `segment` is the key of, in the container of this key."""
    return join((*container_segments(container), segment))


# ---- tree to names


@final
class Walk(NamedTuple):
    """The entries of a tree by name, in JAX's order, and the structure around them.

    `entries` holds the leaves, and None and `EMPTY` where the tree has nothing.
    """

    entries: dict[str, Any]
    structure: Structure


@collector_paused()
def walk(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> Walk:
    """Names and structure of a pytree; `is_leaf` as in `jax.tree_util`.

    Raises `LeafError` for dict keys that no record can hold, and beyond `MAX_DEPTH`.
    """
    entries: dict[str, Any] = {}
    names: list[str] = []
    nothing: dict[str, Empty | None] = {}
    kinds: dict[str, Kind] = {}
    paths: dict[str, Segments] = {}
    pending: list[tuple[Segments, Any]] = [((), tree)]
    while pending:
        segments, node = pending.pop()
        children = None if is_leaf is not None and is_leaf(node) else _children(node, segments)
        if children:
            named = _named(children)
            if len(segments) == MAX_DEPTH:
                raise LeafError(
                    f"expected a tree of at most {MAX_DEPTH} containers within each other, got "
                    f"more at {join(segments[:3])!r}…: flatten it a little"
                )
            _record_kind(kinds, segments, node, named)
            pending.extend(((*segments, segment), child) for segment, _, child in reversed(named))
            continue
        # `__metadata__` is no tensor's name.
        name = _free_name(join(segments), entries, METADATA_NAME)
        if split(name) != segments and not _in_flat(kinds, name, segments):
            paths[name] = segments
        if children is None:
            names.append(name)
        else:
            if node is not None:
                _record_kind(kinds, segments, node, [])
                node = EMPTY
            nothing[name] = node
        entries[name] = node
    treedef = jax.tree_util.tree_structure(tree, is_leaf)
    return Walk(entries, Structure(kinds, paths, tuple(names), nothing, treedef))


# Asking JAX takes ten times as long.
_LEAF_TYPES: Final = frozenset({np.ndarray, jax.ShapeDtypeStruct, bool, int, float, complex, str})


def _children(node: Any, segments: Segments) -> list[tuple[Any, Any]] | None:
    """Key entry and value of each child, in JAX's order; None for a leaf."""
    if type(node) in _LEAF_TYPES or isinstance(node, jax.Array):
        return None
    # The node itself is opened and nothing in it, not even itself.
    is_leaf = iter([False])
    try:
        pairs, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda _: next(is_leaf, True))
    except (TypeError, ValueError) as error:
        found = sorted({type(key).__name__ for key in node}) if isinstance(node, dict) else error
        raise LeafError(
            f"container {join(segments)!r}: expected dict keys that JAX can sort, or a node that "
            f"it can flatten, got {found}: use keys of one type"
        ) from error
    if len(pairs) == 1 and not pairs[0][0]:
        return None
    return [(path[0], child) for path, child in pairs]


def _named(children: list[tuple[Any, Any]]) -> list[tuple[str, Any, Any]]:
    """Segment, dict key (or the segment again, for other containers) and value of each."""
    named: list[tuple[str, Any, Any]] = []
    taken: set[str] = set()
    for entry, child in children:
        match entry:
            case DictKey():
                key = entry.key
            case GetAttrKey():
                key = entry.name
            case SequenceKey():
                key = str(entry.idx)
            case FlattenedIndexKey():
                key = str(entry.key)
            case _:
                key = str(entry)
        text = key if isinstance(key, str) else str(key)
        # Half a surrogate pair is no UTF-8; the record keeps the key itself.
        segment = _free_name(text.encode(errors="backslashreplace").decode(), taken)
        taken.add(segment)
        named.append((segment, key, child))
    return named


def _free_name(wanted: str, taken: Container[str], *reserved: str) -> str:
    name, number = wanted, 0
    while name in taken or name in reserved:
        number += 1
        name = f"{wanted}~{number}"
    return name


def _record_kind(
    kinds: dict[str, Kind], segments: Segments, node: Any, named: list[tuple[str, Any, Any]]
) -> None:
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
        and all(_is_entry(child) for _, _, child in named)
    )
    all_int = named and all(type(key) is int and text == str(key) for text, key, _ in named)
    kind = Kind(name, "int" if all_int else keys, order, flat)
    if kind != Kind():
        kinds[container_key(segments)] = kind


def _is_entry(child: Any) -> bool:
    return child is not None and (isinstance(child, jax.Array) or jax.tree_util.all_leaves([child]))


def _in_flat(kinds: Mapping[str, Kind], name: str, segments: Segments) -> bool:
    """Whether a flat container around the leaf tells its path, from its name alone."""
    return join(segments) == name and _path_of(name, kinds) == segments


def _is_storable_key(key: Any) -> bool:
    if isinstance(key, tuple):
        return all(_is_storable_key(part) for part in cast("tuple[Any, ...]", key))
    return key is None or type(key) in (str, int, bool, float, bytes)


# ---- names to tree

Builder: TypeAlias = Callable[[dict[Any, Any]], Any]

_builders: Final[dict[str, Builder]] = {}


def register_container(name: str, build: Builder) -> None:
    """Let trees without `like` have containers of the class with this qualified name.

    `build` gets the children by key, in order. Only an adapter in use calls this: a file names
    a class, and never imports one.
    """
    _builders[name] = build


def build(entries: Mapping[str, Any], structure: Structure, file: str) -> Any:
    """The tree of these entries; exactly the flattened one, if all that it had is here.

    Raises `TransformError` where names contradict each other.
    """
    if structure.fits(entries):
        leaves = [entries[name] for name in structure.names]
        return jax.tree_util.tree_unflatten(structure.treedef, leaves)
    return _build_from_names(entries, structure, file)


def _build_from_names(entries: Mapping[str, Any], structure: Structure, file: str) -> Any:
    paths = paths_of(entries, structure, file)
    if len(entries) == 1 and () in paths.values():
        (leaf,) = entries.values()
        return _container({}, (), structure.kinds) if leaf is EMPTY else leaf
    root: dict[str, Any] = {}
    containers: list[tuple[Segments, dict[str, Any]]] = [((), root)]
    of_path: dict[Segments, dict[str, Any]] = {(): root}
    for name, leaf in entries.items():
        path = paths[name]
        if not path:
            raise TransformError(
                f"{file}: leaf {name!r} is recorded as the whole tree, and there are "
                f"{len(entries)} leaves: rename it with transform=rename(...)"
            )
        parent = of_path.get(path[:-1])
        if parent is None:
            parent = root
            for depth in range(1, len(path)):
                prefix = path[:depth]
                inner = of_path.get(prefix)
                if inner is None:
                    inner = of_path[prefix] = {}
                    containers.append((prefix, inner))
                    if prefix[-1] in parent:
                        raise _contradiction(file, name, prefix)
                    parent[prefix[-1]] = inner
                parent = inner
        if path[-1] in parent:
            raise _contradiction(file, name, path)
        parent[path[-1]] = _container({}, path, structure.kinds) if leaf is EMPTY else leaf
    # Inner containers were met after their parents, so backwards each is built before it is used.
    for segments, children in reversed(containers):
        built = _container(children, segments, structure.kinds)
        if not segments:
            return built
        of_path[segments[:-1]][segments[-1]] = built
    raise AssertionError("the root is always there")


def _contradiction(file: str, name: str, path: Segments) -> TransformError:
    return TransformError(
        f"{file}: leaf {name!r}: expected a place of its own in the tree, got {list(path)}, "
        "which another leaf has or is within: rename one with transform=rename(...)"
    )


def paths_of(names: Iterable[str], structure: Structure, file: str) -> dict[str, Segments]:
    """The segments on the way to each name: recorded, or by its dots.

    Raises `TransformError` for a name that is deeper than `MAX_DEPTH`.
    """
    flat = any(kind.flat for kind in structure.kinds.values())
    paths: dict[str, Segments] = {}
    for name in names:
        path = structure.paths.get(name)
        if path is None:
            path = _path_of(name, structure.kinds) if flat else split(name)
        if len(path) > MAX_DEPTH:
            raise TransformError(
                f"{file}: leaf {name[:80]!r}…: expected at most {MAX_DEPTH} containers within "
                f"each other, got {len(path)}: rename it with transform=rename(...)"
            )
        paths[name] = path
    # Where one name extends another, the longer one's tail stays one key. Sorted, all that
    # extends a path comes right after it.
    shorter: Segments | None = None
    for name, path in sorted(paths.items(), key=lambda item: item[1]):
        if shorter and len(path) > len(shorter) and path[: len(shorter)] == shorter:
            kept = len(shorter) - 1
            paths[name] = (*path[:kept], join(path[kept:]))
        else:
            shorter = path
    return paths


def _path_of(name: str, kinds: Mapping[str, Kind]) -> Segments:
    """The name split at its dots, as far as the first flat container."""
    segments = split(name)
    for depth in range(min(len(segments), MAX_DEPTH)):
        kind = kinds.get(container_key(segments[:depth]))
        if kind is not None and kind.flat:
            return (*segments[:depth], join(segments[depth:]))
    return segments


def _container(children: dict[str, Any], segments: Segments, kinds: Mapping[str, Kind]) -> Any:
    """The container that its kind says, as far as the children fit it, else a dict."""
    kind = kinds.get(container_key(segments)) if kinds else None
    if kind is None:
        return children
    if kind.type in ("list", "tuple"):
        if children.keys() != {str(position) for position in range(len(children))}:
            return children
        items = [children[str(position)] for position in range(len(children))]
        return tuple(items) if kind.type == "tuple" else items
    # What has a name of its own is stored: no alias may stand in its place.
    aliases = {alias: children[to] for alias, to in kind.aliases if to in children}
    children = {**aliases, **children}
    if kind.order is not None:
        # What a transform took away is left out, what it added comes last, by name.
        order = dict.fromkeys((*kind.order, *sorted(children)))
        children = {segment: children[segment] for segment in order if segment in children}
    keyed = _keyed(children, kind)
    if kind.type == "collections.OrderedDict":
        return OrderedDict(keyed)
    builder = _builders.get(kind.type)
    return keyed if builder is None else builder(keyed)


def _keyed(children: dict[str, Any], kind: Kind) -> dict[Any, Any]:
    """The children by their dict keys, or by their segments where JAX could not sort the keys."""
    keys = _int_keys(children) if kind.keys == "int" else dict(kind.keys)
    keyed = {keys.get(segment, segment): child for segment, child in children.items()}
    if len(keyed) != len(children):
        return children
    if kind.order is None:
        try:
            sorted(keyed)
        except TypeError:
            return children
    return keyed


def _int_keys(children: Iterable[str]) -> dict[str, int]:
    """The ints that segments say in decimal, as Python writes them."""
    keys: dict[str, int] = {}
    for segment in children:
        with contextlib.suppress(ValueError):
            if str(int(segment)) == segment:
                keys[segment] = int(segment)
    return keys
