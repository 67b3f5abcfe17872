"""What safejax 0.5 had, and what takes its place: for errors that name the new way.

The released functions are `serialize(params, include_objax_variables, filename, fs)` and
`deserialize(path_or_buf, fs, freeze_dict, requires_unflattening, to_var_collection)`, in
`safejax`, `safejax.core.save` and `safejax.core.load`; the modules of the frameworks gave some
of these options other defaults.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

_Function = TypeVar("_Function", bound=Callable[..., Any])

_OPTIONS: Final = {
    "include_objax_variables": (
        "leave it out; safejax.objax.serialize(model.vars()) stores the kinds of variables"
    ),
    "freeze_dict": (
        "leave it out; safejax.flax.deserialize gives a FrozenDict for a file of 0.5, and "
        "flax.core.freeze(tree) makes one of any dict"
    ),
    "requires_unflattening": (
        "leave it out; the structure comes back, and safejax.flatten(tree) gives it flat, by name"
    ),
    "to_var_collection": (
        "leave it out; safejax.objax.deserialize gives a VarCollection, and safejax.decode(data) "
        "its arrays by name"
    ),
    "path_or_buf": "give it first, without a name",
    "params": "give it first, without a name",
}
"""The options of 0.5 with what to do now, for every function that does not have them."""

_AT_THE_TOP: Final = {
    ("serialize", "filename"): "it gives bytes; call safejax.save(tree, filename)",
    ("serialize", "fs"): "it gives bytes; call safejax.save(tree, filename, fs=fs)",
    ("deserialize", "fs"): "it takes bytes; call safejax.load(path, fs=fs)",
}
"""The options that functions of the frameworks have, and those for any tree do not."""

_POSITIONS: Final = {
    "serialize": ("params", "include_objax_variables", "filename", "fs"),
    "deserialize": (
        "path_or_buf",
        "fs",
        "freeze_dict",
        "requires_unflattening",
        "to_var_collection",
    ),
}

_SAVE: Final = "safejax.save, or serialize of safejax.flax, safejax.haiku or safejax.objax"
_LOAD: Final = "safejax.load, or deserialize of safejax.flax, safejax.haiku or safejax.objax"
_MODULES: Final = {
    "core": f"for safejax.core.save use {_SAVE}; for safejax.core.load use {_LOAD}",
    "utils": (
        "for flatten_dict use safejax.flatten, for unflatten_dict safejax.unflatten, and for "
        "cast_objax_variables safejax.objax.deserialize"
    ),
    "typing": (
        "for PathLike write str | os.PathLike[str], and for the types of parameters Any, or "
        "those of the framework"
    ),
}
"""The modules that 0.5 had and that are gone."""


def module_error(name: str) -> ImportError:
    """The error for the import of a module of safejax 0.5 that is gone."""
    # Not a ModuleNotFoundError: `from safejax import core` would replace its message.
    return ImportError(_of_module(name), name=f"safejax.{name}")


def attribute_error(name: str) -> AttributeError:
    """The error for an attribute that the module `safejax` does not have."""
    said = f"module 'safejax' has no attribute {name!r}"
    return AttributeError(f"{said}: {_of_module(name)}" if name in _MODULES else said)


def _of_module(name: str) -> str:
    return f"safejax.{name} was a module of safejax 0.5 and is gone: {_MODULES[name]}"


def names_new_way(function: _Function) -> _Function:
    """The same function, which raises `TypeError` with the new way for a call as in 0.5.

    Only calls that would fail anyhow are refused: those with an option, named or by its position,
    that `function` does not have.
    """

    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        gone = _gone_option(function, args, options)
        if gone is not None:
            remedy = _AT_THE_TOP.get((function.__name__, gone)) or _OPTIONS[gone]
            raise TypeError(
                f"{function.__qualname__}() got the argument {gone!r} of safejax 0.5, which it no "
                f"longer has: {remedy}"
            )
        return function(*args, **options)

    return cast("_Function", called)


def _gone_option(
    function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
) -> str | None:
    """The first option of safejax 0.5 that a call has and `function` has not."""
    old = _POSITIONS.get(function.__name__, ())
    given = list(old[1 : len(args)])
    if function.__name__ == "serialize" and given and not isinstance(args[1], bool):
        given[0] = "filename"  # Its position now.
    given += [name for name in options if name in _OPTIONS or name in old]
    if not given:
        return None
    known = inspect.signature(function).parameters
    return next((name for name in given if name not in known), None)
