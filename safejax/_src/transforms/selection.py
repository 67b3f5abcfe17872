"""What transforms share: the leaves that they apply to, and their axes."""

import operator
from collections.abc import Callable

from safejax._src.arrays.content import Content
from safejax._src.leaves.leaf import content_at, is_array, like_leaf
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import Transform
from safejax._src.pytrees.patterns import Template, Where, predicate
from safejax.errors import TransformError


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
