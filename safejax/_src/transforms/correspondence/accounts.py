"""Accounts: all that a table of correspondences leaves over, in one report."""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, final

from safejax._src.pytrees.patterns import Template
from safejax.errors import TransformError

_MOST: Final = 10
"""About as many faults are shown, of 250 characters: all of it is to be read."""
_NUMBER: Final = re.compile(r"\d+")

_SECTIONS: Final = {
    "untaken": (
        "names that no row takes",
        "add a row for each, with None in place of our name for what is to be left out",
    ),
    "idle": (
        "rows that take no name",
        "correct them, or end their name with a ? if it may be missing",
    ),
    "overlapping": (
        "names that several rows take",
        "make the templates more specific; rows of tied names have one and the same template",
    ),
    "missing": (
        "names that are missing next to others of their row",
        "add them; write numbers that begin later as {i+3}",
    ),
    "unlike": ("leaves that do not fit together", "write a row for each kind of leaf"),
    "sizes": (
        "leaves that the axes do not fit",
        "correct the axes, the names or sizes; _d and {_i} have sizes of their own",
    ),
    "unknown": ("axes whose size is unknown", "give sizes, of names without an underscore"),
    "twice": (
        "names that are made twice, or that would not come back as they were",
        "make the templates more specific",
    ),
}


@final
class Report:
    """The faults of a table, by their kind, and in the order in which they were found."""

    def __init__(self) -> None:
        self._faults: dict[str, list[str]] = {}
        self.remedy: str | None = None

    def add(self, kind: str, fault: str) -> None:
        """Add a fault of a kind."""
        assert kind in _SECTIONS
        self._faults.setdefault(kind, []).append(fault)

    def count(self, kind: str) -> int:
        """The number of faults of a kind."""
        return len(self._faults.get(kind, ()))

    def check(self) -> None:
        """Raise `TransformError` with all faults, if there is one.

        `remedy` replaces that for names that no row takes, if it is known what is wrong with them.
        """
        if not self._faults:
            return
        lines: list[str] = []
        most = max(1, min(5, _MOST // len(self._faults)))
        for kind, (what, remedy) in _SECTIONS.items():
            faults = self._faults.get(kind)
            if faults is not None:
                if kind == "untaken" and self.remedy is not None:
                    remedy = self.remedy
                lines.append(f"- {what} ({len(faults)}): {_some(faults, most)}: {remedy}")
        raise TransformError(
            "correspond: expected a row for every name, a name for every row, and axes that fit, "
            "got\n" + "\n".join(lines)
        )


def _some(faults: Iterable[str], most: int) -> str:
    """Some of the faults; those that differ in numbers only are shown once."""
    alike: dict[str, list[str]] = {}
    for fault in faults:
        alike.setdefault(_NUMBER.sub("0", fault), []).append(fault)
    shown = [
        f"{first:.250}" + (f" and {len(others)} like it" if others else "")
        for first, *others in list(alike.values())[:most]
    ]
    more = len(alike) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def why_idle(template: Template, names: Iterable[str]) -> str:
    """A hint for a row that takes no name: one whose numbers do not fit, or one that is alike."""
    match = template.matcher()
    for name in names:
        if match(name) is not None:
            return f" (expected its numbers from 0 on, without padding, got {name!r})"
    alike = dict.fromkeys(_NUMBER.sub("0", name) for name in names)
    near = difflib.get_close_matches(template.text, list(alike)[:1000], n=1)
    return f" (is it like {near[0]!r}?)" if near else ""


def hint_of_prefix(
    names: Sequence[str], templates: Iterable[str], is_taken: Callable[[str], bool]
) -> str | None:
    """A remedy if `names`, which no row takes, lack a segment in front, or have one too many."""
    if not names:
        return None
    firsts = dict.fromkeys(template.partition(".")[0] for template in templates)
    for first in firsts:
        if first and not {"{", "*"} & set(first) and all(is_taken(f"{first}.{n}") for n in names):
            return f"put {first!r} before all names: chain(prefix({first!r}), correspond(...))"
    first = names[0].partition(".")[0]
    if all(n.startswith(f"{first}.") and is_taken(n[len(first) + 1 :]) for n in names):
        return f"take {first!r} from all names: chain(prefix({first!r}).inverse, correspond(...))"
    return None
