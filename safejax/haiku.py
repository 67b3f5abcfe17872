"""Haiku: parameters and state, dicts of dicts by module name.

    encoded = serialize(params)
    params = deserialize(encoded)
    both = deserialize(serialize({"params": params, "state": state}))
"""

from typing import Any

from safejax.adapter import Source, fetch, finish, missing, refuse_foreign, store
from safejax.files import PathLike
from safejax.shardings import ShardingArgument
from safejax.steps import Transform
from safejax.structure import register_container

try:
    from haiku.data_structures import to_haiku_dict, to_immutable_dict
except ImportError as error:
    raise missing("dm-haiku", "haiku") from error

_FLAT_MAPPING = type(to_immutable_dict({}))

register_container(
    f"{_FLAT_MAPPING.__module__}.{_FLAT_MAPPING.__qualname__}",
    lambda children: to_immutable_dict(to_haiku_dict(children)),
)


def serialize(
    params: Any,
    filename: PathLike | None = None,
    metadata: dict[str, str] | None = None,
    fs: Any = None,
) -> Any:
    """The bytes of a safetensors file with `params`; or, with `filename`, its path.

    `params` are a Haiku model's parameters, its state, or a dict of both. Module names keep
    their `/` and `~`. `metadata` maps strings to strings; `fs` is the fsspec file system of
    `filename`.

    Raises `LeafError` for what no file can hold, and for another framework's container.
    """
    refuse_foreign(params, "haiku")
    return store(params, filename, metadata, fs)


def deserialize(
    path_or_bytes: Source,
    fs: Any = None,
    *,
    like: Any = None,
    sharding: ShardingArgument = None,
    transform: Transform | None = None,
    strict: bool = True,
) -> Any:
    """The parameters, state or dict of both in a file, as `serialize` was given them; lazy.

    Files of safejax 0.5 are read as well. The options are those of `safejax.load`.
    """
    leaves, file = fetch(path_or_bytes, fs)
    return finish(
        leaves, file, like=like, sharding=sharding, transform=transform, strict=strict
    )
