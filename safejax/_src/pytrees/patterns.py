"""Patterns and templates: which names are meant, and what they become.

A pattern is matched against whole names, case-sensitively. `*` matches any run of characters,
including dots, and `{i}` matches one segment: a non-empty run without dots. A placeholder that
appears twice matches the same text twice. `{{` and `}}` are braces. If a name can be matched in
more than one way, each placeholder matches as little as possible, the first one first.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TypeAlias, final

from safejax.errors import TransformError

Where: TypeAlias = str | Callable[[str], bool]
"""A choice of names: a pattern, or a function that says whether a name is chosen."""

_TOKEN: Final = re.compile(r"\{\{|\}\}|\{(?P<placeholder>[^{}]*)\}|(?P<star>\*)|[{}]")


@final
class Template(NamedTuple):
    """A parsed pattern: alternating literal text and placeholders.

    `parts` holds the text before, between and after the placeholders. `placeholders` holds their
    names: that in the braces, or `*0`, `*1`, … for the stars in order.
    """

    text: str
    parts: tuple[str, ...]
    placeholders: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Template":
        """The template that `text` describes; `TransformError` if it is not a valid pattern."""
        parts: list[str] = []
        placeholders: list[str] = []
        literal, reached, stars = "", 0, 0
        for token in _TOKEN.finditer(text):
            literal += text[reached : token.start()]
            reached = token.end()
            if token[0] in ("{{", "}}"):
                literal += token[0][0]
                continue
            if token["star"]:
                placeholder = f"*{stars}"
                stars += 1
            else:
                placeholder = token["placeholder"]
                if placeholder is None or not placeholder.isidentifier():
                    raise TransformError(
                        f"pattern {text!r}: expected a placeholder like {{i}} at character "
                        f"{token.start()}, got {token[0]!r}; write {{{{ or }}}} for a brace"
                    )
            if placeholders and not literal:
                raise TransformError(
                    f"pattern {text!r}: expected text between two placeholders, got none at "
                    f"character {token.start()}: where one ends would be a guess"
                )
            parts.append(literal)
            placeholders.append(placeholder)
            literal = ""
        parts.append(literal + text[reached:])
        return cls(text, tuple(parts), tuple(placeholders))

    def matcher(self) -> Callable[[str], dict[str, str] | None]:
        """A function from a name to the text of each placeholder, or None if it does not match."""
        groups = {placeholder: f"g{n}" for n, placeholder in enumerate(self._distinct())}
        compiled = re.compile(self._regex(groups))

        def match(name: str) -> dict[str, str] | None:
            found = compiled.fullmatch(name)
            if found is None:
                return None
            return {placeholder: found[group] for placeholder, group in groups.items()}

        return match

    def _distinct(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.placeholders))

    def _regex(self, groups: Mapping[str, str]) -> str:
        # Trying all combinations of the lengths of thirty stars would not finish. Usually the
        # first match is as good as any, since the next placeholder can match what a placeholder
        # and the text after it leave over. Such a match is final: an atomic group. It is not
        # final if the next placeholder must repeat a text, or if a star precedes a segment, which
        # cannot match dots; therefore everything from one star to the next is one group.
        count = Counter(self.placeholders)
        free = [count[placeholder] == 1 for placeholder in self.placeholders]
        runs = [re.escape(self.parts[0])]  # up to the first star, from it to the next, …
        final = [True]
        seen: set[str] = set()
        for n, placeholder in enumerate(self.placeholders):
            group, literal = groups[placeholder], re.escape(self.parts[n + 1])
            if placeholder.startswith("*"):
                runs.append(f"(?P<{group}>(?s:.*?)){literal}")
                final.append(True)
                continue
            final[-1] &= free[n]
            if placeholder in seen:
                runs[-1] += f"(?P={group}){literal}"
                continue
            seen.add(placeholder)
            segment = f"(?P<{group}>[^.]+?){literal}"
            absorbed = free[n] and n + 1 < len(free) and free[n + 1]
            runs[-1] += f"(?>{segment})" if absorbed else segment
        last = runs.pop()  # It ends where the name does.
        return (
            "".join(
                f"(?>{run})" if is_final else run
                for run, is_final in zip(runs, final, strict=False)
            )
            + last
        )

    def fill(self, values: dict[str, str]) -> str:
        """The name that results from replacing the placeholders by these values."""
        filled = self.parts[0]
        for placeholder, literal in zip(self.placeholders, self.parts[1:], strict=True):
            filled += values[placeholder] + literal
        return filled


def exactly(name: str) -> str:
    """The pattern that matches this name only, as far as there is one."""
    return name.replace("{", "{{").replace("}", "}}")


def predicate(where: Where) -> Callable[[str], bool]:
    """The function that says whether `where` chooses a name."""
    if callable(where):
        return where
    match = Template.parse(where).matcher()
    return lambda name: match(name) is not None
