"""The chart: a panel of bars for each main case, with the fastest at the top."""

from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report import time_text
from benchmarks.trees import MIB

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
    """Draw the medians of the report's main cases to a PNG at `path`."""
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
    times = [(name, side["median"]) for name, side in case["sides"].items() if side["seconds"]]
    return sorted(times, key=lambda bar: (bar[0] != "limit", bar[1]))


def _panel(axes: Axes, title: str, case: dict[str, Any], rows: float) -> None:
    bars = _bars(case)
    ours = case["sides"]["safejax"].get("median") if "safejax" in case["sides"] else None
    longest = max(seconds for _, seconds in bars)
    for at, (name, seconds) in enumerate(bars):
        color = {"safejax": _OURS, "limit": _LIMIT}.get(name, _PEER)
        axes.barh(at, seconds, height=0.68, color=color, linewidth=0)
        label = time_text(seconds)
        if ours and name not in ("safejax", "limit"):
            label += f"   {seconds / ours:.1f}×"
        weight = "bold" if name == "safejax" else "normal"
        axes.text(seconds + longest * 0.02, at, label, va="center", fontsize=8.5, fontweight=weight)
    axes.set_yticks(range(len(bars)), [_LABELS.get(name, name) for name, _ in bars])
    for tick, (name, _) in zip(axes.get_yticklabels(), bars, strict=True):
        tick.set_color(_FAINT if name == "limit" else _INK)
        tick.set_fontweight("bold" if name == "safejax" else "normal")
    # The bars of all panels in a row have the same thickness.
    axes.set_ylim(rows - 0.45, -0.55)
    axes.set_xlim(0, longest * 1.55)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(_LIMIT)
    size = case["tree_bytes"] / MIB
    told = f"{size / 1024:.3g} GiB" if size >= 1024 else f"{size:.0f} MiB"
    axes.set_title(f"{title}, {told}", loc="left", fontsize=10, fontweight="bold", pad=6)


def _words(figure: Figure, report: dict[str, Any]) -> None:
    machine, versions = report["machine"], report["versions"]
    top = 1 - 0.3 / figure.get_figheight()
    figure.text(0.012, top, "Loading and saving: how long it takes", fontsize=13, fontweight="bold")
    figure.text(
        0.33, top, "shorter is better; × says how many times as long as safejax", color=_FAINT
    )
    told = [f"{name} {versions[name]}" for name in _TOLD if name in versions]
    figure.text(
        0.012,
        0.13 / figure.get_figheight(),
        f"medians of {report['repeats']} rounds, each in a fresh process · {machine['processor']}, "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['file_system']} · "
        + ", ".join(told),
        fontsize=7.5,
        color=_FAINT,
    )


_TOLD: Final = ("jax", "safetensors", "orbax-checkpoint", "flax", "equinox")
