"""What becomes of a save by several processes if one of them fails: at which moment, and how.

A process that fails raises an error, hangs, or is killed. The moments are found by what a save
does with files, of which Python tells an audit hook, so that no function is replaced.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax._src.storage.litter import is_temporary
from tests.support.effort import LARGE
from tests.support.together import (
    LONG,
    Together,
    devices_together,
    keys_in_the_service,
    raised,
    wait_for_a_decision,
)

TIMEOUT = 40.0
"""Seconds; far more than any task takes in which no process has to be given up."""

SHORT = 1.0
"""The timeout in seconds of a process that gives up another one."""


def state(step: int) -> dict[str, Any]:
    """A tree of two leaves, so that each process writes more than once."""
    mesh = Mesh(np.array(devices_together()), ("x",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P("x"))
    return {
        name: jax.make_array_from_callback(
            values.shape, rows, lambda index, values=values: values[index]
        )
        for name, values in on_host(step).items()
    }


def on_host(step: int) -> dict[str, Any]:
    w = np.arange(64 * 16, dtype=np.float32).reshape(64, 16) + step
    return {"v": w * 2, "w": w}


# ---- an error, a stop or a death at each moment of a save

MOMENTS = (
    "before the agreement",
    "before writing",
    "while writing",
    "before the rename",
    "after the rename",
)

_seen_by_hook: Callable[[str, tuple[Any, ...]], None] | None = None


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen_by_hook is not None:
        _seen_by_hook(event, arguments)


def at_the_moment(process: int, moment: str, path: Path, act: Callable[[], None]) -> dict[str, Any]:
    """The options of a save that calls `act` at a moment, once."""
    global _seen_by_hook
    left = [act]

    def now() -> None:
        if left:
            left.pop()()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        place = str(arguments[0]) if event in ("open", "os.rename") else ""
        if (
            (moment == "before writing" and event == "open" and is_temporary(place))
            or (moment == "before the rename" and event == "os.rename" and is_temporary(place))
            # Once the file is renamed, its folder is flushed.
            or (moment == "after the rename" and event == "open" and place == str(path.parent))
        ):
            now()

    def transform(leaves: Any) -> Any:
        if moment == "before the agreement":
            now()
        return leaves

    def progress(done: int, total: int) -> None:
        if moment == "while writing" or (
            moment == "before the rename" and process != 0 and done == total
        ):
            now()

    if not hasattr(sys, "_safejax_test_hook"):
        sys._safejax_test_hook = True  # pyright: ignore  # A hook cannot be removed.
        sys.addaudithook(audit)
    _seen_by_hook = hook
    return {"transform": transform, "progress": progress}


def send_to_one_that_waits(pid: int, sent: int) -> None:
    """Send a signal to process 1 once it has come to the last step, as process 0 has not."""

    def came() -> list[str]:
        keys = set(keys_in_the_service())
        steps = {key.removesuffix("/came") for key in keys if key.endswith("/came")}
        return [step for step in steps if f"{step}/of/0" not in keys]

    end = time.monotonic() + LONG
    while not came():
        assert time.monotonic() < end
        time.sleep(0.001)
    os.kill(pid, sent)
    if sent == signal.SIGINT:
        wait_for_a_decision()


def fail(process: int, who: int, moment: str, how: str, folder: Path, pid: int) -> tuple[str, str]:
    """A save over an older one, in which process `who` fails; what it raises in this process.

    `pid` is the number that the system gives process 1.
    """
    global _seen_by_hook
    _seen_by_hook = None
    path = folder / "m"
    safejax.save(state(0), path, timeout=TIMEOUT)
    options: dict[str, Any] = {"timeout": SHORT}

    def error() -> None:
        raise OSError(5, "Input/output error", "disk")

    def hang() -> None:
        wait_for_a_decision()
        # Whoever gives up process 0 removes the file that it would rename, a moment later.
        while (who, moment) == (0, MOMENTS[-2]) and any(map(is_temporary, os.listdir(folder))):
            time.sleep(0.001)

    acts = {
        "raises": error,
        "hangs": hang,
        "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    }
    if process == who:
        options = {"timeout": TIMEOUT}
    if (who, moment) == (1, MOMENTS[-1]):
        # It only waits for process 0 then. So that one stops, kills or interrupts it.
        options = {"timeout": TIMEOUT}
        signals = {"hangs": signal.SIGSTOP, "is killed": signal.SIGKILL, "raises": signal.SIGINT}
        if process == 0:
            send = partial(send_to_one_that_waits, pid, signals[how])
            options |= at_the_moment(process, moment, path, send)
    elif process == who:
        options |= at_the_moment(process, moment, path, acts[how])
    return raised(lambda: safejax.save(state(1), path, **options))


def expected(who: int, moment: str, how: str) -> tuple[int, str, str]:
    """The number of the state that is there afterwards, and the error: its class, and a part."""
    step = int(moment == MOMENTS[-1])
    if how == "raises":
        if step and who != 0:
            return step, "ProcessError", f"process {who}: KeyboardInterrupt"
        said = "; what was saved is in its place, but" if step else ": 'disk'"
        return step, "OSError", f"[Errno 5] process {who}: Input/output error{said}"
    if step and who != 0:
        return step, "", ""  # It had nothing to do any more.
    said = "may have been replaced" if who == 0 and moment in MOMENTS[-2:] else "is unchanged"
    return step, "ProcessError", f"no sign of process {who} for 1 s.*what was there before {said}"


def check(path: Path, who: int, moment: str, how: str, outcome: tuple[str, str]) -> None:
    step, kind, text = expected(who, moment, how)
    assert path.read_bytes() == safejax.serialize(on_host(step))
    first, *rest = text.split(".*")
    assert outcome[0] == kind
    assert first in outcome[1]
    assert all(map(outcome[1].endswith, rest))


@pytest.mark.parametrize("how", ["raises", "hangs"])
@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("moment", MOMENTS)
def test_if_a_process_raises_or_hangs_all_have_the_same_error(
    pair: Together, moment: str, who: int, how: str, tmp_path: Path
) -> None:
    pair.begin(fail, who, moment, how, tmp_path, pair.processes[1].pid)
    outcomes = [pair.result(0)]
    if (who, moment, how) == (1, MOMENTS[-1], "hangs"):
        os.kill(pair.processes[1].pid, signal.SIGCONT)
    outcomes.append(pair.result(1))
    check(tmp_path / "m", who, moment, how, outcomes[1 - who])
    if (who, moment, how) == (1, MOMENTS[-1], "raises"):
        assert outcomes[1] == ("KeyboardInterrupt", "")
    else:
        assert outcomes[0] == outcomes[1]
    assert os.listdir(tmp_path) == ["m"]


# Each takes two new processes.
DEATHS = [(moment, who) for moment in MOMENTS for who in (0, 1)]
SOME_DEATHS = [(MOMENTS[0], 1), (MOMENTS[3], 1), (MOMENTS[3], 0), (MOMENTS[4], 0)]


@pytest.mark.parametrize(("moment", "who"), DEATHS if LARGE else SOME_DEATHS)
def test_if_a_process_dies_the_file_is_whole(moment: str, who: int, tmp_path: Path) -> None:
    begun = time.monotonic()
    with Together(2) as together:
        together.begin(fail, who, moment, "is killed", tmp_path, together.processes[1].pid)
        outcomes = [together.result(0), together.result(1)]
    assert time.monotonic() - begun < TIMEOUT / 2
    assert outcomes[who] is None
    # With process 0 goes JAX's service, and JAX ends the others.
    outcome = outcomes[0] or expected(who, moment, "is killed")[1:]
    check(tmp_path / "m", who, moment, "is killed", outcome)
    assert (outcomes[1 - who] is None) == (who == 0)
    if who == 0:
        safejax.save({"w": np.zeros(3)}, tmp_path / "m")
    assert os.listdir(tmp_path) == ["m"]


# ---- who learns of an error, and when


def raise_an_error_that_looks(process: int, who: int, folder: Path) -> tuple[list[int], str]:
    """How many temporary files there are when an error of one process is told to the others."""
    seen: list[int] = []

    class LooksError(Exception):
        def __str__(self) -> str:
            seen.append(len(list(filter(is_temporary, os.listdir(folder)))))
            return "looked"

    def progress(done: int, total: int) -> None:
        del done, total
        if process == who:
            raise LooksError

    text = raised(lambda: safejax.save(state(1), folder / "m", progress=progress, timeout=TIMEOUT))
    return seen[:1], text[1]


@pytest.mark.parametrize("who", [0, 1])
def test_the_others_learn_of_an_error_before_the_file_is_removed(
    pair: Together, who: int, tmp_path: Path
) -> None:
    outcomes = pair.run(raise_an_error_that_looks, who, tmp_path)
    assert outcomes.pop(who) == ([1], "looked")
    assert outcomes == [([], f"process {who}: LooksError: looked")]
    assert os.listdir(tmp_path) == []


def fail_while_another_waits_for_its_turn(process: int, folder: Path) -> tuple[str, str]:
    """Process 1 does not write yet, since something of its own is written there."""
    path, opened = folder / "m", threading.Event()
    own, options = None, dict[str, Any]()

    def error() -> None:
        raise ValueError("stopped")

    def progress(done: int, total: int) -> None:
        del done, total
        assert opened.wait(LONG)

    if process == 0:
        options = at_the_moment(process, "before writing", path, error)
    else:
        own = safejax.save_async({"own": np.ones(3)}, path, progress=progress)
    handle = safejax.save_async(state(1), path, timeout=TIMEOUT, **options)
    found = handle.exception(LONG)
    opened.set()
    if own is not None:
        own.result(LONG)
    multihost_utils.sync_global_devices("failed")
    for _ in range(2):
        safejax.save(state(2), path, timeout=TIMEOUT)
    assert process or len({key.split("/")[1] for key in keys_in_the_service()}) == 1
    return type(found).__name__, str(found)


def test_a_save_that_fails_before_its_turn_is_over(pair: Together, tmp_path: Path) -> None:
    found = pair.run(fail_while_another_waits_for_its_turn, tmp_path)
    assert found == [("ValueError", "process 0: stopped")] * 2


def hash_much(process: int, folder: Path) -> list[bool]:
    """Whether signs of life of this process are there, each time a block of a leaf is read."""
    seen: list[bool] = []
    before = set(keys_in_the_service())

    def look(block: Any) -> Any:
        new = set(keys_in_the_service()) - before
        seen.append(any(key.endswith(f"/alive/{process}") for key in new))
        return block

    large = safejax.flatten({"large": np.zeros(40 << 20, np.uint8), **state(1)})
    leaves = safejax.elementwise(look, "large")(large)
    seen.clear()
    safejax.save(leaves, folder / "m", timeout=TIMEOUT)
    return seen[:3]


def test_hashing_shows_that_a_process_is_alive(pair: Together, tmp_path: Path) -> None:
    for signs in pair.run(hash_much, tmp_path):
        assert signs[-1]


# ---- Ctrl-C

MODULES = ("api/saving.py", "background.py", "distributed.py", "task.py")


def interrupt_everywhere(process: int, folder: Path, count: int) -> list[tuple[int, str, str]]:
    """Saves in which process 1 is interrupted in one of the calls of safejax that lead to them."""
    outcomes: list[tuple[int, str, str]] = []
    calls, at = 0, -1

    def trace(frame: FrameType, event: str, _: Any) -> None:
        nonlocal calls
        code, caller = frame.f_code, frame.f_back
        begins = code.co_name == "__enter__" and code.co_filename.endswith("agreement.py")
        if begins or (calls and caller and caller.f_code.co_filename.endswith(MODULES)):
            calls += 1
            if calls == at:
                raise KeyboardInterrupt

    def save(function: Callable[..., Any]) -> None:
        handle = function(state(1), folder / "m", timeout=TIMEOUT)
        if handle is not None:
            sys.settrace(None)
            handle.result(LONG)

    for function in (safejax.save, safejax.save_async):
        total = 0
        for number in range(count + 1):
            # The first one is not interrupted, and the calls are counted.
            calls, at = 0, 2 + (number - 1) * (total - 1) // count if number else -1
            if process == 1:
                sys.settrace(trace)  # Its errors are raised in the functions.
            try:
                error = raised(lambda function=function: save(function))
                # Some calls depend on the time, so that there may be fewer than were counted.
                outcomes.append((at if calls >= at else -1, *error))
            finally:
                sys.settrace(None)
            total = total or calls
    return outcomes


def test_ctrl_c_at_any_call_leaves_nobody_waiting(pair: Together, tmp_path: Path) -> None:
    begun = time.monotonic()
    first, second = pair.run(interrupt_everywhere, tmp_path, 200 if LARGE else 20)
    interrupted = 0
    for (_, *theirs), (at, kind, text) in zip(first, second, strict=True):
        assert theirs in (["", ""], ["ProcessError", "process 1: KeyboardInterrupt"]), at
        assert kind == ("" if at < 0 else "KeyboardInterrupt"), (at, text)
        interrupted += theirs[0] != ""
    assert interrupted > len(first) / 2
    assert time.monotonic() - begun < TIMEOUT
