"""Objax: collections of variables, each with its kind.

    encoded = serialize(params=model.vars())
    variables = deserialize(encoded)                                  # a VarCollection
    deserialize_with_assignment("params.safetensors", model_vars=model.vars())

A variable stands in the file under its name and kind, `(Linear).w::TrainVar`, as safejax 0.5
wrote it. A variable with two names is stored under the first; the others are told as aliases.
"""

from collections.abc import Mapping
from typing import Any, Final

from safejax.adapter import Source, fetch, finish, missing, store
from safejax.errors import LeafError
from safejax.files import PathLike
from safejax.leaves import Leaves
from safejax.shardings import ShardingArgument
from safejax.steps import Transform, apply
from safejax.structure import Kind, Structure, register_container

try:
    from objax import RandomState, StateVar, TrainRef, TrainVar, VarCollection
    from objax.variable import BaseVar
except ImportError as error:
    raise missing("objax (with six)", "objax") from error

_COLLECTION: Final = f"{VarCollection.__module__}.{VarCollection.__qualname__}"
_SUFFIX: Final = "::"
_KINDS: Final = {cls.__name__: cls for cls in (TrainVar, StateVar, RandomState, TrainRef)}


def serialize(
    params: VarCollection,
    filename: PathLike | None = None,
    metadata: dict[str, str] | None = None,
    fs: Any = None,
) -> Any:
    """The bytes of a safetensors file with the variables; or, with `filename`, its path.

    A variable with several names is stored once, and so is what a `TrainRef` refers to.
    `metadata` maps strings to strings; `fs` is the fsspec file system of `filename`.

    Raises `LeafError` for what is no `VarCollection`, and for a variable of a kind of its own.
    """
    entries, aliases = _entries(params)
    order = tuple(_stored_name(name, variable) for name, variable in params.items())
    kind = Kind(_COLLECTION, order=order, flat=True, aliases=tuple(sorted(aliases.items())))
    return store(Leaves(entries, Structure({"": kind})), filename, metadata, fs)


def deserialize(
    path_or_bytes: Source,
    fs: Any = None,
    *,
    like: VarCollection | None = None,
    sharding: ShardingArgument = None,
    transform: Transform | None = None,
    strict: bool = True,
) -> VarCollection:
    """The variables in a file, a `VarCollection` with the kinds that they had; values are lazy.

    Shared variables are shared again, and a `TrainRef` refers to its variable. Files of safejax
    0.5 are read as well. The options are those of `safejax.load`; transforms and sharding
    functions see names with their kind, `(Linear).w::TrainVar`.

    Raises `LeafError` for a file that names no kinds: another framework wrote it.
    """
    return _collection(_values(path_or_bytes, fs, like, sharding, transform, strict))


def deserialize_with_assignment(
    filename: Source,
    model_vars: VarCollection,
    fs: Any = None,
    *,
    sharding: ShardingArgument = None,
    transform: Transform | None = None,
    strict: bool = True,
) -> None:
    """Assign the values in a file to a model's variables, lazily.

    `filename` is a path, or the bytes of a file. The options are those of `safejax.load`.

    Raises `MismatchError` with every variable that is missing, unexpected, or of another kind,
    shape or dtype; nothing is then assigned.
    """
    values = _values(filename, fs, model_vars, sharding, transform, strict)
    for name, variable in model_vars.items():
        # objax's own check needs a part of JAX that 0.10 removed; ours is done.
        target = variable.ref if isinstance(variable, TrainRef) else variable
        target.assign(values[_stored_name(name, variable)], check=False)


def _values(
    source: Source,
    fs: Any,
    like: VarCollection | None,
    sharding: ShardingArgument,
    transform: Transform | None,
    strict: bool,
) -> dict[str, Any]:
    """The file's values by name and kind, those of aliases included."""
    leaves, file = fetch(source, fs)
    kind = leaves.structure.kinds.get("", Kind())
    aliases = dict(kind.aliases)
    # Names are never split: they hold dots, brackets and parentheses.
    leaves = apply(transform, Leaves(leaves, Structure({"": Kind(flat=True)}), leaves.metadata))
    every = {**leaves, **{name: leaves[to] for name, to in aliases.items() if to in leaves}}
    if like is not None:
        like = {_stored_name(name, variable): variable.value for name, variable in like.items()}
    values = finish(
        leaves.replace(every), file, like=like, sharding=sharding, transform=None, strict=strict
    )
    for name, to in aliases.items():
        if name in values and to in values:
            values[name] = values[to]
    in_order = [name for name in kind.order or () if name in values]
    return {name: values[name] for name in dict.fromkeys((*in_order, *values))}


def _entries(variables: VarCollection) -> tuple[dict[str, Any], dict[str, str]]:
    """Values by name and kind, each variable once, and the other names that it has."""
    if not isinstance(variables, VarCollection):
        raise LeafError(
            "safejax.objax: expected an objax.VarCollection, model.vars() say, got "
            f"{type(variables).__module__}.{type(variables).__qualname__}"
        )
    entries: dict[str, Any] = {}
    aliases: dict[str, str] = {}
    stored: dict[int, str] = {}
    # What is referred to goes first, so that a TrainRef is the alias and not the variable.
    for name, variable in sorted(
        variables.items(), key=lambda item: isinstance(item[1], TrainRef)
    ):
        if type(variable) not in _KINDS.values():
            raise LeafError(
                f"safejax.objax: leaf {name!r}: expected a variable of {', '.join(_KINDS)}, got "
                f"{type(variable).__qualname__}: store its value under one of these"
            )
        target = variable.ref if isinstance(variable, TrainRef) else variable
        stored_name = _stored_name(name, variable)
        if id(target) in stored:
            aliases[stored_name] = stored[id(target)]
        else:
            stored[id(target)] = stored_name
            entries[stored_name] = variable.value
    return entries, aliases


def _stored_name(name: str, variable: BaseVar) -> str:
    return f"{name}{_SUFFIX}{type(variable).__name__}"


def _collection(values: Mapping[str, Any]) -> VarCollection:
    """The variables of these values; values that are one object become one variable."""
    variables: dict[int, BaseVar] = {}
    named: dict[str, BaseVar] = {}
    # Again what is referred to first.
    for stored_name in sorted(values, key=lambda name: name.endswith(f"{_SUFFIX}TrainRef")):
        name, separator, kind = stored_name.rpartition(_SUFFIX)
        if not separator or kind not in _KINDS:
            raise LeafError(
                f"safejax.objax: leaf {stored_name!r}: expected a name that ends in its kind, "
                f"::TrainVar say, got none of {', '.join(_KINDS)}: load it with safejax.load"
            )
        value = values[stored_name]
        shared = variables.get(id(value))
        if kind == "TrainRef":
            referred = shared if isinstance(shared, TrainVar) else TrainVar(value)
            named[name] = TrainRef(referred)
            variables[id(value)] = referred
        elif shared is not None:
            named[name] = shared
        else:
            named[name] = variables[id(value)] = _variable(kind, value)
    order = [name.rpartition(_SUFFIX)[0] for name in values]
    return VarCollection((name, named[name]) for name in order)


def _variable(kind: str, value: Any) -> BaseVar:
    if kind != "RandomState":
        return _KINDS[kind](value)
    # Its constructor takes a seed.
    state = RandomState.__new__(RandomState)
    StateVar.__init__(state, value, None)
    return state


register_container(_COLLECTION, _collection)
