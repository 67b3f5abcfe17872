"""Processes of `jax.distributed` on this machine, which run the same functions at the same time."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import jax

from safejax._src.arrays.jax_private import coordination_service
from tests.support.children import CHILDREN

DEVICES_EACH = 2
"""The devices of each process that tests divide arrays over; it has more."""

LONG = 300.0
"""Seconds after which a process that says nothing is a failure of the test: other work may keep the
machine from it for a minute."""


class Together:
    """Several processes that know of each other; a context that ends them.

    They live for several calls of `run`, since a process takes a second to start.
    """

    def __init__(self, processes: int = 2, heartbeat: int = 100) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.is_silent = False
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        for number in range(processes):
            here, there = CHILDREN.Pipe()
            arguments = (there, address, processes, number, heartbeat)
            child = CHILDREN.Process(target=_serve, args=arguments, daemon=True)
            child.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(child)

    def __enter__(self) -> "Together":
        return self

    def __exit__(self, *_: object) -> None:
        if not self.is_silent and all(process.is_alive() for process in self.processes):
            for pipe in self.pipes:
                with contextlib.suppress(OSError):
                    pipe.send(None)
            for process in self.processes:
                process.join(10)
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            process.kill()  # Those that are left cannot shut down without the others.
            process.join()
            pipe.close()

    def run(self, task: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `task(process, *arguments)` returns in each process; their errors fail the test."""
        self.begin(task, *arguments)
        # All answers are taken before one of them fails the test: the next test gets its own.
        answers = [self._answer(number) for number in range(len(self.pipes))]
        failed = [
            f"process {number}: {value}"
            for number, (kind, value) in enumerate(answers)
            if kind != "returned"
        ]
        assert not failed, "\n".join(failed)
        return [value for _, value in answers]

    def begin(self, task: Callable[..., Any], *arguments: Any) -> None:
        assert not self.is_silent, "a process gave no answer before"
        for pipe in self.pipes:
            pipe.send((task, arguments))

    def result(self, number: int) -> Any:
        """What the task returned in one process; None if the process was killed."""
        return self._value(number, self._answer(number))

    def _answer(self, number: int) -> tuple[str, Any]:
        if self.is_silent:
            return "silent", "a process gave no answer before"
        if not self.pipes[number].poll(LONG):
            # What it may still answer would be taken for the answer to a later question.
            self.is_silent = True
            return "silent", f"no answer for {LONG:.0f} s"
        try:
            return self.pipes[number].recv()
        except (EOFError, ConnectionResetError):
            return "returned", None

    def _value(self, number: int, answer: tuple[str, Any]) -> Any:
        kind, value = answer
        assert kind == "returned", f"process {number}: {value}"
        return value


def raised(call: Callable[[], Any]) -> tuple[str, str]:
    """The class and the text of the error that a call raises; empty if it raises none."""
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - reported
        return type(error).__name__, str(error)
    return "", ""


def keys_in_the_service() -> list[str]:
    """All keys of safejax in JAX's coordination service."""
    service = coordination_service()
    assert service is not None
    return sorted(key for key, _ in service.key_value_dir_get("safejax"))


def wait_for_a_decision() -> None:
    """Wait until other processes have come to a decision without this one."""
    before = _decisions()
    deadline = time.monotonic() + LONG
    while _decisions() <= before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _decisions() -> set[str]:
    return {key for key in keys_in_the_service() if "/decided/" in key}


def devices_together() -> list[Any]:
    """The devices that tests divide arrays over: the first ones of each process."""
    return [
        device
        for process in range(jax.process_count())
        for device in jax.local_devices(process)[:DEVICES_EACH]
    ]


def _serve(pipe: Connection, address: str, processes: int, number: int, heartbeat: int) -> None:
    # Whoever started the tests may have had it ignored, as a shell does in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    jax.distributed.initialize(address, processes, number, heartbeat_timeout_seconds=heartbeat)
    while True:
        try:
            sent = pipe.recv()
        except EOFError:
            os._exit(1)  # The test has ended.
        if sent is None:
            jax.distributed.shutdown()
            return
        task, arguments = sent
        try:
            answer = "returned", task(number, *arguments)
        except BaseException as error:  # noqa: BLE001 - it fails the test
            answer = "raised", f"{type(error).__name__}: {error}"
        pipe.send(answer)
