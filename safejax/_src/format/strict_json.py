"""Strict JSON: several things that Python's own parser accepts are errors here.

Duplicate keys, NaN, numbers beyond a float's range, lone surrogates and nesting too deep for
the stack are refused. `-0` is a float, as in the reference reader, and therefore not an integer.
"""

import json
import math
import re
import reprlib
import sys
from json.encoder import encode_basestring
from typing import Any, Final, NoReturn

from safejax._src.collector import collector_paused

_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
_MINUS_ZERO: Final = re.compile(r"-0(?=[\s,\]}]|$)")
_TOKEN: Final = re.compile(r'"(?:[^"\\]++|\\(?s:.))*+"?|(?P<open>[\[{])|(?P<close>[\]}])')
_MAX_DEPTH: Final = 10_000
_MAX_DIGITS: Final = 4300
"""Python's own limit, beyond which the time for an int grows with the square of its digits."""
_LONG: Final = re.compile(rf"(?<![0-9])[0-9]{{{_MAX_DIGITS + 1}}}")


# Any: whatever the text holds.
def parse(text: str, *, allow_surrogates: bool = False, allow_constants: bool = False) -> Any:
    """The value that `text` holds.

    With `allow_surrogates`, strings may hold an escaped half of a surrogate pair, as Python's can;
    with `allow_constants`, `NaN` and `Infinity` are numbers, as Python writes them.

    Raises `ValueError` with a sentence that says what is wrong with the text.
    """
    # If a program has raised the recursion limit, the parser of Python 3.11 follows the nesting
    # until the process runs out of stack and is killed.
    if sys.getrecursionlimit() > _MAX_DEPTH and _depth(text) > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    # What has so many digits may be a string.
    may_be_long = not 0 < sys.get_int_max_str_digits() <= _MAX_DIGITS and _LONG.search(text)
    try:
        with collector_paused():
            value = json.loads(
                text,
                object_pairs_hook=_without_duplicates,
                parse_constant=None if allow_constants else _refuse_constant,
                parse_float=_parse_float,
                # Python's own function is much faster, and correct if there is no minus zero.
                parse_int=_parse_int if may_be_long or _MINUS_ZERO.search(text) else None,
            )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except MemoryError:
        raise ValueError("it is too large to parse") from None
    if not allow_surrogates and _SURROGATE.search(text):
        _refuse_surrogates(value)
    return value


def write(value: Any, *, ascii_only: bool = False) -> str:
    """The shortest JSON text of `value`, always the same; `value` must not hold floats."""
    return json.dumps(value, ensure_ascii=ascii_only, separators=(",", ":"), allow_nan=False)


write_string: Final = encode_basestring
"""The JSON text of a string, as `write` has it."""


def write_for_people(value: Any) -> str:
    """The indented JSON text of `value`, with one entry per line."""
    return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {reprlib.repr(key)} appears twice in one object")
            seen.add(key)
    return entries


def _depth(text: str) -> int:
    depth = deepest = 0
    for token in _TOKEN.finditer(text):
        if token["open"]:
            depth += 1
            deepest = max(deepest, depth)
        elif token["close"]:
            depth -= 1
    return deepest


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _parse_float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {reprlib.repr(digits)} is out of range")
    return value


def _parse_int(digits: str) -> int | float:
    if len(digits) - digits.startswith("-") > _MAX_DIGITS:
        raise ValueError(f"it has a number of more than {_MAX_DIGITS} digits")
    return -0.0 if digits == "-0" else int(digits)


def _refuse_surrogates(value: Any) -> None:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            if not item.isascii():
                try:
                    item.encode()
                except UnicodeEncodeError:
                    raise ValueError(
                        f"the string {reprlib.repr(item)} holds half a surrogate pair"
                    ) from None
        elif isinstance(item, dict):
            pending.extend(item)  # pyright: ignore[reportUnknownArgumentType]
            pending.extend(item.values())  # pyright: ignore
        elif isinstance(item, list):
            pending.extend(item)  # pyright: ignore[reportUnknownArgumentType]
