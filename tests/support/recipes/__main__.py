"""The table of all architectures, and what holds for each: `python -m tests.support.recipes`.

A name, or several, are those of the cases to try. The exit status says whether all holds.
"""

import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import conftest  # noqa: F401 - JAX reads the environment that this sets
from safejax._src.recipes.families import FAMILIES
from tests.support.recipes import checks
from tests.support.recipes.checks import FORWARDS, Checkpoint
from tests.support.recipes.models import CASES

CLOSE = 1e-4


def attempt(check: Callable[[], object]) -> bool:
    """Whether a check does not fail; if it does, it is shown."""
    try:
        check()
    except Exception:  # noqa: BLE001 - of any kind, and the others are tried
        traceback.print_exc()
        return False
    return True


def lines_of(checkpoint: Checkpoint) -> int:
    """The number of lines of the family's module."""
    module = import_module(FAMILIES[checkpoint.recipe.model_type].__module__)
    return len(Path(str(module.__file__)).read_text().splitlines())


def row(name: str, folder: Path) -> tuple[list[str], bool]:
    """The cells of a case, and whether all holds."""
    checkpoint = Checkpoint.made(name, folder / "theirs")
    held = [
        attempt(lambda: checks.imported(checkpoint)),
        attempt(lambda: checks.parts(checkpoint)),
        attempt(lambda: checks.exported(checkpoint, folder / "ours")),
    ]
    logits = "-"
    if name in FORWARDS:
        far: list[float] = []
        held.append(attempt(lambda: far.append(checks.difference(checkpoint))))
        held.append(bool(far) and far[0] < CLOSE)
        logits = f"{far[0]:.0e}" if far else "FAILS"
    shown = ["equal" if each else "FAILS" for each in held[:3]]
    cells = [name, f"`{checkpoint.case.model}`", str(lines_of(checkpoint)), *shown, logits]
    return cells, all(held)


def main(names: list[str]) -> bool:
    """Print the table; whether all holds."""
    head = ["model", "class", "lines", "import", "parts", "export", "logits"]
    sys.stdout.write(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}\n")
    all_hold = True
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            cells, holds = row(name, Path(folder))
        all_hold &= holds
        sys.stdout.write(f"| {' | '.join(cells)} |\n")
        sys.stdout.flush()
    return all_hold


if __name__ == "__main__":
    sys.exit(0 if main(sys.argv[1:]) else 1)
