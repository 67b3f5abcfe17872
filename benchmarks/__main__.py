"""The command: `python -m benchmarks`."""

import argparse
import json
import os
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from typing import Any

from benchmarks import measure
from benchmarks.cases import CASES, chosen
from benchmarks.report import table
from benchmarks.runner import Bench
from benchmarks.sides import SIDES
from benchmarks.targets import targets
from benchmarks.trees import MIB


def main() -> int:
    """Run the cases, print the tables, and write the files that the options ask for."""
    if "--device" in sys.argv[1:]:
        # Imported here, since the others are to bring up no device in this process.
        from benchmarks.device.__main__ import main as of_devices

        return of_devices([each for each in sys.argv[1:] if each != "--device"])
    options = _options()
    if options.again is None:
        report = _measured(options)
    else:
        with open(options.again) as file:
            report = json.load(file)
        report["targets"] = targets(report["cases"])
    print(table(report))
    _write(report, options.json)
    if options.plot is not None:
        # Imported here, since nothing else needs matplotlib.
        from benchmarks.plot import draw

        draw(report, options.plot)
    failed = [side for case in report["cases"] for side in case["sides"].values() if side["error"]]
    return 1 if failed else 0


def _write(report: dict[str, Any], path: str | None) -> None:
    if path is not None:
        with open(path, "w") as file:
            json.dump(report, file, indent=1)
            file.write("\n")


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    size = int(options.size * MIB)
    try:
        cases = chosen(options.only, quick=options.quick, size=size)
    except KeyError as error:
        groups = sorted({case.group for case in CASES.values()})
        sys.exit(
            f"--only: expected cases or groups, got {error}: "
            f"the groups are {', '.join(groups)}; the cases are {', '.join(CASES)}"
        )
    for name in options.sides:
        if name not in SIDES:
            sys.exit(f"--sides: expected some of {', '.join(SIDES)}, got {name!r}")
    folder = tempfile.mkdtemp(prefix="safejax-benchmarks-", dir=options.folder)
    try:
        # Measured first, so that the load average does not include the benchmark.
        machine = measure.machine(folder)
        report: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine,
            "versions": measure.versions(),
            "size_mib": options.size,
            "repeats": options.repeats,
            "cases": [],
            "targets": [],
        }
        results: list[dict[str, Any]] = report["cases"]
        for result in Bench(folder, size, options.repeats, tuple(options.sides)).run(cases):
            results.append(result)
            report["targets"] = targets(results)
            # A full run takes an hour; if it is interrupted, its results so far are kept.
            _write(report, options.json)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return report


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="64 MiB, 3 rounds, and no case above 256 MiB"
    )
    parser.add_argument(
        "--only", type=_names, default=[], help="these cases or groups, separated by commas"
    )
    parser.add_argument("--sides", type=_names, default=[], help="these sides, separated by commas")
    parser.add_argument(
        "--size", type=float, help="size of the tree in MiB; 1024, or 64 with --quick"
    )
    parser.add_argument("--repeats", type=int, help="number of timed rounds; 5, or 3 with --quick")
    parser.add_argument(
        "--device",
        action="store_true",
        help="what benchmarks.device does, which has its own --help",
    )
    parser.add_argument("--json", help="write the results to this file")
    parser.add_argument("--plot", help="draw a chart of the main cases to this PNG")
    parser.add_argument(
        "--folder", help="folder for the files; by default the system's temporary folder"
    )
    parser.add_argument(
        "--from", dest="again", help="measure nothing, and show a file that --json wrote"
    )
    options = parser.parse_args()
    options.size = options.size or (64 if options.quick else 1024)
    options.repeats = options.repeats or (3 if options.quick else 5)
    if options.folder is not None and not os.path.isdir(options.folder):
        parser.error(f"--folder: expected an existing folder, got {options.folder!r}")
    return options


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


if __name__ == "__main__":
    sys.exit(main())
