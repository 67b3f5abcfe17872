"""The options of a load, declared once for every function that takes them.

A function takes them as `**options: Unpack[LoadOptions]`, so that type checkers and editors know
each by name; `shows_options` shows them, with their defaults, in `help()` and to
`inspect.signature`; `parse_options` makes one value of what was given.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Final, ForwardRef, TypeAlias, TypedDict, TypeVar, cast, final, get_args

from safejax._src.leaves.flatten import bound_leaves
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.on_host import read_all
from safejax._src.leaves.shardings import ShardingArgument, ShardingFunction, ShardingTree
from safejax._src.leaves.steps import TransformArgument, apply
from safejax._src.pytrees.building import build
from safejax._src.storage.files import PathLike
from safejax._src.storage.store import Access

Paths: TypeAlias = PathLike | Sequence[PathLike]
"""A file, a folder, an index or a URL; or several files, in a list or tuple.

A `Sequence`, since a `list[str]` is no `list[str | os.PathLike[str]]` to a type checker."""


class TreeOptions(TypedDict, total=False):
    """How the contents of a file become a tree; `safejax.load` documents each option.

    Written as strings where `help()` should show the name of a type and not what it expands to.
    """

    sharding: "ShardingTree | ShardingFunction"
    transform: "TransformArgument | None"
    strict: bool
    verify: bool


class LoadOptions(TreeOptions, total=False):
    """The options of `safejax.load`, which documents each of them."""

    access: "Access"


@final
@dataclass(frozen=True, slots=True)
class Options:
    """Every option of a load with its value; the defaults are written here only."""

    sharding: ShardingArgument = None
    transform: TransformArgument | None = None
    strict: bool = True
    verify: bool = False
    access: Access = "auto"

    def tree(self, leaves: Leaves, file: str, like: Any = None) -> Any:
        """The tree of the leaves in `file`: transformed, matched with `like`, given shardings.

        Nothing is read, except for leaves that are NumPy's in `like`.
        """
        bound = self.bound(leaves, file, like)
        # Only `like` can say that a leaf is for the host.
        return build(bound if like is None else read_all(bound), bound.structure, file)

    def bound(self, leaves: Leaves, file: str, like: Any = None) -> Leaves:
        """The leaves of that tree, by name, with an `OnHost` for each that is to be read."""
        return bound_leaves(
            apply(self.transform, leaves),
            like=like,
            sharding=self.sharding,
            strict=self.strict,
            file=file,
        )


_DEFAULTS: Final[dict[str, Any]] = {field.name: field.default for field in fields(Options)}

_Function = TypeVar("_Function", bound=Callable[..., Any])


def shows_options(function: _Function) -> _Function:
    """The same function, whose signature names each option that its `**options` stands for."""
    signature = inspect.signature(function)
    *own, options = signature.parameters.values()
    (typed_dict,) = get_args(options.annotation)
    expanded = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_DEFAULTS[name],
            annotation=kind.__forward_arg__ if isinstance(kind, ForwardRef) else kind,
        )
        for name, kind in typed_dict.__annotations__.items()
    ]
    cast("Any", function).__signature__ = signature.replace(parameters=[*own, *expanded])
    return function


def parse_options(function: Callable[..., Any], given: TreeOptions) -> Options:
    """The options that were given to `function`, with the defaults of the others.

    Raises `TypeError` for an option that `function` does not have, which suggests the name that
    was probably meant.
    """
    known = inspect.signature(function).parameters
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            options = ", ".join(
                key for key in known if known[key].default is not inspect.Parameter.empty
            )
            remedy = f"did you mean {near[0]!r}?" if near else f"expected one of {options}"
            raise TypeError(
                f"{function.__qualname__}() got an unexpected keyword argument {name!r}: {remedy}"
            )
    return Options(**given)
