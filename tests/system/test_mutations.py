"""Each thing that keeps files whole can be broken as the list says, and a test falls for it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import safejax
from tests.support.crashes.kinds import KINDS
from tests.support.crashes.recording import can_record
from tests.support.effort import LARGE
from tests.support.mutations.breaking import Copy, checkout, fallen, mutated
from tests.support.mutations.cases import MUTATIONS, Mutation

ROOT = Path(safejax.__file__).parents[1]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_what_is_broken_is_there_and_so_are_the_tests(mutation: Mutation) -> None:
    text = (ROOT / "safejax" / "_src" / mutation.module).read_text()
    assert compile(mutated(text, mutation), mutation.module, "exec")
    for test in mutation.tests:
        file, _, name = test.partition("::")
        function, _, case = name.partition("[")
        tree = ast.parse((ROOT / file).read_text())
        assert function in {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}
        if "crash_states" in file:
            assert case.removesuffix("]") in KINDS


def needs_strace(mutation: Mutation) -> bool:
    return any("crash_states" in test for test in mutation.tests)


BROKEN = [
    mutation
    for mutation in (MUTATIONS if LARGE else MUTATIONS[-1:])
    if can_record() or not needs_strace(mutation)
]


@pytest.fixture(scope="module")
def copy() -> Iterator[Copy]:
    """A copy of the checkout, in which nothing is broken yet, and no test falls."""
    with checkout() as copy:
        assert fallen(copy, sorted({test for each in BROKEN for test in each.tests})) == []
        yield copy


@pytest.mark.parametrize("mutation", BROKEN, ids=lambda mutation: mutation.name)
def test_a_test_falls_for_what_is_broken(mutation: Mutation, copy: Copy) -> None:
    with copy.broken(mutation):
        assert fallen(copy, mutation.tests) != []
