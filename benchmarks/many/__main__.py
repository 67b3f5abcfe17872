"""The command: starts groups of processes, and prints a table for each."""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from benchmarks.many import SIDES
from benchmarks.many.cases import CASES
from benchmarks.processes import SideError
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
            try:
                report = measured(
                    processes, mib, options.repeats, options.sides, options.only, options.folder
                )
            except SideError as error:
                print(error, file=sys.stderr)
                return 1
            reports.append(report)
            _print(report)
    if options.json is not None:
        with open(options.json, "w") as file:
            json.dump(reports, file, indent=1)
            file.write("\n")
    return 0


def measured(
    processes: int, mib: int, repeats: int, sides: list[str], only: list[str],
    folder: str | None, timeout: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The seconds of each round by case and side, from a new group of processes.

    `SideError` with all they said if one fails, `TimeoutError` after `timeout` seconds.
    """
    folder = tempfile.mkdtemp(dir=folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={_DEVICES}",
    }
    children: list[subprocess.Popen[str]] = []
    end = None if timeout is None else time.monotonic() + timeout
    try:
        for number in range(processes):
            command = [
                sys.executable, "-m", "benchmarks.many.child", str(number), str(processes),
                str(port), str(mib), str(repeats), folder, ",".join(sides), *only,
            ]  # fmt: skip
            children.append(
                subprocess.Popen(
                    command, env=environment, text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )
            )  # fmt: skip
        # Both outputs of all are read at once, so that none waits for a full pipe.
        with ThreadPoolExecutor(processes) as threads:
            try:
                answers = list(threads.map(lambda child: _output(child, end), children))
            finally:
                # The threads end when these do, also if the run is interrupted.
                for child in children:
                    child.kill()
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
                child.communicate()
        shutil.rmtree(folder, ignore_errors=True)
    failed = [number for number, child in enumerate(children) if child.returncode]
    if failed:
        told = (f"process {number}:\n{answers[number][1][-2000:]}" for number in failed)
        raise SideError("\n".join(told))
    return json.loads(answers[0][0].splitlines()[-1])


def _output(child: subprocess.Popen[str], end: float | None) -> tuple[str, str]:
    try:
        return child.communicate(timeout=None if end is None else max(0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None


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
