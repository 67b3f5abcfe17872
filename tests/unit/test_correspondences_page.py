"""docs/correspondences.md: its programs run, and its notations are what it says."""

import re
from pathlib import Path
from typing import Any

import pytest

from safejax import correspond

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/correspondences.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NAMES = re.findall(r'^\| `(".*?")` \| `(.*?)` \| ', PAGE, re.MULTILINE)
AXES = re.findall(r'^\| `"([^`]*->[^`]*)"` \| ', PAGE, re.MULTILINE)


def test_the_programs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "docs/correspondences.md", "exec"), names)
    assert len(BLOCKS) == 4


def test_the_notations_are_tables() -> None:
    assert (len(NAMES), len(AXES)) == (9, 6)
    for theirs, ours in NAMES:
        assert correspond([(eval(theirs), eval(ours))])
    for axes in AXES:
        theirs, ours = (("a", "b", "c")[: side.count(",") + 1] for side in axes.split("->"))
        number = "{i}" if "i (1" in axes else ""  # It is stacked, and the axes have a place for it.
        assert correspond([(tuple(name + number for name in theirs), ours, axes)])


def test_the_page_is_linked() -> None:
    assert "(docs/correspondences.md)" in (ROOT / "README.md").read_text()
