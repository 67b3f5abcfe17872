"""Saving: a layout is written to its place, and what is there is what its stream gives."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import safejax
from safejax import Leaves
from safejax._src.checkpoint.layout import Layout, layout
from safejax._src.checkpoint.saving import room_is_told, write
from safejax._src.checkpoint.shards import Folder, folder_of
from safejax._src.checkpoint.stream import to_bytes
from safejax._src.storage.local import LocalStore

LEAVES = Leaves({"a": np.arange(40.0), "b": np.arange(7, dtype=np.int8), "step": 3})


@pytest.fixture
def memory() -> Any:
    store = MemoryFileSystem(skip_instance_cache=True)
    store.store, store.pseudo_dirs = {}, [""]
    return store


def file(checksum: bool) -> Layout:
    return layout(LEAVES, "f", checksum=checksum)


def folder(checksum: bool) -> Folder:
    return folder_of(LEAVES, "f", 1, checksum=checksum)


@pytest.mark.parametrize("checksum", [False, True])
def test_a_file_is_written_wherever_its_place_is(
    tmp_path: Path, memory: Any, checksum: bool
) -> None:
    plan = file(checksum)
    write(plan, str(tmp_path / "m"))
    write(plan, f"file://{tmp_path}/n")
    write(plan, "m", memory)
    expected = to_bytes(plan)
    assert (tmp_path / "m").read_bytes() == expected
    assert (tmp_path / "n").read_bytes() == expected
    assert memory.cat_file("m") == expected


@pytest.mark.parametrize("checksum", [False, True])
def test_a_folder_is_written_with_its_index(tmp_path: Path, checksum: bool) -> None:
    plan = folder(checksum)
    write(plan, str(tmp_path / "m"))
    found = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    assert found.pop("model.safetensors.index.json") == plan.index
    assert found == {name: to_bytes(each) for name, each in plan.files.items()}
    assert len(found) == 2
    tree = safejax.load(tmp_path / "m", verify=checksum)
    assert np.array_equal(np.asarray(tree["a"]), LEAVES["a"])


def test_a_layout_can_be_written_twice(tmp_path: Path) -> None:
    for plan in (file(True), folder(True)):
        for name in ("one", "two"):
            write(plan, str(tmp_path / f"{type(plan).__name__}-{name}"))
    assert (tmp_path / "Layout-one").read_bytes() == (tmp_path / "Layout-two").read_bytes()
    for path in (tmp_path / "Folder-one").iterdir():
        assert path.read_bytes() == (tmp_path / "Folder-two" / path.name).read_bytes()


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("make", [file, folder])
def test_progress_counts_every_byte_once(tmp_path: Path, make: Any, checksum: bool) -> None:
    plan = make(checksum)
    seen: list[tuple[int, int]] = []
    write(plan, str(tmp_path / "m"), progress=lambda *at: seen.append(at))
    assert {total for _, total in seen} == {plan.nbytes}
    done = [done for done, _ in seen]
    assert done == sorted(set(done))
    assert done[-1] == plan.nbytes


def test_progress_of_a_remote_file_begins_when_it_is_sent(memory: Any) -> None:
    plan = file(True)
    seen: list[tuple[int, int]] = []
    write(plan, "m", memory, lambda *at: seen.append(at))
    assert seen[0] == (len(plan.head), plan.nbytes)
    assert seen[-1] == (plan.nbytes, plan.nbytes)


@pytest.mark.parametrize("make", [file, folder])
def test_what_was_there_is_kept_if_it_fails(tmp_path: Path, make: Any) -> None:
    target = tmp_path / "m"
    write(make(False), str(target))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def stop(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(make(True), str(target), progress=stop)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_how_much_room_there_is_is_told_once(tmp_path: Path) -> None:
    """By the innermost block: what it wrote may be removed when others hear of it."""
    path = str(tmp_path / "m")
    with (
        pytest.raises(OSError, match=r"No space left.*; 7 bytes are needed") as caught,
        room_is_told(LocalStore(), path, 9),
        room_is_told(LocalStore(), path, 7),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == path
    assert str(caught.value).count("are needed") == 1
