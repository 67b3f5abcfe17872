"""What transforms share: which leaves they speak of, and that they speak of some."""

from collections.abc import Callable

from safejax.errors import TransformError
from safejax.lazy import Content, like_leaf
from safejax.leaves import Leaves, content_at, is_array
from safejax.names import Template, Where, predicate
from safejax.steps import Transform


def checked_where(where: Where | None) -> Where | None:
    """`where` again, if it is a pattern or a function; `TransformError` if not."""
    if isinstance(where, str):
        Template.parse(where)
    elif where is not None and not callable(where):  # pyright: ignore[reportUnnecessaryComparison]
        raise TransformError(f"where: expected a pattern or a function of the name, got {where!r}")
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
