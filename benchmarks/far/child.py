"""One round of one side: `python -m benchmarks.far.child SIDE URL`; prints JSON."""

import json
import sys
import time

import jax

from benchmarks.far.server import KEY, SMALL
from benchmarks.far.sides import OPENED
from benchmarks.measure import private_bytes


def main() -> None:
    """Load the small file, which is not counted, and then the other one."""
    side = OPENED[sys.argv[1]](sys.argv[2])
    side(SMALL)
    before = private_bytes()
    begin = time.monotonic()
    loaded = side(KEY)
    end = time.monotonic()
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))
    answer = {"begin": begin, "end": end, "before": before, "nbytes": nbytes}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
