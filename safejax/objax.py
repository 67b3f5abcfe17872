"""Objax: collections of variables, each with its kind.

    encoded = serialize(params=model.vars())
    variables = deserialize(encoded)                                  # a VarCollection
    deserialize_with_assignment("params.safetensors", model_vars=model.vars())

A variable is stored under its name and kind, `(Linear).w::TrainVar`, as safejax 0.5 did. A
variable with several names is stored under the first; the others are recorded as its aliases.

From JAX 0.10 on, objax 1.8 itself fails where a variable is assigned with its own check, with
`AttributeError: module 'jax.sharding' has no attribute 'PmapSharding'`. Nothing here does that;
in a program of yours write `variable.assign(value, check=False)`.
"""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar, Unpack, overload

from safejax._src.adapter import Source, Stored, explain_missing, fetch, have_same_bits, store
from safejax._src.arrays.lazy import LazyArray
from safejax._src.checkpoint.options import LoadOptions, Options, parse_options, shows_options
from safejax._src.leaves.leaf import is_array
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import apply
from safejax._src.moved import names_new_way
from safejax._src.pytrees.building import register_container
from safejax._src.pytrees.structure import Kind, Structure
from safejax._src.reading.filesystems import FileSystem
from safejax._src.storage.files import PathLike
from safejax.errors import LeafError, MismatchError

try:
    from objax import RandomState, StateVar, TrainRef, TrainVar, VarCollection
    from objax.variable import BaseVar
except ModuleNotFoundError as error:
    # objax does not declare that it needs six; our extra does.
    explain_missing(error, "objax", {"objax": "objax", "six": "six"})
    raise

__all__ = ["deserialize", "deserialize_with_assignment", "serialize"]

_Path = TypeVar("_Path", bound=PathLike)

_COLLECTION: Final = f"{VarCollection.__module__}.{VarCollection.__qualname__}"
_SUFFIX: Final = "::"
_KINDS: Final = {cls.__name__: cls for cls in (TrainVar, StateVar, RandomState, TrainRef)}


@overload
def serialize(
    params: VarCollection,
    filename: None = None,
    metadata: Mapping[str, str] | None = None,
    fs: None = None,
) -> bytes: ...
@overload
def serialize(
    params: VarCollection,
    filename: _Path,
    metadata: Mapping[str, str] | None = None,
    fs: FileSystem = None,
) -> _Path: ...
@names_new_way
def serialize(
    params: VarCollection,
    filename: PathLike | None = None,
    metadata: Mapping[str, str] | None = None,
    fs: FileSystem = None,
) -> Stored:
    """The bytes of a safetensors file with the variables; or, with `filename`, that path.

    A variable with several names is stored once, and so is one that a `TrainRef` refers to.
    `metadata` maps strings to strings; `fs` is the fsspec file system of `filename`.

    >>> import jax.numpy as jnp, objax, safejax.objax
    >>> variables = objax.VarCollection({"w": objax.TrainVar(jnp.ones((3, 2)))})
    >>> safejax.objax.deserialize(safejax.objax.serialize(variables))["w"].value
    LazyArray(float32[3,2], name='w::TrainVar', unread)

    Raises `LeafError` for anything that is not a `VarCollection` and for a variable of a class
    that objax does not define, and `OSError` if the file cannot be written.
    """
    shared = _shared(params)
    entries = {name: params[_bare(name)].value for name, first in shared.items() if first == name}
    aliases = tuple(sorted((name, first) for name, first in shared.items() if first != name))
    kind = Kind(_COLLECTION, order=tuple(shared), flat=True, aliases=aliases)
    return store(Leaves(entries, Structure({"": kind})), filename, metadata, fs)


@names_new_way
@shows_options
def deserialize(
    path_or_bytes: Source,
    fs: FileSystem = None,
    *,
    like: VarCollection | None = None,
    **options: Unpack[LoadOptions],
) -> VarCollection:
    """The variables in a file, as a `VarCollection` with the kinds they had; values are lazy.

    Only the header is read, and what is NumPy's in `like`. Shared variables are shared again, and a
    `TrainRef` refers to its variable; with `like`, kinds and sharing are those of `like`. Files of
    safejax 0.5 are read as well. The options are those of `safejax.load`. Transforms and sharding
    functions are given names with their kind, `(Linear).w::TrainVar`, and every name of a shared
    variable.

    Raises `LeafError` for a file that records no kinds (written by another framework) if there
    is no `like`, and whatever `safejax.load` raises.
    """
    parsed = parse_options(deserialize, options)
    return _collection(*_values(path_or_bytes, fs, like, parsed))


@shows_options
def deserialize_with_assignment(
    filename: Source,
    model_vars: VarCollection,
    fs: FileSystem = None,
    **options: Unpack[LoadOptions],
) -> None:
    """Assign the values in a file to a model's variables, lazily.

    `filename` is a path, or the bytes of a file; names in it may lack the kind. The options are
    those of `safejax.load`.

    Raises `MismatchError`, which reports every variable that is missing, unexpected, or of
    another kind, shape or dtype, and whatever else `safejax.load` raises; nothing is then
    assigned.
    """
    parsed = parse_options(deserialize_with_assignment, options)
    values, _ = _values(filename, fs, model_vars, parsed)
    for name, variable in model_vars.items():
        # objax's own check needs a part of JAX that 0.10 removed; ours has been made.
        _target(variable).assign(values[_stored_name(name, variable)], check=False)


