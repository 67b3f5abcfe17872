"""The command: starts groups of processes, and prints a table for each."""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from typing import Any, Final

from benchmarks.many import SIDES
from benchmarks.many.cases import CASES
from benchmarks.report import time_text

_DEVICES: Final = 2
_TARGETS: Final = {
    "save": ("at least", 2.0), "load": ("at least", 2.0), "blocked": ("at most", 0.5),
    "steps": ("at most", 0.8), "on disk": ("at most", 1.0),
}  # fmt: skip


def main() -> int:
    """Run every case in groups of the sizes that were asked for."""
    options = _options()
    reports: list[dict[str, Any]] = []
    for mib in options.size:
        for processes in options.processes:
            report = _run(processes, mib, options)
            if report is None:
                return 1
            reports.append(report)
            _print(report)
    if options.json is not None:
        with open(options.json, "w") as file:
            json.dump(reports, file, indent=1)
            file.write("\n")
    return 0


def _run(processes: int, mib: int, options: argparse.Namespace) -> dict[str, Any] | None:
    folder = tempfile.mkdtemp(dir=options.folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={_DEVICES}",
    }
    try:
        children = [
            subprocess.Popen(
                [
                    sys.executable, "-m", "benchmarks.many.child", str(number), str(processes),
                    str(port), str(mib), str(options.repeats), folder, ",".join(options.sides),
                    *options.only,
                ],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            )
            for number in range(processes)
        ]  # fmt: skip
        answers = [child.communicate() for child in children]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if any(child.returncode for child in children):
        for number, (_, errors) in enumerate(answers):
            print(f"process {number}:\n{errors[-2000:]}", file=sys.stderr)
        return None
    return json.loads(answers[0][0].splitlines()[-1])


def _print(report: dict[str, Any]) -> None:
    print(
        f"{report['processes']} processes of {_DEVICES} devices, {report['mib']} MiB, "
        f"{report['repeats']} rounds"
    )
    for name, sides in report["seconds"].items():
        if len(sides) < len(SIDES):
            fastest = ", ".join(f"{side} {time_text(min(each))}" for side, each in sides.items())
            print(f"  {name:8} {fastest}")
            continue
        ours, other = sides["safejax"], sides["Orbax"]
        word, target = _TARGETS[name]
        ratios = [which(ours) / which(other) for which in (min, _median)]
        if word == "at least":
            ratios = [1 / ratio for ratio in ratios]
        print(
            f"  {name:8} safejax {time_text(min(ours)):>9} {time_text(_median(ours)):>9}   "
            f"Orbax {time_text(min(other)):>9} {time_text(_median(other)):>9}   "
            f"{ratios[0]:.2f} × of min, {ratios[1]:.2f} × of medians; {word} {target:g}"
        )


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many", description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--size", type=int, nargs="+", default=[256, 1024], help="MiB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--folder", help="where the files are written; by default, a temporary one")
    parser.add_argument("--json", help="a file to write the report to")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
