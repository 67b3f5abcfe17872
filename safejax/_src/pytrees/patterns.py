"""Patterns and templates: which names are meant, and what they become.

A pattern is matched against whole names, case-sensitively. `*` matches any run of characters,
including dots, and `{i}` matches one segment: a non-empty run without dots. `{i:int}` matches
digits only, and `{p:q|k|v}` one of these texts. A placeholder that appears twice matches the same
text twice. `{{` and `}}` are braces. If a name can be matched in more than one way, each
placeholder matches as little as possible, the first one first.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, final

from safejax._src.pytrees.placeholders import (
    Among,
    ends_in_order,
    ends_of,
    has_one_end,
    is_among,
    placeholder_of,
    regex_of,
)
from safejax.errors import TransformError

_MOST_OF_REGEX: Final = 25_000_000
_MOST_STEPS: Final = 1_000_000
"""How much is tried for one name: by a regular expression, which is fast, or else in steps that are
counted. What a pattern needs may grow as a power of the length of a name.
"""

_TOKEN: Final = re.compile(r"\{\{|\}\}|\{(?P<placeholder>[^{}]*)\}|(?P<star>\*)|[{}]")


@final
class Template(NamedTuple):
    """A parsed pattern: alternating literal text and placeholders.

    `parts` holds the text before, between and after the placeholders. `placeholders` holds their
    names: that in the braces, or `*0`, `*1`, … for the stars in order. `among` says of each of
    them what it matches.
    """

    text: str
    parts: tuple[str, ...]
    placeholders: tuple[str, ...]
    among: tuple[Among, ...]

    @classmethod
    def parse(cls, text: str) -> "Template":
        """The template that `text` describes; `TransformError` if it is not a valid pattern."""
        parts: list[str] = []
        placeholders: list[str] = []
        among: dict[str, Among] = {}
        kind: Among
        literal, reached, stars = "", 0, 0
        for token in _TOKEN.finditer(text):
            literal += text[reached : token.start()]
            reached = token.end()
            if token[0] in ("{{", "}}"):
                literal += token[0][0]
                continue
            if token["star"]:
                placeholder, kind = f"*{stars}", None
                stars += 1
            else:
                placeholder, kind = placeholder_of(text, token)
            if placeholders and not literal:
                raise TransformError(
                    f"pattern {text!r}: expected text between two placeholders, got none at "
                    f"character {token.start()}: where one ends would be a guess"
                )
            parts.append(literal)
            placeholders.append(placeholder)
            if among.setdefault(placeholder, kind) is None:
                among[placeholder] = kind
            elif kind not in (None, among[placeholder]):
                raise TransformError(
                    f"pattern {text!r}: expected {{{placeholder}}} to match the same in each "
                    f"place, got {token[0]!r} after another"
                )
            literal = ""
        parts.append(literal + text[reached:])
        own: tuple[Among, ...] = tuple(among[placeholder] for placeholder in placeholders)
        return cls(text, tuple(parts), tuple(placeholders), own)

    def matcher(self) -> Callable[[str], dict[str, str] | None]:
        """A function from a name to the text of each placeholder, or None if it does not match."""
        if not self.placeholders:
            (literal,) = self.parts
            return lambda name: {} if name == literal else None
        if len(self.placeholders) == 1:
            return self._matcher_of_one()
        groups = {placeholder: f"g{n}" for n, placeholder in enumerate(self._distinct())}
        free = self._free()
        if all(free) and sum(not self._is_final(n, free) for n in range(len(free) - 1)) > 2:
            return self._match_in_steps
        regex, power = self._regex(groups)
        compiled = re.compile(regex)

        def match(name: str) -> dict[str, str] | None:
            if power > 1 and len(name) ** power > _MOST_OF_REGEX:
                return self._match_in_steps(name)
            found = compiled.fullmatch(name)
            return None if found is None else dict(zip(groups, found.groups(), strict=True))

        return match

    def _matcher_of_one(self) -> Callable[[str], dict[str, str] | None]:
        """As `matcher`, for one placeholder, whose text is all that is between the two literals.

        To compile a regular expression takes far longer than to match some names without one.
        """
        (placeholder,), (among,), (before, after) = self.placeholders, self.among, self.parts
        least = len(before) + len(after)
        is_run = placeholder.startswith("*")

        def match(name: str) -> dict[str, str] | None:
            if len(name) < least or not (name.startswith(before) and name.endswith(after)):
                return None
            text = name[len(before) : len(name) - len(after)]
            return {placeholder: text} if is_run or is_among(text, among) else None

        return match

    def _match_in_steps(self, name: str) -> dict[str, str] | None:
        """As `matcher`, where placeholders could end in very many places; the steps are counted."""
        is_free = all(self._free())
        failed: set[tuple[int, int]] = set()
        values: dict[str, str] = {}
        steps = 0

        def matches_from(n: int, begin: int) -> bool:
            nonlocal steps
            if n == len(self.placeholders):
                return begin == len(name)
            if (n, begin) in failed:
                return False
            placeholder, literal = self.placeholders[n], self.parts[n + 1]
            value = values.get(placeholder)
            if value is None:
                ends = ends_of(placeholder, self.among[n], name, begin)
            else:
                ends = iter([begin + len(value)] if name.startswith(value, begin) else [])
            for end in ends:
                steps += 1
                if name.startswith(literal, end):
                    steps += (end - begin) // 64  # for the copy, which may be long
                    values[placeholder] = name[begin:end]
                    if matches_from(n + 1, end + len(literal)):
                        return True
                if steps > _MOST_STEPS:
                    raise TransformError(
                        f"pattern {self.text!r:.200}: expected to know in {_MOST_STEPS} steps "
                        f"whether it matches a name, got more for {name[:40]!r}… of {len(name)} "
                        "characters: write more text between its placeholders, best with a dot"
                    )
            if value is None:
                values.pop(placeholder, None)
            if is_free:  # Otherwise it depends on the values, too.
                failed.add((n, begin))
            return False

        begins = name.startswith(self.parts[0])
        return values if begins and matches_from(0, len(self.parts[0])) else None

    def _free(self) -> list[bool]:
        """Which placeholders match any text, and not the same as another."""
        count = Counter(self.placeholders)
        return [count[placeholder] == 1 for placeholder in self.placeholders]

    def _is_final(self, n: int, free: list[bool]) -> bool:
        """Whether the first match of a placeholder, and of what follows, is as good as any."""
        if self.placeholders[n].startswith("*"):
            return True
        if has_one_end(self.among[n], self.parts[n + 1]):
            return True
        if n + 1 == len(free):
            return False
        is_absorbed = self.among[n + 1] in (None, self.among[n])
        return free[n] and free[n + 1] and self.among[n] in (None, "int") and is_absorbed

    def _distinct(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.placeholders))

    def _regex(self, groups: Mapping[str, str]) -> tuple[str, int]:
        """The regular expression, and as which power of a name's length its time may grow."""
        # Trying all combinations of the lengths of thirty stars would not finish. Usually the
        # first match is as good as any, since the next placeholder can match what a placeholder
        # and the text after it leave over, or since there is no other. Such a match is final: an
        # atomic group. It is not final if the next placeholder must repeat a text, or if a star
        # precedes a segment, which cannot match dots; therefore everything from one star to the
        # next is one group, which is final if one that begins later cannot end earlier.
        free = self._free()
        runs = [re.escape(self.parts[0])]  # up to the first star, from it to the next, …
        final = [True]
        seen: set[str] = set()
        power = 1 + sum(not self._is_final(n, free) for n in range(len(free) - 1))
        is_searched = False  # A segment after a star is looked for from each place.
        for n, placeholder in enumerate(self.placeholders):
            group, literal = groups[placeholder], re.escape(self.parts[n + 1])
            if placeholder.startswith("*"):
                runs.append(f"(?P<{group}>(?s:.*?)){literal}")
                final.append(True)
                continue
            is_searched |= len(runs) > 1 and not has_one_end(self.among[n], self.parts[n + 1])
            final[-1] &= free[n] and ends_in_order(self.among[n], self.parts[n + 1])
            if placeholder in seen:
                runs[-1] += f"(?P={group}){literal}"
                continue
            seen.add(placeholder)
            segment = f"(?P<{group}>{regex_of(self.among[n])}){literal}"
            runs[-1] += f"(?>{segment})" if self._is_final(n, free) else segment
        last = runs.pop()  # It ends where the name does.
        before = "".join(
            f"(?>{run})" if is_final else run for run, is_final in zip(runs, final, strict=False)
        )
        return before + last, power + is_searched + final[1:-1].count(False)

    def fill(self, values: dict[str, str]) -> str:
        """The name that results from replacing the placeholders by these values."""
        filled = self.parts[0]
        for placeholder, literal in zip(self.placeholders, self.parts[1:], strict=True):
            filled += values[placeholder] + literal
        return filled


def agreeing(*templates: Template) -> tuple[Template, ...]:
    """The templates, each of whose placeholders matches what it matches in the first that says."""
    known: dict[str, Among] = {}
    for template in templates:
        for placeholder, among in zip(template.placeholders, template.among, strict=True):
            if known.get(placeholder) is None:
                known[placeholder] = among
    return tuple(
        template._replace(
            among=tuple(
                [
                    known[placeholder] if among is None else among
                    for placeholder, among in zip(
                        template.placeholders, template.among, strict=True
                    )
                ]
            )
        )
        for template in templates
    )


def exactly(name: str) -> str:
    """The pattern that matches this name only, as far as there is one."""
    return name.replace("{", "{{").replace("}", "}}")
