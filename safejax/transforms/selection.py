"""What transforms share: which leaves they speak of, their new names, and their axes."""

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
    """`where` again, if it is a pattern or a function; `TransformError` if not."""
    if isinstance(where, str):
        Template.parse(where)
    elif where is not None and not callable(where):  # pyright: ignore[reportUnnecessaryComparison]
        raise TransformError(f"where: expected a pattern or a function of the name, got {where!r}")
    return where


def required_where(step: str, where: Where) -> Where:
    """`where` again, which a step that speaks of some leaves only must be told."""
    if where is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise TransformError(f"{step}: expected a pattern or a function of the name, got None")
    checked_where(where)
    return where


def show_where(where: Where) -> str:
    """`where` as it stood in the call that made the transform."""
    return repr(where) if isinstance(where, str) else getattr(where, "__qualname__", repr(where))


def map_contents(
    transform: Transform,
    leaves: Leaves,
    where: Where | None,
    must_match: bool,
    function: Callable[[str, Content], Content],
) -> Leaves:
    """The leaves, with what each chosen array holds replaced by `function` of it; unread.

    Raises `TransformError` if `where` chooses no leaf, unless `must_match` is false.
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
    """The error of a pattern that speaks of no leaf."""
    some = ", ".join(repr(name) for name in list(leaves)[:5]) or "none at all"
    return TransformError(
        f"{transform!r}: expected {pattern} to match a leaf, it matches none of the "
        f"{len(leaves)} there are ({some}{', …' if len(leaves) > 5 else ''}): correct it, or "
        "pass must_match=False"
    )


@final
class Renamed:
    """The entries of new Leaves, each under a name of its own.

    `claimed` says which names the inverse of the transform speaks of: one that the transform
    itself leaves alone must be none of them.
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
                f"{self._transform!r}: leaf {name!r}: expected names of leaves that are left alone "
                "to be told from the new ones, the inverse would take this one for one of them: "
                "give the new ones other names"
            )
        self.add(name, leaf, name)

    def add(self, name: str, leaf: Any, origin: str) -> None:
        """Put `leaf`, whose name was `origin`, under `name`; `TransformError` if it is taken."""
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
    """The name that `template` gives for the leaf `name`; `back` must take it to `values` again."""
    target = template.fill(values)
    if back(target) != values:
        raise TransformError(
            f"{transform!r}: expected a name that the inverse takes back, got {target!r} for "
            f"{name!r}: there it stands for {back(target)}; make the templates tell them apart"
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
    """The leaves, each that matches `template` replaced by the named `parts` of it.

    `parts` is given the name, the leaf and what the placeholders stand for.
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
    """The leaves, each group of names replaced by the `whole` of it.

    A group, by its new name, is the name whose place that takes, and all names.
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
    """The leaf whose like a leaf made of all these is: an abstract one, if there is one."""
    abstract = [leaves[name] for name in names if isinstance(leaves[name], jax.ShapeDtypeStruct)]
    return (abstract or [leaves[names[0]]])[0]


def parsed_template(step: str, text: object) -> Template:
    """The template that `text` is; `TransformError` if it is none."""
    if not isinstance(text, str):
        raise TransformError(f"{step}: expected templates to be strings, got {text!r}")
    return Template.parse(text)


def checked_axis(
    step: str | Transform, axis: object, count: int | None = None, name: str = ""
) -> int:
    """`axis` as an int; of an array with `count` axes, the leaf `name`, counted from the front."""
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
