"""The machine: callables run with plain arrays and with lazy leaves, and how they differ."""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import jax

from tests.support.argument_table import (
    ALWAYS,
    GROUPS,
    MOST_ROWS,
    PLACEMENTS,
    SPECIAL,
    STATES,
    arrays_in,
    calling,
    with_parameters,
)
from tests.support.callables import Family, Subject, subjects, why_skipped
from tests.support.effort import LARGE
from tests.support.outcomes import difference, is_refusal, outcome


class Difference(NamedTuple):
    """A call in which a lazy leaf is not as a plain array."""

    name: str
    row: str
    placement: str
    state: str
    kind: str
    expected: Any
    got: Any

    def __str__(self) -> str:
        """What was called and how it differs, in three lines."""
        where = f"{self.name}({self.row}), {self.placement}, {self.state}"
        sides = f"\n    plain: {self.expected!s:.300}\n    lazy:  {self.got!s:.300}"
        return f"{where}: {self.kind}{sides}"


UNSTEADY: Final = "two plain calls differ"


class LeftOver(NamedTuple):
    """Differences that are meant, or that cannot be helped: regular expressions for them."""

    name: str
    kind: str
    reason: str
    row: str = ".*"

    def covers(self, found: Difference) -> bool:
        """Whether the difference is one of these."""
        return all(
            re.fullmatch(rule, text)
            for rule, text in (
                (self.name, found.name), (self.kind, found.kind), (self.row, found.row),
            )
        )  # fmt: skip


_WITH_A_KEY: Final = r".*\b[KQ]\b.*"
LEFT_OVER: Final = (
    LeftOver(
        r"jax\.make_array_from_single_device_arrays", ".*",
        "C++ looks at the real type, and nothing of JAX's Python is in between",
    ),
    LeftOver(
        r"Array\.__(release_)?buffer__|builtins\.(bytearray|bytes|memoryview)|"
        r"pickle\.(PickleBuffer|loads)|(jax\.)?numpy(\.ma)?\.frombuffer|"
        r"numpy\.(bytes_|recarray)",
        ".*",
        "before Python 3.12 a class of Python's has no buffer; from then on a leaf's has what is "
        "stored, on however many devices it will be",
    ),
    LeftOver(
        r"jax\.numpy\.atleast_[123]d", UNSTEADY, "JAX 0.8 warns of a list in the first call only"
    ),
    LeftOver(
        r"numpy\.\w+\.reduceat", "AxisError, plain raises TypeError|a value, plain is refused",
        "before Python 3.12 NumPy takes the indices by __array__, which casts them, and not by the "
        "buffer",
    ),
    LeftOver(
        r"Array\.__reduce(_ex)?__|pickle\.dumps", ".*",
        "keys are pickled as their data and the name of their implementation", _WITH_A_KEY,
    ),
    LeftOver(
        r".*", "(AttributeError, plain raises TypeError|TypeError, plain raises AttributeError)",
        "the class has special methods that keys have not: both refuse", _WITH_A_KEY,
    ),
    LeftOver(
        r"Array\._[a-z]\w*", ".*", "the class has private names of arrays, keys have others",
        _WITH_A_KEY,
    ),
    LeftOver(
        r"Array\.__\w+__", "a value, plain is refused",
        "the class has special methods that keys have not: who asks for them by name finds them",
        _WITH_A_KEY,
    ),
    LeftOver(
        r"Array\.(device|sharding)", "values",
        "JAX writes the sharding of keys now with and now without the axes that are whole",
        _WITH_A_KEY,
    ),
    LeftOver(
        r"Array\.__(deep)?copy__|copy\.(deep)?copy", "sharding",
        "on explicit meshes JAX writes the axes of a copy out: P('x', None) for P('x')",
    ),
    LeftOver(
        r"scipy\.(?!special|fft).*", "values",
        "BLAS, and what iterates, round by where memory begins",
    ),
    LeftOver(r"scipy\..*|jax\.vjp", UNSTEADY, "is another one for every call"),
)  # fmt: skip
"""What the page on lazy leaves tells to call `materialize` for, and what is otherwise by design."""


