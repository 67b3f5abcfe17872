"""Children that do the work of sides, each forked from a process that has done the imports.

An import of JAX takes longer than most rounds. So a parent for each module of sides imports it,
and forks for each round a child, which has the memory, the devices and the compiled programs of a
program that has just begun: none. The parent itself starts no devices: JAX's threads would not be
in its children. With `fresh`, there is a new parent for each round.

`python -m benchmarks.processes MODULE` is such a parent. It reads requests, a line of JSON each,
and answers with lines of JSON: the process of the child, its answer, and how it ended.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from typing import IO, Any, Final, final

from benchmarks.child import Request, fulfilled
from benchmarks.measure import MemorySampler

_ROOT: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TIMEOUT_SECONDS: Final = 900


class SideError(Exception):
    """A side failed in its process."""


class OutOfTimeError(Exception):
    """The time of the whole run ended before a side's answer came."""


@final
class Nursery:
    """The parents that are running, by the module that they have imported.

    After `deadline`, a time of `time.monotonic`, no child is waited for.
    """

    def __init__(self, *, fresh: bool = False, deadline: float | None = None) -> None:
        self._fresh = fresh
        self._deadline = deadline
        self._parents: dict[str, _Parent] = {}

    def ask(self, request: Request, *, sampled: bool = False) -> dict[str, Any]:
        """The child's answer; with `sampled`, also the peak of its private memory.

        `SideError` if it fails or gives none in 15 minutes, `OutOfTimeError` at the deadline.
        """
        parent = self._parents.get(request.module)
        if parent is None:
            parent = self._parents[request.module] = _Parent(request.module)
        try:
            end = time.monotonic() + _TIMEOUT_SECONDS
            return parent.ask(request, min(end, self._deadline or end), sampled=sampled)
        except TimeoutError:
            self._remove(request.module)
            if self._deadline is not None and time.monotonic() >= self._deadline:
                raise OutOfTimeError from None
            raise SideError(f"gave no answer in {_TIMEOUT_SECONDS} s") from None
        except BaseException:
            self._remove(request.module)
            raise
        finally:
            if self._fresh:
                self._remove(request.module)

    def close(self) -> None:
        """End all parents."""
        for module in list(self._parents):
            self._remove(module)

    def _remove(self, module: str) -> None:
        parent = self._parents.pop(module, None)
        if parent is not None:
            parent.close()


@final
class _Parent:
    def __init__(self, module: str) -> None:
        # Children use compiled code, as for packages installed by pip, whatever is set here.
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        paths = [_ROOT, os.environ.get("PYTHONPATH", "")]
        environment = {
            **kept,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(paths).rstrip(os.pathsep),
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.processes", module],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        self._child: int | None = None
        self._read = b""

    def ask(self, request: Request, end: float, *, sampled: bool) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then it has no answer either
            self._process.stdin.write(request.encoded().encode() + b"\n")
            self._process.stdin.flush()
        answer: dict[str, Any] | None = None
        sampler: MemorySampler | None = None
        try:
            while (line := self._line(end)) is not None and "ended" not in line:
                if "process" in line:
                    self._child = line["process"]
                    sampler = MemorySampler(line["process"]) if sampled else None
                else:
                    answer = line
            self._child = None
        finally:
            if sampler is not None:
                sampler.stop()
        if answer is None:
            raise SideError(self._last_error())
        if "error" in answer:
            raise SideError(answer["error"][:300])
        if sampler is not None and "begin" in answer:
            answer["peak"] = sampler.peak(answer["begin"], answer["end"])
        return answer

    def _line(self, end: float) -> dict[str, Any] | None:
        """The next line; None if the parent has ended, `TimeoutError` at `end`."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._read:
            if not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError
            read = os.read(descriptor, 1 << 16)
            if not read:
                return None
            self._read += read
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "its process ended without an answer"

    def close(self) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def main() -> None:
    """Import the module, and fork a child for each request."""
    # What libraries print does not come between the answers.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    importlib.import_module(f"benchmarks.sides.{sys.argv[1]}")
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _child(line, out)
        _say(out, {"process": child})
        _say(out, {"ended": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])})


def _child(line: str, out: IO[str]) -> None:
    try:
        request = Request(**json.loads(line))
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={request.devices}"
        _say(out, fulfilled(request))
    except BaseException as error:  # noqa: BLE001 - the reader is told
        traceback.print_exc()
        told = traceback.format_exception_only(error)[-1].strip()
        _say(out, {"error": told.splitlines()[0] if told else repr(error)})
    finally:
        # Threads of some sides take a while to end.
        os._exit(0)


def _say(out: IO[str], value: dict[str, Any]) -> None:
    # One write, so that lines of the child and of its parent do not mix.
    os.write(out.fileno(), (json.dumps(value) + "\n").encode())


if __name__ == "__main__":
    main()
