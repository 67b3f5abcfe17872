"""The charts: bars for each main case, and every target with its interval."""

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report import number, size_text, time_text, times_text

_PANELS: Final = {
    "load": "Load, one device",
    "stock": "Load a file of another writer",
    "load_cast": "Load bfloat16 as float32",
    "rows": "Load onto 8 devices, by rows",
    "columns": "Load onto 8 devices, by columns",
    "cold": "Load, cold page cache",
    "save": "Save, flushed to disk",
    "save_cast": "Save float32 as bfloat16",
    "convert": "Convert a file to bfloat16",
}
_IN_A_ROW: Final = 3
_INK, _FAINT, _OURS, _PEER, _LIMIT = "#22252B", "#7A808C", "#D9480F", "#9DB2CC", "#DADDE3"
_LABELS: Final = {"limit": "limit of the machine"}


def draw(report: dict[str, Any], path: str) -> None:
    """Draw the medians of the main cases to a PNG at `path`, and the targets to one beside it.

    The second has the name of the first, with "-targets" at its end.
    """
    _draw_cases(report, path)
    beside = Path(path)
    _draw_targets(report, beside.with_stem(f"{beside.stem}-targets"))


# ---- the cases


def _draw_cases(report: dict[str, Any], path: str) -> None:
    cases = {case["name"]: case for case in report["cases"]}
    names = [name for name in _PANELS if name in cases and _bars(cases[name])]
    if not names:
        raise ValueError(f"expected results of at least one of {', '.join(_PANELS)} to draw")
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 9, "text.color": _INK}):
        rows = [names[at : at + _IN_A_ROW] for at in range(0, len(names), _IN_A_ROW)]
        heights = [max(len(_bars(cases[name])) for name in row) + 1.6 for row in rows]
        figure = Figure(figsize=(13, 0.27 * sum(heights) + 1.3), dpi=160, facecolor="white")
        grid = figure.add_gridspec(
            len(rows), min(_IN_A_ROW, len(names)), height_ratios=heights,
            left=0.105, right=0.99, wspace=0.5, hspace=0.36,
            top=1 - 0.78 / figure.get_figheight(), bottom=0.42 / figure.get_figheight(),
        )  # fmt: skip
        for i, row in enumerate(rows):
            for j, name in enumerate(row):
                axes = figure.add_subplot(grid[i, j])
                _panel(axes, _PANELS[name], cases[name], heights[i] - 1.6)
        _words(figure, report)
        figure.savefig(path)


def _bars(case: dict[str, Any]) -> list[tuple[str, float]]:
    """The sides and their medians in seconds: the limit, then the others, the fastest first."""
    times = [(name, side["median"]) for name, side in case["sides"].items() if "median" in side]
    return sorted(times, key=lambda bar: (bar[0] != "limit", bar[1]))


def _panel(axes: Axes, title: str, case: dict[str, Any], rows: float) -> None:
    bars = _bars(case)
    longest = max(seconds for _, seconds in bars)
    for at, (name, seconds) in enumerate(bars):
        color = {"safejax": _OURS, "limit": _LIMIT}.get(name, _PEER)
        axes.barh(at, seconds, height=0.68, color=color, linewidth=0)
        # From the fastest round to the slowest.
        rounds = [each for each in case["sides"][name]["seconds"] if each is not None]
        slowest = min(max(rounds), 1.2 * longest)
        axes.plot([min(rounds), slowest], [at, at], color=_INK, linewidth=0.8, alpha=0.55)
        label = time_text(seconds)
        if name not in ("safejax", "limit") and (times := times_text(case, name)):
            label += f"   {times}×"
        weight = "bold" if name == "safejax" else "normal"
        axes.text(
            max(seconds, slowest) + longest * 0.02,
            at,
            label,
            va="center",
            fontsize=8.5,
            fontweight=weight,
        )
    axes.set_yticks(range(len(bars)), [_LABELS.get(name, name) for name, _ in bars])
    for tick, (name, _) in zip(axes.get_yticklabels(), bars, strict=True):
        tick.set_color(_FAINT if name == "limit" else _INK)
        tick.set_fontweight("bold" if name == "safejax" else "normal")
    # The bars of all panels in a row have the same thickness.
    axes.set_ylim(rows - 0.45, -0.55)
    axes.set_xlim(0, longest * 1.75)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(_LIMIT)
    told = size_text(case["tree_bytes"])
    axes.set_title(f"{title}, {told}", loc="left", fontsize=10, fontweight="bold", pad=6)


