"""Equinox: models, whose arrays are stored and whose static parts come from `like`.

    encoded = serialize(model)
    model = deserialize(encoded, like=model)

The arrays and Python scalars of a model are stored; functions and other static leaves are not,
as with `equinox.tree_serialise_leaves`.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax

from safejax.access import Access
from safejax.adapter import Source, Stored, fetch, finish, missing, refuse_foreign, store
from safejax.files import PathLike
from safejax.leaves import Leaves, is_array, is_scalar
from safejax.remote import FileSystem
from safejax.shardings import ShardingArgument
from safejax.steps import TransformArgument
from safejax.tree import flatten

try:
    import equinox
except ImportError as error:
    raise missing("equinox", "equinox", error) from error

_Model = TypeVar("_Model")


def serialize(
    model: Any,
    filename: PathLike | None = None,
    metadata: Mapping[str, str] | None = None,
    fs: FileSystem | None = None,
) -> Stored:
    """The bytes of a safetensors file with `model`; or, with `filename`, that path.

    `model` is any pytree of Equinox modules, a tuple of a model and its `equinox.nn.State` say.
    `metadata` maps strings to strings; `fs` is the fsspec file system of `filename`.

    >>> import equinox as eqx, jax, safejax.equinox
    >>> make = lambda: eqx.nn.Linear(2, 3, key=jax.random.key(0))
    >>> data = safejax.equinox.serialize(make())
    >>> safejax.equinox.deserialize(data, like=eqx.filter_eval_shape(make)).weight
    LazyArray(float32[3,2], name='weight', unread)

    Raises `LeafError` for what no file can hold, and for another framework's container;
    `OSError` where the file cannot be written.
    """
    refuse_foreign(model, "equinox")
    stored = flatten(_dynamic(model))
    present = {name: leaf for name, leaf in stored.items() if leaf is not None}
    return store(Leaves(present, stored.structure), filename, metadata, fs)


def deserialize(
    path_or_bytes: Source,
    fs: FileSystem | None = None,
    *,
    like: _Model,
    sharding: ShardingArgument = None,
    transform: TransformArgument | None = None,
    strict: bool = True,
    verify: bool = False,
    access: Access = "auto",
) -> _Model:
    """`like` with the arrays and scalars of the file in the place of its own; lazy.

    Reads the header only. `like` is a model of the same structure: one that was just made, or
    one of `jax.ShapeDtypeStruct`s from `equinox.filter_eval_shape`. Its static parts are taken
    over. The other options are those of `safejax.load`.

    Raises `MismatchError`, which reports every leaf that is missing, unexpected or of another
    shape or dtype, and what else `safejax.load` raises.
    """
    leaves, file = fetch(path_or_bytes, fs, verify=verify, access=access)
    dynamic = _dynamic(like)
    loaded = finish(
        leaves, file, like=dynamic, sharding=sharding, transform=transform, strict=strict
    )
    return equinox.combine(loaded, jax.tree.map(_static, like))


def _dynamic(model: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf if _is_stored(leaf) else None, model)


def _static(leaf: Any) -> Any:
    return None if _is_stored(leaf) else leaf


def _is_stored(leaf: Any) -> bool:
    return is_array(leaf) or (is_scalar(leaf) and not isinstance(leaf, str))
