"""Runs cases: in each round the sides take turns, each in a fresh process."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, final

from benchmarks.cases import Case
from benchmarks.child import Request
from benchmarks.measure import MemorySampler, summary
from benchmarks.sides import BFLOAT16, SIDES, WRITERS, Side
from benchmarks.trees import MIB, Spec

_TIMEOUT_SECONDS: Final = 900
_SMALL_NBYTES: Final = 64 << 10
_ROOT: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class SideError(Exception):
    """A side failed in its process."""


@final
@dataclass(slots=True)
class Result:
    """The results of one side in one case: the seconds of each round, bytes, and other numbers.

    `private` is the peak of private memory minus that before the work began.
    """

    side: str
    seconds: list[float] = field(default_factory=list[float])
    faults: int | None = None
    private: int | None = None
    read: int | None = None
    cold: float | None = None
    facts: dict[str, float] = field(default_factory=dict[str, float])
    error: str | None = None


@final
@dataclass(frozen=True, slots=True)
class Bench:
    """How cases are run: the folder of the files, the size of the tree, the number of rounds."""

    folder: str
    size: int
    repeats: int
    sides: tuple[str, ...] = ()
    say: Callable[[str], None] = print

    def run(self, cases: list[Case]) -> Iterator[dict[str, Any]]:
        """The results of each case, ready for JSON; files that no later case needs are removed."""
        for number, case in enumerate(cases):
            self.say(f"[{number + 1}/{len(cases)}] {case.name}: {case.title}")
            yield self._case(case)
            later = {other.spec(self.size).key for other in cases[number + 1 :]}
            if case.spec(self.size).key not in later:
                shutil.rmtree(self._folder(case.spec(self.size)), ignore_errors=True)

    def _case(self, case: Case) -> dict[str, Any]:
        wanted = [SIDES[name] for name in case.sides if not self.sides or name in self.sides]
        left_out = {side.name: side.missing for side in wanted if side.missing}
        results = {side.name: Result(side.name) for side in wanted if not side.missing}
        requests: dict[str, Request] = {}
        for name, result in results.items():
            with _kept_error(result):
                requests[name] = self._request(case, SIDES[name])
                self._check(requests[name], result)
        for turn in range(self.repeats):
            order = list(results)
            # The first side changes, so that a side does not always follow the same one.
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                result = results[name]
                if result.error is None:
                    with _kept_error(result):
                        answer = _ask(replace(requests[name], mode="time"))
                        result.seconds.append(answer["seconds"])
        for result in results.values():
            self.say("    " + _told(result))
        for name, packages in left_out.items():
            self.say(f"    {name}: left out, {', '.join(packages)} not installed")
        spec = case.spec(self.size)
        return {
            "name": case.name,
            "title": case.title,
            "group": case.group,
            "tree_bytes": spec.exact_nbytes,
            "tensors": len(spec.shapes()),
            "file_bytes": spec.exact_nbytes // (2 if case.file == BFLOAT16 else 1),
            "copied_bytes": int(case.copied * spec.exact_nbytes),
            "left_out": {name: list(packages) for name, packages in left_out.items()},
            "sides": {
                name: {**asdict(result), **dict(summary(result.seconds))}
                for name, result in results.items()
            },
        }

    def _check(self, request: Request, result: Result) -> None:
        """The round that is not timed: checks the result, and measures what the side uses."""
        answer = _ask(request, sampled=True)
        result.faults = answer["faults"]
        result.read = answer["read"]
        result.cold = answer["cold"]
        result.facts = answer["facts"] or {}
        if answer["private_before"] is not None and answer["peak"] is not None:
            result.private = max(0, answer["peak"] - answer["private_before"])

    def _request(self, case: Case, side: Side) -> Request:
        spec = case.spec(self.size)
        small = Spec(_SMALL_NBYTES, min(case.count, 10) if case.count else None)
        file = side.file or case.file
        for each in (small, spec):
            os.makedirs(self._folder(each), exist_ok=True)
        if case.file_is_read:
            self._provide(small, spec, file)
        function = case.limits if side.name == "limit" and case.limits else case.function
        replicas = case.devices if case.layout == "replicated" else 1
        return Request(
            mode="check",
            side=side.name,
            module=case.module or side.module,
            function=function,
            folder=self._folder(spec),
            file=file,
            spec=(spec.nbytes, spec.count),
            small_folder=self._folder(small),
            small_spec=(small.nbytes, small.count),
            devices=case.devices,
            layout=case.layout,
            cold=case.cold,
            warm_up=case.module != "importing",
            memory=int(side.memory * spec.exact_nbytes * replicas * case.touched) + 64 * MIB,
            counts=side.counts if case.file_is_read else "unknown",
        )

    def _provide(self, small: Spec, spec: Spec, file: str) -> None:
        """Make the files that hold the two trees, unless they exist."""
        folders = [self._folder(each) for each in (small, spec)]
        if all(os.path.exists(os.path.join(folder, file)) for folder in folders):
            return
        module, function = WRITERS[file]
        request = Request(
            "write", "", module, function, folders[1], file, (spec.nbytes, spec.count),
            folders[0], (small.nbytes, small.count),
        )  # fmt: skip
        _ask(request)

    def _folder(self, spec: Spec) -> str:
        return os.path.join(self.folder, spec.key)


@contextlib.contextmanager
def _kept_error(result: Result) -> Generator[None]:
    """Keep the error of a side that fails in the block in its result, and go on."""
    try:
        yield
    except SideError as error:
        result.error = str(error)


def _ask(request: Request, *, sampled: bool = False) -> dict[str, Any]:
    """The answer of the child; with `sampled`, also the peak of its private memory."""
    # Children use compiled code, as for packages installed by pip, whatever is set here.
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={request.devices}",
        "PYTHONPATH": os.pathsep.join([_ROOT, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.child", request.encoded()],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    sampler = MemorySampler(child.pid) if sampled else None
    try:
        out, err = child.communicate(timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise SideError(f"gave no answer in {_TIMEOUT_SECONDS} s") from None
    finally:
        if sampler is not None:
            sampler.stop()
    if child.returncode:
        lines = err.strip().splitlines() or [f"ended with {child.returncode}"]
        raise SideError(lines[-1][:300])
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    if sampler is not None:
        answer["peak"] = sampler.peak(answer["begin"], answer["end"])
    return answer


def _told(result: Result) -> str:
    if result.error is not None:
        return f"{result.side}: failed: {result.error}"
    told = dict(summary(result.seconds))
    return f"{result.side}: " + ", ".join(f"{k} {v * 1000:.4g} ms" for k, v in told.items())
