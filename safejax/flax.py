"""Flax: linen's variables, and NNX's modules and states.

    encoded = serialize(params)                       # linen: a dict or a FrozenDict
    params = deserialize(encoded)
    serialize(model, filename="model.safetensors")    # NNX: a module or a nnx.State
    load_into(model, "model.safetensors")

Linen's variables are ordinary pytrees; what is particular to NNX is in `safejax.nnx`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar, Unpack, overload

from safejax._src.adapter import (
    Source,
    Stored,
    at_params,
    explain_missing,
    fetch,
    refuse_foreign,
    store,
    with_root,
)
from safejax._src.checkpoint.options import LoadOptions, parse_options, shows_options
from safejax._src.leaves.flatten import flatten
from safejax._src.leaves.steps import apply
from safejax._src.moved import names_new_way
from safejax._src.pytrees.building import register_container
from safejax._src.pytrees.structure import Kind
from safejax._src.reading.filesystems import FileSystem
from safejax._src.storage.files import PathLike
from safejax.nnx import deserialize_like, is_nnx, load_into, values_of

try:
    from flax.core import FrozenDict, freeze
except ModuleNotFoundError as error:
    explain_missing(error, "flax", {"flax": "flax"})
    raise

__all__ = ["deserialize", "load_into", "serialize"]

_Path = TypeVar("_Path", bound=PathLike)
_Tree = TypeVar("_Tree")

_FROZEN_DICT = f"{FrozenDict.__module__}.{FrozenDict.__qualname__}"

register_container(_FROZEN_DICT, freeze)


@overload
def serialize(
    params: Any,
    filename: None = None,
    metadata: Mapping[str, str] | None = None,
    fs: None = None,
    *,
    only: Any = ...,
) -> bytes: ...
@overload
def serialize(
    params: Any,
    filename: _Path,
    metadata: Mapping[str, str] | None = None,
    fs: FileSystem = None,
    *,
    only: Any = ...,
) -> _Path: ...
@names_new_way
def serialize(
    params: Any,
    filename: PathLike | None = None,
    metadata: Mapping[str, str] | None = None,
    fs: FileSystem = None,
    *,
    only: Any = ...,
) -> Stored:
    """The bytes of a safetensors file with `params`; or, with `filename`, that path.

    `params` are the variables of a linen model (a dict or a `FrozenDict`), a `TrainState`, or
    what holds variables of NNX: a module, an optimizer, an `nnx.State`, or a dict or tuple of
    these. A variable of NNX is stored under its path (`layers.0.kernel`), a shared one once.
    `only` is an NNX filter, for example `nnx.Param`: other variables are not stored, and
    `load_into(..., only=nnx.Param)` assigns these again. `metadata` maps strings to strings; `fs`
    is the fsspec file system of `filename`.

    >>> import jax.numpy as jnp, safejax.flax
    >>> params = {"params": {"dense": {"kernel": jnp.ones((3, 2))}}}
    >>> safejax.flax.deserialize(safejax.flax.serialize(params))
    {'params': {'dense': {'kernel': LazyArray(float32[3,2], name='params.dense.kernel', unread)}}}

    Raises `LeafError` for a leaf that no file can hold, for a container of another framework and
    if `only` selects no variable, and `OSError` if the file cannot be written.
    """
    refuse_foreign(params, "flax")
    if is_nnx(params):
        params = values_of(params, only)
    elif only is not ...:
        raise TypeError(
            f"only: expected variables of NNX with it, got {type(params).__qualname__}: choose "
            "the collections of linen's variables, as in {'params': variables['params']}"
        )
    # A plain dict is recorded too: a file that records no container is read as a FrozenDict.
    return store(with_root(flatten(params), Kind()), filename, metadata, fs)


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
    """What `serialize` was given, with lazy leaves: the same container, dict or `FrozenDict`.

    Only the header is read, and what is NumPy's in `like`. A file that records no container, for
    example one of safejax 0.5, gives a `FrozenDict`, as it did then. If `like` holds variables of
    NNX, abstract or concrete, a copy of it with the values of the file comes back, and `like` keeps
    its own values. Variables with named shardings are placed by them, on their mesh or on that of
    the context. A file of NNX's variables without `like` gives a dict of values. With linen's
    variables as `like`, a file of the bare parameters is read too, and the reverse. The other
    options are those of `safejax.load`, and so are the errors.
    """
    parsed = parse_options(deserialize, options)
    leaves, file = fetch(path_or_bytes, fs, parsed)
    if is_nnx(like):
        return deserialize_like(leaves, file, like, parsed)
    if like is None:
        leaves = with_root(leaves, Kind(_FROZEN_DICT))
    leaves = at_params(apply(parsed.transform, leaves), like)
    return replace(parsed, transform=None).tree(leaves, file, like)
