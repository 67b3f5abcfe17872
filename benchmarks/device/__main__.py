"""The command: checks, then sides in turns; prints tables, and writes them as JSON."""

import argparse
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

import jax

from benchmarks import measure
from benchmarks.device import checks
from benchmarks.device.driver import link_seconds
from benchmarks.device.sides import LEAF_BYTES, Bench, Side, check, file_system
from benchmarks.options import positive
from safejax._src.arrays.switch import SWITCH

_MIB: Final = 1 << 20
_LEAST_OF_LIMIT: Final = 0.9
"""The part of the rate of a page-locked copy that a load of a cached file is to reach."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all, print and write it; 1 if a check or a side of safejax failed, else 0."""
    # Before JAX looks for devices: torch and the driver need room, too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    options = _options(arguments)
    begin = time.monotonic()
    device = jax.devices()[0]
    size = options.size or _size(device)
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": measure.machine(tempfile.gettempdir()),
        "versions": measure.versions(),
        "devices": [str(each) for each in jax.devices()],
        "platform": device.platform,
        "kind": device.device_kind,
        "mib": size,
        "checks": {},
    }
    print(f"{len(report['devices'])} × {device.device_kind} ({device.platform}), {size:g} MiB")
    checks.run(report["checks"])
    folder = tempfile.mkdtemp(prefix="safejax-device-", dir=options.folder or _memory(size))
    try:
        report["files"] = file_system(folder)
        bench = Bench(folder, int(size * _MIB))
        deadline = begin + options.seconds
        report["sides"] = _measured(bench, options.rounds, deadline)
        report["left_out"] = bench.left_out
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report["limit_gib_s"] = _driver_rate(device.platform)
    kind = (device.platform, device.device_kind)
    report["measured_seconds_for_a_gib"] = {
        "staged" if way else "plain": each * 2**30
        for way, each in (SWITCH.seconds(kind) or {}).items()
    }
    report["targets"] = _targets(report)
    report["seconds"] = time.monotonic() - begin
    _print(report)
    if options.json is not None:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    failed = [each for each in report["checks"].values() if each != "ok"]
    failed += [each for each in report["sides"] if each["error"] and "safejax" in each["name"]]
    return 1 if failed else 0


def _measured(bench: Bench, rounds: int, deadline: float) -> list[dict[str, Any]]:
    """Each side in each round, which begins at another side each time; the first is not timed."""
    sides = bench.sides()
    found = [
        {"case": side.case, "name": side.name, "bytes": bench.nbytes, "seconds": [], "error": None}
        for side in sides
    ]
    for number in range(rounds + 1):
        for place in range(len(sides)):
            at = (place + number * 3) % len(sides)
            if found[at]["error"] is None and (number < 2 or time.monotonic() < deadline):
                _one(sides[at], found[at], bench, is_timed=number > 0)
    return found


def _one(side: Side, row: dict[str, Any], bench: Bench, *, is_timed: bool) -> None:
    try:
        work = side.prepare()
        gc.collect()
        begin = time.perf_counter()
        result = jax.block_until_ready(work())
        seconds = time.perf_counter() - begin
        if is_timed:
            row["seconds"].append(seconds)
        elif side.case == "load":
            check(result, bench)
    except Exception as error:  # noqa: BLE001 - it is reported, and the others go on
        row["error"] = f"{type(error).__name__}: {str(error)[:300]}"


def _driver_rate(platform: str) -> float | str:
    """The rate of the link in GiB/s, by the driver alone; or why there is none."""
    if platform != "gpu":
        return f"there is none of {platform} devices"
    try:
        return 16 * LEAF_BYTES / 2**30 / link_seconds(LEAF_BYTES, 16)
    except (OSError, RuntimeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"


def _targets(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What is to be reached, beside the faster of the two limits; `met` is None on a CPU."""
    rates = {
        (side["case"], side["name"]): _rate(side) for side in report["sides"] if side["seconds"]
    }
    limits = [rates.get(("load", "limit: page-locked memory copied")), report["limit_gib_s"]]
    limit = max((each for each in limits if isinstance(each, float)), default=None)
    best = rates.get(("load", "safejax, as it is measured"))
    if limit is None or best is None:
        return []
    part = best / limit
    says = report["platform"] != "cpu"
    met = part >= _LEAST_OF_LIMIT if says else None
    return [{"compared": "load / limit", "target": _LEAST_OF_LIMIT, "part": part, "met": met}]


def _rate(side: dict[str, Any]) -> float:
    """GiB/s of the median."""
    return side["bytes"] / 2**30 / median(side["seconds"])


def _print(report: dict[str, Any]) -> None:
    case = ""
    for side in report["sides"]:
        if side["case"] != case:
            case = side["case"]
            print(f"\n{case}")
        if side["error"] is not None:
            print(f"  {side['name']:36} failed: {side['error']}")
        elif side["seconds"]:
            least, middle = min(side["seconds"]), median(side["seconds"])
            print(f"  {side['name']:36} {least:8.4f} s {middle:8.4f} s {_rate(side):8.2f} GiB/s")
    print(f"\nlimit by the driver: {report['limit_gib_s']}")
    for name, why in report["left_out"].items():
        print(f"{name}: left out, {why}")
    for target in report["targets"]:
        said = {True: "met", False: "not met", None: "says nothing here"}[target["met"]]
        print(f"{target['compared']}: {target['part']:.2f}, target ≥ {target['target']}: {said}")
    bad = {name: said for name, said in report["checks"].items() if said != "ok"}
    print(f"checks: {len(report['checks']) - len(bad)} hold, {len(bad)} do not {bad or ''}")
    print(f"{report['seconds']:.0f} s in all")


def _size(device: Any) -> float:
    """MiB: 2 GiB, but at most an eighth of the memory of the device; 256 MiB on a CPU."""
    if device.platform == "cpu":
        return 256
    limit = (device.memory_stats() or {}).get("bytes_limit", 16 << 30)
    return min(2048, limit / 8 / _MIB)


def _memory(size: float) -> str | None:
    """A folder in memory with room for the files, so that what is measured is not a disk."""
    folder = "/dev/shm"
    has_room = os.path.isdir(folder) and shutil.disk_usage(folder).free > 6 * size * _MIB
    return folder if has_room else None


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks --device", description=__doc__)
    parser.add_argument(
        "--size", type=positive(float), help="MiB of each file; by default what is suitable"
    )
    parser.add_argument("--rounds", type=positive(int), default=5, help="timed rounds")
    parser.add_argument(
        "--seconds", type=positive(float), default=360, help="no side begins after so long"
    )
    parser.add_argument("--folder", help="where files are; by default in memory, /dev/shm")
    parser.add_argument("--json", help="write the results to this file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
