"""What transforms share: the leaves that they apply to, and their axes."""

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, final

import jax

from safejax._src.arrays.content import Content
from safejax._src.arrays.lazy import LazyArray
from safejax._src.collector import collector_paused
from safejax._src.leaves.leaf import aval_of, content_at, is_array
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.making import Maker
from safejax._src.leaves.steps import Transform, within
from safejax._src.pytrees.choices import (
    Where,
    asks_for_aval,
    checked,
    choices_of,
    meant_by_each,
    pattern_of_others,
    predicate,
    show_where,
)
from safejax._src.pytrees.patterns import Template
from safejax.errors import NotInvertibleError, TransformError


def checked_where(where: Where | None) -> Where | None:
    """`where`, if it chooses leaves or is None; `TransformError` otherwise."""
    return None if where is None else checked(where, "where")


def required_where(step: str, where: Where) -> Where:
    """`where`, if it chooses leaves; `TransformError` otherwise, also for None."""
    return checked(where, step)


def chosen(transform: Transform, where: Where, leaves: Leaves, must_match: bool) -> set[str]:
    """The names of the leaves that `where` chooses.

    Raises `TransformError` if a part of it chooses none, unless `must_match` is false.
    """

    def aval(name: str) -> jax.ShapeDtypeStruct | None:
        leaf = leaves[name]
        return aval_of(leaf) if is_array(leaf) else None

    choices = choices_of(where)
    others = [pattern_of_others(choice) if isinstance(where, tuple) else None for choice in choices]
    meant = [
        choice if other is None else other for choice, other in zip(choices, others, strict=True)
    ]
    names: set[str] = set()
    left_out: set[str] = set()
    unused: list[Where] = []
    for choice, other, found in zip(meant, others, meant_by_each(meant, leaves, aval), strict=True):
        if must_match and not found:
            unused.append(choice)
        (names if other is None else left_out).update(found)
    if unused:
        raise nothing_matched(transform, unused[0], leaves, others=unused[1:])
    return (names if None in others else set(leaves)) - left_out


def fault(step: Transform | str, sentence: str) -> TransformError:
    """The error for a fault that a step finds in leaves: the fault first, and then the step."""
    return TransformError(f"{sentence}{within(step)}")


@final
class Faults:
    """What is at fault with the leaves that a step is applied to, so that all of it is told."""

    def __init__(self, step: Transform) -> None:
        self._step = step
        self._found: dict[str, TransformError] = {}

    def add(self, name: str, error: TransformError) -> None:
        """Take an error that concerns the leaf `name`."""
        self._found.setdefault(name, error)

    def check(self) -> None:
        """Raise the first of the errors, with the names of all other leaves that have one."""
        if not self._found:
            return
        (_, first), *others = self._found.items()
        end = within(self._step)
        sentence = str(first).removesuffix(end).removesuffix(within("merge"))
        if others:
            verb = "is" if len(others) == 1 else "are"
            sentence += f"; {quoted(name for name, _ in others)} {verb} at fault, too"
        raise TransformError(f"{sentence}{end}") from first.__cause__


def capped(parts: Sequence[str], most: int = 8) -> str:
    """The parts of a message, of which there may be many."""
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return ", ".join(parts[:most]) + more


def quoted(names: Iterable[str]) -> str:
    """Names in a message, of which there may be many."""
    return capped(list(map(repr, names)))


def map_contents(
    transform: Transform,
    leaves: Leaves,
    where: Where | None,
    must_match: bool,
    function: Callable[[str, Content], Content],
) -> Leaves:
    """The leaves with the content of each chosen array replaced by `function` of it; unread.

    The garbage collector is paused while it is called.

    Raises `TransformError` if `where` matches no leaf, unless `must_match` is false.
    """
    names = leaves.keys() if where is None else chosen(transform, where, leaves, must_match)
    entries = dict(leaves.items())  # Each name is looked up otherwise.
    faults = Faults(transform)
    maker = Maker()
    with collector_paused():
        for name, leaf in leaves.items():
            if name not in names:
                continue
            # The class of a leaf over several devices says that it is another.
            if type(leaf) is LazyArray:
                content = leaf.content
            elif is_array(leaf):
                content = content_at(name, leaf)
            else:
                continue
            try:
                changed = function(name, content)
            except TransformError as error:
                faults.add(name, error)
                continue
            if changed is not content and changed != content:
                entries[name] = maker.like(leaf, changed, name)
    faults.check()
    changed_leaves = leaves.replace(entries)
    if where is not None and any(map(asks_for_aval, choices_of(where))):
        _check_comes_back(transform, where, set(names), changed_leaves, must_match)
    return changed_leaves


