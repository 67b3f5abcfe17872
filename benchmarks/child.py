"""The work of one side in one case, and its measurement, in a process of its own."""

import contextlib
import gc
import importlib
import json
import os
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from typing import Any, Literal, final

from benchmarks import measure
from benchmarks.job import Job, Work
from benchmarks.trees import Spec


@final
@dataclass(frozen=True, slots=True)
class Request:
    """The task of a child.

    `mode` "write" makes the files; "time" only measures the time; "check" also checks the result
    and measures the bytes read and the facts. `folder` holds the file. The same work is done with
    the small tree first, so that the costs of the first call are not counted. `memory` bytes are
    touched and freed just before the measurement.
    """

    mode: Literal["write", "time", "check"]
    side: str
    module: str
    function: str
    folder: str
    file: str
    spec: tuple[int, int | None]
    small_folder: str = ""
    small_spec: tuple[int, int | None] = (0, None)
    devices: int = 1
    layout: str = ""
    cold: bool = False
    warm_up: bool = True
    memory: int = 0
    counts: str = "unknown"

    def job(self, *, small: bool = False) -> Job:
        """The job that a side is given."""
        folder = self.small_folder if small else self.folder
        spec = Spec(*(self.small_spec if small else self.spec))
        return Job(
            self.side, spec, os.path.join(folder, self.file),
            os.path.join(folder, "target"), self.layout,
        )  # fmt: skip

    def encoded(self) -> str:
        """The request as JSON, for the command line."""
        return json.dumps(asdict(self))


@final
@dataclass(slots=True)
class Answer:
    """What was measured: the seconds of one call; `begin` and `end` are of `time.monotonic`.

    `cold` is the fraction of the file that stayed in the page cache although it was dropped.
    """

    seconds: float
    begin: float
    end: float
    faults: int
    private_before: int | None
    read: int | None = None
    cold: float | None = None
    facts: dict[str, float] | None = None


def answer(request: Request) -> Answer:
    """Do the task of the request, and measure it."""
    module = importlib.import_module(f"benchmarks.sides.{request.module}")
    prepare: Callable[[Job], Work] = getattr(module, request.function)
    if request.warm_up:
        prepare(request.job(small=True)).run()
    job = request.job()
    work = prepare(job)
    stayed = _settle(request, job.path)
    with _counting(request) as read:
        result, answer = _timed(work)
        read_bytes = read()
        answer.read = None if read_bytes is None else read_bytes // work.calls
    answer.cold = stayed
    if request.mode == "check":
        work.check(result)
        answer.facts = work.facts()
    return answer


def _settle(request: Request, path: str) -> float | None:
    stayed = None
    # Python's objects are in memory that a fork shares until it is written to, as this does.
    gc.collect()
    # Otherwise one side's flush would wait for what another side left to be written.
    os.sync()
    if request.cold:
        stayed = measure.chill(path)
    elif os.path.exists(path):
        measure.warm(path)
    measure.touch_and_free(request.memory)
    return stayed


def _timed(work: Work) -> tuple[Any, Answer]:
    private = measure.private_bytes()
    before, begin, start = measure.Usage.now(), time.monotonic(), time.perf_counter()
    for _ in range(work.calls):
        result = work.run()
    seconds = (time.perf_counter() - start) / work.calls
    end, after = time.monotonic(), measure.Usage.now()
    faults = (after.faults - before.faults) // work.calls
    return result, Answer(seconds, begin, end, faults, private)


@contextlib.contextmanager
def _counting(request: Request) -> Generator[Callable[[], int | None]]:
    """Count the bytes that are read in the block, but only in a check, which is not timed."""
    if request.mode == "check" and request.counts == "requests":
        import safejax  # Imported here, since its import may be what is measured.

        with safejax.observe_reads() as log:
            yield lambda: log.nbytes
    elif request.mode == "check" and request.counts == "calls":
        before = measure.Usage.now().read
        yield lambda: measure.Usage.now().read - before
    else:
        yield lambda: None


def fulfilled(request: Request) -> dict[str, Any]:
    """Do the task of the request; what is answered, ready for JSON."""
    if request.mode != "write":
        return asdict(answer(request))
    module = importlib.import_module(f"benchmarks.sides.{request.module}")
    for job in (request.job(small=True), request.job()):
        if not os.path.exists(job.path):
            getattr(module, request.function)(job)
    return {}
