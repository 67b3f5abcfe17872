"""A long run with faults: `python -m tests.long [--minutes N] [--seed N] [--least N]`.

What is done is in `tests/support/long_run.py`. The process runs again with a library before the C
library, which is compiled for it and makes calls for the run's files fail at random; without a
compiler, it runs without these faults, and says so. What is printed is what was done and what was
held, as JSON; the exit status says whether nothing was lost and nothing is held.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import conftest  # noqa: F401 - JAX reads the environment that this sets
from tests.support.faults import compiled

MEMORY = 100_000
"""Kilobytes that a process may have more after a long run: allocators keep some."""


def inside(folder: Path, given: argparse.Namespace) -> int:
    # What is imported here starts threads, which the first process does not need.
    run: Any = importlib.import_module("tests.support.long_run").Run(folder, given.seed)
    found = run.run(60 * given.minutes, given.least)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    before, after = found["held before"], found["held after"]
    grown = {what: after[what] - number for what, number in before.items()}
    memory = grown.pop("memory", 0)
    if any(number > 2 for number in grown.values()) or memory > MEMORY:
        sys.stdout.write(f"more is held than before: {grown}, {memory} KB\n")
        return 1
    return 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.long", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least", type=int, default=0, help="operations, however long they take")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.inside:
        return inside(Path(given.inside), given)
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(Path(folder))
        environment = dict(os.environ)
        if library is None:
            sys.stdout.write("there is no C compiler: the operating system does not fail\n")
        else:
            environment["LD_PRELOAD"] = str(library)
        files = Path(folder, "files")
        files.mkdir()
        command = [sys.executable, "-m", "tests.long", "--inside", str(files), *arguments]
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
