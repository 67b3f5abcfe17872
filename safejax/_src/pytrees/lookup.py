"""Lookups: which of many templates match a name, without trying each of them."""

from collections.abc import Callable, Iterable
from typing import TypeAlias, final

from safejax._src.pytrees.patterns import Template

Match: TypeAlias = Callable[[str], dict[str, str] | None]
"""A function from a name to the text of each placeholder, or None if it does not match."""


@final
class Lookup:
    """Templates by a text that the names that they match have: so only a few are tried on a name.

    It is the text before the first placeholder, or that after the last one, whichever tells more of
    the templates apart: there may be 20,000, and as many names. `matches` has the function that
    matches each of them, where that is not the one of the template itself.
    """

    __slots__ = ("_by_part", "_exact", "_matches")

    def __init__(
        self, templates: Iterable[Template], matches: Iterable[Match] | None = None
    ) -> None:
        templates = tuple(templates)
        self._matches = (
            [template.matcher() for template in templates] if matches is None else list(matches)
        )
        ends = [{each.parts[at] for each in templates if each.placeholders} for at in (0, -1)]
        is_begin = len(ends[0]) > len(ends[1])
        self._exact: dict[str, list[int]] = {}
        by_length: dict[int, dict[str, list[int]]] = {}
        for number, template in enumerate(templates):
            text, by_text = template.parts[0 if is_begin else -1], self._exact
            if template.placeholders:
                by_text = by_length.setdefault(len(text), {})
            by_text.setdefault(text, []).append(number)
        # The part of a name that is looked up, and the templates by it.
        self._by_part = [
            (slice(length) if is_begin or not length else slice(-length, None), by_text)
            for length, by_text in by_length.items()
        ]

    def hits(self, name: str) -> list[tuple[int, dict[str, str]]]:
        """The numbers of the templates that match a name, rising, with the values of each."""
        tried = [(number, self._matches[number](name)) for number in self._candidates(name)]
        return [(number, values) for number, values in tried if values is not None]

    def first(self, name: str) -> tuple[int, dict[str, str] | None]:
        """The number of the first template that matches, and its values; -1 and None if none."""
        for number in self._candidates(name):
            values = self._matches[number](name)
            if values is not None:
                return number, values
        return -1, None

    def _candidates(self, name: str) -> list[int]:
        """The numbers of the templates that may match a name, rising."""
        found = self._exact.get(name, [])
        for part, by_text in self._by_part:
            more = by_text.get(name[part])
            if more is not None:
                found = [*found, *more]
        return sorted(found) if len(found) > 1 else found
