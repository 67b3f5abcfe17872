"""Faults of saves by several processes: kills at any moment, and a disk that is really full."""

import errno
import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax._src.storage.litter import is_temporary
from tests.support.effort import LARGE
from tests.support.together import Together, devices_together, raised

TIMEOUT = 40.0
"""Seconds; far more than any task takes in which no process has to be given up."""

SHORT = 2.0
"""The timeout in seconds of saves of which processes are killed."""

KILLS = 50 if LARGE else 3


def on_host(version: int, rows: int) -> dict[str, Any]:
    return {
        "w": np.full((rows, 256), version, np.float32),
        "v": np.full((rows, 8), version + 1, np.int32),
    }


def spread(version: int, rows: int) -> dict[str, jax.Array]:
    mesh = Mesh(np.array(devices_together()), ("x",), axis_types=(AxisType.Auto,))
    columns = NamedSharding(mesh, P(None, "x"))
    return {
        name: jax.make_array_from_callback(
            values.shape, columns, lambda index, values=values: values[index]
        )
        for name, values in on_host(version, rows).items()
    }


# ---- kills

ROWS = 2048
"""Of a file of about two megabytes."""


def save_for_ever(process: int, path: Path) -> tuple[str, str, float]:
    """Save two versions in turn until something is raised: that, and how long it took to come."""
    del process
    versions = [spread(version, ROWS) for version in (0, 1)]
    safejax.save(versions[0], path, timeout=TIMEOUT)
    (path.parent / "begun").touch()
    while True:
        for version in versions:
            begun = time.monotonic()
            kind, text = raised(lambda version=version: safejax.save(version, path, timeout=SHORT))
            if kind:
                return kind, text, time.monotonic() - begun


def wait_for_a_moment(path: Path, rng: random.Random) -> None:
    """Wait for some time or, in each third case, until just after a file was renamed."""
    while not (path.parent / "begun").exists():
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.1))
    if rng.random() < 1 / 3:
        before = path.stat().st_ino
        while path.stat().st_ino == before:
            pass


def kill(folder: Path, kills: int) -> Counter[Any]:
    """How often each version, and litter, was found after so many kills; each is checked."""
    path = folder / "m.safetensors"
    whole = [safejax.serialize(on_host(version, ROWS)) for version in (0, 1)]
    rng = random.Random(0)
    found: Counter[Any] = Counter()
    for number in range(kills):
        who = number % 2
        with Together(2) as together:
            together.begin(save_for_ever, path)
            wait_for_a_moment(path, rng)
            together.processes[who].kill()
            assert together.result(who) is None
            outcome = together.result(1 - who)
        content = path.read_bytes()
        assert content in whole
        found[whole.index(content)] += 1
        if who == 0:
            assert outcome is None  # JAX ends it, since its service is gone.
        else:
            kind, text, seconds = outcome
            assert kind == "ProcessError"
            # The other one if it died between its coming, as the last, and the decision.
            said = ("no sign of process 1 for 2 s", "to decide, got nothing of it for 2 s")
            assert any(each in text for each in said), text
            assert seconds < TIMEOUT / 2
        left = set(os.listdir(folder)) - {path.name, "begun"}
        assert all(map(is_temporary, left))
        found["litter"] += len(left)
        safejax.save({"w": np.zeros(3)}, folder / "begun")
        (folder / "begun").unlink()
        assert os.listdir(folder) == [path.name]
    return found


def test_a_killed_save_of_two_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    found = kill(tmp_path, KILLS)
    if LARGE:  # Else the saves were never killed in the middle, or always in the same one.
        assert min(found[key] for key in (0, 1, "litter")) >= 5


# ---- a disk that is full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("this system has no mount")
    if done.returncode:
        pytest.skip(f"this user may not mount a small disk: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


FULL = {
    "file": {},
    "digests": {"checksum": True},
    "folder": {"max_shard_bytes": 150_000},
}


def fill(process: int, path: Path, options: dict[str, Any]) -> list[tuple[str, str]]:
    """What saves that do not fit raise, by `save` and in the background; and one that fits."""
    del process
    small, large = spread(0, 16), spread(1, 512)
    return [
        raised(lambda: safejax.save(small, path, timeout=TIMEOUT, **options)),
        raised(lambda: safejax.save(large, path, timeout=TIMEOUT, **options)),
        raised(lambda: safejax.save_async(large, path, timeout=TIMEOUT, **options).result()),
        raised(lambda: safejax.save(small, path, timeout=TIMEOUT, **options)),
    ]


def check_full(outcome: list[tuple[str, str]], path: Path, said: str) -> None:
    assert outcome[0] == outcome[3] == ("", "")
    for kind, text in outcome[1:3]:
        assert kind == "OSError"
        assert text.startswith(f"[Errno {errno.ENOSPC}] {said}No space left on device; ")
        needed, free = text.split(" bytes are needed, and there are ")
        assert int(needed.split()[-1]) > 512 * 256 * 4
        assert 0 < int(free.split()[0]) < 256 << 10
        assert "make room, or save elsewhere; what was there before is unchanged" in text
        assert text.endswith(f": '{path}'")
    assert os.listdir(path.parent) == [path.name]
    tree = safejax.load(path)
    assert {name: np.asarray(tree[name]).tobytes() for name in tree} == {
        name: values.tobytes() for name, values in on_host(0, 16).items()
    }


def test_a_disk_that_is_full_for_two_processes(small_disk: Path) -> None:
    path = small_disk / "m"
    with Together(2) as together:
        for options in FULL.values():
            first, second = together.run(fill, path, options)
            assert first == second
            check_full(first, path, "process 0: ")
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("how", FULL)
def test_a_disk_that_is_full_for_one_process(small_disk: Path, how: str) -> None:
    path = small_disk / "m"
    check_full(fill(0, path, FULL[how]), path, "")
