"""A copy of the checkout, in which something is broken, and the tests that fall there."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Final, final

from tests.support.mutations.cases import Mutation

_ROOT: Final = Path(__file__).parents[3]
_COPIED: Final = ("safejax", "tests", "property_tests", "conftest.py", "pyproject.toml")
_FALLEN: Final = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)


@final
class Copy:
    """A copy of the package and its tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def broken(self, mutation: Mutation) -> Generator[None]:
        """A block in which something is broken."""
        path = self.folder / "safejax" / "_src" / mutation.module
        text = path.read_text()
        path.write_text(mutated(text, mutation))
        try:
            yield
        finally:
            path.write_text(text)


def mutated(text: str, mutation: Mutation) -> str:
    """The text of a module with a break in it; it must have what is broken, once."""
    assert text.count(mutation.old) == 1, mutation.name
    return text.replace(mutation.old, mutation.new)


@contextlib.contextmanager
def checkout() -> Generator[Copy]:
    with tempfile.TemporaryDirectory() as folder:
        for name in _COPIED:
            source, target = _ROOT / name, Path(folder, name)
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, target, ignore=ignored)
            else:
                shutil.copy(source, target)
        yield Copy(Path(folder))


def fallen(copy: Copy, tests: Sequence[str]) -> list[str]:
    """The first of these tests that fails there, if any does."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-n0",
        "-rfE",
        "-p",
        "no:cacheprovider",
        *tests,
    ]
    # What imports the package, also in other processes, gets the copy.
    environment = {**os.environ, "PYTHONPATH": str(copy.folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=copy.folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return []
    assert done.returncode == 1, f"{done.stdout}{done.stderr}"
    return _FALLEN.findall(done.stdout)
