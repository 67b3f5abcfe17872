"""Haiku: parameters and state, dicts of dicts by module name.

    encoded = serialize(params)
    params = deserialize(encoded)
    both = deserialize(serialize({"params": params, "state": state}))

Module names keep their `/` and `~`: only dots part the names in a file.
"""

from collections.abc import Mapping
from typing import Any, Final

import jax

from safejax.access import Access
from safejax.adapter import Source, Stored, fetch, finish, missing, refuse_foreign, store
from safejax.files import PathLike
from safejax.leaves import Leaves
from safejax.names import split
from safejax.remote import FileSystem
from safejax.shardings import ShardingArgument
from safejax.steps import TransformArgument
from safejax.structure import Kind, container_key, register_container, walk
from safejax.tree import flatten

try:
    from haiku.data_structures import to_haiku_dict, to_immutable_dict
except ImportError as error:
    raise missing("dm-haiku", "haiku", error) from error

_IMMUTABLE: Final = type(to_immutable_dict({}))
_IMMUTABLE_NAME: Final = f"{_IMMUTABLE.__module__}.{_IMMUTABLE.__qualname__}"

register_container(_IMMUTABLE_NAME, lambda children: to_immutable_dict(to_haiku_dict(children)))


def serialize(
    params: Any,
    filename: PathLike | None = None,
    metadata: Mapping[str, str] | None = None,
    fs: FileSystem | None = None,
) -> Stored:
    """The bytes of a safetensors file with `params`; or, with `filename`, that path.

    `params` are a Haiku model's parameters, its state, or a dict of both. `metadata` maps
    strings to strings; `fs` is the fsspec file system of `filename`.

    >>> import jax.numpy as jnp, safejax.haiku
    >>> params = {"mlp/~/linear_0": {"w": jnp.ones((3, 2))}}
    >>> safejax.haiku.deserialize(safejax.haiku.serialize(params))
    {'mlp/~/linear_0': {'w': LazyArray(float32[3,2], name='mlp/~/linear_0.w', unread)}}

    Raises `LeafError` for what no file can hold, and for another framework's container;
    `OSError` where the file cannot be written.
    """
    refuse_foreign(params, "haiku")
    return store(_flatten(params), filename, metadata, fs)


def deserialize(
    path_or_bytes: Source,
    fs: FileSystem | None = None,
    *,
    like: Any = None,
    sharding: ShardingArgument = None,
    transform: TransformArgument | None = None,
    strict: bool = True,
    verify: bool = False,
    access: Access = "auto",
) -> Any:
    """The parameters, state or dict of both in a file, as `serialize` was given them; lazy.

    Reads the header only. Files of safejax 0.5 are read as well. The options are those of
    `safejax.load`.

    Raises what `safejax.load` raises.
    """
    leaves, file = fetch(path_or_bytes, fs, verify=verify, access=access)
    tree = finish(
        leaves, file, like=_mutable(like), sharding=sharding, transform=transform, strict=strict
    )
    if like is None:
        return tree
    return jax.tree.map(
        lambda node, part: to_immutable_dict(part) if _is_immutable(node) else part,
        like,
        tree,
        is_leaf=_is_immutable,
    )


def _flatten(params: Any) -> Leaves:
    """The Leaves of `params`, those of Haiku's immutable dicts by their keys.

    JAX knows these dicts by the positions of their leaves alone.
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
