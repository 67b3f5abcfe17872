"""The report as text: one table for each case, one for the noise, and one for the targets."""

import json
import re
from collections.abc import Iterator
from statistics import median
from typing import Any, Final

from benchmarks.trees import MIB

Row = tuple[str, ...]


def table(report: dict[str, Any]) -> str:
    """All tables of a report, ready to print."""
    lines = [*_heading(report), ""]
    for case in report["cases"]:
        lines += [_title(case), *_aligned(_HEAD, list(_rows(case))), *_left_out(case), ""]
    lines += [*_noise(report), ""]
    if report["targets"]:
        rows = [_target(target) for target in report["targets"]]
        told = ", ".join(
            f"{sum(row['outcome'] == word for row in report['targets'])} {word}"
            for word in ("met", "undecided", "missed")
        )
        lines += [f"targets: {told}", *_aligned(_TARGET_HEAD, rows), ""]
    if report["unmeasured"]:
        lines += [
            f"targets of these cases were not measured: {', '.join(report['unmeasured'])}",
            "",
        ]
    return "\n".join(lines)


_HEAD: Row = ("side", "min", "median", "× safejax", "private", "read", "faults")
_TARGET_HEAD: Row = (
    "case", "compared", "target", "of min", "median", "interval", "rounds", "outcome",
)  # fmt: skip
_NO_NULL_RUN: Final = "no null run: each interval is that of the rounds alone"


def _heading(report: dict[str, Any]) -> Iterator[str]:
    machine = report["machine"]
    yield (
        f"{report['date']}: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, {machine['system']}, {machine['file_system']}, load "
        f"average {machine['load_average']} before"
    )
    yield ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    yield (
        f"tree of {report['size_mib']:g} MiB unless stated otherwise, {_rounds(report)} in "
        f"{report['seconds'] / 60:.1f} minutes, each side in a process of its own; private: the "
        "increase of private memory at its peak"
    )


def _rounds(report: dict[str, Any]) -> str:
    return f"{report['repeats']} rounds" if report["repeats"] else "as many rounds as needed"


def _noise(report: dict[str, Any]) -> Iterator[str]:
    """How noisy the machine was: what is measured of ratios that are 1."""
    if not report["noise"]:
        yield _NO_NULL_RUN
    for kind, found in report["noise"].items():
        yield (
            f"noise of {kind} times: safejax / safejax was {found['ratio']:.3f} in the median of "
            f"{found['rounds']} rounds, known to ± {100 * (found['factor'] - 1):.1f} %; nine in "
            f"ten rounds were within ± {100 * (found['of_a_round'] - 1):.1f} %"
        )


def _title(case: dict[str, Any]) -> str:
    size = case["tree_bytes"] / MIB
    return f"{case['name']}: {case['title']} ({size:,.4g} MiB, {case['tensors']:,} tensors)"


def _rows(case: dict[str, Any]) -> Iterator[Row]:
    ours = case["sides"].get("safejax", {})
    for name, side in case["sides"].items():
        if side["error"] is not None:
            yield (name, f"failed: {side['error']}")
            continue
        if "median" not in side:
            continue
        ratio = f"{side['median'] / ours['median']:.2f}" if "median" in ours else "-"
        notes = ""
        if side["cold"] is not None:
            notes = f"{side['cold']:.0%} stayed in the page cache" if side["cold"] > 0.01 else ""
        yield (
            name, time_text(side["min"]), time_text(side["median"]), ratio,
            _bytes_text(side["private"]), _bytes_text(side["read"]),
            "-" if side["faults"] is None else f"{side['faults']:,}", notes,
        )  # fmt: skip


def _left_out(case: dict[str, Any]) -> Iterator[str]:
    for name, packages in case["left_out"].items():
        yield f"  {name}: left out, {', '.join(packages)} not installed"


def _target(target: dict[str, Any]) -> Row:
    unit = target["unit"]
    sign = "≥" if target["least"] else "≤"
    interval = "-" if target["low"] is None else f"{number(target['low'])}–{number(target['high'])}"
    return (
        target["case"], target["compared"], f"{sign} {number(target['target'])} {unit}",
        f"{number(target['of_min'])} {unit}", f"{number(target['of_median'])} {unit}",
        "exact" if target["rounds"] is None else interval, str(target["rounds"] or ""),
        target["outcome"],
    )  # fmt: skip


def written(report: dict[str, Any]) -> str:
    """The report as JSON, in which the seconds of all rounds of a side are one line."""
    rounded = json.loads(json.dumps(report), parse_float=lambda text: float(f"{float(text):.5g}"))
    text = json.dumps(rounded, indent=1, ensure_ascii=False)
    return re.sub(r"\[[^\[\]{}\"]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def number(value: float) -> str:
    """Three digits, without a power of ten."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def times_text(case: dict[str, Any], side: str) -> str:
    """How many times as long as safejax a side takes; "" if both were not measured.

    It is the median of the rounds' ratios, as in the targets.
    """
    found = case["sides"].get(side, {"seconds": []})["seconds"]
    ours = case["sides"].get("safejax", {"seconds": []})["seconds"]
    ratios = [b / a for a, b in zip(ours, found, strict=False) if a and b]
    if not ratios:
        return ""
    ratio = median(ratios)
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2g}"


def size_text(nbytes: int) -> str:
    """A size in GiB or MiB."""
    mib = nbytes / MIB
    return f"{mib / 1024:.3g} GiB" if mib >= 1000 else f"{mib:.3g} MiB"


def time_text(seconds: float) -> str:
    """A time in a suitable unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def _bytes_text(nbytes: int | None) -> str:
    if nbytes is None:
        return "-"
    return f"{nbytes / MIB:,.0f} MiB" if nbytes >= MIB else f"{nbytes / 1024:,.0f} KiB"


def _aligned(head: Row, rows: list[Row]) -> Iterator[str]:
    """The lines of a table: text is aligned to the left, numbers to the right."""
    whole = [row for row in (head, *rows) if len(row) > 2]
    widths = [max(len(row[k]) for row in whole if k < len(row)) for k in range(len(head))]
    texts = 2 if head is _TARGET_HEAD else 1
    for row in (head, *rows):
        padded = [
            cell.ljust(width) if at < texts else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        yield "  " + "  ".join([*padded, *row[len(widths) :]]).rstrip()
