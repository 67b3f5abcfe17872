"""Which case is measured when: in sweeps over all of them, until the time is spent.

Each case comes back in several sweeps, so that a slow minute of the machine is not the whole
measurement of one of them. The first sweep takes three rounds of all, or fewer of what is slow.
After that, only cases with a target that is undecided come back, and of them only the sides that it
compares: the cheapest first, as many as the time allows. After three rounds, that is every target
of times.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol, final

from benchmarks.cases import NULL
from benchmarks.intervals import LOOKS
from benchmarks.processes import OutOfTimeError

_FIRST: Final = 3
_NO_ESTIMATE: Final = 1.2
"""Rounds of fewer sides may take as long as those before, and some longer."""

_OF_SHARE: Final = 2.5
"""How many times its equal share of the time a subject may take in the first sweep."""


class Subject(Protocol):
    """What is measured some rounds at a time: a case, or several that are measured together."""

    names: tuple[str, ...]
    rounds: int
    seconds_of_a_round: float

    def visit(
        self, rounds: int, wanted: set[str] | None = None, until: float = math.inf
    ) -> None:  # fmt: skip
        """Take some rounds of all sides, or of those that are wanted; fewer after that time."""
        ...

    def reports(self) -> Iterator[dict[str, Any]]:
        """The results of each case so far."""
        ...


Undecided = Callable[[list[dict[str, Any]]], dict[str, set[str]]]


@final
class Schedule:
    """Measures subjects; `deadline` is a time of `time.monotonic`.

    `undecided` finds the sides by case of the targets that need more rounds. `after` is called
    after each visit.
    """

    def __init__(
        self, subjects: Sequence[Subject], deadline: float, undecided: Undecided,
        say: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        self._subjects = subjects
        self._deadline = deadline
        self._undecided = undecided
        self._say = say
        self.after: Callable[[], None] = lambda: None

    def results(self) -> list[dict[str, Any]]:
        """The results of all cases so far, ready for JSON."""
        return [report for subject in self._subjects for report in subject.reports()]

    def run(self) -> None:
        """Measure until all is decided, or the time is spent."""
        for number, subject in enumerate(self._subjects):
            now = time.monotonic()
            share = (self._deadline - now) / (len(self._subjects) - number)
            # Whatever happens later, there is a null run.
            rounds = LOOKS[0] if _is_null(subject) else _FIRST
            self._visit(subject, rounds, None, now + _OF_SHARE * share)
        for look in LOOKS:
            if time.monotonic() >= self._deadline:
                return
            wanted = self._undecided(self.results())
            for subject in sorted(self._subjects, key=lambda each: each.seconds_of_a_round):
                sides = _sides(subject, wanted)
                rounds = look - subject.rounds
                if sides and subject.rounds and rounds > 0:
                    self._visit(subject, rounds, sides)

    def _visit(
        self, subject: Subject, rounds: int, sides: set[str] | None, until: float = math.inf
    ) -> None:
        left = self._deadline - time.monotonic()
        cost = rounds * subject.seconds_of_a_round * _NO_ESTIMATE
        told = ", ".join(subject.names)
        if left <= 0 or cost > left:
            self._say(f"[{left:4.0f} s left] {told}: no time for {rounds} rounds")
            return
        start, before = time.monotonic(), subject.rounds
        try:
            subject.visit(rounds, sides, until)
        except OutOfTimeError:
            self._say(f"[{left:4.0f} s left] {told}: the time ended")
        else:
            took = time.monotonic() - start
            which = "all sides" if sides is None else ", ".join(sorted(sides))
            taken = subject.rounds - before
            self._say(f"[{left:4.0f} s left] {told}: {taken} rounds of {which}, {took:.1f} s")
        self.after()


def fixed(
    subjects: Sequence[Subject], rounds: int, say: Callable[[str], None] = print,
    after: Callable[[int], None] = lambda _: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measure each subject in one visit, however long it takes; the results.

    `after` is called with the number of subjects that are done.
    """
    for number, subject in enumerate(subjects):
        say(f"[{number + 1}/{len(subjects)}] {', '.join(subject.names)}")
        subject.visit(rounds)
        after(number + 1)
    return [report for subject in subjects for report in subject.reports()]


def _is_null(subject: Subject) -> bool:
    return subject.names[0] in NULL.values()


def _sides(subject: Subject, wanted: dict[str, set[str]]) -> set[str]:
    """The sides of a subject that are wanted; all of them for a null run, in each sweep."""
    null = {"safejax", "safejax, again"} if _is_null(subject) else set[str]()
    return null.union(*(wanted.get(name, set[str]()) for name in subject.names))
