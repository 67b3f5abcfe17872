"""The parts of the documentation that are made of the results of a run.

In the Markdown, such a part is between two comments, which name it: what is between them is
written by `python -m benchmarks --publish`, and never by hand. It is made of the results that are
in the repository, so that a test can make it again.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from benchmarks.report import number, size_text, time_text, times_text, written
from benchmarks.targets import judged
from benchmarks.trees import MIB

HERE: Final = Path(__file__).parent
RESULTS: Final = HERE / "results.json"
CHART: Final = HERE / "speed.png"
PAGES: Final = (HERE.parent / "README.md", HERE.parent / "docs" / "explanation" / "speed.md")

_PART: Final = re.compile(r"(<!-- benchmarks: (\w+) -->)(.*?)(<!-- end of \2 -->)", re.DOTALL)


def publish(report: dict[str, Any]) -> None:
    """Write the results, the charts and the pages into the repository.

    `SystemExit` if the README's case was not measured; nothing is written then.
    """
    if "load" in report["unmeasured"]:
        raise SystemExit("nothing is published: the case load was not measured")
    for case in report["cases"]:
        for side in case["sides"].values():
            # An error may name folders of this machine.
            side["error"] = side["error"] and "failed"
    RESULTS.write_text(written(report))
    # The numbers have fewer digits there.
    report = committed()
    # Imported here, since nothing else needs matplotlib.
    from benchmarks.plot import draw

    draw(report, os.fspath(CHART))
    for page in PAGES:
        page.write_text(filled(page.read_text(), report))


def committed() -> dict[str, Any]:
    """The results that are in the repository, and what is said of them."""
    report = json.loads(RESULTS.read_text())
    return {**report, **judged(report["cases"])}


def filled(text: str, report: dict[str, Any]) -> str:
    """The Markdown with its parts made of the report; `KeyError` for a part of another name."""

    def part(found: re.Match[str]) -> str:
        return found[1] + PARTS[found[2]](report) + found[4]

    return _PART.sub(part, text)


# ---- the parts


def _row(report: dict[str, Any]) -> str:
    """The row of the README's table: how many times as long as safejax each of its columns is."""
    (case,) = [case for case in report["cases"] if case["name"] == "load"]
    size = size_text(case["tree_bytes"])
    cells = [f"time to load {size} on a CPU, every value touched", "1"]
    cells += [times_text(case, side) or "–" for side in _COLUMNS]
    return " | ".join(cells)


_COLUMNS: Final = ("safetensors.flax", "Orbax", "flax msgpack", "equinox", "pickle")
"""The README's columns after safejax."""


def _machine(report: dict[str, Any]) -> str:
    machine, versions = report["machine"], report["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in _VERSIONS if name in versions)
    return (
        f"{report['date'][:10]}, {report['seconds'] / 60:.0f} minutes; {machine['processor']}, "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['file_system']}, load "
        f"average {machine['load_average']} before; {named}"
    )


_VERSIONS: Final = ("python", "jax", "numpy", "safetensors", "orbax-checkpoint", "flax", "equinox")


def _noise(report: dict[str, Any]) -> str:
    rows = [
        (
            _KINDS[kind], str(found["rounds"]), number(found["ratio"]),
            f"± {100 * (found['of_a_round'] - 1):.1f} %", f"± {100 * (found['factor'] - 1):.1f} %",
        )
        for kind, found in report["noise"].items()
    ]  # fmt: skip
    if not rows:
        return "\n\nThe null runs had too few rounds.\n\n"
    head = ("null run of", "rounds", "ratio", "nine in ten rounds", "the median of all")
    return _table(head, rows)


_KINDS: Final = {
    "short": "short times, below 50 ms", "long": "longer times",
    "disk": "what is flushed to the disk",
}  # fmt: skip


def _compared(report: dict[str, Any]) -> str:
    rows: list[tuple[str, ...]] = []
    for case in report["cases"]:
        others = [side for side in case["sides"] if side not in ("safejax", *_MAIN)]
        ours = case["sides"].get("safejax", {})
        cells = [times_text(case, side) for side in _MAIN]
        told = "; ".join(
            f"{side}: {times_text(case, side)}" for side in others if times_text(case, side)
        )
        if case["group"] != "null" and "median" in ours and (told or any(cells)):
            known = [cell or "–" for cell in (*cells, told)]
            rows.append((_titled(case), time_text(ours["median"]), *known))
    return _table(("case", "safejax", *_MAIN, "others"), rows)


_MAIN: Final = ("limit", "safetensors.flax", "Orbax")
"""The sides that have a column."""


def _targets(report: dict[str, Any]) -> str:
    titles = {case["name"]: _titled(case) for case in report["cases"]}
    rows: list[tuple[str, ...]] = []
    for exact, group in groupby(report["targets"], _alike):
        same = list(group)
        if exact is None:
            rows += [_target(titles[row["case"]], row) for row in same]
        else:
            worst = sorted(same, key=lambda row: row["of_median"], reverse=not same[0]["least"])[0]
            named = ", ".join(row["case"] for row in same)
            rows.append(_target(titles[same[0]["case"]] if len(same) == 1 else named, worst))
    count = {word: sum(r["outcome"] == word for r in report["targets"]) for word in _OUTCOMES}
    told = ", ".join(f"{each} {word}" for word, each in count.items())
    head = ("case", "compared", "target", "measured", "interval", "rounds", "outcome")
    missing = ", ".join(report["unmeasured"])
    late = f" Not measured in this run: {missing}." if missing else ""
    return f"\n\nOf {len(report['targets'])} targets: {told}.{late}" + _table(head, rows)


_OUTCOMES: Final = ("met", "undecided", "missed")


def _alike(row: dict[str, Any]) -> tuple[Any, ...] | None:
    """What is counted is one row for all cases with the same target; None for what is timed."""
    if row["rounds"] is not None:
        return None
    return row["compared"], row["target"], row["outcome"]


def _target(title: str, row: dict[str, Any]) -> tuple[str, ...]:
    unit = "" if row["unit"] == "×" else f" {row['unit']}"
    interval = "exact" if row["rounds"] is None else "–"
    if row["rounds"] is not None and row["low"] is not None:
        interval = f"{number(row['low'])} – {number(row['high'])}"
    outcome = row["outcome"] if row["outcome"] == "met" else f"**{row['outcome']}**"
    return (
        title, row["compared"], f"{'≥' if row['least'] else '≤'} {number(row['target'])}{unit}",
        f"{number(row['of_median'])}{unit}", interval, str(row["rounds"] or ""), outcome,
    )  # fmt: skip


def _titled(case: dict[str, Any]) -> str:
    """The title, with the size where the title has no number of tensors."""
    if case["tensors"] >= 1000 or case["tree_bytes"] < MIB:
        return case["title"]
    return f"{case['title']}, {size_text(case['tree_bytes'])}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


PARTS: Final[dict[str, Callable[[dict[str, Any]], str]]] = {
    "row": _row, "machine": _machine, "noise": _noise, "compared": _compared, "targets": _targets,
}  # fmt: skip
"""What makes each part, by its name."""


def parts_of(text: str) -> Iterator[str]:
    """The names of the parts of a page."""
    return (found[2] for found in _PART.finditer(text))
