"""Building: the tree of leaves by name, and the containers that their structure records.

A kind is used if the children that are present fit it; otherwise a dict is built.
"""

import contextlib
import importlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

from safejax._src.collector import collector_paused, collector_resumed
from safejax._src.pytrees.structure import (
    EMPTY,
    Kind,
    KindTree,
    Segments,
    Structure,
    paths_of,
)
from safejax.errors import TransformError

Builder: TypeAlias = Callable[[dict[Any, Any]], Any]

_builders: Final[dict[str, Builder]] = {}

_MOST_DIGITS: Final = 4300
"""Python's own limit for the digits of an int, which a program can raise."""

_ORDERED: Final = "collections.OrderedDict"
"""The only mapping whose keys JAX does not sort, so that they can be of any types."""

_ADAPTERS: Final = {
    "flax.core.frozen_dict.FrozenDict": "safejax.flax",
    "haiku._src.data_structures.FlatMap": "safejax.haiku",
    "objax.variable.VarCollection": "safejax.objax",
}
"""The classes that our own adapters build, and the only modules that a file can cause to import."""


def register_container(name: str, build: Builder) -> None:
    """Let trees built without `like` have containers of the class with this qualified name.

    `build` is called with the children by key, in order. Adapters call this when they are
    imported, and those in `_ADAPTERS` are imported when a file has a container of theirs.
    """
    _builders[name] = build


def _builder(name: str) -> Builder | None:
    """The builder of containers of this class; None if nobody knows it.

    What a file gives does not depend on which adapters were imported before, but only on whether
    the framework is installed.
    """
    if name not in _builders and name in _ADAPTERS:
        with contextlib.suppress(ImportError), collector_resumed():
            importlib.import_module(_ADAPTERS[name])
    return _builders.get(name)


def build(entries: Mapping[str, Any], structure: Structure, file: str) -> Any:
    """The tree of these entries; the one that was flattened, if it has exactly these names.

    Raises `TransformError` if names contradict each other.
    """
    flattened = structure.flattened
    if flattened is not None and flattened.fits(entries, structure.kinds):
        return flattened.build(entries)
    return _build_from_names(entries, structure, file)


@collector_paused()
def _build_from_names(entries: Mapping[str, Any], structure: Structure, file: str) -> Any:
    paths = paths_of(entries, structure, file)
    kinds = KindTree(structure.kinds) if structure.kinds else None
    if len(entries) == 1 and () in paths.values():
        (leaf,) = entries.values()
        return _container({}, kinds) if leaf is EMPTY else leaf
    root = _Open(kinds)
    order: list[tuple[_Open, str, _Open]] = []
    for name, leaf in entries.items():
        path = paths[name]
        if not path:
            raise TransformError(
                f"{file}: leaf {name!r} is recorded as the whole tree, but there are "
                f"{len(entries)} leaves: rename it with transform=rename(...)"
            )
        node = root
        for depth, segment in enumerate(path[:-1], 1):
            inner = node.children.get(segment, _NOTHING)
            if inner is _NOTHING:
                inner = node.children[segment] = _Open(node.kinds_in(segment))
                order.append((node, segment, inner))
            elif type(inner) is not _Open:
                raise _contradiction(file, name, path[:depth])
            node = inner
        if path[-1] in node.children:
            raise _contradiction(file, name, path)
        if leaf is EMPTY:
            leaf = _container({}, node.kinds_in(path[-1]))
        node.children[path[-1]] = leaf
    # Parents come before the containers in them, so in reverse each is built before it is used.
    for parent, segment, node in reversed(order):
        parent.children[segment] = _container(node.children, node.kinds)
    return _container(root.children, kinds)


_NOTHING: Final = object()


class _Open:
    """A container under construction, with the kinds that are recorded of it and below it."""

    __slots__ = ("children", "kinds")

    def __init__(self, kinds: KindTree | None) -> None:
        self.children: dict[str, Any] = {}
        self.kinds = kinds

    def kinds_in(self, segment: str) -> KindTree | None:
        return None if self.kinds is None else self.kinds.inside.get(segment)


def _contradiction(file: str, name: str, path: Segments) -> TransformError:
    return TransformError(
        f"{file}: leaf {name!r}: expected a place of its own in the tree, got {list(path)}, "
        "where or under which there is another leaf: rename one with transform=rename(...)"
    )


def _container(children: dict[str, Any], kinds: KindTree | None) -> Any:
    """The container that its kind describes if the children fit it, and otherwise a dict."""
    kind = None if kinds is None else kinds.kind
    if kind is None:
        return children
    if kind.type in ("list", "tuple"):
        if children.keys() != {str(position) for position in range(len(children))}:
            return children
        items = [children[str(position)] for position in range(len(children))]
        return tuple(items) if kind.type == "tuple" else items
    # A child that is stored under its own name takes precedence over an alias.
    aliases = {alias: children[to] for alias, to in kind.aliases if to in children}
    children = {**aliases, **children}
    if kind.order is not None:
        # Children that a transform removed are left out; those that it added come last, by name.
        order = dict.fromkeys((*kind.order, *sorted(children)))
        children = {segment: children[segment] for segment in order if segment in children}
    keyed = _keyed(children, kind)
    if kind.type == _ORDERED:
        return OrderedDict(keyed)
    builder = _builder(kind.type)
    return keyed if builder is None else builder(keyed)


def _keyed(children: dict[str, Any], kind: Kind) -> dict[Any, Any]:
    """The children by their dict keys, or by their segments if JAX could not sort the keys."""
    keys = _int_keys(children) if kind.keys == "int" else dict(kind.keys)
    keyed = {keys.get(segment, segment): child for segment, child in children.items()}
    if len(keyed) != len(children):
        return children
    if kind.type != _ORDERED:
        try:
            sorted(keyed)
        except TypeError:
            return children
    return keyed


def _int_keys(children: Iterable[str]) -> dict[str, int]:
    """The int of each segment that is one in decimal, as Python writes it."""
    keys: dict[str, int] = {}
    for segment in children:
        if len(segment) > _MOST_DIGITS:
            continue
        with contextlib.suppress(ValueError):
            if str(int(segment)) == segment:
                keys[segment] = int(segment)
    return keys
