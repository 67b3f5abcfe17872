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
from typing import Final, Literal, NamedTuple, TypeAlias, final

from safejax.errors import TransformError

Among: TypeAlias = Literal["int"] | tuple[str, ...] | None
"""What a placeholder matches: digits, or one of some texts; None for any segment, or any run."""

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
                placeholder, kind = _placeholder(text, token)
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
        # cannot match dots; therefore everything from one star to the next is one group. Nor is it
        # if a placeholder matches some texts only.
        count = Counter(self.placeholders)
        free = [
            count[placeholder] == 1 and among is None
            for placeholder, among in zip(self.placeholders, self.among, strict=True)
        ]
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
            segment = f"(?P<{group}>{_regex_of(self.among[n])}){literal}"
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


def _placeholder(text: str, token: re.Match[str]) -> tuple[str, Among]:
    """The name of a placeholder, and what it matches."""
    name, colon, kind = (token["placeholder"] or "").partition(":")
    if not name.isidentifier():
        raise TransformError(
            f"pattern {text!r}: expected a placeholder like {{i}} at character "
            f"{token.start()}, got {token[0]!r}; write {{{{ or }}}} for a brace"
        )
    if not colon:
        return name, None
    texts = tuple(kind.split("|"))
    if kind != "int" and (len(texts) == 1 or not all(texts) or len(set(texts)) != len(texts)):
        raise TransformError(
            f"pattern {text!r}: expected {{{name}:int}}, or different texts as in "
            f"{{{name}:a|b}}, at character {token.start()}, got {token[0]!r}"
        )
    return name, "int" if kind == "int" else texts


def _regex_of(among: Among) -> str:
    if among is None:
        return "[^.]+?"
    return "[0-9]+" if among == "int" else "|".join(map(re.escape, among))


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
