"""The targets of the project: what is compared, the target, and what was measured."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias, final

from benchmarks.cases import NAMING_STEPS
from benchmarks.trees import MIB

Results: TypeAlias = dict[str, dict[str, Any]]
"""The results of each case by name."""


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """A target, and what was measured for the fastest rounds and for the medians.

    The measured numbers should be at least `target` if `least`, and at most `target` otherwise.
    They are ratios if `unit` is "×".
    """

    case: str
    compared: str
    target: float
    least: bool
    unit: str
    of_min: float
    of_median: float

    @property
    def met(self) -> str:
        """Whether the target is met: "yes", "no", "min only" or "median only"."""
        by = [self._holds(value) for value in (self.of_min, self.of_median)]
        if all(by):
            return "yes"
        return "no" if not any(by) else ("min only" if by[0] else "median only")

    def _holds(self, value: float) -> bool:
        return value >= self.target if self.least else value <= self.target


Target: TypeAlias = Callable[[Results], Iterator[Outcome]]


def faster(case: str, than: str, target: float) -> Target:
    """The speed should be at least `target` times that of another side."""

    def outcomes(results: Results) -> Iterator[Outcome]:
        ours, other = _side(results, case, "safejax"), _side(results, case, than)
        if ours and other:
            ratios = [other[which] / ours[which] for which in ("min", "median")]
            yield Outcome(case, f"{than} / safejax", target, True, "×", *ratios)

    return outcomes


def within(case: str, of: str, target: float, what: str = "safejax") -> Target:
    """A side, by default safejax, should take at most `target` times the time of another."""

    def outcomes(results: Results) -> Iterator[Outcome]:
        ours, other = _side(results, case, what), _side(results, case, of)
        if ours and other:
            ratios = [ours[which] / other[which] for which in ("min", "median")]
            yield Outcome(case, f"{what} / {of}", target, False, "×", *ratios)

    return outcomes


def private(case: str, mib: float) -> Target:
    """Private memory should be at most `mib` MiB more than what has to be copied."""

    def outcomes(results: Results) -> Iterator[Outcome]:
        ours = _side(results, case, "safejax")
        if ours and ours["private"] is not None:
            beyond = max(0, ours["private"] - results[case]["copied_bytes"]) / MIB
            told = "private memory" + (" beyond the copy" if results[case]["copied_bytes"] else "")
            yield Outcome(case, told, mib, False, "MiB", beyond, beyond)

    return outcomes


def requested(case: str) -> Target:
    """Only the bytes that are needed should be requested, and each of them once."""

    def outcomes(results: Results) -> Iterator[Outcome]:
        ours = _side(results, case, "safejax")
        if ours and ours["read"] is not None:
            needed = ours["facts"].get("needed", results[case]["file_bytes"])
            ratio = ours["read"] / needed if needed else 1.0 + ours["read"]
            yield Outcome(case, "bytes requested / needed", 1.0, False, "×", ratio, ratio)

    return outcomes


def seconds(case: str, target: float) -> Target:
    """The case should take at most `target` seconds."""

    def outcomes(results: Results) -> Iterator[Outcome]:
        ours = _side(results, case, "safejax")
        if ours:
            times = [ours[which] * 1000 for which in ("min", "median")]
            yield Outcome(case, "safejax", target * 1000, False, "ms", *times)

    return outcomes


def header(case: str, target: float) -> Target:
    """A header with our record should be at most `target` times as long as one without."""

    def outcomes(results: Results) -> Iterator[Outcome]:
        ours = _side(results, case, "safejax")
        if ours and "header" in ours["facts"]:
            ratio = ours["facts"]["header"] / ours["facts"]["header_without_record"]
            yield Outcome(case, "header with / without record", target, False, "×", ratio, ratio)

    return outcomes


def independent(case: str, of: str, target: float) -> Target:
    """A case should take at most `target` times as long as another, to allow for noise."""

    def outcomes(results: Results) -> Iterator[Outcome]:
        ours, other = _side(results, case, "safejax"), _side(results, of, "safejax")
        if ours and other:
            ratios = [ours[which] / other[which] for which in ("min", "median")]
            yield Outcome(case, f"{case} / {of}", target, False, "×", *ratios)

    return outcomes


def overlapped(case: str, parts: tuple[str, ...], target: float) -> Target:
    """The case should take at most `target` times the longest of its parts."""

    def outcomes(results: Results) -> Iterator[Outcome]:
        ours, others = _side(results, case, "safejax"), [_side(results, case, p) for p in parts]
        if ours and all(others):
            longest = [max(o[which] for o in others if o) for which in ("min", "median")]
            ratios = [ours[which] / longest[k] for k, which in enumerate(("min", "median"))]
            told = f"safejax / the longer of {' and '.join(parts)}"
            yield Outcome(case, told, target, False, "×", *ratios)

    return outcomes


_LOADS: Final = ("load", "stock", "load_cast", "rows", "columns", "mesh", "replicated", "set")
_SAVES: Final = ("save", "save_cast")

TARGETS: Final[tuple[Target, ...]] = (
    faster("load", "safetensors.flax", 5),
    faster("load", "Orbax", 8),
    within("load", "limit", 1.15),
    faster("place", "safetensors.flax", 50),
    faster("stock", "safetensors.flax", 4),
    within("stock", "limit", 1.2),
    faster("rows", "Orbax", 8),
    faster("rows", "Orbax safetensors", 8),
    faster("columns", "Orbax", 3),
    faster("columns", "Orbax safetensors", 8),
    within("columns", "limit", 1.3),
    *(within(f"through_{each}", "limit", 1.2) for each in ("cast", "transpose", "stack", "chain")),
    *(requested(case) for case in (*_LOADS, "row", "convert")),
    *(private(case, 64) for case in _LOADS),
    within("open_100000", "safetensors.numpy", 4),
    independent("plan_100000", "open_100000", 2),
    within("save_40000", "safetensors.numpy", 1.3),
    *(seconds(f"names_{each}", 0.5) for each in (*NAMING_STEPS, "where", "exact")),
    *(seconds(f"names_{each}", 1.0) for each in ("chain", "plan")),
    independent("open_1000_large", "open_1000", 1.25),
    within("port", "NumPy by hand", 0.7),
    header("open_100000", 1.05),
    within("row", "numpy.memmap", 2),
    within("save", "limit", 1.15),
    faster("save", "Orbax", 1.5),
    faster("save", "safetensors.flax", 1),
    *(private(case, 64) for case in _SAVES),
    within("convert", "limit", 1.3),
    private("convert", 256),
    private("set_convert", 256),
    overlapped("first", ("compile and run", "load only"), 1.1),
    faster("first", "safetensors.flax", 1),
    faster("first", "safejax, materialized", 1),
    within("dispatch", "plain arrays", 1.2),
    within("materialize", "jnp.asarray", 1.2),
    within("dispatch", "plain arrays", 1.0, "materialized"),
    seconds("import", 0.05),
)


def targets(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every target whose case was measured, ready for JSON."""
    results = {case["name"]: case for case in cases}
    return [
        {**asdict(outcome), "met": outcome.met} for target in TARGETS for outcome in target(results)
    ]


def _side(results: Results, case: str, side: str) -> dict[str, Any] | None:
    """The results of a side in a case; None if it was not measured, or failed."""
    found = results.get(case, {}).get("sides", {}).get(side)
    return found if found and found["error"] is None and found["seconds"] else None
