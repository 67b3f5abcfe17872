"""What the framework adapters share: bytes or a path at one end, a framework's container at the other."""

import os
from typing import Any, TypeAlias

from safejax.api import open_path, save, serialize
from safejax.codec import IN_MEMORY, decode
from safejax.errors import LeafError
from safejax.files import PathLike
from safejax.leaves import Leaves
from safejax.shardings import ShardingArgument
from safejax.steps import Transform, apply
from safejax.structure import Kind, Structure
from safejax.tree import assemble

Source: TypeAlias = PathLike | bytes | bytearray | memoryview
"""The bytes of a safetensors file, or its path."""

_FRAMEWORKS = {"flax": "flax", "haiku": "haiku", "objax": "objax", "equinox": "equinox"}


def store(tree: Any, filename: PathLike | None, metadata: dict[str, str] | None, fs: Any) -> Any:
    """The bytes of the file, or, where it is to be written, its path."""
    if filename is None:
        if fs is not None:
            raise TypeError("fs: expected a filename with it, got none: give both, or neither")
        return serialize(tree, metadata=metadata)
    save(tree, filename, metadata=metadata, fs=fs)
    return os.fspath(filename)


def fetch(source: Source, fs: Any) -> tuple[Leaves, str]:
    """The Leaves in a file, unread, and what errors call the file."""
    if isinstance(source, bytes | bytearray | memoryview):
        if fs is not None:
            raise TypeError("fs: expected a path with it, got bytes: leave it out")
        return decode(source), IN_MEMORY
    return open_path(source, fs=fs), os.fspath(source)


def finish(
    leaves: Leaves,
    file: str,
    *,
    like: Any,
    sharding: ShardingArgument,
    transform: Transform | None,
    strict: bool,
) -> Any:
    """The tree of fetched leaves, as `safejax.load` makes it."""
    return assemble(
        apply(transform, leaves), like=like, sharding=sharding, strict=strict, file=file
    )


def with_root(leaves: Leaves, kind: Kind) -> Leaves:
    """The leaves with the root's kind told, where their structure does not tell it yet."""
    known = leaves.structure
    if "" in known.kinds or () in known.paths.values():
        return leaves
    structure = Structure({**known.kinds, "": kind}, known.paths, known.names, known.treedef)
    return Leaves(leaves, structure, leaves.metadata)


def refuse_foreign(tree: Any, framework: str) -> None:
    """Raise `LeafError` if `tree` is a container of another framework."""
    owner = type(tree).__module__.partition(".")[0]
    if owner != framework and owner in _FRAMEWORKS:
        raise LeafError(
            f"safejax.{framework}: expected a tree of {framework}, got "
            f"{type(tree).__module__}.{type(tree).__qualname__}: use safejax.{owner}"
        )


def missing(framework: str, extra: str) -> ImportError:
    """The error of an adapter whose framework is not installed."""
    return ImportError(
        f"safejax.{extra} needs {framework}, which is not installed: "
        f"pip install 'safejax[{extra}]'"
    )
