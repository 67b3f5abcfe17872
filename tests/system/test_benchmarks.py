"""The benchmarks run on a tiny tree and report everything; no test compares times."""

import importlib
import json
import math
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pages
from benchmarks.__main__ import parsed
from benchmarks.cases import CASES, NULL, Case, chosen
from benchmarks.child import Request
from benchmarks.intervals import LOOKS, Noise, interval, rank
from benchmarks.job import Job
from benchmarks.processes import Nursery, OutOfTimeError, SideError
from benchmarks.runner import Result
from benchmarks.schedule import Schedule
from benchmarks.sides import SIDES, WRITERS
from benchmarks.targets import TARGETS, needed, targets, undecided
from benchmarks.trees import Spec, same_bits
from tests.support.servers import needs_s3

ROOT = Path(__file__).parent.parent.parent


def test_the_command_measures_until_it_is_decided_and_writes_a_report(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmarks", "--size", "0.25", "--minutes", "5",
            "--only", "columns", "--sides", "safejax,limit", "--json", str(out),
            "--folder", str(tmp_path),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == [out]
    report = json.loads(out.read_text())
    (case,) = report["cases"]
    assert list(case["sides"]) == ["safejax", "limit"]
    for side in case["sides"].values():
        assert side["error"] is None
        assert len(side["seconds"]) in LOOKS
    assert case["sides"]["safejax"]["read"] == case["tree_bytes"]
    rows = {row["compared"]: row for row in report["targets"]}
    assert rows["bytes requested / needed"]["outcome"] == "met"
    row = rows["safejax / limit"]
    assert row["rounds"] == len(case["sides"]["limit"]["seconds"])
    assert row["low"] <= row["of_median"] <= row["high"]
    # So small a tree is all overhead; what is undecided has got all rounds.
    assert row["outcome"] == "missed" or row["rounds"] == LOOKS[-1]
    assert report["noise"] == {}
    shown = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--from", str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert shown.stdout in done.stdout
    assert "no null run" in shown.stdout
    assert {"processor", "cores", "memory_gib", "file_system"} <= report["machine"].keys()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            "--only nothing",
            r"--only: .* got 'nothing': the groups are .*far.* cases are .*many_save",
        ),
        ("--sides nobody", r"--sides: expected some of safejax, .* got 'nobody'"),
        ("--minutes 0", r"--minutes: expected a number above 0, got '0'"),
        ("--minutes nan", r"--minutes: expected a number above 0, got 'nan'"),
        ("--repeats -1", r"--repeats: expected a number above 0, got '-1'"),
        ("--size large", r"--size: expected a number above 0, got 'large'"),
        ("--quick --full", r"--full: not allowed with argument --quick"),
        ("--from nothing.json", r"--from: nothing.json: No such file"),
        ("--from pyproject.toml", r"--from: pyproject.toml: expected a file that --json wrote"),
        ("--json nowhere/out.json", r"--json: .* existing folder, got 'nowhere/out.json'"),
        ("--folder nowhere", r"--folder: expected an existing folder, got 'nowhere'"),
    ],
)
def test_wrong_options_are_told_of_before_anything_runs(
    arguments: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        parsed(arguments.split())
    assert re.search(told, capsys.readouterr().err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_interrupted_leaves_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "names", "--folder", str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not any(tmp_path.glob("*/*")):
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + number, "")
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize(
    ("model", "side"),
    [("resnet", "safejax"), ("minilm", "safejax")]
    + [
        ("transformer", side)
        for side in ("safejax", "safejax, materialized", "safetensors.flax", "Orbax, restored")
    ],
)
def test_real_models_have_the_outputs_of_their_weights(
    model: str, side: str, tmp_path: Path
) -> None:
    """(issue 21, 1) With few layers; the check of the side compares."""
    if SIDES[side].missing:
        pytest.skip("Orbax is not installed")
    module = importlib.import_module("benchmarks.sides.models")
    job = Job(side, Spec(64 << 10), str(tmp_path / "m.safetensors"), str(tmp_path / "target"))
    getattr(module, f"write_{model}")(job)
    work = getattr(module, model)(job)
    work.check(work.run())
    with pytest.raises(AssertionError):
        work.check(work.run() + 1)


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


def case_of(name: str, **sides: Sequence[float | None]) -> dict[str, Any]:
    """The results of a case, with the seconds of each side; a side without any has failed."""
    return {
        "name": name, "title": name, "group": "main", "tree_bytes": 1, "tensors": 1, "disk": False,
        "file_bytes": 1, "copied_bytes": 0, "left_out": {},
        "sides": {
            side.replace("_", "."): Result(
                side, [*seconds], read=1, private=0, error=None if seconds else "broke"
            ).reported()
            for side, seconds in sides.items()
        },
    }  # fmt: skip


def test_targets_of_failed_or_skipped_cases_have_no_rows() -> None:
    assert targets([case_of("load", safejax=[])]) == []
    case = case_of("load", safejax=[1.0] * 6, safetensors_flax=[6.0] * 6)
    rows = {row["compared"]: row for row in targets([case])}
    assert rows.keys() == {"safetensors.flax / safejax", "bytes requested / needed", PRIVATE}
    assert all(row["outcome"] == "met" for row in rows.values())
    assert rows["safetensors.flax / safejax"]["of_median"] == 6.0
    assert rows[PRIVATE]["rounds"] is None


PRIVATE = "private memory"


def test_a_ratio_is_of_times_of_one_round() -> None:
    case = case_of("load", safejax=[1.0, 2.0, 4.0, None], safetensors_flax=[6.0, 12.0, None, 9.0])
    (row,) = (row for row in targets([case]) if row["unit"] == "×" and row["rounds"] is not None)
    assert (row["rounds"], row["of_median"]) == (2, 6.0)
    assert (row["low"], row["high"], row["outcome"]) == (None, None, "undecided")


def outcome_of(ours: list[float], null: list[float] | None = None) -> str:
    """The outcome of `load` within 1.15 times the limit, which takes a second in each round."""
    cases = [case_of("load", safejax=ours, limit=[1.0] * len(ours))]
    if null is not None:
        again = {"safejax, again": Result("", [1.0] * len(null)).reported()}
        cases.append(case_of("null_long", safejax=null))
        cases[-1]["sides"] |= again
    (row,) = (row for row in targets(cases) if row["compared"] == "safejax / limit")
    return row["outcome"]


def test_what_the_noise_does_not_carry_is_undecided() -> None:
    assert outcome_of([1.0, 1.02, 1.04, 1.06, 1.08, 1.1]) == "met"
    assert outcome_of([1.2, 1.22, 1.24, 1.26, 1.28, 1.3]) == "missed"
    assert outcome_of([1.0, 1.02, 1.04, 1.06, 1.08, 1.2]) == "undecided"
    assert outcome_of([1.0, 1.02, 1.04, 1.06, 1.08]) == "undecided"
    # Of more rounds, one may be beyond the target.
    assert outcome_of([1.0] * 9 + [9.0]) == "met"


def test_what_the_null_run_does_not_carry_is_undecided() -> None:
    steady = [1.05] * 6
    assert outcome_of(steady, null=[0.98, 0.99, 1.0, 1.0, 1.01, 1.02]) == "met"
    assert outcome_of(steady, null=[0.85, 0.99, 1.0, 1.0, 1.01, 1.02]) == "undecided"
    assert outcome_of([1.3] * 6, null=[0.98, 0.99, 1.0, 1.0, 1.01, 1.02]) == "missed"
    assert outcome_of([1.3] * 6, null=[0.9, 0.9, 1.0, 1.0, 1.1, 1.2]) == "undecided"


def test_intervals_have_known_answers() -> None:
    # The tables of the sign test: the rank of the 95 % interval of a median.
    ranks = {5: 0, 6: 1, 8: 1, 9: 2, 11: 2, 12: 3, 15: 4, 17: 5, 20: 6, 25: 8, 30: 10, 50: 18}
    assert {n: rank(n) for n in ranks} == ranks
    assert interval([5, 1, 4, 2, 3]) is None
    assert interval([6, 5, 1, 4, 2, 3]) == (1, 6)
    assert interval(range(1, 21)) == (6, 15)
    found = Noise.of([0.8, 1.0, 1.0, 1.0, 1.0, 1.1])
    assert found == Noise(rounds=6, ratio=1.0, factor=1.25, of_a_round=1.25)
    assert Noise.of([1.0] * 5) is None


def test_looking_again_seldom_takes_chance_for_a_result() -> None:
    # The probability of each number of rounds below a target that is the true median, of those
    # that have not been called.
    below, met, rounds = {0: 1.0}, 0.0, 0
    for look in LOOKS:
        more, rounds, k = look - rounds, look, rank(look)
        after: dict[int, float] = {}
        for number, probability in below.items():
            for heads in range(more + 1):
                chance = probability * math.comb(more, heads) / 2**more
                after[number + heads] = after.get(number + heads, 0.0) + chance
        met += sum(chance for number, chance in after.items() if number > look - k)
        below = {number: after[number] for number in range(k, look - k + 1)}
    assert 0.03 < met < 0.04


def test_every_target_names_its_sides_before_there_are_results() -> None:
    wanted = needed()
    every = {**wanted, **{case: {"safejax", "safejax, again"} for case in NULL.values()}}
    cases = [case_of(name, **{side: [1.0] * 6 for side in every[name]}) for name in every]
    for case in cases:
        known = CASES[case["name"]].sides if case["name"] in CASES else case["sides"]
        assert wanted.get(case["name"], set()) <= set(known)
        case["sides"]["safejax"]["facts"] = {
            "header": 1, "header_without_record": 1, "disk": 1, "needed": 1,
        }  # fmt: skip
    assert len(targets(cases)) == len(TARGETS)


class Steady:
    """Two sides whose ratio is the same in each round, or, if it is a list, one after another."""

    def __init__(self, name: str, *ratios: float) -> None:
        self.names = (name,)
        self.rounds = 0
        self.seconds_of_a_round = 0.0
        self.ratios = ratios
        self.visits: list[tuple[int, set[str] | None]] = []

    def visit(self, rounds: int, wanted: set[str] | None = None, until: float = math.inf) -> None:
        self.rounds += rounds
        self.visits.append((rounds, wanted))

    def reports(self) -> Iterator[dict[str, Any]]:
        turns = [self.ratios[turn % len(self.ratios)] for turn in range(self.rounds)]
        yield case_of(self.names[0], safejax=turns, limit=[1.0] * len(turns))


def test_what_is_undecided_gets_more_rounds_and_nothing_else_does() -> None:
    decided, near = Steady("load", 1.0), Steady("stock", 1.1, 1.3)
    said: list[str] = []
    schedule = Schedule([decided, near], math.inf, undecided, said.append)
    schedule.run()
    assert (decided.rounds, near.rounds) == (LOOKS[0], LOOKS[-1])
    assert [rounds for rounds, _ in near.visits] == [3, 3, 4, 5, 6]
    assert near.visits[-1][1] == {"safejax", "limit"}
    assert near.visits[0][1] is None
    assert [row["outcome"] for row in targets(schedule.results()) if row["rounds"]] == [
        "met", "undecided",
    ]  # fmt: skip
    late = Steady("stock", 1.1, 1.3)
    late.seconds_of_a_round = 1e6
    Schedule([late], time.monotonic() + 1e3, undecided, said.append).run()
    assert late.rounds == 0
    assert "no time for 3 rounds" in said[-1]


def test_a_side_that_fails_is_told_of(tmp_path: Path) -> None:
    request = Request(
        "time", "safejax", "ours", "nothing", str(tmp_path), "tree", (1, None), str(tmp_path)
    )
    nursery = Nursery()
    try:
        with pytest.raises(SideError, match="has no attribute 'nothing'"):
            nursery.ask(request)
        with pytest.raises(SideError, match="there is nothing"):
            nursery.ask(replace(request, function="load"))
    finally:
        nursery.close()
    late = Nursery(deadline=time.monotonic())
    try:
        with pytest.raises(OutOfTimeError):
            late.ask(request)
    finally:
        late.close()


# ---- what is published


def test_the_tables_are_those_of_the_committed_results() -> None:
    report = pages.committed()
    found: set[str] = set()
    for page in pages.PAGES:
        text = page.read_text()
        found |= set(pages.parts_of(text))
        told = "run `python -m benchmarks --from benchmarks/results.json --publish`"
        assert pages.filled(text, report) == text, f"{page.name}: {told}"
    assert found == set(pages.PARTS)


def test_the_committed_results_name_no_folder_and_no_host() -> None:
    text = pages.RESULTS.read_text()
    assert socket.gethostname() not in text
    assert not re.search(r"(?<![\w ])/\w", text)
    assert len(text) < 200_000


def test_a_part_of_another_name_is_an_error() -> None:
    with pytest.raises(KeyError, match="nobody"):
        pages.filled("a <!-- benchmarks: nobody --> b <!-- end of nobody --> c", {})


def test_the_charts_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.plot import draw

    draw(pages.committed(), str(tmp_path / "speed.png"))
    assert {path.name for path in tmp_path.iterdir()} == {"speed.png", "speed-targets.png"}


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
