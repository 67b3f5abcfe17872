"""Equinox: models, whose arrays are stored and whose static parts come from `like`.

    encoded = serialize(model)
    model = deserialize(encoded, like=model)
"""

from typing import Any, TypeVar

import jax

from safejax.adapter import Source, fetch, finish, missing, refuse_foreign, store
from safejax.files import PathLike
from safejax.leaves import Leaves, is_array, is_scalar
from safejax.shardings import ShardingArgument
from safejax.steps import Transform
from safejax.tree import flatten

try:
    import equinox
except ImportError as error:
    raise missing("equinox", "equinox") from error

_Model = TypeVar("_Model")


def serialize(
    model: Any,
    filename: PathLike | None = None,
    metadata: dict[str, str] | None = None,
    fs: Any = None,
) -> Any:
    """The bytes of a safetensors file with `model`; or, with `filename`, its path.

    `model` is any pytree of Equinox modules, a tuple of a model and its `equinox.nn.State` say.
    Its arrays and Python scalars are stored; functions and other static leaves are not, as in
    `equinox.tree_serialise_leaves`. `metadata` maps strings to strings; `fs` is the fsspec file
    system of `filename`.

    Raises `LeafError` for what no file can hold, and for another framework's container.
    """
    refuse_foreign(model, "equinox")
    stored = flatten(_dynamic(model))
    present = {name: leaf for name, leaf in stored.items() if leaf is not None}
    return store(Leaves(present, stored.structure), filename, metadata, fs)


def deserialize(
    path_or_bytes: Source,
    fs: Any = None,
    *,
    like: _Model,
    sharding: ShardingArgument = None,
    transform: Transform | None = None,
    strict: bool = True,
) -> _Model:
    """`like` with the arrays and scalars of the file in the place of its own; lazy.

    `like` is a model of the same structure: one that was just made, or one of
    `jax.ShapeDtypeStruct`s from `equinox.filter_eval_shape`. Its static parts are taken over.
    The other options are those of `safejax.load`.

    Raises `MismatchError`, which reports every leaf that is missing, unexpected or of another
    shape or dtype.
    """
    leaves, file = fetch(path_or_bytes, fs)
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
