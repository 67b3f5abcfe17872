"""Rows of a table of correspondences: names on both sides, and how their axes lie in each other."""

import re
from dataclasses import dataclass
from typing import Any, Final, cast, final

import numpy as np

from safejax._src.pytrees.lookup import Match
from safejax._src.pytrees.patterns import Template
from safejax._src.transforms.correspondence.axes import Tensor, names_of, parse_axes, part_names
from safejax.errors import TransformError

_BRACES: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_NUMBER: Final = re.compile(r"(?:(\d+) *\* *)?([^\W\d]\w*)(?: *\+ *(\d+))?")


@final
@dataclass(frozen=True, slots=True)
class Name:
    """A template of names, some of whose placeholders are numbers with a stride and an offset."""

    text: str
    template: Template
    numbering: tuple[tuple[str, int, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Name":
        """The template that `text` describes, in which `{6*i+5}` is 5, 11, 17 …"""
        numbering: dict[str, tuple[int, int]] = {}

        def plain(found: re.Match[str]) -> str:
            number = None if found[1] is None else _NUMBER.fullmatch(found[1].strip())
            if number is None:
                return found[0]
            stride, name, offset = int(number[1] or 1), number[2], int(number[3] or 0)
            if stride < 1 or numbering.setdefault(name, (stride, offset)) != (stride, offset):
                raise TransformError(
                    f"template {text!r}: expected one number for {{{name}}}, with a stride of 1 or "
                    f"more, got {found[0]!r}"
                )
            return f"{{{name}}}"

        template = Template.parse(_BRACES.sub(plain, text))
        counted = {name: number for name, number in numbering.items() if number != (1, 0)}
        return cls(text, template, tuple((name, *number) for name, number in counted.items()))

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The placeholders, in order."""
        return tuple(dict.fromkeys(self.template.placeholders))

    def matcher(self, numbers: frozenset[str]) -> Match:
        """A function from a name to the text of each placeholder, or None if it does not match.

        The text of those that are `numbers` is a number from 0 on, without padding.
        """
        match = self.template.matcher()
        scale = {name: (1, 0) for name in numbers if name in self.template.placeholders}
        scale |= {name: (stride, offset) for name, stride, offset in self.numbering}
        if not scale:
            return match

        def counted(name: str) -> dict[str, str] | None:
            values = match(name)
            if values is None:
                return None
            for placeholder, (stride, offset) in scale.items():
                text = values[placeholder]
                if not (text.isascii() and text.isdigit()) or (text[0] == "0" and text != "0"):
                    return None
                number, rest = divmod(int(text) - offset, stride)
                if number < 0 or rest:
                    return None
                values[placeholder] = str(number)
            return values

        return counted

    def fill(self, values: dict[str, str]) -> str:
        """The name that results from replacing the placeholders by these values."""
        if not self.numbering:
            return self.template.fill(values)
        counted = {
            name: str(stride * int(values[name]) + offset)
            for name, stride, offset in self.numbering
        }
        return self.template.fill({**values, **counted})


@final
@dataclass(frozen=True, slots=True)
class Side:
    """One side of a row: its names, and the axes of the tensor of each.

    Without `tensors` they have any axes, after those of `lead`: the numbers that only the other
    side has in its names.
    """

    names: tuple[Name, ...]
    tensors: tuple[Tensor, ...] | None
    lead: tuple[str, ...]

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The placeholders of each of the names."""
        return self.names[0].placeholders

    def show(self) -> str:
        texts = [name.text for name in self.names]
        return repr(texts[0]) if len(texts) == 1 else repr(texts)


@final
class Restored:
    """What takes the place of leaves that were left out: a leaf, or a function of their names."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def of(self, name: str) -> Any:
        """The leaf of this name."""
        return self.value(name) if callable(self.value) else self.value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Restored) or callable(self.value) or callable(other.value):
            return isinstance(other, Restored) and self.value == other.value
        one, another = np.asarray(self.value), np.asarray(other.value)
        return (one.dtype, one.shape, one.tobytes()) == (
            another.dtype, another.shape, another.tobytes()
        )  # fmt: skip

    def __hash__(self) -> int:
        return hash(Restored)

    def __repr__(self) -> str:
        return getattr(self.value, "__qualname__", repr(self.value))


@final
@dataclass(frozen=True, slots=True)
class Row:
    """Their names and ours, which are None if theirs are left out.

    `numbers` are the placeholders whose text is a number. `written` are the arguments.
    """

    written: tuple[Any, ...]
    theirs: Side
    ours: Side | None
    numbers: frozenset[str]
    is_optional: bool
    restored: Restored | None = None

    def sides(self, is_inverse: bool) -> tuple[Side | None, Side | None]:
        """What the names are before, and what they are after."""
        return (self.ours, self.theirs) if is_inverse else (self.theirs, self.ours)

    def __str__(self) -> str:
        ours = "None" if self.ours is None else self.ours.show()
        return f"{self.theirs.show()} -> {ours}"


def parse_row(number: int, row: object) -> Row:
    """The row that a tuple describes; `TransformError`, with its number, if it is none."""
    try:
        return _parsed(row)
    except TransformError as error:
        raise TransformError(f"correspond: row {number}, {row!r:.200}: {error}") from None


def _parsed(row: object) -> Row:
    if not isinstance(row, tuple | list) or not 2 <= len(cast("tuple[Any]", row)) <= 3:
        raise TransformError("expected (their name, our name) or (their name, our name, axes)")
    written = tuple(
        tuple(each) if isinstance(each, list) else each for each in cast("tuple[Any, ...]", row)
    )
    their, our, axes = (*written, None)[:3]
    theirs, is_optional = _their_names(their)
    if our is None:
        return _left_out(written, theirs, is_optional)
    ours = _names("our name", our)
    placeholders = [names[0].placeholders for names in (theirs, ours)]
    only_theirs, only_ours = (
        tuple(name for name in mine if name not in others)
        for mine, others in (placeholders, placeholders[::-1])
    )
    for name in (*only_theirs, *only_ours):
        if name.startswith("*"):
            raise TransformError("expected as many stars in our name as in theirs")
    counted = {name for each in (*theirs, *ours) for name, *_ in each.numbering}
    numbers = frozenset({*only_theirs, *only_ours, *counted})
    if axes is None:
        if len(theirs) > 1 or len(ours) > 1:
            raise TransformError("expected axes for several names, got none")
        sides = Side(theirs, None, only_ours), Side(ours, None, only_theirs)
        return Row(written, *sides, numbers, is_optional)
    if not isinstance(axes, str):
        raise TransformError(f"expected axes to be a string, got {axes!r}")
    left, right = parse_axes(axes)
    sides = _side("their", theirs, left, only_ours), _side("our", ours, right, only_theirs)
    _check_parts(sides, only_theirs, only_ours)
    return Row(written, *sides, numbers, is_optional)


def _left_out(written: tuple[Any, ...], theirs: tuple[Name, ...], is_optional: bool) -> Row:
    side = Side(theirs, None, ())
    if len(theirs) > 1:
        raise TransformError("expected a row for each name that is left out, got several in one")
    if len(written) == 2:
        return Row(written, side, None, frozenset(), is_optional)
    if written[2] is None or isinstance(written[2], str):
        raise TransformError(
            "expected a leaf, or a function of the name, to restore what is left out, got "
            f"{written[2]!r}"
        )
    if any(name.startswith("*") for name in side.placeholders):
        raise TransformError("expected no star in the name of what is restored: number it with {i}")
    restored = Restored(written[2])
    numbers = frozenset(side.placeholders)
    return Row((*written[:2], restored), side, None, numbers, is_optional, restored)


def _their_names(given: object) -> tuple[tuple[Name, ...], bool]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, tuple | list):
        raise TransformError(f"expected their name to be a string or several, got {given!r}")
    found = list(cast("tuple[object]", texts))
    marked = [isinstance(text, str) and text.endswith("?") for text in found]
    if any(marked):
        if not all(marked):
            raise TransformError("expected a ? at the end of all of their names, or of none")
        found = [str(text)[:-1] for text in found]
    return _names("their name", found), any(marked)


def _names(which: str, given: object) -> tuple[Name, ...]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, tuple | list) or not texts:
        raise TransformError(f"expected {which} to be a string or several, got {given!r}")
    names: list[Name] = []
    for text in cast("list[object]", texts):
        if not isinstance(text, str) or not text:
            raise TransformError(f"expected {which} to be a string, got {text!r}")
        names.append(Name.parse(text))
    if len({name.text for name in names}) < len(names):
        raise TransformError(f"expected {which} to be several different ones, got {given!r}")
    if len({frozenset(name.template.placeholders) for name in names}) > 1:
        raise TransformError(f"expected the same placeholders in all names, got {given!r}")
    return tuple(names)


def _side(
    whose: str, names: tuple[Name, ...], tensors: tuple[Tensor, ...], lead: tuple[str, ...]
) -> Side:
    if len(tensors) != len(names):
        raise TransformError(
            f"expected axes of {len(names)} of {whose} tensors, got those of {len(tensors)}"
        )
    # The numbers of the other side's names are axes here: in front, if they are not written.
    led: list[Tensor] = []
    for tensor in tensors:
        written = names_of((tensor,))
        led.append((*((name,) for name in lead if name not in written), *tensor))
    return Side(names, tuple(led), lead)


def _check_parts(
    sides: tuple[Side, Side], only_theirs: tuple[str, ...], only_ours: tuple[str, ...]
) -> None:
    """Raise `TransformError` unless both sides have the same axes in each of their parts."""
    left, right = (
        [names for tensor in side.tensors or () for names in part_names(tensor)] for side in sides
    )
    if len(left) != len(right):
        raise TransformError(
            f"expected as many parts on both sides, got {len(left)} of theirs and {len(right)} of "
            "ours: (q + k) is an axis of two parts"
        )
    for theirs, ours in zip(left, right, strict=True):
        for names, others, whose, lacks in (
            (theirs, only_theirs, "their", "our"), (ours, only_ours, "our", "their")
        ):  # fmt: skip
            for name in others:
                if name in names:
                    raise TransformError(
                        f"expected no axis {name!r} in {whose} tensor, since {{{name}}} is in "
                        f"{whose} name: an axis for it is in {lacks} tensor only"
                    )
        unlike = {*theirs, *only_theirs} ^ {*ours, *only_ours}
        if unlike:
            raise TransformError(
                f"expected the same axes on both sides, got {sorted(unlike)[0]!r} on one of them "
                "only"
            )
