"""Flax: linen's variables, and NNX's modules and states.

    encoded = serialize(params)                       # linen: a dict or a FrozenDict
    params = deserialize(encoded)
    serialize(model, filename="model.safetensors")    # NNX: a module or a nnx.State
    load_into(model, "model.safetensors")

Linen's variables are pytrees as they are; what is particular to NNX stands in `safejax.nnx`.
"""

from collections.abc import Mapping
from typing import Any

from safejax.access import Access
from safejax.adapter import (
    Source,
    Stored,
    fetch,
    finish,
    missing,
    refuse_foreign,
    store,
    with_root,
)
from safejax.files import PathLike
from safejax.remote import FileSystem
from safejax.shardings import ShardingArgument
from safejax.steps import TransformArgument
from safejax.structure import Kind, register_container
from safejax.tree import flatten

try:
    from flax.core import FrozenDict, freeze

    from safejax.nnx import deserialize_like, is_nnx, load_into, values_of
except ImportError as error:
    raise missing("flax", "flax", error) from error

__all__ = ["deserialize", "load_into", "serialize"]

_FROZEN_DICT = f"{FrozenDict.__module__}.{FrozenDict.__qualname__}"

register_container(_FROZEN_DICT, freeze)


def serialize(
    params: Any,
    filename: PathLike | None = None,
    metadata: Mapping[str, str] | None = None,
    fs: FileSystem | None = None,
) -> Stored:
    """The bytes of a safetensors file with `params`; or, with `filename`, that path.

    `params` are linen's variables (a dict or a `FrozenDict`), a `TrainState`, or what NNX has
    variables in: a module, an optimizer, a `nnx.State`, or a dict or tuple of these. A variable
    of NNX is stored under its path (`layers.0.kernel`), a shared one once. `metadata` maps
    strings to strings; `fs` is the fsspec file system of `filename`.

    >>> import jax.numpy as jnp, safejax.flax
    >>> params = {"params": {"dense": {"kernel": jnp.ones((3, 2))}}}
    >>> safejax.flax.deserialize(safejax.flax.serialize(params))
    {'params': {'dense': {'kernel': LazyArray(float32[3,2], name='params.dense.kernel', unread)}}}

    Raises `LeafError` for what no file can hold, and for another framework's container;
    `OSError` where the file cannot be written.
    """
    refuse_foreign(params, "flax")
    if is_nnx(params):
        params = values_of(params)
    # A plain dict is told too, since a file that tells no container is read as a FrozenDict.
    return store(with_root(flatten(params), Kind()), filename, metadata, fs)


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
    """What `serialize` was given, with lazy leaves: the same container, dict or `FrozenDict`.

    Reads the header only. A file that tells no container, one of safejax 0.5 say, gives a
    `FrozenDict`, as it did then. With what NNX has variables in as `like`, abstract or concrete,
    another one of the same structure comes back, and `like` keeps its own values; variables
    with named shardings are placed by them on their mesh, or on that of the context. NNX without
    `like` gives a dict of values. The other options are those of `safejax.load`.

    Raises what `safejax.load` raises.
    """
    leaves, file = fetch(path_or_bytes, fs, verify=verify, access=access)
    if is_nnx(like):
        return deserialize_like(
            leaves, file, like, sharding=sharding, transform=transform, strict=strict
        )
    if like is None:
        leaves = with_root(leaves, Kind(_FROZEN_DICT))
    return finish(leaves, file, like=like, sharding=sharding, transform=transform, strict=strict)
