"""Runs cases: in each round the sides take turns, each in a fresh process."""

import contextlib
import math
import os
import shutil
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, final

from benchmarks.cases import Case
from benchmarks.child import Request
from benchmarks.measure import summary
from benchmarks.processes import Nursery, SideError
from benchmarks.sides import BFLOAT16, SIDES, WRITERS, Side
from benchmarks.trees import MIB, Spec

_SMALL_NBYTES: Final = 64 << 10


@final
@dataclass(slots=True)
class Result:
    """The results of one side in one case: the seconds of each round, bytes, and other numbers.

    `private` is the peak of private memory minus that before the work began.
    """

    side: str
    seconds: list[float | None] = field(default_factory=list[float | None])
    faults: int | None = None
    private: int | None = None
    read: int | None = None
    cold: float | None = None
    facts: dict[str, float] = field(default_factory=dict[str, float])
    error: str | None = None

    def reported(self) -> dict[str, Any]:
        """The results, with their statistics, ready for JSON."""
        return {**asdict(self), **dict(summary(self.seconds))}


@final
@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how cases are run.

    `folder` is for the files, `size` is the size of the tree, and `nursery` has the processes. With
    `sides`, no others take part.
    """

    folder: str
    size: int
    nursery: Nursery
    sides: tuple[str, ...] = ()

    def spec(self, case: Case) -> Spec:
        """The tree of a case."""
        return case.spec(self.size)

    def tidy(self, later: list[Case]) -> None:
        """Remove the files that no later case needs."""
        keep = {self.spec(case).key for case in later}
        for name in os.listdir(self.folder):
            if name not in keep and not name.startswith(f"{_SMALL_NBYTES}-"):
                shutil.rmtree(os.path.join(self.folder, name), ignore_errors=True)

    def folder_of(self, spec: Spec) -> str:
        """The folder of the files that hold a tree."""
        return os.path.join(self.folder, spec.key)

    def provide(self, small: Spec, spec: Spec, file: str) -> None:
        """Make the files that hold the two trees, unless they exist."""
        folders = [self.folder_of(each) for each in (small, spec)]
        for folder in folders:
            os.makedirs(folder, exist_ok=True)
        if all(os.path.exists(os.path.join(folder, file)) for folder in folders):
            return
        module, function = WRITERS[file]
        request = Request(
            "write", "", module, function, folders[1], file, (spec.nbytes, spec.count),
            folders[0], (small.nbytes, small.count),
        )  # fmt: skip
        self.nursery.ask(request)


@final
class Measured:
    """A case that is being measured, some rounds at a time.

    `sides` are those that take part, if not all of the case. Of each, a round without it has None.
    """

    def __init__(self, case: Case, bench: Bench, sides: set[str] | None = None) -> None:
        self.case = case
        self.names = (case.name,)
        self.rounds = 0
        self.seconds_of_a_round = 0.0
        self._bench = bench
        self._results: dict[str, Result] | None = None
        self._requests: dict[str, Request] = {}
        wanted = [
            SIDES[name]
            for name in case.sides
            if (sides is None or name in sides) and (not bench.sides or name in bench.sides)
        ]
        self._left_out = {side.name: side.missing for side in wanted if side.missing}
        self._sides = [side for side in wanted if not side.missing]

    def visit(
        self, rounds: int, wanted: set[str] | None = None, until: float = math.inf
    ) -> None:  # fmt: skip
        """Take some rounds, of these sides or of all; the first time, check the results before.

        There are fewer rounds, but at least one, if they last until that time of
        `time.monotonic`. `OutOfTimeError` if all time ends; the rounds so far are kept.
        """
        if self._results is None:
            self._results = {side.name: Result(side.name) for side in self._sides}
            for name, result in self._results.items():
                with _kept_error(result):
                    self._requests[name] = self._request(SIDES[name])
                    self._check(self._requests[name], result)
        start, before = time.monotonic(), self.rounds
        while self.rounds < before + rounds:
            self._round(self._results, wanted)
            if time.monotonic() > until:
                break
        if self.rounds > before:
            self.seconds_of_a_round = (time.monotonic() - start) / (self.rounds - before)

    def _round(self, results: dict[str, Result], wanted: set[str] | None) -> None:
        order = list(results)
        taken: dict[str, float] = {}
        # The first side changes, so that a side does not always follow the same one.
        turn = self.rounds % max(1, len(order))
        for name in order[turn:] + order[:turn]:
            if results[name].error is None and (wanted is None or name in wanted):
                with _kept_error(results[name]):
                    request = replace(self._requests[name], mode="time")
                    taken[name] = self._bench.nursery.ask(request)["seconds"]
        for name, result in results.items():
            result.seconds.append(taken.get(name))
        self.rounds += 1

    def reports(self) -> Iterator[dict[str, Any]]:
        """The results so far, ready for JSON; none before a visit."""
        if self._results is None:
            return
        spec = self._bench.spec(self.case)
        yield {
            "name": self.case.name,
            "title": self.case.title,
            "group": self.case.group,
            "tree_bytes": spec.exact_nbytes,
            "tensors": spec.tensors,
            "file_bytes": spec.exact_nbytes // (2 if self.case.file == BFLOAT16 else 1),
            "copied_bytes": int(self.case.copied * spec.exact_nbytes),
            "disk": self.case.disk,
            "left_out": {name: list(packages) for name, packages in self._left_out.items()},
            "sides": {name: result.reported() for name, result in self._results.items()},
        }

    def _check(self, request: Request, result: Result) -> None:
        """The round that is not timed: checks the result, and measures what the side uses."""
        answer = self._bench.nursery.ask(request, sampled=True)
        result.faults = answer["faults"]
        result.read = answer["read"]
        result.cold = answer["cold"]
        result.facts = answer["facts"] or {}
        if answer["private_before"] is not None and answer["peak"] is not None:
            result.private = max(0, answer["peak"] - answer["private_before"])

    def _request(self, side: Side) -> Request:
        case, bench = self.case, self._bench
        spec = bench.spec(case)
        small = Spec(_SMALL_NBYTES, min(case.count, 10) if case.count else None)
        file = side.file or case.file
        for each in (small, spec):
            os.makedirs(bench.folder_of(each), exist_ok=True)
        if case.file_is_read:
            bench.provide(small, spec, file)
        function = case.limits if side.name == "limit" and case.limits else case.function
        replicas = case.devices if case.layout == "replicated" else 1
        return Request(
            mode="check",
            side=side.name,
            module=case.module or side.module,
            function=function,
            folder=bench.folder_of(spec),
            file=file,
            spec=(spec.nbytes, spec.count),
            small_folder=bench.folder_of(small),
            small_spec=(small.nbytes, small.count),
            devices=case.devices,
            layout=case.layout,
            cold=case.cold,
            warm_up=case.module != "importing",
            memory=int(side.memory * spec.exact_nbytes * replicas * case.touched) + 64 * MIB,
            counts=side.counts if case.file_is_read else "unknown",
        )


@contextlib.contextmanager
def _kept_error(result: Result) -> Generator[None]:
    """Keep the error of a side that fails in the block in its result, and go on."""
    try:
        yield
    except SideError as error:
        result.error = str(error)
