"""Structure: what names alone do not say of a pytree, and the tree that is built from names.

A `Structure` holds the kind of each container that is not a dict with string keys, and the path
of each name that does not split into its path: a file records both. Only transforms that move a
container whole change a structure (`moving`). A kind is used if the children that are present fit it; otherwise a dict is built.

A process that flattened the tree itself remembers more, which no file holds: JAX's own treedef.
"""

import contextlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast, final

import jax

from safejax._src.collector import collector_paused
from safejax._src.public import set_module
from safejax._src.pytrees.names import join, split
from safejax.errors import TransformError

Segments: TypeAlias = tuple[str, ...]

MAX_DEPTH: Final = 500
"""The maximum depth of nested containers; with more, JAX itself would run out of stack."""


@set_module("safejax")
@final
class Empty:
    """The entry in Leaves for a container without children; `EMPTY` is the only instance."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "EMPTY"

    def __reduce__(self) -> str:
        """The name under which copies and pickles find the only instance."""
        return "EMPTY"


EMPTY: Final = Empty()

Scalar: TypeAlias = bool | int | float | complex | str


@final
class Kind(NamedTuple):
    """How a container differs from a dict with string keys.

    `type` is `dict`, `list`, `tuple` or a qualified class name. `keys` pairs the segment of a
    child with its dict key if they differ; `"int"` means that all keys are ints, in decimal.
    `order` lists the segments of a container that has an order of its own. In a `flat` container
    every child is a leaf, and the rest of its name is one key, including dots. `aliases` pairs
    segments of children that are not stored with those of the stored children they are equal to.
    """

    type: str = "dict"
    keys: tuple[tuple[str, Any], ...] | Literal["int"] = ()
    order: Segments | None = None
    flat: bool = False
    aliases: tuple[tuple[str, str], ...] = ()


@final
class Flattened(NamedTuple):
    """What this process remembers of a tree, so that it builds the same one, of any node types.

    `treedef` is JAX's `PyTreeDef`, `names` are those of its leaves, in order, `nothing` has its
    entries that are None or `EMPTY`, by name, and `kinds` are those of its containers.
    """

    treedef: Any
    names: tuple[str, ...]
    nothing: Mapping[str, Empty | None]
    kinds: Mapping[str, Kind]

    def fits(self, entries: Mapping[str, Any], kinds: Mapping[str, Kind]) -> bool:
        """Whether the tree has exactly these entries and kinds, with nothing in the same places."""
        return (
            kinds == self.kinds
            and len(entries) == len(self.names) + len(self.nothing)
            and all(_is_something(entries.get(name)) for name in self.names)
            and all(entries.get(name, self) is item for name, item in self.nothing.items())
        )

    def build(self, entries: Mapping[str, Any]) -> Any:
        """The tree with these entries, which must fit it."""
        return jax.tree_util.tree_unflatten(self.treedef, [entries[name] for name in self.names])


@final
class Structure(NamedTuple):
    """Everything, besides the leaves by name, that is needed to build a tree.

    `kinds` maps container keys (`container_key`), and `paths` maps names. These two are what a
    file records; `flattened` is there for a tree that was flattened in this process.
    """

    kinds: Mapping[str, Kind] = {}
    paths: Mapping[str, Segments] = {}
    flattened: Flattened | None = None


def _is_something(entry: Any) -> bool:
    return entry is not None and entry is not EMPTY


def container_key(segments: Segments) -> str:
    """A string that identifies the container at these segments.

    It is the name if splitting the name gives these segments, and a JSON list otherwise.
    """
    if not segments:
        return ""
    name = join(segments)
    plain = name != "" and not name.startswith("[") and split(name) == segments
    return name if plain else json.dumps(segments, separators=(",", ":"))


def container_segments(key: str) -> Segments:
    """The segments of the container whose `container_key` is `key`.

    Raises `ValueError` if there is no such container.
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
    """The name of the leaf at `segment` in the container with this key."""
    return join((*container_segments(container), segment))


Builder: TypeAlias = Callable[[dict[Any, Any]], Any]

_builders: Final[dict[str, Builder]] = {}


def register_container(name: str, build: Builder) -> None:
    """Let trees built without `like` have containers of the class with this qualified name.

    `build` is called with the children by key, in order. Only adapters that are in use call this
    function: a file can name a class, but never causes an import.
    """
    _builders[name] = build


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
                f"{file}: leaf {name!r} is recorded as the whole tree, but there are "
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
    # Parents come before the containers in them, so in reverse each is built before it is used.
    for segments, children in reversed(containers):
        built = _container(children, segments, structure.kinds)
        if not segments:
            return built
        of_path[segments[:-1]][segments[-1]] = built
    raise AssertionError("the root is always there")


def _contradiction(file: str, name: str, path: Segments) -> TransformError:
    return TransformError(
        f"{file}: leaf {name!r}: expected a place of its own in the tree, got {list(path)}, "
        "where or under which there is another leaf: rename one with transform=rename(...)"
    )


def paths_of(names: Iterable[str], structure: Structure, file: str) -> dict[str, Segments]:
    """The path of each name: the recorded one, or the name split at its dots.

    Raises `TransformError` for a path that is longer than `MAX_DEPTH`.
    """
    flat = any(kind.flat for kind in structure.kinds.values())
    paths: dict[str, Segments] = {}
    for name in names:
        path = structure.paths.get(name)
        if path is None:
            path = path_of(name, structure.kinds) if flat else split(name)
        if len(path) > MAX_DEPTH:
            raise TransformError(
                f"{file}: leaf {name[:80]!r}…: expected at most {MAX_DEPTH} nested "
                f"containers, got {len(path)}: rename it with transform=rename(...)"
            )
        paths[name] = path
    # If one name extends another, the rest of the longer one is a single key. In sorted order,
    # the paths that extend a path follow it directly.
    shorter: Segments | None = None
    for name, path in sorted(paths.items(), key=lambda item: item[1]):
        if shorter and len(path) > len(shorter) and path[: len(shorter)] == shorter:
            kept = len(shorter) - 1
            paths[name] = (*path[:kept], join(path[kept:]))
        else:
            shorter = path
    return paths


def path_of(name: str, kinds: Mapping[str, Kind]) -> Segments:
    """The name split at its dots down to the first flat container."""
    segments = split(name)
    for depth in range(min(len(segments), MAX_DEPTH)):
        kind = kinds.get(container_key(segments[:depth]))
        if kind is not None and kind.flat:
            return (*segments[:depth], join(segments[depth:]))
    return segments


def _container(children: dict[str, Any], segments: Segments, kinds: Mapping[str, Kind]) -> Any:
    """The container that the kind describes if the children fit it, and otherwise a dict."""
    kind = kinds.get(container_key(segments)) if kinds else None
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
    if kind.type == "collections.OrderedDict":
        return OrderedDict(keyed)
    builder = _builders.get(kind.type)
    return keyed if builder is None else builder(keyed)


def _keyed(children: dict[str, Any], kind: Kind) -> dict[Any, Any]:
    """The children by their dict keys, or by their segments if JAX could not sort the keys."""
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
    """The int of each segment that is one in decimal, as Python writes it."""
    keys: dict[str, int] = {}
    for segment in children:
        with contextlib.suppress(ValueError):
            if str(int(segment)) == segment:
                keys[segment] = int(segment)
    return keys
