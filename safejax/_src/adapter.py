"""What the framework adapters share: reading from bytes or a path, and writing to either."""

import contextlib
import os
from collections.abc import Mapping
from typing import Any, Final, TypeAlias, cast

import numpy as np

from safejax._src.api.saving import save, serialize
from safejax._src.arrays.lazy import LazyArray
from safejax._src.checkpoint.codec import IN_MEMORY, Buffer, decode
from safejax._src.checkpoint.finding import shown_path
from safejax._src.checkpoint.opening import open_path
from safejax._src.checkpoint.options import Options, Paths
from safejax._src.leaves.leaves import Leaves
from safejax._src.pytrees.structure import Kind
from safejax._src.pytrees.walk import walk
from safejax._src.reading.buffer import BufferSource
from safejax._src.reading.filesystems import FileSystem
from safejax._src.reading.source import File
from safejax._src.storage.files import PathLike, checked_path
from safejax._src.storage.location import locate
from safejax.errors import LeafError

Source: TypeAlias = Paths | Buffer
"""The bytes of a safetensors file, or any path that `safejax.load` takes."""

Stored: TypeAlias = Any
"""Bytes, or the path that was given. `Any`, since the overloads of an adapter's `serialize` say
which of them, and a union would not."""

_FRAMEWORKS: Final = ("flax", "haiku", "objax", "equinox")

_PARAMS: Final = "params."


def store(
    tree: Any,
    filename: PathLike | None,
    metadata: Mapping[str, str] | None,
    fs: FileSystem,
) -> Stored:
    """The bytes of the file; or, if a filename is given, that filename, once it is written."""
    if filename is None:
        if fs is not None:
            raise TypeError("fs: expected a filename with it, got none: give both, or neither")
        return serialize(tree, metadata=metadata)
    save(tree, filename, metadata=metadata, fs=fs)
    return filename


def fetch(source: Source, fs: FileSystem, options: Options) -> tuple[Leaves, str]:
    """The Leaves in a file, unread, and the name that errors have for the file."""
    if isinstance(source, str | os.PathLike | list | tuple):
        return open_path(source, fs, verify=options.verify, access=options.access), shown_path(
            source
        )
    if not isinstance(source, bytes | bytearray | memoryview):
        raise TypeError(
            f"expected the path or the bytes of a safetensors file, got {type(source).__name__}"
        )
    for argument, given in (("fs", fs is not None), ("access", options.access != "auto")):
        if given:
            raise TypeError(f"{argument}: expected a path with it, got bytes: leave it out")
    return decode(cast("Buffer", source), verify=options.verify), IN_MEMORY


def file_at(source: Source, fs: FileSystem, options: Options) -> File | None:
    """The file at a path, or that of bytes, unread; None for several files, or if there is none."""
    if isinstance(source, str | os.PathLike):
        store, path = locate(checked_path(source), fs)
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            return None if store.is_folder(path) else store.source(path, options.access)
        return None
    is_bytes = isinstance(source, bytes | bytearray | memoryview)
    return BufferSource(bytes(cast("Buffer", source)), IN_MEMORY) if is_bytes else None


def at_params(leaves: Leaves, like: Any) -> Leaves:
    """The leaves moved below `params`, or out of it, if only then some of them are in `like`.

    So that a file of a model's variables fits its bare parameters, and the reverse. Nothing is
    left out: what else is in the file is reported as unexpected.
    """
    if like is None:
        return leaves
    wanted = walk(like).entries.keys()
    if any(name in leaves for name in wanted):
        return leaves
    if any(f"{_PARAMS}{name}" in leaves for name in wanted):
        entries = {name.removeprefix(_PARAMS): leaf for name, leaf in leaves.items()}
    elif any(name.removeprefix(_PARAMS) in leaves for name in wanted if name.startswith(_PARAMS)):
        entries = {f"{_PARAMS}{name}": leaf for name, leaf in leaves.items()}
    else:
        return leaves
    return leaves.replace(entries) if len(entries) == len(leaves) else leaves


def with_root(leaves: Leaves, kind: Kind) -> Leaves:
    """The leaves with `kind` as that of the root, unless their structure records one already."""
    known = leaves.structure
    if "" in known.kinds or () in known.paths.values():
        return leaves
    structure = known._replace(kinds={**known.kinds, "": kind})
    return Leaves(leaves, structure, leaves.metadata)


def have_same_bits(one: Any, other: Any) -> bool:
    """Whether two values have the same bits; they are read only if they are not the same object."""
    if isinstance(one, LazyArray) and isinstance(other, LazyArray):
        views = one.content.view, other.content.view
        return views[0] == views[1] or np.array_equal(*(_bits(view.read()) for view in views))
    return one is other or np.array_equal(_bits(one), _bits(other))


def _bits(value: Any) -> Any:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def refuse_foreign(tree: Any, framework: str) -> None:
    """Raise `LeafError` if `tree` is a container, or a model, of another framework."""
    cls = type(tree)
    # A user's model has a class of their own; its base classes show the framework.
    modules = [base.__module__.partition(".")[0] for base in cls.__mro__]
    owner = next((module for module in modules if module in _FRAMEWORKS), framework)
    if owner != framework:
        raise LeafError(
            f"safejax.{framework}: expected a tree of {framework}, got "
            f"{cls.__module__}.{cls.__qualname__}, which belongs to {owner}: use safejax.{owner}"
        )


def explain_missing(
    error: ModuleNotFoundError, framework: str, packages: Mapping[str, str]
) -> None:
    """Raise an error that names the remedy if the module not found is one of the framework's.

    `packages` has the modules that our extra `framework` installs, each with its package on PyPI.
    Nothing is raised for any other module: installing the extra would not mend that, and `error`
    says by itself what is wrong.
    """
    if error.name is not None and error.name in packages:
        raise ModuleNotFoundError(
            f"safejax.{framework} needs {packages[error.name]}, which is not installed ({error}): "
            f"pip install 'safejax[{framework}]'",
            name=error.name,
        ) from error
