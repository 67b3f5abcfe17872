"""The walk through a pytree, one container at a time: its leaves by name, and its structure."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, final

import jax

from safejax._src.collector import collector_paused
from safejax._src.pytrees.children import (
    LEAF_TYPES,
    children_of,
    free_name,
    is_entry,
    kind_of,
    named_children,
    plain_keys,
)
from safejax._src.pytrees.names import METADATA_NAME, SEPARATOR, join
from safejax._src.pytrees.structure import (
    EMPTY,
    MAX_DEPTH,
    Empty,
    Flattened,
    Kind,
    KindTree,
    Segments,
    Structure,
    container_key,
)
from safejax.errors import LeafError


@final
class Walk(NamedTuple):
    """The entries of a tree by name, in JAX's order, and its structure.

    `entries` holds the leaves, and None or `EMPTY` where the tree has nothing.
    """

    entries: dict[str, Any]
    structure: Structure


def walk(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> Walk:
    """The entries and the structure of a pytree; `is_leaf` is that of `jax.tree_util`.

    Raises `LeafError` for dict keys that no record can hold, and for a depth over `MAX_DEPTH`.
    """
    walker = _Walker(is_leaf)
    with collector_paused():
        walker.walk(tree)
    treedef = jax.tree_util.tree_structure(tree, is_leaf)
    flattened = Flattened(treedef, tuple(walker.names), walker.nothing, walker.kinds)
    return Walk(walker.entries, Structure(walker.kinds, walker.paths, flattened))


@final
class _Inside(NamedTuple):
    """A container that the walk is in, with the children that are still to come, by segment.

    The names of its leaves are `start` and a segment. If it `is_plain`, these names say where the
    leaves are, unless a name is taken.
    """

    segments: Segments
    start: str
    is_plain: bool
    children: Iterator[tuple[str, Any]]


@final
class _Walker:
    """What has been found so far."""

    def __init__(self, is_leaf: Callable[[Any], bool] | None) -> None:
        self.entries: dict[str, Any] = {}
        self.names: list[str] = []
        self.nothing: dict[str, Empty | None] = {}
        self.kinds: dict[str, Kind] = {}
        self.paths: dict[str, Segments] = {}
        self._is_leaf = is_leaf
        self._leaf_types: set[type[Any]] = set(LEAF_TYPES)
        self._inside: list[_Inside] = []
        self._tree = KindTree()

    def walk(self, tree: Any) -> None:
        entries, leaf_types, inside = self.entries, self._leaf_types, self._inside
        self._enter((), tree)
        while inside:
            segments, start, is_plain, children = inside[-1]
            for segment, child in children:
                name = start + segment
                # Most children are leaves, and this is all there is to do for most of them.
                if type(child) in leaf_types and is_plain and name not in entries:
                    entries[name] = child
                    self.names.append(name)
                elif self._enter((*segments, segment), child):
                    break
            else:
                inside.pop()

    def _enter(self, segments: Segments, node: Any) -> bool:
        """Whether a node is a container with children, which come next; if not, it is recorded."""
        if self._is_leaf is not None and self._is_leaf(node):
            self._record(segments, node, is_leaf=True)
            return False
        keys = plain_keys(node)
        if keys:
            pairs = list(zip(keys, map(node.__getitem__, keys), strict=True))
            has_dots = SEPARATOR in "".join(keys)
            is_flat = has_dots and all(is_entry(child) for _, child in pairs)
            kind = Kind(flat=is_flat)
        else:
            children = children_of(node, segments)
            if not children:
                if children is None:
                    self._leaf_types.add(type(node))
                self._record(segments, node, is_leaf=children is None)
                return False
            named = named_children(children)
            kind = kind_of(segments, node, named)
            pairs = [(segment, child) for segment, _, child in named]
            has_dots = any(SEPARATOR in segment for segment, _ in pairs)
        if len(segments) == MAX_DEPTH:
            raise LeafError(
                f"expected a tree of at most {MAX_DEPTH} nested containers, got more at "
                f"{join(segments[:3])!r}…: flatten it a little"
            )
        if kind != Kind():
            self._put(segments, kind)
        # With a dot in a segment, a name splits at more places, unless the container is flat.
        is_plain = (not has_dots or kind.flat) and not any(SEPARATOR in each for each in segments)
        if segments:
            start = join((*segments, ""))
        else:
            start = ""
            is_plain = is_plain and all(segment != METADATA_NAME for segment, _ in pairs)
        self._inside.append(_Inside(segments, start, is_plain, iter(pairs)))
        return True

    def _record(self, segments: Segments, node: Any, *, is_leaf: bool) -> None:
        """Record a leaf, or a container without children."""
        name = join(segments)
        # `__metadata__` is not the name of a tensor.
        if name in self.entries or name == METADATA_NAME:
            name = free_name(name, self.entries, METADATA_NAME)
            self.paths[name] = segments
        elif name.count(SEPARATOR) != len(segments) - 1 and not self._in_flat(name, segments):
            self.paths[name] = segments
        if is_leaf:
            self.names.append(name)
        else:
            if node is not None:
                kind = kind_of(segments, node, [])
                if kind != Kind():
                    self._put(segments, kind)
                node = EMPTY
            self.nothing[name] = node
        self.entries[name] = node

    def _put(self, segments: Segments, kind: Kind) -> None:
        """Record the kind of a container."""
        self.kinds[container_key(segments)] = kind
        if kind.flat:
            self._tree.add(segments, kind)

    def _in_flat(self, name: str, segments: Segments) -> bool:
        """Whether a flat container around the leaf determines its path from its name alone."""
        if len(segments) == 1:  # Only the root can be that container.
            root = self._tree.kind
            return root is not None and segments[0] == name
        return join(segments) == name and self._tree.path_of(name) == segments
