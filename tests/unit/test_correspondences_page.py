"""docs/correspondences.md: its notations are what it says."""

import re
from pathlib import Path

from safejax import correspond

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/correspondences.md").read_text()
NAMES = re.findall(r'^\| `(".*?")` \| `(.*?)` \| ', PAGE, re.MULTILINE)
AXES = re.findall(r'^\| `"([^`]*->[^`]*)"` \| ', PAGE, re.MULTILINE)


def test_the_notations_are_tables() -> None:
    assert (len(NAMES), len(AXES)) == (9, 6)
    for theirs, ours in NAMES:
        assert correspond([(eval(theirs), eval(ours))])
    for axes in AXES:
        theirs, ours = (("a", "b", "c")[: side.count(",") + 1] for side in axes.split("->"))
        number = "{i}" if "i (1" in axes else ""  # It is stacked, and the axes have a place for it.
        assert correspond([(tuple(name + number for name in theirs), ours, axes)])
