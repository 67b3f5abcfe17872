"""What was measured for a target, and whether the rounds say that it is met."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, TypeAlias, final

from benchmarks.cases import NULL
from benchmarks.intervals import Noise, verdict, widened

Results: TypeAlias = Mapping[str, Any]
"""The results of each case by name."""

SHORT_SECONDS: Final = 0.05
"""Times below this are short: what interrupts them is as long as they are."""


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """A target, and what was measured for the fastest rounds and for the medians.

    The measured numbers should be at least `target` if `least`, and at most `target` otherwise.
    They are ratios if `unit` is "×". `rounds` has what each round says, if it is a time or a ratio
    of times, which no two rounds have the same; what is counted has none, and is exact.
    """

    case: str
    compared: str
    target: float
    least: bool
    unit: str
    of_min: float
    of_median: float
    rounds: tuple[float, ...] | None = None
    kind: str = ""

    def judged(self, noise: Mapping[str, Noise | None]) -> dict[str, Any]:
        """The row of the report. Its `outcome` is "met", "missed" or "undecided"."""
        found = (self.of_median, self.of_median)
        if self.rounds is not None:
            found = widened(self.rounds, noise.get(self.kind))
        outcome = "undecided"
        if found is not None:
            outcome = verdict(*found, self.target, least=self.least)
        return {
            "case": self.case,
            "compared": self.compared,
            "target": self.target,
            "least": self.least,
            "unit": self.unit,
            "kind": self.kind,
            "rounds": None if self.rounds is None else len(self.rounds),
            "of_min": self.of_min,
            "of_median": median(self.rounds) if self.rounds else self.of_median,
            "low": found and found[0],
            "high": found and found[1],
            "outcome": outcome,
        }


def compared(
    results: Results, told: str, target: float, *, least: bool, over: list[Any], under: list[Any]
) -> Iterator[Outcome]:
    """The outcome for the longest of some sides over the longest of others.

    A round of one is divided by that of the other with the same number, of which sides of one case
    are taken one after the other.
    """
    if not all(over) or not all(under):
        return
    turns = zip(*(side["seconds"] for side in (*over, *under)), strict=False)
    rounds = tuple(
        max(turn[: len(over)]) / max(turn[len(over) :]) for turn in turns if None not in turn
    )
    of = [
        max(side[which] for side in over) / max(side[which] for side in under)
        for which in ("min", "median")
    ]
    case = over[0]["case"] if not least else under[0]["case"]
    kind = kind_of(results[case], [*over, *under])
    yield Outcome(case, told, target, least, "×", of[0], of[1], rounds, kind)


def noises(cases: list[dict[str, Any]]) -> dict[str, tuple[Noise | None, str]]:
    """What the null runs measured, and the name of its case, by the kind of what is measured."""
    results = {case["name"]: case for case in cases}
    found: dict[str, tuple[Noise | None, str]] = {}
    for kind, case in NULL.items():
        once, again = (side_of(results, case, side) for side in ("safejax", "safejax, again"))
        if once and again:
            pairs = zip(once["seconds"], again["seconds"], strict=False)
            found[kind] = (Noise.of([a / b for a, b in pairs if a and b]), case)
    return found


@final
class Asked(dict[str, Any]):
    """Results without any case, which note what is looked up in them."""

    def __init__(self) -> None:
        super().__init__()
        self.sides: dict[str, set[str]] = {}


def side_of(results: Results, case: str, side: str) -> dict[str, Any] | None:
    """The results of a side in a case; None if it was not measured, or failed."""
    if isinstance(results, Asked):
        results.sides.setdefault(case, set()).add(side)
    found = results.get(case, {}).get("sides", {}).get(side)
    if not found or found["error"] is not None or "median" not in found:
        return None
    return {**found, "case": case}


def kind_of(case: dict[str, Any], sides: list[dict[str, Any]]) -> str:
    """The kind of the null run that the sides' times are like: "short", "long" or "disk"."""
    if case["disk"]:
        return "disk"
    return "short" if min(side["median"] for side in sides) < SHORT_SECONDS else "long"
