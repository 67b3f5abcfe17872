"""Stacking: the numbers of leaves that are stacked, and stacks of leaves that have names."""

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from safejax._src.pytrees.patterns import Template, agreeing
from safejax._src.transforms.renaming import check_placeholders, parsed_parts, parsed_template
from safejax._src.transforms.selection import checked_axis
from safejax._src.transforms.split import Concat, Split
from safejax.errors import TransformError


def fault_of_numbers(
    numbered: Mapping[str, Mapping[int, str]],
    targets: Mapping[str, tuple[str, ...]],
    start: int,
    count: int | None,
) -> str | None:
    """What is at fault, of all new leaves, with the numbers of those that each is made of.

    `targets` says which of the new leaves are made of the same layers: as many of each.
    """
    most: dict[tuple[str, ...], int] = {}
    for target, names in numbered.items():
        most[targets[target]] = max(most.get(targets[target], 0), len(names))
    faults: list[str] = []
    for target, names in numbered.items():
        each = most[targets[target]] if count is None else count
        gap = next(number for number in range(start, start + len(names) + 1) if number not in names)
        if min(names) < start:
            faults.append(f"{target!r}: expected numbers from {start} on, got {_some(names)}")
        elif gap < start + len(names):
            faults.append(
                f"{target!r}: expected the numbers {start} to {max(names)}, {gap} is missing, got "
                f"{_some(names)}"
            )
        elif len(names) != each:
            others = "" if count is not None else ", as others have next to it"
            faults.append(f"{target!r}: expected {each} leaves{others}, got {len(names)}")
    if not faults:
        return None
    more = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
    remedy = (
        "stack those that differ by a step of their own, choose numbers as {i:3|4|5} does, or give "
        "start and count"
        if count is None
        else "narrow the template, as {i:3|4|5} does, or correct start and count"
    )
    return f"{'; '.join(faults[:8])}{more}: {remedy}"


def index_of(numbered: Template, plain: Template) -> set[str]:
    """The placeholder of the number: the one that the template of one name lacks."""
    return set(numbered.placeholders) - set(plain.placeholders)


def check_templates(step: str, numbered: Template, plain: Template) -> None:
    """Raise `TransformError` unless there is such a placeholder, and no other difference."""
    index = index_of(numbered, plain)
    if len(index) != 1 or next(iter(index)).startswith("*"):
        raise TransformError(
            f"{step}: expected one placeholder of {numbered.text!r} that {plain.text!r} lacks, "
            f"for the number, got {sorted(index) or 'none'}"
        )
    if not set(plain.placeholders) <= set(numbered.placeholders):
        raise TransformError(
            f"{step}: expected the placeholders of {plain.text!r} in {numbered.text!r}, got "
            f"{sorted(set(plain.placeholders))} and {sorted(set(numbered.placeholders))}"
        )


def is_number(text: str) -> bool:
    """Whether a segment of a name is a number."""
    return text.isascii() and text.isdigit()


def is_in_range(number: str, start: int, count: int | None) -> bool:
    """Whether a number is among those that are stacked; without `count`, all of them are."""
    return count is None or start <= int(number) < start + count


def checked_numbers(step: str, start: object, count: object) -> tuple[int, int | None]:
    """`start` and `count`, if they are numbers; `TransformError` otherwise."""
    for argument, number, least in (("start", start, 0), ("count", count, 1)):
        if argument == "count" and number is None:
            continue
        if type(number) is not int or number < least:
            raise TransformError(
                f"{step}: expected {argument} to be an int of {least} or more, got {number!r}"
            )
    return cast("tuple[int, int | None]", (start, count))


def refuse_numbers(step: str, start: object, count: object) -> None:
    """Raise `TransformError` for numbers next to a list of names."""
    if start != 0 or count is not None:
        raise TransformError(
            f"{step}: expected start and count with a number in the names, got them with a list "
            "of names: leave them out"
        )


def _some(numbers: Iterable[int]) -> str:
    known = sorted(numbers)
    return ", ".join(map(str, known[:8])) + (" …" if len(known) > 8 else "")


def split_off(template: object, into: Sequence[str], axis: int, must_match: bool) -> Split:
    """The elements of a leaf along an axis as leaves of their own: `unstack` into names."""
    source = parsed_template("unstack", template)
    parts = parsed_parts("unstack", "into", into)
    check_placeholders("unstack", source, parts)
    source, *of_parts = agreeing(source, *parts)
    return Split(
        source, tuple(of_parts), checked_axis("unstack", axis), None, must_match, stacks=True
    )


def concat_new(templates: Sequence[str], into: object, axis: int, must_match: bool) -> Concat:
    """Leaves joined along a new axis: `stack` of names."""
    target = parsed_template("stack", into)
    parts = parsed_parts("stack", "templates", templates)
    check_placeholders("stack", target, parts)
    target, *of_parts = agreeing(target, *parts)
    return Concat(
        tuple(of_parts), target, checked_axis("stack", axis), None, must_match, stacks=True
    )
