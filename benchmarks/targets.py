"""The targets of the project: what is compared, the target, and what was measured."""

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

from benchmarks.cases import NAMING_STEPS
from benchmarks.outcomes import Asked, Outcome, Results, compared, kind_of, noises
from benchmarks.outcomes import side_of as _side
from benchmarks.trees import MIB

Target: TypeAlias = Callable[[Results], Iterator[Outcome]]


def faster(case: str, than: str, target: float) -> Target:
    """The speed should be at least `target` times that of another side."""

    def outcomes(results: Results) -> Iterator[Outcome]:
        ours, other = _side(results, case, "safejax"), _side(results, case, than)
        told = f"{than} / safejax"
        yield from compared(results, told, target, least=True, over=[other], under=[ours])

    return outcomes


def within(case: str, of: str, target: float, what: str = "safejax") -> Target:
    """A side, by default safejax, should take at most `target` times the time of another."""

    def outcomes(results: Results) -> Iterator[Outcome]:
        ours, other = _side(results, case, what), _side(results, case, of)
        told = f"{what} / {of}"
        yield from compared(results, told, target, least=False, over=[ours], under=[other])

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


def from_disk(case: str, kib: float) -> Target:
    """At most `kib` KiB should come from the disk in addition to the pages that are needed."""

    def outcomes(results: Results) -> Iterator[Outcome]:
        ours = _side(results, case, "safejax")
        if ours and "disk" in ours["facts"]:
            beyond = (ours["facts"]["disk"] - ours["facts"]["needed"]) / 1024
            yield Outcome(case, "from the disk, not needed", kib, False, "KiB", beyond, beyond)

    return outcomes


def seconds(case: str, target: float) -> Target:
    """The case should take at most `target` seconds."""

    def outcomes(results: Results) -> Iterator[Outcome]:
        ours = _side(results, case, "safejax")
        if ours:
            of = [ours[which] * 1000 for which in ("min", "median")]
            rounds = tuple(1000 * each for each in ours["seconds"] if each is not None)
            kind = kind_of(results[case], [ours])
            least, middle = of
            yield Outcome(case, "safejax", target * 1000, False, "ms", least, middle, rounds, kind)

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
        told = f"{case} / {of}"
        yield from compared(results, told, target, least=False, over=[ours], under=[other])

    return outcomes


def overlapped(case: str, parts: tuple[str, ...], target: float) -> Target:
    """The case should take at most `target` times the longest of its parts."""

    def outcomes(results: Results) -> Iterator[Outcome]:
        ours, others = _side(results, case, "safejax"), [_side(results, case, p) for p in parts]
        told = f"safejax / the longer of {' and '.join(parts)}"
        yield from compared(results, told, target, least=False, over=[ours], under=others)

    return outcomes


def first_outputs(case: str, *others: str) -> tuple[Target, ...]:
    """The first output should come when the slower of its parts is done, and before others'."""
    parts = ("compile and run", "load only")
    return overlapped(case, parts, 1.1), *(faster(case, other, 1) for other in others)


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
    from_disk("cold_open", 1024),
    from_disk("cold_row", 128),
    within("cold_whole", "calls by hand", 1.05),
    within("save", "limit", 1.15),
    faster("save", "Orbax", 1.5),
    faster("save", "safetensors.flax", 1),
    *(private(case, 64) for case in _SAVES),
    within("convert", "limit", 1.3),
    private("convert", 256),
    private("set_convert", 256),
    *first_outputs("first", "safetensors.flax", "safejax, materialized"),
    *(
        target
        for case in ("first_resnet", "first_minilm", "first_transformer")
        for target in first_outputs(case, "safetensors.flax", "Orbax, restored")
    ),
    within("dispatch", "plain arrays", 1.2),
    within("materialize", "jnp.asarray", 1.2),
    # They are the same arrays, so that this is met or missed by chance, or a finding.
    within("dispatch", "plain arrays", 1.0, "materialized"),
    seconds("import", 0.05),
    faster("many_save", "Orbax", 2),
    faster("many_load", "Orbax", 2),
    within("many_blocked", "Orbax", 0.5),
    within("many_steps", "Orbax", 0.8),
    within("many_on_disk", "Orbax", 1),
    faster("far", "download, load", 2),
    faster("far", "obstore alone", 0.83),
)


SHOWN: Final = {
    "load": (
        "safetensors.numpy", "Orbax safetensors", "flax msgpack", "equinox", "pickle",
    ),
    "load_cast": ("limit", "safetensors.flax"),
    "mesh": ("limit", "Orbax"),
    "replicated": ("limit", "Orbax"),
    "cold": ("safejax", "limit", "safetensors.flax", "Orbax"),
    "save_cast": ("limit", "safetensors.flax"),
    "convert": ("safetensors.flax",),
}  # fmt: skip
"""Sides that no target needs, but tables and charts show, by case."""


def judged(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """What is said of the results of cases, ready for JSON.

    `noise` is that of each null run, `targets` are the rows of all targets whose case was measured,
    and `unmeasured` are the cases of the others.
    """
    noise = {
        kind: {
            "case": case, "rounds": found.rounds, "ratio": found.ratio,
            "factor": found.factor, "of_a_round": found.of_a_round,
        }
        for kind, (found, case) in noises(cases).items()
        if found is not None
    }  # fmt: skip
    measured = {
        case["name"]
        for case in cases
        if any("median" in side for side in case["sides"].values())
    }  # fmt: skip
    return {
        "noise": noise,
        "targets": targets(cases),
        "unmeasured": [name for name in needed() if name not in measured],
    }


def targets(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every target whose case was measured, ready for JSON."""
    results = {case["name"]: case for case in cases}
    noise = {kind: found for kind, (found, _) in noises(cases).items()}
    return [outcome.judged(noise) for target in TARGETS for outcome in target(results)]


def needed() -> dict[str, set[str]]:
    """The sides that the targets need, by case."""
    found: dict[str, set[str]] = {}
    for target in TARGETS:
        for case, sides in _looked_up(target).items():
            found.setdefault(case, set()).update(sides)
    return found


def undecided(cases: list[dict[str, Any]]) -> dict[str, set[str]]:
    """The sides by case that need more rounds, so that all targets are decided."""
    results = {case["name"]: case for case in cases}
    noise = {kind: found for kind, (found, _) in noises(cases).items()}
    found: dict[str, set[str]] = {}
    for target in TARGETS:
        rows = [outcome.judged(noise) for outcome in target(results)]
        if any(row["outcome"] == "undecided" for row in rows):
            for case, sides in _looked_up(target).items():
                found.setdefault(case, set()).update(sides)
    return found


def _looked_up(target: Target) -> dict[str, set[str]]:
    """The sides that a target looks up, by case."""
    asked = Asked()
    list(target(asked))
    return asked.sides