def _check_comes_back(
    transform: Transform, where: Where, names: set[str], changed: Leaves, must_match: bool
) -> None:
    """Raise `TransformError` if the inverse would choose other leaves, without an error."""
    try:
        inverse = transform.inverse
    except NotInvertibleError:
        return
    back = chosen(inverse, where, changed, must_match=False)
    if back != names and (back or not must_match):
        raise fault(
            transform,
            f"expected {show_where(where)} to choose the same leaves before and after the step, "
            f"since the inverse chooses by it, but of {quoted(sorted(back ^ names))} it does not: "
            "choose by the name alone",
        )


def nothing_matched(
    transform: Transform,
    where: Where,
    leaves: Leaves,
    new: str | None = None,
    others: Sequence[Where] = (),
) -> TransformError:
    """The error for a pattern, or a function, that matches no leaf, and for the `others`.

    `new` is the template of the new name, if `where` is that of an old one.
    """
    some = ", ".join(repr(name) for name in list(leaves)[:5]) or "none at all"
    helps = _pattern_that_helps(where, leaves, new) if isinstance(where, str) else None
    also = ""
    if others:
        verb = "does" if len(others) == 1 else "do"
        also = f"; neither {verb} {capped(list(map(show_where, others)))}"
    return fault(
        transform,
        f"expected {show_where(where)} to match a leaf, it matches none of the "
        f"{len(leaves)} leaves ({some}{', …' if len(leaves) > 5 else ''}): "
        f"{helps or 'correct it'}, or pass must_match=False{also}",
    )


def _pattern_that_helps(pattern: str, leaves: Leaves, new: str | None) -> str | None:
    """What to write in place of a pattern that matches nothing, as far as one can tell."""
    if pattern.startswith("!"):
        return f"write ({pattern!r},), a tuple, for all others than {pattern[1:]!r} matches"
    literal = _without_regex(pattern)
    candidates = [
        literal, f"{literal}.*", f"*.{literal}", f"*.{literal}.*", f"*{literal}*",
        literal.removesuffix(".*"), literal.removeprefix("*."),
    ]  # fmt: skip
    for candidate in candidates:
        try:
            matches = predicate(candidate)
        except TransformError:
            continue
        count = sum(map(matches, leaves))
        if count and candidate != pattern:
            kind = ", a pattern and not a regular expression" if literal != pattern else ""
            written = repr(candidate)
            if new is not None and pattern in candidate:  # The new name has the same about it.
                written += f": {candidate.replace(pattern, new, 1)!r}"
            return f"write {written}, which matches {count}{kind}"
    is_name = not Template.parse(pattern).placeholders
    near = difflib.get_close_matches(pattern, leaves, n=3) if is_name else []
    return f"is it {' or '.join(map(repr, near))}?" if near else None


_REGEX: Final = re.compile(r"[\\^$\[(|]|\.\+")
_REGEX_RUN: Final = re.compile(r"\\[dwDWS][+*]?|\[[^\]]*\][+*]?|\([^()]*\)[+*?]?|\.[+*]")


def _without_regex(text: str) -> str:
    """The pattern that a regular expression seems to mean; `text` if it is none."""
    if not _REGEX.search(text):
        return text
    dotted = text.removeprefix("^").removesuffix("$").replace("\\.", "\0")
    return re.sub(r"\*{2,}", "*", _REGEX_RUN.sub("*", dotted)).replace("\0", ".")


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
        raise fault(
            step,
            f"leaf {name!r}: expected an axis of {-count} to {count - 1}, got {number}: "
            "narrow the pattern, or correct axis",
        )
    return number % count
