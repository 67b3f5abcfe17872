"""Choices: which names, and leaves, are meant by what users give as `where`.

A choice is a pattern, a compiled regular expression that whole names match, a function of the
name, or a function of the name and the leaf's abstract value. A sequence of choices means all
that any of them chooses. In a sequence, a pattern after `!` means all others: those that it
matches are not chosen.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias, cast, final

from safejax._src.pytrees.lookup import Lookup
from safejax._src.pytrees.patterns import Template
from safejax.errors import TransformError

Choice: TypeAlias = str | re.Pattern[str] | Callable[[str], bool] | Callable[[str, Any], bool]
Where: TypeAlias = Choice | Sequence[Choice]
"""A pattern, a regular expression, a function of the name or of it and the aval, or several."""

_EXPECTED: Final = "a pattern or a function of the name, or several of them"


def checked(where: Any, step: str) -> Where:
    """`where`, with a tuple in place of any other sequence; `TransformError` if it is not one."""
    if isinstance(where, str) or not isinstance(where, Sequence):
        _check_choice(where, step, where)
        return where
    choices = tuple(cast("Sequence[Any]", where))
    if not choices:
        raise TransformError(f"{step}: expected {_EXPECTED}, got {where!r}")
    for choice in choices:
        _check_choice(pattern_of_others(choice) or choice, step, where)
    return choices


def _check_choice(choice: Any, step: str, where: Any) -> None:
    if isinstance(choice, str):
        Template.parse(choice)
    elif isinstance(choice, re.Pattern):
        if not isinstance(cast("re.Pattern[Any]", choice).pattern, str):
            raise TransformError(
                f"{step}: expected a regular expression for strings, got {choice!r}"
            )
    elif not callable(choice):
        raise TransformError(f"{step}: expected {_EXPECTED}, got {where!r}")


def choices_of(where: Where) -> tuple[Choice, ...]:
    """The choices that a `where` consists of."""
    return where if isinstance(where, tuple) else (cast("Choice", where),)


def pattern_of_others(choice: Any) -> str | None:
    """The pattern after `!`, of what a choice in a sequence leaves out; None if it is not one."""
    return choice[1:] if isinstance(choice, str) and choice.startswith("!") else None


def asks_for_aval(choice: Any) -> bool:
    """Whether a choice is a function that is called with the name and the abstract value."""
    if isinstance(choice, str | re.Pattern):
        return False
    try:
        parameters = inspect.signature(choice).parameters.values()
    except (TypeError, ValueError):  # Of some functions that are not written in Python.
        return False
    needed = [
        each
        for each in parameters
        if each.default is each.empty
        and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    return len(needed) > 1


def predicate(choice: Choice, aval_of: Callable[[str], Any] | None = None) -> Callable[[str], bool]:
    """The function that says whether one choice means a name; `!` is not looked at.

    `aval_of` gives the abstract value of the leaf of a name, for functions that ask for it.
    """
    if isinstance(choice, str):
        match = Template.parse(choice).matcher()
        return lambda name: match(name) is not None
    if isinstance(choice, re.Pattern):
        return lambda name: choice.fullmatch(name) is not None
    function = cast("Callable[..., bool]", choice)
    if aval_of is None or not asks_for_aval(choice):
        return function
    return lambda name: function(name, aval_of(name))


def any_of(where: Where, aval_of: Callable[[str], Any] | None = None) -> Callable[[str], bool]:
    """The function that says whether a `where` means a name; `aval_of` is as for `predicate`."""
    if not isinstance(where, tuple):
        return predicate(cast("Choice", where), aval_of)
    others = [pattern_of_others(choice) for choice in where]
    wanted = [each for each, out in zip(where, others, strict=True) if out is None]
    is_wanted = _any_of(wanted, aval_of)
    is_unwanted = _any_of([out for out in others if out is not None], aval_of)
    return lambda name: (not wanted or is_wanted(name)) and not is_unwanted(name)


def _any_of(
    choices: Sequence[Choice], aval_of: Callable[[str], Any] | None
) -> Callable[[str], bool]:
    """The function that says whether any of the choices means a name; `!` is not looked at."""
    lookup = Lookup(Template.parse(each) for each in choices if isinstance(each, str))
    others = [predicate(each, aval_of) for each in choices if not isinstance(each, str)]
    return lambda name: lookup.first(name)[0] >= 0 or any(each(name) for each in others)


@final
class First:
    """A function from a name to the number of the first `where` that means it, or None.

    Names are looked up in all patterns at once.
    """

    __slots__ = ("_lookup", "_others", "_patterns")

    def __init__(self, wheres: tuple[Where, ...]) -> None:
        texts = {at: each for at, each in enumerate(wheres) if isinstance(each, str)}
        self._patterns = list(texts)
        self._lookup = Lookup(map(Template.parse, texts.values()))
        self._others = [(at, any_of(each)) for at, each in enumerate(wheres) if at not in texts]

    def __call__(self, name: str) -> int | None:
        number, _ = self._lookup.first(name)
        found = None if number < 0 else self._patterns[number]
        for at, means in self._others:
            if found is not None and found < at:
                break
            if means(name):
                return at
        return found


def meant_by_each(
    choices: Sequence[Choice],
    names: Iterable[str],
    aval_of: Callable[[str], Any] | None = None,
) -> Iterator[set[str]]:
    """The names that each of the choices means; `!` is not looked at.

    Names are looked up in all patterns at once. `aval_of` is as for `predicate`.
    """
    if len(choices) == 1:
        yield set(filter(predicate(choices[0], aval_of), names))
        return
    meant: dict[str, set[str]] = {each: set() for each in choices if isinstance(each, str)}
    lookup, of_number = Lookup(map(Template.parse, meant)), list(meant.values())
    for name in names:
        for number, _ in lookup.hits(name):
            of_number[number].add(name)
    for choice in choices:
        is_pattern = isinstance(choice, str)
        yield meant[choice] if is_pattern else set(filter(predicate(choice, aval_of), names))


def show_where(where: Where) -> str:
    """`where` as it was written in the call that made the transform."""
    if isinstance(where, tuple):
        shown = ", ".join(map(show_where, where))
        return f"({shown},)" if len(where) == 1 else f"({shown})"
    if isinstance(where, str | re.Pattern):
        return repr(where)
    return getattr(where, "__qualname__", repr(where))
