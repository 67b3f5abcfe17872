"""Tries what power cuts may leave: `python -m tests.support.crashes [PART OF A NAME...]`.

What is printed is how many states there were of each kind of save, and what was seen in them; the
exit status says whether all is as it has to be. `HYPOTHESIS_PROFILE=large` tries more.
"""

import sys
import time

import conftest  # noqa: F401 # pyright: ignore - JAX reads the environment that it sets
from tests.support.crashes.kinds import KINDS, LARGE_KINDS, SAMPLE
from tests.support.crashes.trying import Tried, histories, table, try_states
from tests.support.together import Together


def main(parts: list[str]) -> bool:
    """Try all kinds of saves, or those with one of these parts of names."""
    every = KINDS | LARGE_KINDS
    kinds = {
        name: kind for name, kind in every.items() if any(part in name for part in parts or [""])
    }
    with Together() as together:
        found = histories(together, kinds.values())
    tried: dict[str, Tried] = {}
    start = time.monotonic()
    for name, kind in kinds.items():
        limit = SAMPLE if name in LARGE_KINDS else 20_000
        tried[name] = try_states(kind, found[name], limit)
    sys.stdout.write(f"{table(tried)}\n{time.monotonic() - start:.0f} s\n")
    for name, each in tried.items():
        for fault in each.faults:
            sys.stdout.write(f"{name}: {fault}\n")
    return not any(each.faults for each in tried.values())


if __name__ == "__main__":
    sys.exit(0 if main(sys.argv[1:]) else 1)
