"""What fuzzing begins with, and what it has found: the rules of each target hold of these bytes."""

import re
from pathlib import Path

import pytest

from tests.support.fuzzing import TARGETS

FUZZED = Path(__file__).parents[1] / "fuzzed"
FOUND = sorted(path.relative_to(FUZZED).as_posix() for path in FUZZED.glob("*/*"))


@pytest.mark.parametrize("name", TARGETS)
def test_the_rules_hold_of_what_fuzzing_begins_with(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    assert seeds
    for seed in [b"", *seeds]:
        target.check(seed)
        target.check(seed[: len(seed) // 2])


@pytest.mark.parametrize("file", FOUND)
def test_the_rules_hold_of_what_fuzzing_has_found(file: str) -> None:
    TARGETS[file.partition("/")[0]].check((FUZZED / file).read_bytes())


def test_the_command_has_each_target() -> None:
    text = (FUZZED.parent / "fuzz.py").read_text()
    names = re.search(r"NAMES = \((.*?)\)", text, re.DOTALL)
    assert names is not None
    assert re.findall(r'"(\w+)"', names[1]) == list(TARGETS)
