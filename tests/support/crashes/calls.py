"""System calls, as strace prints them with `-f -xx`: one after the other, in the order of ends."""

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, final

_WHOLE: Final = re.compile(r"(\d+) +(\w+)\((.*)\)\s+= (\S+)", re.DOTALL)
_BEGUN: Final = re.compile(r"(\d+) +(\w+)\((.*) <unfinished \.\.\.>", re.DOTALL)
_ENDED: Final = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)\)\s+= (\S+)", re.DOTALL)
_TEXT: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


class UnknownCallError(Exception):
    """A call that the model does not know: it would be missing from the record."""


@final
class Call(NamedTuple):
    """A call that has returned. `begun` and `ended` are numbers of lines of the record."""

    thread: int
    name: str
    arguments: tuple[str, ...]
    result: int
    begun: int
    ended: int

    def text(self, number: int) -> bytes:
        """The bytes of an argument that is a string; all of them."""
        found = _TEXT.fullmatch(self.arguments[number])
        if found is None or found[2]:
            raise UnknownCallError(f"expected a whole string in {self!r:.300}")
        return bytes.fromhex(found[1].replace("\\x", ""))

    def path(self, number: int) -> str:
        return self.text(number).decode()

    def number(self, number: int) -> int:
        return int(self.arguments[number])


def parse(lines: Iterable[str]) -> Iterator[Call]:
    """The calls of all threads, in the order in which they returned."""
    begun: dict[int, tuple[str, str, int]] = {}
    for number, line in enumerate(lines):
        line = line.rstrip("\n")
        if found := _BEGUN.fullmatch(line):
            begun[int(found[1])] = found[2], found[3], number
            continue
        if found := _ENDED.match(line):
            name, arguments, at = begun.pop(int(found[1]))
            assert name == found[2]
            yield _call(found[1], name, arguments + found[3], found[4], at, number)
        elif found := _WHOLE.match(line):
            yield _call(found[1], found[2], found[3], found[4], number, number)


def _call(thread: str, name: str, arguments: str, result: str, begun: int, ended: int) -> Call:
    # There are no commas in hexadecimal strings; structures are not looked into.
    parts = tuple(part.strip() for part in arguments.split(", "))
    value = -1 if result == "?" else int(result, 0)
    return Call(int(thread), name, parts, value, begun, ended)
