"""The command: starts a server for each pause, and prints a table for it."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

import safejax
from benchmarks.far import SIDES
from benchmarks.far.server import KEY, SMALL
from benchmarks.measure import MemorySampler
from benchmarks.processes import SideError
from benchmarks.report import time_text

_MIB: Final = 1 << 20
_LEAF: Final = 16 * _MIB

OURS: Final = "safejax, obstore"
COMPARED: Final = (OURS, "download, load", "obstore alone")
"""The sides that the targets are about."""


def main() -> int:
    """Run all rounds, and print the tables."""
    options = _options()
    reports: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = os.path.join(folder, KEY)
        for pause in options.pause:
            try:
                report = measured(path, options.size, pause, options.repeats, options.sides)
            except SideError as error:
                print(error, file=sys.stderr)
                return 1
            reports.append(report)
            _print(report)
    if options.json is not None:
        Path(options.json).write_text(json.dumps(reports, indent=1) + "\n")
    return 0


def measured(
    path: str, mib: int, pause: float, repeats: int, sides: list[str], timeout: float | None = None
) -> dict[str, Any]:
    """The seconds and the private memory of each round by side.

    The object is made as a file at `path`, unless it is there. `SideError` if a side fails,
    `TimeoutError` after `timeout` seconds.
    """
    end = None if timeout is None else time.monotonic() + timeout
    report: dict[str, Any] = {"pause_ms": pause, "mib": mib, "sides": {}}
    if not os.path.exists(path):
        _write(Path(path), mib)
    with _server(Path(path), pause) as url:
        for turn in range(repeats):
            for side in sides if turn % 2 else reversed(sides):
                row = report["sides"].setdefault(side, {"seconds": [], "extra": []})
                seconds, extra = _round(side, url, end)
                row["seconds"].append(seconds)
                row["extra"].append(extra)
    return report


def _write(path: Path, mib: int) -> None:
    values = np.random.default_rng(0)
    leaf = min(_LEAF, mib * _MIB)
    tree = {
        f"w{number}": values.integers(0, 256, (leaf >> 12, 1 << 12), np.uint8)
        for number in range(max(1, mib * _MIB // leaf))
    }
    safejax.save(tree, path)
    safejax.save({"w": tree["w0"][:16]}, path.with_name(SMALL))


@contextmanager
def _server(path: Path, pause: float) -> Generator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.far.server", str(path), str(pause)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait()


def _round(side: str, url: str, end: float | None) -> tuple[float, int | None]:
    """The seconds, and the private memory at the peak beyond what was there and the arrays."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.far.child", side, url],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    sampler = MemorySampler(process.pid)
    try:
        output, _ = process.communicate(
            timeout=None if end is None else max(0, end - time.monotonic())
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    finally:
        process.kill()
        process.wait()
        sampler.stop()
    if process.returncode:
        raise SideError(f"{side}: a round failed")
    answer = json.loads(output.splitlines()[-1])
    peak = sampler.peak(answer["begin"], answer["end"])
    extra = None if peak is None else peak - answer["before"] - answer["nbytes"]
    return answer["end"] - answer["begin"], extra


def _print(report: dict[str, Any]) -> None:
    print(f"{report['mib']} MiB, {report['pause_ms']:g} ms a request")
    sides = report["sides"]
    for side, row in sides.items():
        extra = [each for each in row["extra"] if each is not None]
        shown = f"{max(extra) / _MIB:.0f} MiB beyond the arrays" if extra else ""
        least, middle = min(row["seconds"]), median(row["seconds"])
        print(f"  {side:17} {time_text(least):>9} {time_text(middle):>9}   {shown}")
    ours = sides.get("safejax, obstore")
    if ours is None:
        return
    for other, word in (("download, load", "at least 2 (at 20 ms)"), ("obstore alone", "≥ 0.83")):
        if other in sides:
            ratios = [
                which(sides[other]["seconds"]) / which(ours["seconds"]) for which in (min, median)
            ]
            print(f"  {other} / safejax, obstore: {ratios[0]:.2f}, {ratios[1]:.2f}; target {word}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.far", description=__doc__)
    parser.add_argument("--size", type=int, default=256, help="MiB")
    parser.add_argument("--pause", type=float, nargs="+", default=[0, 20], help="milliseconds")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--folder", help="where the file is written; by default, a temporary one")
    parser.add_argument("--json", help="a file to write the report to")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
