"""What the framework adapters share: bytes or a path at one end, a tree of Leaves at the other."""

import os
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from safejax.access import Access
from safejax.api import save, serialize
from safejax.codec import IN_MEMORY, Buffer, decode
from safejax.errors import LeafError
from safejax.files import PathLike
from safejax.leaves import Leaves
from safejax.opening import Path, open_path, shown_path
from safejax.remote import FileSystem
from safejax.shardings import ShardingArgument
from safejax.steps import TransformArgument, apply
from safejax.structure import Kind
from safejax.tree import assemble

Source: TypeAlias = Path | Buffer
"""The bytes of a safetensors file, or its path, or whatever `safejax.load` takes."""

Stored: TypeAlias = Any
"""Bytes, or the path that was given. Any: the call tells which, and a union would not."""

_FRAMEWORKS: Final = ("flax", "haiku", "objax", "equinox")


def store(
    tree: Any,
    filename: PathLike | None,
    metadata: Mapping[str, str] | None,
    fs: FileSystem | None,
) -> Stored:
    """The bytes of the file, or, where it is to be written, its path as it was given."""
    if filename is None:
        if fs is not None:
            raise TypeError("fs: expected a filename with it, got none: give both, or neither")
        return serialize(tree, metadata=metadata)
    save(tree, filename, metadata=metadata, fs=fs)
    return filename


def fetch(
    source: Source, fs: FileSystem | None, *, verify: bool, access: Access
) -> tuple[Leaves, str]:
    """The Leaves in a file, unread, and what errors call the file."""
    if isinstance(source, bytes | bytearray | memoryview):
        if fs is not None:
            raise TypeError("fs: expected a path with it, got bytes: leave it out")
        if access != "auto":
            raise TypeError("access: expected a path with it, got bytes: leave it out")
        return decode(source, verify=verify), IN_MEMORY
    if not isinstance(source, str | os.PathLike | list | tuple):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"expected the path or the bytes of a safetensors file, got {type(source).__name__}"
        )
    return open_path(source, fs, verify=verify, access=access), shown_path(source)


def finish(
    leaves: Leaves,
    file: str,
    *,
    like: Any,
    sharding: ShardingArgument,
    transform: TransformArgument | None,
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
    structure = known._replace(kinds={**known.kinds, "": kind})
    return Leaves(leaves, structure, leaves.metadata)


def refuse_foreign(tree: Any, framework: str) -> None:
    """Raise `LeafError` if `tree` is a container, or a model, of another framework."""
    cls = type(tree)
    # A user's model is of a class of their own; what it inherits from tells.
    modules = [base.__module__.partition(".")[0] for base in cls.__mro__]
    owner = next((module for module in modules if module in _FRAMEWORKS), framework)
    if owner != framework:
        raise LeafError(
            f"safejax.{framework}: expected a tree of {framework}, got "
            f"{cls.__module__}.{cls.__qualname__}, which is of {owner}: use safejax.{owner}"
        )


def missing(framework: str, extra: str, error: ImportError) -> ImportError:
    """The error of an adapter whose framework cannot be imported."""
    return ImportError(
        f"safejax.{extra} needs {framework}, which cannot be imported ({error}): "
        f"pip install 'safejax[{extra}]'",
        name=error.name,
    )
