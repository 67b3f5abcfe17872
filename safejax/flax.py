"""Flax: linen's variables, and NNX's modules and states.

    encoded = serialize(params)                       # linen: a dict or a FrozenDict
    params = deserialize(encoded)
    serialize(model, filename="model.safetensors")    # NNX: a module or a nnx.State
    load_into(model, "model.safetensors")
"""

from typing import Any

from safejax.adapter import Source, fetch, finish, missing, refuse_foreign, store, with_root
from safejax.files import PathLike
from safejax.shardings import ShardingArgument
from safejax.steps import Transform
from safejax.structure import Kind, register_container
from safejax.tree import flatten

try:
    import flax.nnx  # noqa: F401
    from flax.core import FrozenDict, freeze
except ImportError as error:
    raise missing("flax", "flax") from error

from safejax.nnx import deserialize_like, is_nnx, load_into, pure_dict

__all__ = ["deserialize", "load_into", "serialize"]

_FROZEN_DICT = f"{FrozenDict.__module__}.{FrozenDict.__qualname__}"

register_container(_FROZEN_DICT, freeze)


def serialize(
    params: Any,
    filename: PathLike | None = None,
    metadata: dict[str, str] | None = None,
    fs: Any = None,
) -> Any:
    """The bytes of a safetensors file with `params`; or, with `filename`, its path.

    `params` are linen's variables (a dict or a `FrozenDict`), a `TrainState`, or an NNX module
    or `nnx.State`, of which each variable is stored under its path (`layers.0.kernel`).
    `metadata` maps strings to strings; `fs` is the fsspec file system of `filename`.

    Raises `LeafError` for what no file can hold, and for another framework's container.
    """
    refuse_foreign(params, "flax")
    if is_nnx(params):
        params = pure_dict(params)
    # A plain dict is told too, since a file that tells no container is read as a FrozenDict.
    return store(with_root(flatten(params), Kind()), filename, metadata, fs)


def deserialize(
    path_or_bytes: Source,
    fs: Any = None,
    *,
    like: Any = None,
    sharding: ShardingArgument = None,
    transform: Transform | None = None,
    strict: bool = True,
) -> Any:
    """What `serialize` was given, with lazy leaves: the same container, dict or `FrozenDict`.

    A file that tells no container, one of safejax 0.5 say, gives a `FrozenDict`, as it did
    then. With a `nnx.State` or an NNX module as `like`, abstract or concrete, another one of
    the same structure comes back; variables with named shardings are placed by them on the mesh
    of the context. NNX without `like` gives a dict. The other options are those of
    `safejax.load`.
    """
    leaves, file = fetch(path_or_bytes, fs)
    if like is None:
        leaves = with_root(leaves, Kind(_FROZEN_DICT))
    if is_nnx(like):
        return deserialize_like(
            leaves, file, like, sharding=sharding, transform=transform, strict=strict
        )
    return finish(
        leaves, file, like=like, sharding=sharding, transform=transform, strict=strict
    )