def _shared(variables: VarCollection) -> dict[str, str]:
    """The name, with its kind, of each variable, mapped to the name it is stored under."""
    if not isinstance(variables, VarCollection):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise LeafError(
            "safejax.objax: expected an objax.VarCollection, for example model.vars(), got "
            f"{type(variables).__module__}.{type(variables).__qualname__}"
        )
    firsts: dict[int, str] = {}
    # A TrainRef comes after the variable it refers to, so that it becomes the alias.
    for name, variable in sorted(variables.items(), key=lambda item: isinstance(item[1], TrainRef)):
        if type(variable) not in _KINDS.values():
            raise LeafError(
                f"safejax.objax: leaf {name!r}: expected a variable of {', '.join(_KINDS)}, got "
                f"{type(variable).__qualname__}: store its value under one of these"
            )
        firsts.setdefault(id(_target(variable)), _stored_name(name, variable))
    return {
        _stored_name(name, variable): firsts[id(_target(variable))]
        for name, variable in variables.items()
    }


def _target(variable: BaseVar) -> BaseVar:
    return variable.ref if isinstance(variable, TrainRef) else variable


def _stored_name(name: str, variable: BaseVar) -> str:
    return f"{name}{_SUFFIX}{type(variable).__name__}"


def _bare(stored_name: str) -> str:
    return stored_name.rpartition(_SUFFIX)[0]


# ---- reading


def _values(
    source: Source, fs: FileSystem, like: VarCollection | None, options: Options
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values in a file by stored name, and each name with the first one of its variable."""
    leaves, file = fetch(source, fs, options)
    kind = leaves.structure.kinds.get("", Kind())
    aliased = {alias: leaves[to] for alias, to in kind.aliases}
    # These names are never split: they contain dots, brackets and parentheses.
    flat = Leaves({**leaves, **aliased}, Structure({"": Kind(flat=True)}), leaves.metadata)
    flat = apply(options.transform, flat)
    expected = None
    if like is None:
        shared = _same(flat, dict(kind.aliases))
    else:
        shared = _shared(like)
        expected = {name: like[_bare(name)].value for name in shared}
        flat = _as_named(flat, shared)
    values = replace(options, transform=None).tree(flat, file, expected)
    if like is not None:
        _check_shared(values, shared, file)
    order = dict.fromkeys((*(kind.order or ()), *values) if like is None else shared)
    return {name: values[shared[name]] for name in order if name in values}, shared


def _same(leaves: Leaves, aliases: Mapping[str, str]) -> dict[str, str]:
    """Each name with the first name of the same leaf, or of the same part of a file."""
    firsts: dict[Hashable, str] = {}
    shared: dict[str, str] = {}
    for name, leaf in leaves.items():
        seen: Hashable = aliases.get(name, name)
        if is_array(leaf):
            seen = leaf.content if isinstance(leaf, LazyArray) and leaf.size else id(leaf)
        shared[name] = firsts.setdefault(seen, name)
    return shared


def _as_named(leaves: Leaves, shared: Mapping[str, str]) -> Leaves:
    """The leaves under a model's names: with their kinds, and under every name of a variable."""
    kinds = {_bare(name): name for name in shared}
    named = {
        name if _has_kind(name) else kinds.get(name, name): leaf for name, leaf in leaves.items()
    }
    found = {first: named[name] for name, first in shared.items() if name in named}
    others = {name: found[first] for name, first in shared.items() if first in found}
    return leaves.replace({**others, **named})


def _check_shared(values: Mapping[str, Any], shared: Mapping[str, str], file: str) -> None:
    """Raise `MismatchError` where the file has two values for what is one variable."""
    contradictions = [
        f"{name!r} and {first!r}"
        for name, first in shared.items()
        if name != first and not have_same_bits(values[name], values[first])
    ]
    if contradictions:
        raise MismatchError(
            f"{file}: expected one value for names that share a variable in the model, got two, "
            f"for {'; '.join(contradictions)}: do not share it in the model, or leave out one name"
        )


def _has_kind(stored_name: str) -> bool:
    return _SUFFIX in stored_name and stored_name.rpartition(_SUFFIX)[2] in _KINDS


def _collection(
    values: Mapping[str, Any], shared: Mapping[str, str] | None = None
) -> VarCollection:
    """The variables of these values; `shared` maps each name to the first one of its variable.

    Without `shared`, the names of one array share a variable.
    """
    variables: dict[Hashable, Any] = {}
    named: dict[str, BaseVar] = {}
    for stored_name, value in values.items():
        name, _, kind = stored_name.rpartition(_SUFFIX)
        if not _has_kind(stored_name):
            raise LeafError(
                f"safejax.objax: leaf {stored_name!r}: expected a name that ends in a kind, as in "
                f"'w::TrainVar', got none of {', '.join(_KINDS)}: pass like=model.vars(), or "
                "load it with safejax.load"
            )
        if name in named:
            raise LeafError(
                f"safejax.objax: leaf {stored_name!r}: expected one variable for a name, got "
                f"{name!r} as another kind too: rename one with transform=rename(...)"
            )
        if shared is not None:
            which: Hashable = shared[stored_name]
        else:
            which = id(value) if is_array(value) else stored_name
        referred = "TrainVar" if kind == "TrainRef" else kind
        if (which, referred) not in variables:
            variables[which, referred] = _variable(referred, value)
        variable = variables[which, referred]
        named[name] = TrainRef(variable) if kind == "TrainRef" else variable
    return VarCollection(named)


def _variable(kind: str, value: Any) -> BaseVar:
    if kind != "RandomState":
        return _KINDS[kind](value)
    # Its constructor takes a seed, not a state.
    state = RandomState.__new__(RandomState)
    StateVar.__init__(state, value, None)
    return state


register_container(_COLLECTION, _collection)
