"""The library that makes calls of the operating system fail: `faults.c`, compiled for a run."""

import shutil
import subprocess
import sys
from pathlib import Path


def compiled(folder: Path) -> Path | None:
    """The shim that makes the operating system fail; None if there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "faults.so"
    source = Path(__file__).parent / "faults.c"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True
    )
    return library
