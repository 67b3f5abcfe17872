"""Agreements: all processes see the same outcome, and raise the same error, at once."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import pytest

from safejax._src.processes.agreement import Round
from safejax.errors import LeafError, ProcessError
from tests.support.together import Together, keys_in_the_service, raised, wait_for_a_decision

# Far more than any of the tests takes, unless a process has to be given up.
TIMEOUT = 50.0


@pytest.fixture(scope="module")
def three() -> Iterator[Together]:
    with Together(3) as together:
        yield together


def the_same(together: Together, task: Any, *arguments: Any) -> Any:
    """What the task returns, which must be the same in all processes."""
    first, *others = together.run(task, *arguments)
    assert others == [first] * len(others)
    return first


def sum_and_order(process: int) -> tuple[int, list[int]]:
    with Round("work", TIMEOUT) as across:
        total = across.agree(process + 1, sum)
        return total, across.agree(process, list)


def test_the_decision_is_made_of_the_values_of_all_in_their_order(three: Together) -> None:
    assert the_same(three, sum_and_order) == (6, [0, 1, 2])


def rounds(process: int, count: int) -> list[str]:
    for _ in range(count):
        with Round("work", TIMEOUT) as across:
            across.agree(None, len)
            across.alive()
            across.agree(None, len)
    with Round("work", TIMEOUT) as across:
        across.agree(None, len)
        across.agree(None, len)
        keys = keys_in_the_service()
        across.agree(None, len)
    return sorted({key.split("/")[1] for key in keys})


def test_the_keys_of_earlier_rounds_are_deleted(three: Together) -> None:
    assert len(the_same(three, rounds, 5)) == 1


def failing(process: int, who: list[int], kind: str) -> tuple[str, str, float]:
    begun = time.monotonic()

    def call() -> None:
        with Round("work", TIMEOUT) as across:
            across.agree(None, len)
            if process in who:
                raise {
                    "leaf": LeafError("leaf 'w': expected a, got b"),
                    "number": OSError(28, "No space left on device", "/m"),
                    "other": ZeroDivisionError("division by zero"),
                }[kind]
            across.agree(None, len)

    return *raised(call), time.monotonic() - begun


SHARED = {
    "leaf": ("LeafError", "process 1: leaf 'w': expected a, got b"),
    "number": ("OSError", "[Errno 28] process 1: No space left on device: '/m'"),
}


@pytest.mark.parametrize("kind", SHARED)
def test_an_error_of_one_is_raised_in_all(three: Together, kind: str) -> None:
    outcomes = three.run(failing, [1], kind)
    assert [each[:2] for each in outcomes] == [SHARED[kind]] * 3
    assert max(each[2] for each in outcomes) < TIMEOUT / 4


def test_an_error_of_another_kind_is_raised_as_it_is_where_it_was(three: Together) -> None:
    theirs = ("ProcessError", "process 2: ZeroDivisionError: division by zero")
    outcomes = three.run(failing, [2], "other")
    assert [each[:2] for each in outcomes] == [
        theirs, theirs, ("ZeroDivisionError", "division by zero")
    ]  # fmt: skip


def test_the_first_of_several_errors_is_raised_in_all(three: Together) -> None:
    outcome = {each[:2] for each in three.run(failing, [0, 2], "leaf")}
    assert len(outcome) == 1
    assert outcome.pop()[1][:9] in ("process 0", "process 2")


def given_errors(process: int, who: list[int]) -> tuple[str, str]:
    def call() -> None:
        with Round("work", TIMEOUT) as across:
            error = LeafError("leaf 'w': bad") if process in who else None
            across.agree(None, len, error)

    return raised(call)


def test_an_error_that_all_have_names_no_process(three: Together) -> None:
    assert the_same(three, given_errors, [0, 1, 2]) == ("LeafError", "leaf 'w': bad")
    assert the_same(three, given_errors, [1, 2]) == ("LeafError", "process 1: leaf 'w': bad")


def undecided(process: int) -> tuple[str, str]:
    def decide(values: list[Any]) -> None:
        raise ProcessError(f"expected one value, got {values}")

    def call() -> None:
        with Round("work", TIMEOUT) as across:
            across.agree(process, decide)

    return raised(call)


def test_a_decision_may_be_an_error(three: Together) -> None:
    assert the_same(three, undecided) == ("ProcessError", "expected one value, got [0, 1, 2]")


def missing(process: int) -> tuple[str, str]:
    if process == 2:
        wait_for_a_decision()

    def call() -> None:
        with Round("work", TIMEOUT if process == 2 else 3) as across:
            across.note = "nothing was done"
            across.agree(None, len)

    return raised(call)


def test_a_process_that_does_not_come_is_named_and_raises_too(three: Together) -> None:
    kind, text = the_same(three, missing)
    assert kind == "ProcessError"
    assert text.startswith("work: expected all 3 processes to come to step 0 of it, got no sign of")
    assert "process 2 for 3 s" in text
    assert text.endswith("; nothing was done")


def undecided_by_the_last(process: int) -> tuple[str, str]:
    """The process that comes last, and so decides, says nothing until another one gives up."""

    def came() -> dict[str, list[int]]:
        """The processes that have come to the first step of each round."""
        found: dict[str, list[int]] = {}
        for key in keys_in_the_service():
            at, _, number = key.partition("/0/of/")
            if number:
                found.setdefault(at, []).append(int(number))
        return found

    def decide(values: list[Any]) -> None:
        assert len(values) == 3
        wait_for_a_decision()

    def call() -> None:
        with Round("work", TIMEOUT if process == 2 else 1) as across:
            across.note = "nothing was done"
            while process == 2 and [0, 1] not in came().values():
                time.sleep(0.01)
            across.agree(None, decide)

    return raised(call)


def test_a_last_process_that_does_not_decide_is_not_said_to_be_silent(three: Together) -> None:
    kind, text = the_same(three, undecided_by_the_last)
    assert kind == "ProcessError"
    assert text == (
        "work: expected the last of all 3 processes that came to step 0 of it to decide, got "
        "nothing of it for 1 s: see whether a process has died; if one is only slow, pass a "
        "longer timeout=; nothing was done"
    )


def slow(process: int) -> int:
    with Round("work", 6.0) as across:
        across.agree(None, len)
        for _ in range(12 if process == 1 else 0):
            time.sleep(0.6)
            across.alive()
        return across.agree(None, len)


def test_a_process_that_is_slow_and_alive_is_waited_for(three: Together) -> None:
    assert the_same(three, slow) == 3


def writing_while_another_fails(process: int) -> tuple[str, str, int]:
    steps = 0

    def call() -> None:
        nonlocal steps
        with Round("work", TIMEOUT) as across:
            across.agree(None, len)
            if process == 0:
                raise LeafError("leaf 'w': bad")
            for _ in range(200):
                time.sleep(0.05)
                steps += 1
                across.alive()
            across.agree(None, len)

    return *raised(call), steps


def test_a_process_at_work_hears_of_a_failure_elsewhere(three: Together) -> None:
    outcomes = three.run(writing_while_another_fails)
    assert {each[:2] for each in outcomes} == {("LeafError", "process 0: leaf 'w': bad")}
    assert max(each[2] for each in outcomes) < 100


def interrupted(process: int) -> tuple[str, str]:
    def call() -> None:
        with Round("work", TIMEOUT) as across:
            across.agree(None, len)
            if process == 0:  # It waits for nobody.
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(10)
            across.agree(None, len)

    return raised(call)


def waits_and_is_interrupted(process: int) -> tuple[str, str]:
    def call() -> None:
        with Round("work", TIMEOUT) as across:
            across.agree(None, len)
            if process == 1:
                threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            if process == 2:
                wait_for_a_decision()
            across.agree(None, len)

    return raised(call)


@pytest.mark.parametrize(("task", "who"), [(interrupted, 0), (waits_and_is_interrupted, 1)])
def test_an_interrupt_ends_all(three: Together, task: Any, who: int) -> None:
    outcomes = three.run(task)
    assert outcomes.pop(who) == ("KeyboardInterrupt", "")
    assert outcomes == [("ProcessError", f"process {who}: KeyboardInterrupt")] * 2


def two_at_once(process: int) -> list[int]:
    done: list[int] = []

    def run(across: Round) -> None:
        for _ in range(10):
            done.append(across.agree(process, sum))

    with Round("first", TIMEOUT) as first, Round("second", TIMEOUT) as second:
        threads = [threading.Thread(target=run, args=(each,)) for each in (second, first)]
        for thread in threads[:: 1 if process else -1]:
            thread.start()
        for thread in threads:
            thread.join()
    return done


def test_rounds_that_were_entered_in_the_same_order_may_run_at_once(three: Together) -> None:
    assert the_same(three, two_at_once) == [3] * 20


def test_after_all_failures_the_rounds_are_in_step(three: Together) -> None:
    assert the_same(three, sum_and_order) == (6, [0, 1, 2])
    assert len(the_same(three, rounds, 1)) == 1


def test_without_a_service_it_is_an_error() -> None:
    assert jax.process_count() == 1
    match = r"work: expected the service .* call jax\.distributed"
    with pytest.raises(ProcessError, match=match), Round("work", TIMEOUT) as across:
        across.agree(None, len)
