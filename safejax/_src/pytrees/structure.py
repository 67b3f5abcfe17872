"""Structure: what names alone do not say of a pytree, and the tree that is built from names.

A `Structure` holds the kind of each container that is not a dict with string keys, and the path
of each name that does not split into its path: a file records both. Only transforms that move a
container whole change a structure.

A process that flattened the tree itself remembers more, which no file holds: JAX's own treedef.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias, final

from safejax._src.public import set_module
from safejax._src.pytrees.names import join, split
from safejax.errors import TransformError

Segments: TypeAlias = tuple[str, ...]

_DECODER: Final = json.JSONDecoder()

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
            and all(is_something(entries.get(name)) for name in self.names)
            and all(entries.get(name, self) is item for name, item in self.nothing.items())
        )

    def build(self, entries: Mapping[str, Any]) -> Any:
        """The tree with these entries, which must fit it."""
        return self.treedef.unflatten([entries[name] for name in self.names])


@final
class Structure(NamedTuple):
    """Everything, besides the leaves by name, that is needed to build a tree.

    `kinds` maps container keys (`container_key`), and `paths` maps names. These two are what a
    file records; `flattened` is there for a tree that was flattened in this process.
    """

    kinds: Mapping[str, Kind] = {}
    paths: Mapping[str, Segments] = {}
    flattened: Flattened | None = None


def is_something(entry: Any) -> bool:
    """Whether an entry is a leaf, and not None or `EMPTY`: it is a loss if it is left out."""
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
    segments = _strings_in(key)
    if segments is not None and container_key(segments) == key:
        return segments
    raise ValueError(f"expected the segments of a container, got {key!r:.80}")


def _strings_in(text: str) -> Segments | None:
    """The strings of a JSON list; None if it is another one. Nothing in it is followed deeper."""
    found: list[str] = []
    at = 0
    while text[at : at + 2] == (',"' if found else '["'):
        string, at = _DECODER.raw_decode(text, at + 1)
        found.append(string)
    return tuple(found) if text[at:] == "]" else None


@final
class KindTree:
    """The kind of a container, and of those in it by their segments.

    A path is followed one segment at a time: what it takes does not grow with the square of its
    length, which a file chooses.
    """

    __slots__ = ("inside", "kind")

    def __init__(self, kinds: Mapping[str, Kind] = {}) -> None:
        self.kind: Kind | None = None
        self.inside: dict[str, KindTree] = {}
        for key, kind in kinds.items():
            self.add(container_segments(key), kind)

    def add(self, segments: Segments, kind: Kind) -> None:
        """Let the container at these segments be of a kind."""
        node = self
        for segment in segments:
            inner = node.inside.get(segment)
            if inner is None:
                inner = node.inside[segment] = KindTree()
            node = inner
        node.kind = kind

    def path_of(self, name: str) -> Segments:
        """The name split at its dots down to the first flat container."""
        segments = split(name)
        node: KindTree | None = self
        for depth in range(min(len(segments), MAX_DEPTH)):
            if node.kind is not None and node.kind.flat:
                return (*segments[:depth], join(segments[depth:]))
            node = node.inside.get(segments[depth])
            if node is None:
                break
        return segments


def name_in(container: str, segment: str) -> str:
    """The name of the leaf at `segment` in the container with this key."""
    return join((*container_segments(container), segment))


def paths_of(
    names: Iterable[str], structure: Structure, file: str = "", *, deepest: int | None = MAX_DEPTH
) -> dict[str, Segments]:
    """The path of each name: the recorded one, or the name split at its dots.

    Raises `TransformError` for a path that is longer than `deepest`, if that is given.
    """
    flat = any(kind.flat for kind in structure.kinds.values())
    path_in = KindTree(structure.kinds).path_of if flat else split
    paths: dict[str, Segments] = {}
    for name in names:
        path = structure.paths.get(name)
        if path is None:
            path = path_in(name)
        if deepest is not None and len(path) > deepest:
            raise TransformError(
                f"{file}: leaf {name[:80]!r}…: expected at most {deepest} nested "
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
