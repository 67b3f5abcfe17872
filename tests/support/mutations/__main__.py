"""Breaks one thing after the other: `python -m tests.support.mutations [PART OF A NAME...]`.

The tests that are named with each run in a copy of the checkout. First all of them run unbroken,
and have to pass. The exit status says whether some of them fall for each of the breaks.
"""

import sys

from tests.support.mutations.breaking import checkout, fallen
from tests.support.mutations.cases import MUTATIONS


def main(parts: list[str]) -> bool:
    """Try all mutations, or those with one of these parts of names."""
    chosen = [each for each in MUTATIONS if any(part in each.name for part in parts or [""])]
    tests = sorted({test for each in chosen for test in each.tests})
    survivors = 0
    with checkout() as copy:
        if unbroken := fallen(copy, tests):
            sys.stdout.write(f"These tests fail without a break: {unbroken}\n")
            return False
        sys.stdout.write("| broken | in | falls |\n|---|---|---|\n")
        for each in chosen:
            with copy.broken(each):
                found = fallen(copy, each.tests)
            survivors += not found
            falls = found[0].split("::")[-1] if found else "NOTHING"
            sys.stdout.write(f"| {each.name} | `{each.module}` | `{falls}` |\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(chosen)} breaks, {survivors} of which no test notices\n")
    return survivors == 0


if __name__ == "__main__":
    sys.exit(0 if main(sys.argv[1:]) else 1)
