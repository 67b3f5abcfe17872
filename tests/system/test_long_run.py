"""A short run of `python -m tests.long`: nothing is lost, whatever fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.effort import LARGE
from tests.support.faults import compiled


def test_nothing_is_lost_while_everything_fails() -> None:
    minutes, least = ("0.3", "600") if LARGE else ("0.02", "40")
    command = [sys.executable, "-m", "tests.long", "--minutes", minutes, "--least", least]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
        timeout=600, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert found["operations"] >= int(least)
    assert found["done"]["save"] > 0
    assert found["done"]["save by two"] > 0
    assert found["done"]["load"] > 0


def test_the_library_that_makes_calls_fail_makes_them_fail(tmp_path: Path) -> None:
    library = compiled(tmp_path)
    if library is None:
        return  # The long run says so, too.
    program = """if True:
        import collections, ctypes, os, sys, time
        library = ctypes.CDLL(None)
        path = sys.argv[1]
        with open(path, "wb") as file:
            file.write(bytes(1000))
        found = collections.Counter()
        file = os.open(path, os.O_RDWR)
        library.faults_set(os.path.dirname(path).encode(), 2, ctypes.c_ulong(1))
        for _ in range(400):
            for call in (lambda: os.preadv(file, [bytearray(1000)], 0), lambda: os.fsync(file),
                         lambda: os.pwrite(file, bytes(1000), 0)):
                try:
                    found[call()] += 1
                except OSError as error:
                    found[error.errno] += 1
        library.faults_set(b"", 0, ctypes.c_ulong(1))
        now = time.time()
        library.faults_clock(ctypes.c_long(1000))
        assert time.time() - now >= 1000
        import errno
        for what in (500, 1000, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE):
            assert found[what], (what, found)
        assert library.faults_count(1)  # Python tries again after EINTR.
    """
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "file")],
        check=True, env={**os.environ, "LD_PRELOAD": str(library)},
    )  # fmt: skip
