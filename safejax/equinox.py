"""Equinox: models, whose arrays are stored and whose static parts are taken from `like`.

    encoded = serialize(model)
    model = deserialize(encoded, like=model)

The arrays and Python scalars of a model are stored; functions and other static leaves are not,
as with `equinox.tree_serialise_leaves`.
"""

from collections.abc import Mapping
from typing import Any, TypeVar, Unpack, overload

import jax

from safejax._src.adapter import (
    Source,
    Stored,
    explain_missing,
    fetch,
    file_at,
    refuse_foreign,
    store,
)
from safejax._src.checkpoint.foreign import open_eqx
from safejax._src.checkpoint.options import LoadOptions, parse_options, shows_options
from safejax._src.leaves.flatten import flatten
from safejax._src.leaves.leaf import is_array, is_scalar
from safejax._src.leaves.leaves import Leaves
from safejax._src.reading.filesystems import FileSystem
from safejax._src.storage.files import PathLike

try:
    import equinox
except ModuleNotFoundError as error:
    explain_missing(error, "equinox", {"equinox": "equinox"})
    raise

__all__ = ["deserialize", "serialize"]

_Path = TypeVar("_Path", bound=PathLike)
_Model = TypeVar("_Model")


@overload
def serialize(
    model: Any,
    filename: None = None,
    metadata: Mapping[str, str] | None = None,
    fs: None = None,
) -> bytes: ...
@overload
def serialize(
    model: Any,
    filename: _Path,
    metadata: Mapping[str, str] | None = None,
    fs: FileSystem = None,
) -> _Path: ...
def serialize(
    model: Any,
    filename: PathLike | None = None,
    metadata: Mapping[str, str] | None = None,
    fs: FileSystem = None,
) -> Stored:
    """The bytes of a safetensors file with `model`; or, with `filename`, that path.

    `model` is any pytree of Equinox modules, for example a model with its `equinox.nn.State`.
    `metadata` maps strings to strings; `fs` is the fsspec file system of `filename`.

    >>> import equinox as eqx, jax, safejax.equinox
    >>> make = lambda: eqx.nn.Linear(2, 3, key=jax.random.key(0))
    >>> data = safejax.equinox.serialize(make())
    >>> safejax.equinox.deserialize(data, like=eqx.filter_eval_shape(make)).weight
    LazyArray(float32[3,2], name='weight', unread)

    Raises `LeafError` for a leaf that no file can hold and for a container of another framework,
    and `OSError` if the file cannot be written.
    """
    refuse_foreign(model, "equinox")
    stored = flatten(_dynamic(model))
    present = {name: leaf for name, leaf in stored.items() if leaf is not None}
    return store(Leaves(present, stored.structure), filename, metadata, fs)


@shows_options
def deserialize(
    path_or_bytes: Source, fs: FileSystem = None, *, like: _Model, **options: Unpack[LoadOptions]
) -> _Model:
    """`like`, with its arrays and Python scalars replaced by those of the file; lazy.

    Only the header is read, and what is NumPy's in `like`. `like` is a model of the same structure:
    a newly made one, or one of `jax.ShapeDtypeStruct`s from `equinox.filter_eval_shape`. Its static
    parts are kept. The other options are those of `safejax.load`.

    A file that `equinox.tree_serialise_leaves` has written is read, too, also behind a line of
    JSON: its arrays have no names, so `like` has to have as many, in the same order.

    Raises `MismatchError`, which reports every leaf that is missing, unexpected or of another
    shape or dtype, and whatever else `safejax.load` raises.
    """
    parsed = parse_options(deserialize, options)
    stored = _dynamic(like)
    source = file_at(path_or_bytes, fs, parsed)
    leaves = None if source is None else open_eqx(source, stored)
    if source is None or leaves is None:
        leaves, file = fetch(path_or_bytes, fs, parsed)
    else:
        file = source.name
    loaded = parsed.tree(leaves, file, stored)
    return equinox.combine(loaded, jax.tree.map(_static, like))


def _dynamic(model: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf if _is_stored(leaf) else None, model)


def _static(leaf: Any) -> Any:
    return None if _is_stored(leaf) else leaf


def _is_stored(leaf: Any) -> bool:
    return is_array(leaf) or (is_scalar(leaf) and not isinstance(leaf, str))
