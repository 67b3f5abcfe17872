"""Placeholders: what one of a pattern matches, and where it may end."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, TypeAlias

from safejax.errors import TransformError

Among: TypeAlias = Literal["int"] | tuple[str, ...] | None
"""What a placeholder matches: digits, or one of some texts; None for any segment, or any run."""


def placeholder_of(text: str, token: re.Match[str]) -> tuple[str, Among]:
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


def regex_of(among: Among) -> str:
    if among is None:
        return "[^.]+?"
    return "[0-9]+?" if among == "int" else "|".join(map(re.escape, sorted(among, key=len)))


def is_among(text: str, among: Among) -> bool:
    """Whether a placeholder that is no star matches a text."""
    if among is None:
        return text != "" and "." not in text
    return text.isascii() and text.isdigit() if among == "int" else text in among


def ends_of(placeholder: str, among: Among, name: str, begin: int) -> Iterator[int]:
    """Where a placeholder that begins there may end, the nearest first."""
    if isinstance(among, tuple):
        texts = sorted(among, key=len)
        yield from (begin + len(text) for text in texts if name.startswith(text, begin))
    elif placeholder.startswith("*"):
        yield from range(begin, len(name) + 1)
    else:
        for end in range(begin + 1, len(name) + 1):
            last = name[end - 1]
            if last == "." or (among == "int" and last not in "0123456789"):
                return
            yield end


def has_one_end(among: Among, literal: str) -> bool:
    """Whether a placeholder that begins at some place can end at one only, before `literal`."""
    if among is None:
        return "." in literal
    if among == "int":
        return not re.fullmatch("[0-9]*", literal)
    ends = sorted(text + literal for text in among)
    return not any(after.startswith(end) for end, after in pairwise(ends))


def ends_in_order(among: Among, literal: str) -> bool:
    """Whether a placeholder that begins later never ends earlier than another, before `literal`."""
    if among is None or among == "int" or len(set(map(len, among))) == 1:
        return True
    return literal != "" and not any(literal[0] in text for text in among)