def _words(figure: Figure, report: dict[str, Any]) -> None:
    top = 1 - 0.3 / figure.get_figheight()
    figure.text(0.012, top, "Loading and saving: how long it takes", fontsize=13, fontweight="bold")
    figure.text(
        0.33, top, "shorter is better; × says how many times as long as safejax", color=_FAINT
    )
    _foot(figure, report, "medians, with a line from the fastest round to the slowest")


def _foot(figure: Figure, report: dict[str, Any], told: str) -> None:
    machine, versions = report["machine"], report["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in _TOLD if name in versions)
    figure.text(
        0.012,
        0.13 / figure.get_figheight(),
        f"{told}; each round in a process of its own · {machine['processor']}, "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['file_system']}"
        f" · {named}",
        fontsize=7.5,
        color=_FAINT,
    )


_TOLD: Final = ("jax", "safetensors", "orbax-checkpoint", "flax", "equinox")


# ---- the targets

_OUTCOMES: Final = {"met": "#2B8A3E", "undecided": "#B08900", "missed": "#C92A2A"}
_ROW_INCHES: Final = 0.22
_SCALE: Final = (0.1, 3.0)
_TICKS: Final = (0.1, 0.2, 0.5, 1, 2)


def _draw_targets(report: dict[str, Any], path: Path) -> None:
    """Each timed target: what was measured as a share of what the target allows."""
    rows = [row for row in report["targets"] if row["rounds"]]
    if not rows:
        return
    titles = {case["name"]: case["title"] for case in report["cases"]}
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 9, "text.color": _INK}):
        height = _ROW_INCHES * len(rows) + 1.5
        figure = Figure(figsize=(13, height), dpi=130, facecolor="white")
        axes = figure.add_axes((0.52, 0.75 / height, 0.31, 1 - 1.45 / height))
        for at, row in enumerate(rows):
            color = _OUTCOMES[row["outcome"]]
            middle = _share(row, row["of_median"])
            if row["low"] is not None:
                ends = [_share(row, row["low"]), _share(row, row["high"])]
                axes.plot(ends, [at, at], color=color, linewidth=2.2, alpha=0.6)
            # What is beyond the scale is an arrow at its end.
            mark = "<" if middle < _SCALE[0] else ">" if middle > _SCALE[1] else "o"
            at_most = min(max(middle, _SCALE[0]), _SCALE[1])
            axes.plot([at_most], [at], mark, color=color, markersize=4.5, clip_on=False)
            unit = "×" if row["unit"] == "×" else f" {row['unit']}"
            sign = "≥" if row["least"] else "≤"
            axes.text(
                1.03, at,
                f"{number(row['of_median'])}{unit} ({sign} {number(row['target'])}), "
                f"{row['outcome']}",
                transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=color,
            )  # fmt: skip
        compared = [
            f"{titles[row['case']]}" + ("" if row["unit"] == "ms" else f":  {row['compared']}")
            for row in rows
        ]
        axes.set_yticks(range(len(rows)), compared, fontsize=8)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xscale("log")
        axes.set_xlim(*_SCALE)
        axes.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
        axes.minorticks_off()
        axes.axvline(1, color=_INK, linewidth=0.9)
        axes.grid(axis="y", color=_LIMIT, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        top = 1 - 0.3 / height
        figure.text(0.012, top, "The targets, with intervals", fontsize=13, fontweight="bold")
        figure.text(
            0.25, top, color=_FAINT,
            s="what was measured, as a share of what the target allows: left of 1 is met",
        )  # fmt: skip
        _foot(figure, report, "median of the rounds' ratios, and its interval")
        figure.savefig(path)


def _share(row: dict[str, Any], value: float) -> float:
    """A measured number as a share of what the target allows: at most 1 if it is met."""
    return row["target"] / value if row["least"] else value / row["target"]
