"""The report as text: one table for each case, and one for the targets."""

from collections.abc import Iterator
from typing import Any

from benchmarks.trees import MIB

Row = tuple[str, ...]


def table(report: dict[str, Any]) -> str:
    """All tables of a report, ready to print."""
    lines = [*_heading(report), ""]
    for case in report["cases"]:
        lines += [_title(case), *_aligned(_HEAD, list(_rows(case))), *_left_out(case), ""]
    if report["targets"]:
        rows = [_target(target) for target in report["targets"]]
        met = sum(target["met"] == "yes" for target in report["targets"])
        lines += [f"targets: {met} of {len(rows)} met", *_aligned(_TARGET_HEAD, rows), ""]
    return "\n".join(lines)


_HEAD: Row = ("side", "min", "median", "× safejax", "private", "read", "faults")
_TARGET_HEAD: Row = ("case", "compared", "target", "min", "median", "met")


def _heading(report: dict[str, Any]) -> Iterator[str]:
    machine = report["machine"]
    yield (
        f"{report['date']}: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, {machine['system']}, {machine['file_system']}, load "
        f"average {machine['load_average']} before"
    )
    yield ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    yield (
        f"tree of {report['size_mib']:g} MiB unless stated otherwise, {report['repeats']} rounds, "
        "each side in a fresh process; private: the increase of private memory at its peak"
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
        if not side["seconds"]:
            continue
        ratio = f"{side['median'] / ours['median']:.2f}" if ours.get("seconds") else "-"
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
    return (
        target["case"], target["compared"], f"{sign} {target['target']:g} {unit}",
        f"{target['of_min']:.3g} {unit}", f"{target['of_median']:.3g} {unit}", target["met"],
    )  # fmt: skip


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
