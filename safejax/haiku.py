"""Haiku: parameters and state, dicts of dicts by module name.

    encoded = serialize(params)
    params = deserialize(encoded)
    both = deserialize(serialize({"params": params, "state": state}))

Module names keep their `/` and `~`: only dots part the names in a file.
"""

from collections.abc import Mapping
from typing import Any

from safejax.adapter import Source, Stored, fetch, finish, missing, refuse_foreign, store
from safejax.api import TransformArgument
from safejax.files import PathLike
from safejax.remote import FileSystem
from safejax.shardings import ShardingArgument
from safejax.structure import register_container

try:
    from haiku.data_structures import to_haiku_dict, to_immutable_dict
except ImportError as error:
    raise missing("dm-haiku", "haiku", error) from error

_FLAT_MAPPING = type(to_immutable_dict({}))

register_container(
    f"{_FLAT_MAPPING.__module__}.{_FLAT_MAPPING.__qualname__}",
    lambda children: to_immutable_dict(to_haiku_dict(children)),
)


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
    return store(params, filename, metadata, fs)


def deserialize(
    path_or_bytes: Source,
    fs: FileSystem | None = None,
    *,
    like: Any = None,
    sharding: ShardingArgument = None,
    transform: TransformArgument | None = None,
    strict: bool = True,
) -> Any:
    """The parameters, state or dict of both in a file, as `serialize` was given them; lazy.

    Reads the header only. Files of safejax 0.5 are read as well. The options are those of
    `safejax.load`.

    Raises what `safejax.load` raises.
    """
    leaves, file = fetch(path_or_bytes, fs)
    return finish(leaves, file, like=like, sharding=sharding, transform=transform, strict=strict)
