"""What transforms share: the leaves that they apply to, their new names, and their axes."""

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import jax

from safejax.contents import Content
from safejax.errors import TransformError
from safejax.lazy import like_leaf
from safejax.leaves import Leaves, check_name, content_at, is_array
from safejax.names import Template, Where, predicate
from safejax.steps import Transform


def checked_where(where: Where | None) -> Where | None:
    """`where`, if it is a pattern, a function or None; `TransformError` otherwise."""
    if isinstance(where, str):
        Template.parse(where)
    elif where is not None and not callable(where):  # pyright: ignore[reportUnnecessaryComparison]
        raise TransformError(f"where: expected a pattern or a function of the name, got {where!r}")
    return where


def required_where(step: str, where: Where) -> Where:
    """`where`, if it is a pattern or a function; `TransformError` otherwise, also for None."""
    if where is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise TransformError(f"{step}: expected a pattern or a function of the name, got None")
    checked_where(where)
    return where


def show_where(where: Where) -> str:
    """`where` as it was written in the call that made the transform."""
    return repr(where) if isinstance(where, str) else getattr(where, "__qualname__", repr(where))


def map_contents(
    transform: Transform,
    leaves: Leaves,
    where: Where | None,
    must_match: bool,
    function: Callable[[str, Content], Content],
) -> Leaves:
    """The leaves with the content of each chosen array replaced by `function` of it; unread.

    Raises `TransformError` if `where` matches no leaf, unless `must_match` is false.
    """
    names = set(leaves) if where is None else set(filter(predicate(where), leaves))
    if where is not None and must_match and not names:
        raise nothing_matched(transform, show_where(where), leaves)
    entries = dict(leaves)
    for name in names:
        leaf = entries[name]
        if is_array(leaf):
            content = content_at(name, leaf)
            changed = function(name, content)
            if changed != content:
                entries[name] = like_leaf(leaf, changed, name)
    return leaves.replace(entries)


def nothing_matched(transform: Transform, pattern: str, leaves: Leaves) -> TransformError:
    """The error for a pattern that matches no leaf."""
    some = ", ".join(repr(name) for name in list(leaves)[:5]) or "none at all"
    return TransformError(
        f"{transform!r}: expected {pattern} to match a leaf, it matches none of the "
        f"{len(leaves)} leaves ({some}{', …' if len(leaves) > 5 else ''}): correct it, or "
        "pass must_match=False"
    )


@final
class Renamed:
    """The entries of new Leaves, each under a name of its own.

    `claimed` says whether the inverse of the transform applies to a name. The name of a leaf that
    the transform itself leaves alone must not be such a name.
    """

    def __init__(
        self, transform: Transform, claimed: Callable[[str], bool] = lambda _: False
    ) -> None:
        self.entries: dict[str, Any] = {}
        self._transform = transform
        self._claimed = claimed
        self._origins: dict[str, str] = {}

    def leave(self, name: str, leaf: Any) -> None:
        """Keep `leaf` under its name."""
        if self._claimed(name):
            raise TransformError(
                f"{self._transform!r}: leaf {name!r}: expected leaves that are left alone to have "
                "names unlike the new ones, the inverse would apply to this one as well: give the "
                "new leaves other names"
            )
        self.add(name, leaf, name)

    def add(self, name: str, leaf: Any, origin: str) -> None:
        """Add `leaf`, whose name was `origin`, as `name`; `TransformError` if that is taken."""
        if name in self.entries:
            raise TransformError(
                f"{self._transform!r}: expected a name for each leaf, got {name!r} for both "
                f"{self._origins[name]!r} and {origin!r}"
            )
        if name != origin:
            check_name(name)
        self.entries[name] = leaf
        self._origins[name] = origin


def filled(
    transform: Transform,
    template: Template,
    back: Callable[[str], dict[str, str] | None],
    values: dict[str, str],
    name: str,
) -> str:
    """The new name of the leaf `name`; `back`, the inverse, must match it with the same values."""
    target = template.fill(values)
    if back(target) != values:
        raise TransformError(
            f"{transform!r}: expected a name that the inverse maps back, got {target!r} for "
            f"{name!r}, which it matches with {back(target)}: make the templates more specific"
        )
    return target


def parted(
    transform: Transform,
    leaves: Leaves,
    template: Template,
    must_match: bool,
    claimed: Callable[[str], bool],
    parts: Callable[[str, Any, dict[str, str]], Iterable[tuple[str, Content]]],
) -> Leaves:
    """The leaves, with each that matches `template` replaced by its `parts`.

    `parts(name, leaf, values)` gives names and contents; `values` are those of the placeholders.
    """
    match = template.matcher()
    renamed = Renamed(transform, claimed)
    matched = False
    for name, leaf in leaves.items():
        values = match(name)
        if values is None:
            renamed.leave(name, leaf)
            continue
        matched = True
        for target, part in parts(name, leaf, values):
            renamed.add(target, like_leaf(leaf, part, target), name)
    if must_match and not matched:
        raise nothing_matched(transform, repr(template.text), leaves)
    return leaves.replace(renamed.entries)


def gathered(
    transform: Transform,
    leaves: Leaves,
    groups: Mapping[str, tuple[str, list[str]]],
    into: Template,
    whole: Callable[[list[str], str], Content],
) -> Leaves:
    """The leaves, with each group of them replaced by `whole(names, target)`.

    `groups` maps each new name to the old name whose position it takes, and to all old names.
    """
    back = into.matcher()
    renamed = Renamed(transform, lambda name: back(name) is not None)
    group_of = {name: target for target, (_, names) in groups.items() for name in names}
    for name, leaf in leaves.items():
        target = group_of.get(name)
        if target is None:
            renamed.leave(name, leaf)
            continue
        place, names = groups[target]
        if name == place:
            made = like_leaf(_representative(leaves, names), whole(names, target), target)
            renamed.add(target, made, name)
    return leaves.replace(renamed.entries)


def _representative(leaves: Leaves, names: list[str]) -> Any:
    """The leaf that one made of all these will be like: an abstract one, if there is one."""
    abstract = [leaves[name] for name in names if isinstance(leaves[name], jax.ShapeDtypeStruct)]
    return (abstract or [leaves[names[0]]])[0]


def parsed_template(step: str, text: object) -> Template:
    """`text` as a template; `TransformError` if it is not one."""
    if not isinstance(text, str):
        raise TransformError(f"{step}: expected templates to be strings, got {text!r}")
    return Template.parse(text)


def checked_axis(
    step: str | Transform, axis: object, count: int | None = None, name: str = ""
) -> int:
    """`axis` as an int; for the leaf `name`, which has `count` axes, as a non-negative one."""
    try:
        number = operator.index(axis)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise TransformError(f"{step}: expected axis to be an int, got {axis!r}") from None
    if count is None:
        return number
    if not -count <= number < count:
        raise TransformError(
            f"{step!r}: leaf {name!r}: expected an axis of {-count} to {count - 1}, got {number}: "
            "narrow the pattern, or correct axis"
        )
    return number % count
