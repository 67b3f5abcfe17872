"""Haiku: parameters and state, dicts of dicts by module name.

    encoded = serialize(params)
    params = deserialize(encoded)
    both = deserialize(serialize({"params": params, "state": state}))

Module names keep their `/` and `~`: names in a file are split at dots only.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar, Unpack, overload

import jax

from safejax._src.adapter import (
    Source,
    Stored,
    at_params,
    explain_missing,
    fetch,
    refuse_foreign,
    store,
)
from safejax._src.checkpoint.options import LoadOptions, parse_options, shows_options
from safejax._src.leaves.flatten import flatten
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import apply
from safejax._src.moved import names_new_way
from safejax._src.pytrees.building import register_container
from safejax._src.pytrees.names import split
from safejax._src.pytrees.structure import Kind, container_key
from safejax._src.pytrees.walk import walk
from safejax._src.reading.filesystems import FileSystem
from safejax._src.storage.files import PathLike

try:
    from haiku.data_structures import to_haiku_dict, to_immutable_dict
except ModuleNotFoundError as error:
    explain_missing(error, "haiku", {"haiku": "dm-haiku"})
    raise

__all__ = ["deserialize", "serialize"]

_Path = TypeVar("_Path", bound=PathLike)
_Tree = TypeVar("_Tree")

_IMMUTABLE: Final = type(to_immutable_dict({}))
_IMMUTABLE_NAME: Final = f"{_IMMUTABLE.__module__}.{_IMMUTABLE.__qualname__}"

register_container(_IMMUTABLE_NAME, lambda children: to_immutable_dict(to_haiku_dict(children)))


@overload
def serialize(
    params: Any,
    filename: None = None,
    metadata: Mapping[str, str] | None = None,
    fs: None = None,
) -> bytes: ...
@overload
def serialize(
    params: Any,
    filename: _Path,
    metadata: Mapping[str, str] | None = None,
    fs: FileSystem = None,
) -> _Path: ...
@names_new_way
def serialize(
    params: Any,
    filename: PathLike | None = None,
    metadata: Mapping[str, str] | None = None,
    fs: FileSystem = None,
) -> Stored:
    """The bytes of a safetensors file with `params`; or, with `filename`, that path.

    `params` are a Haiku model's parameters, its state, or a dict of both. `metadata` maps
    strings to strings; `fs` is the fsspec file system of `filename`.

    >>> import jax.numpy as jnp, safejax.haiku
    >>> params = {"mlp/~/linear_0": {"w": jnp.ones((3, 2))}}
    >>> safejax.haiku.deserialize(safejax.haiku.serialize(params))
    {'mlp/~/linear_0': {'w': LazyArray(float32[3,2], name='mlp/~/linear_0.w', unread)}}

    Raises `LeafError` for a leaf that no file can hold and for a container of another framework,
    and `OSError` if the file cannot be written.
    """
    refuse_foreign(params, "haiku")
    return store(_flatten(params), filename, metadata, fs)


@overload
def deserialize(
    path_or_bytes: Source,
    fs: FileSystem = None,
    *,
    like: None = None,
    **options: Unpack[LoadOptions],
) -> Any: ...
@overload
def deserialize(
    path_or_bytes: Source, fs: FileSystem = None, *, like: _Tree, **options: Unpack[LoadOptions]
) -> _Tree: ...
@names_new_way
@shows_options
def deserialize(
    path_or_bytes: Source,
    fs: FileSystem = None,
    *,
    like: Any = None,
    **options: Unpack[LoadOptions],
) -> Any:
    """The parameters, the state or the dict of both that `serialize` was given; lazy.

    Only the header is read, and what is NumPy's in `like`. Files of safejax 0.5 are read as well.
    With `like`, parameters are read also where the file or `like` has them below `params` and the
    other has not. The options are those of `safejax.load`, and so are the errors.
    """
    parsed = parse_options(deserialize, options)
    leaves, file = fetch(path_or_bytes, fs, parsed)
    mutable = _mutable(like)
    leaves = at_params(apply(parsed.transform, leaves), mutable)
    tree = replace(parsed, transform=None).tree(leaves, file, mutable)
    if like is None:
        return tree
    return jax.tree.map(
        lambda node, part: to_immutable_dict(part) if _is_immutable(node) else part,
        like,
        tree,
        is_leaf=_is_immutable,
    )


def _flatten(params: Any) -> Leaves:
    """The Leaves of `params`, with the keys of Haiku's immutable dicts in their names.

    JAX flattens these dicts by position, without their keys.
    """
    leaves = flatten(_mutable(params))
    walked = walk(params, _is_immutable)
    kinds = dict(leaves.structure.kinds)
    for name, node in walked.entries.items():
        if _is_immutable(node):
            key = container_key(walked.structure.paths.get(name, split(name)))
            kinds[key] = kinds.get(key, Kind())._replace(type=_IMMUTABLE_NAME)
    return Leaves(leaves, leaves.structure._replace(kinds=kinds))


def _mutable(tree: Any) -> Any:
    return jax.tree.map(
        lambda node: to_haiku_dict(node) if _is_immutable(node) else node,
        tree,
        is_leaf=_is_immutable,
    )


def _is_immutable(node: Any) -> bool:
    return isinstance(node, _IMMUTABLE)
