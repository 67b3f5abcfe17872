"""The command: `python -m benchmarks`."""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from benchmarks import measure, pages
from benchmarks.cases import CASES, ELSEWHERE, MOST_NBYTES, chosen, named
from benchmarks.elsewhere import Elsewhere
from benchmarks.options import positive
from benchmarks.processes import Nursery
from benchmarks.report import table, written
from benchmarks.runner import Bench, Measured
from benchmarks.schedule import Schedule, Subject, fixed
from benchmarks.sides import SIDES
from benchmarks.targets import SHOWN, judged, needed, undecided
from benchmarks.trees import MIB

_MIB_ELSEWHERE: Final = 256
_TO_REPORT_SECONDS: Final = 20


def main() -> int:
    """Measure, print the tables, and write the files that the options ask for."""
    # The files are removed, and the processes are ended, then, too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    if "--device" in sys.argv[1:]:
        # Imported here, since the others are to bring up no device in this process.
        from benchmarks.device.__main__ import main as of_devices

        return of_devices([each for each in sys.argv[1:] if each != "--device"])
    options = parsed(sys.argv[1:])
    report = _measured(options) if options.again is None else options.again
    print(table(report))
    _write(report, options.json)
    if options.plot is not None:
        # Imported here, since nothing else needs matplotlib.
        from benchmarks.plot import draw

        draw(report, options.plot)
    if options.publish:
        pages.publish(report)
    failed = [side for case in report["cases"] for side in case["sides"].values() if side["error"]]
    return 1 if failed else 0


def _write(report: dict[str, Any], path: str | None) -> None:
    if path is not None:
        Path(path).write_text(written(report))


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    begin = time.monotonic()
    deadline = None if options.repeats else begin + 60 * options.minutes - _TO_REPORT_SECONDS
    folder = tempfile.mkdtemp(prefix="safejax-benchmarks-", dir=options.folder)
    nursery = Nursery(fresh=options.fresh, deadline=deadline)
    try:
        # Measured first, so that the load average does not include the benchmark.
        report: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": measure.machine(folder),
            "versions": measure.versions(),
            "size_mib": options.size,
            "repeats": options.repeats,
            "minutes": None if options.repeats else options.minutes,
        }

        def kept(results: list[dict[str, Any]]) -> None:
            took = round(time.monotonic() - begin)
            report.update(seconds=took, cases=results, **judged(results))
            # If a long run is interrupted, its results so far are kept.
            _write(report, options.json)

        _run(options, folder, nursery, deadline, kept)
    finally:
        nursery.close()
        shutil.rmtree(folder, ignore_errors=True)
    return report


def _run(
    options: argparse.Namespace, folder: str, nursery: Nursery, deadline: float | None,
    kept: Callable[[list[dict[str, Any]]], None],
) -> None:  # fmt: skip
    size = int(options.size * MIB)
    bench = Bench(folder, size, nursery, tuple(options.sides))
    wanted = needed()
    for name, sides in SHOWN.items():
        wanted.setdefault(name, set()).update(sides)
    every = options.full or options.only
    cases = [
        case
        for case in chosen(options.only, quick=options.quick, size=size)
        if every
        or case.group == "null"
        or (case.name in wanted and case.spec(size).nbytes <= MOST_NBYTES)
    ]
    subjects: list[Subject] = [
        Measured(case, bench, None if every or case.group == "null" else wanted[case.name])
        for case in cases
    ]
    for group in ELSEWHERE:
        parts = [name for name in named(options.only) if name in ELSEWHERE[group]]
        if parts and not options.sides:
            mib = min(_MIB_ELSEWHERE, int(options.size) or 1)
            subjects.append(Elsewhere(group, parts, mib, folder, deadline))
    if deadline is None:

        def after(done: int) -> None:
            bench.tidy(cases[done:])
            kept([each for subject in subjects[:done] for each in subject.reports()])

        fixed(subjects, options.repeats, after=after)
        return
    schedule = Schedule(subjects, deadline, undecided)
    schedule.after = lambda: kept(schedule.results())
    schedule.run()


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options, each with its value; exits, with what was expected, if one is wrong."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description="Compare safejax with its peers, and with what the machine does without any.",
    )
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument(
        "--quick", action="store_true", help="64 MiB, 5 minutes, and no case above 256 MiB"
    )
    extent.add_argument(
        "--full", action="store_true",
        help="all cases and sides, up to 4 GiB, 7 rounds: hours",
    )  # fmt: skip
    parser.add_argument(
        "--only", type=_names, default=[], help="these cases or groups, separated by commas"
    )
    parser.add_argument("--sides", type=_names, default=[], help="these sides, separated by commas")
    parser.add_argument(
        "--size",
        type=positive(float),
        help="size of the tree in MiB; 256, 1024 with --full, 64 with --quick",
    )
    parser.add_argument("--minutes", type=positive(float), help="the time of the whole run; 15")
    parser.add_argument(
        "--repeats", type=positive(int), help="that many rounds of each case, however long it takes"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="import everything again in each round: slow"
    )
    parser.add_argument(
        "--device",
        action="store_true",
        help="what benchmarks.device does, which has its own --help",
    )
    parser.add_argument("--json", help="write the results to this file")
    parser.add_argument(
        "--plot", help="draw the chart to this PNG, and that of the targets beside it"
    )
    parser.add_argument(
        "--publish", action="store_true",
        help="write the JSON, the charts and the tables of README.md and docs/ in the repository",
    )  # fmt: skip
    parser.add_argument(
        "--folder", help="folder for the files; by default the system's temporary folder"
    )
    parser.add_argument(
        "--from", dest="again", type=_report, metavar="JSON",
        help="measure nothing, and take a file that --json wrote",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    options.size = options.size or (1024 if options.full else 64 if options.quick else 256)
    options.minutes = options.minutes or (5 if options.quick else 15)
    options.repeats = options.repeats or (7 if options.full else None)
    if (options.publish or options.plot) and find_spec("matplotlib") is None:
        parser.error("--publish and --plot need matplotlib: pip install -e '.[bench]'")
    if options.publish and (options.only or options.sides or options.quick):
        parser.error("--publish: expected all cases; leave --only, --sides and --quick out")
    if options.folder is not None and not os.path.isdir(options.folder):
        parser.error(f"--folder: expected an existing folder, got {options.folder!r}")
    for option in ("json", "plot"):
        path = getattr(options, option)
        if path is not None and not os.path.isdir(os.path.dirname(path) or "."):
            parser.error(f"--{option}: expected a file in an existing folder, got {path!r}")
    try:
        named(options.only)
    except KeyError as error:
        cases = [*CASES, *(name for names in ELSEWHERE.values() for name in names)]
        groups = sorted({case.group for case in CASES.values()} | set(ELSEWHERE))
        parser.error(
            f"--only: expected cases or groups, got {error}: "
            f"the groups are {', '.join(groups)}; the cases are {', '.join(cases)}"
        )
    for name in options.sides:
        if name not in SIDES:
            parser.error(f"--sides: expected some of {', '.join(SIDES)}, got {name!r}")
    return options


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _report(path: str) -> dict[str, Any]:
    """The report that `--json` wrote, judged by the targets as they are now."""
    try:
        report = json.loads(Path(path).read_text())
        return {**report, **judged(report["cases"])}
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        told = f"{path}: expected a file that --json wrote ({type(error).__name__}: {error})"
        raise argparse.ArgumentTypeError(told) from None


if __name__ == "__main__":
    sys.exit(main())
