"""The benchmarks run on a tiny tree and report everything; no test compares times."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cases import CASES, Case, chosen
from benchmarks.report import table
from benchmarks.sides import SIDES, WRITERS
from benchmarks.targets import targets
from benchmarks.trees import Spec, same_bits
from tests.support.servers import needs_s3

ROOT = Path(__file__).parent.parent.parent


def test_the_command_measures_and_writes_a_report(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmarks", "--size", "0.25", "--repeats", "1",
            "--only", "columns", "--sides", "safejax", "--json", str(out),
            "--folder", str(tmp_path),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == [out]
    report = json.loads(out.read_text())
    (case,) = report["cases"]
    assert list(case["sides"]) == ["safejax"]
    for side in case["sides"].values():
        assert side["error"] is None
        assert len(side["seconds"]) == 1
    assert case["sides"]["safejax"]["read"] == case["tree_bytes"]
    rows = {(row["case"], row["compared"]) for row in report["targets"]}
    assert ("columns", "bytes requested / needed") in rows
    assert table(report) in done.stdout
    assert {"processor", "cores", "memory_gib", "file_system"} <= report["machine"].keys()


def test_the_command_for_many_processes(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.many", "--processes", "2", "--size", "1",
            "--repeats", "1", "--sides", "safejax", "--json", str(out), "--folder", str(tmp_path),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = json.loads(out.read_text())
    assert list(report["seconds"]) == ["save", "load", "blocked", "steps", "on disk"]
    assert all(len(sides["safejax"]) == 1 for sides in report["seconds"].values())
    assert list(tmp_path.iterdir()) == [out]


def test_the_command_for_files_elsewhere(tmp_path: Path) -> None:
    needs_s3("obstore")
    out = tmp_path / "report.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.far", "--size", "1", "--repeats", "1", "--pause", "1",
            "--sides", "safejax, obstore", "--json", str(out), "--folder", str(tmp_path),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = json.loads(out.read_text())
    assert len(report["sides"]["safejax, obstore"]["seconds"]) == 1
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_side_has_the_function_of_its_cases(case: Case) -> None:
    for name in case.sides:
        side = SIDES[name]
        if not side.missing:
            module = importlib.import_module(f"benchmarks.sides.{case.module or side.module}")
            function = case.limits if name == "limit" and case.limits else case.function
            assert callable(getattr(module, function))
        assert (side.file or case.file) in WRITERS


def test_cases_are_selected_by_their_names() -> None:
    names = [case.name for case in chosen(["save", "devices"], quick=False, size=1 << 30)]
    assert names[:5] == ["save", "rows", "columns", "mesh", "replicated"]
    assert "load_4096" not in [case.name for case in chosen([], quick=True, size=1 << 26)]
    with pytest.raises(KeyError, match="nothing"):
        chosen(["nothing"], quick=False, size=1 << 30)


def test_trees_have_the_requested_size() -> None:
    for spec in (Spec(1 << 20), Spec(1 << 30), Spec(1 << 20, 100), Spec(1 << 16, 10)):
        assert 0.7 < spec.exact_nbytes / spec.nbytes < 1.3
        assert all(axis % 8 == 0 for shape in spec.shapes().values() for axis in shape)
    one, other = [leaf for name, leaf in Spec(1 << 20).leaves() if "kernel" in name][:2]
    assert not same_bits(one, other)


def test_targets_of_failed_or_skipped_cases_have_no_rows() -> None:
    side = {"error": "broke", "seconds": [], "private": None, "read": None, "facts": {}}
    case = {"name": "load", "sides": {"safejax": side}, "file_bytes": 1, "copied_bytes": 0}
    assert targets([case]) == []
    good = {**side, "error": None, "seconds": [1.0, 3.0], "min": 1.0, "median": 2.0, "read": 1}
    slow = {**good, "min": 6.0, "median": 6.0}
    case["sides"] = {"safejax": good, "safetensors.flax": slow}
    rows = {row["compared"]: row for row in targets([case])}
    assert rows["safetensors.flax / safejax"]["of_median"] == 3.0
    assert rows["safetensors.flax / safejax"]["met"] == "min only"
    assert rows["bytes requested / needed"]["met"] == "yes"


def test_the_benchmark_of_devices_runs_on_those_of_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmarks", "--device", "--size", "4", "--rounds", "1",
            "--json", str(out), "--folder", str(tmp_path),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert set(report["checks"].values()) == {"ok"}
    assert all(len(side["seconds"]) == 1 for side in report["sides"])
    cases = {side["case"] for side in report["sides"]}
    assert {"load", "save", "by rows", "bfloat16 to float32"} <= cases
    assert report["left_out"].keys() <= {"fastsafetensors"}
    (target,) = report["targets"]
    assert target["met"] is None  # On a CPU it says nothing.
    assert "by the driver" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
