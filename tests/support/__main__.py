"""Compares everything with everything, and tells what was: `python -m tests.support [FAMILY...]`.

It takes an hour of one core. What is printed is the number of callables, of callables × placements
and of calls, then what no row of the table of arguments can call, what is left over, and what
differs; the exit status says whether anything does.
"""

import collections
import importlib.metadata
import os
import sys
import tempfile
import time

import conftest  # noqa: F401 - JAX reads the environment that this sets
from tests.support.callables import FAMILIES
from tests.support.plain_and_lazy import LEFT_OVER, Difference, check, forget


def tell(*words: object) -> None:
    """A line, at once: a run may be stopped."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def main(names: list[str]) -> bool:
    """Report the families of these names, or all; whether nothing differs."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "numpy", "scipy")]
    tell("Python", sys.version.split()[0], *versions)
    differ = 0
    left_over: list[Difference] = []
    total: collections.Counter[str] = collections.Counter()
    for name in names or FAMILIES:
        start = time.monotonic()
        tally = check(FAMILIES[name], seed=0, everything=True)
        counts = {
            "callables": len(tally.compared), "callables × placements": tally.pairs,
            "calls": tally.calls, "without a row": len(tally.without_row),
            "left over": len(tally.left_over), "differences": len(tally.differences),
            "seconds": round(time.monotonic() - start),
        }  # fmt: skip
        total.update(counts)
        tell(name, counts)
        tell("    without a row:", *sorted(tally.without_row))
        left = collections.Counter((found.name, found.kind) for found in tally.left_over)
        for (callable_name, kind), times in left.items():
            tell(f"    left over: {callable_name}: {kind} ({times} calls)")
        for found in tally.differences:
            tell(f"    {found}")
        left_over += tally.left_over
        differ += len(tally.differences)
        forget()
    tell("all", dict(total))
    if not names:
        for rule in LEFT_OVER:
            if not any(map(rule.covers, left_over)):
                tell("nothing is left over of", rule)
    return differ == 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        # What opens a file by the name that it is given does it here.
        os.chdir(folder)
        sys.exit(0 if main(sys.argv[1:]) else 1)