@dataclass
class Tally:
    """What was compared."""

    compared: set[str] = field(default_factory=set)
    """The callables."""
    calls: int = 0
    """Calls with lazy leaves."""
    pairs: int = 0
    """Callables × placements."""
    without_row: set[str] = field(default_factory=set)
    """Callables that no row of the table can call, even with plain arrays."""
    left_over: list[Difference] = field(default_factory=list)
    """Differences that `LEFT_OVER` lists."""
    differences: list[Difference] = field(default_factory=list)
    """All others."""


def rows_of(subject: Subject, seed: int) -> tuple[list[str], list[str]]:
    """The rows that the callable takes, and others: a few that it refuses, and `ALWAYS`."""
    call = subject.call
    taken = [*SPECIAL.get(subject.name, ())]
    refused: list[str] = []

    def takes(row: str) -> bool:
        refuses = is_refusal(outcome(calling(call, row, "default", "plain")))
        if refuses:
            refused.append(row)
        return not refuses

    def first(rows: Iterable[str]) -> list[str]:
        return next(([row] for row in rows if takes(row)), [])

    for group in GROUPS:
        if len(taken) < MOST_ROWS:
            taken += first(group)
    if taken:
        for rows in with_parameters(call, taken[0]).values():
            taken += first(rows)
    chosen = random.Random(f"{subject.name} {seed}")
    also = chosen.sample(refused, min(2, len(refused)))
    for rule, rows in ALWAYS.items():
        if re.fullmatch(rule, subject.name):
            also += [row for row in rows if row not in {*taken, *also}]
    return taken, also


def compare(subject: Subject, row: str, placement: str, tally: Tally) -> Iterator[Difference]:
    """The differences of one call in one placement."""
    expected = outcome(calling(subject.call, row, placement, "plain"))
    for state in STATES:
        if state == "mixed" and arrays_in(row) < 2:
            continue
        got = outcome(calling(subject.call, row, placement, state))
        tally.calls += 1
        kind = difference(expected, got)
        if kind is not None:
            again = outcome(calling(subject.call, row, placement, "plain"))
            if difference(expected, again) is not None:
                kind = UNSTEADY
            yield Difference(subject.name, row, placement, state, kind, expected, got)


def compare_all(
    chosen: Iterable[Subject], placements: Sequence[str], seed: int, sample: int | None = None
) -> Tally:
    """What is found of the callables, each in as many of the placements as `sample` says."""
    tally = Tally()
    for subject in chosen:
        taken, refused = rows_of(subject, seed)
        if not taken:
            tally.without_row.add(subject.name)
            continue
        tally.compared.add(subject.name)
        here = list(placements)
        if sample is not None:
            here = random.Random(f"{seed} {subject.name}").sample(here, sample)
        for placement in here:
            tally.pairs += 1
            for row in (*taken, *refused):
                for found in compare(subject, row, placement, tally):
                    known = any(rule.covers(found) for rule in LEFT_OVER)
                    (tally.left_over if known else tally.differences).append(found)
    return tally


def to_compare(family: Family) -> list[Subject]:
    """The callables of the family that are not skipped."""
    return [subject for subject in subjects(family) if why_skipped(subject.name) is None]


def forget() -> None:
    """Let go of what JAX has compiled for the callables so far."""
    jax.clear_caches()


def check(family: Family, seed: int, *, everything: bool) -> Tally:
    """What is found of a family: of all of it in all placements, or of a sample by the seed."""
    chosen = to_compare(family)
    if everything:
        return compare_all(chosen, PLACEMENTS, seed)
    # Of a small family, a small sample may have nothing that a row can call.
    size = family.sample if LARGE else max(family.sample // 4, min(family.sample // 2, 4))
    chosen = random.Random(f"{family.modules[0]} {seed}").sample(chosen, min(size, len(chosen)))
    return compare_all(chosen, PLACEMENTS, seed, sample=1)
