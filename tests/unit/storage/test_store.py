"""Stores: what is asked of a place that holds files, of each of them alike."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pytest
from fsspec.implementations.dirfs import DirFileSystem

from safejax._src.reading.log import observe_reads
from safejax._src.reading.windows import Window
from safejax._src.storage.local import LocalStore
from safejax._src.storage.location import locate
from safejax._src.storage.remote import RemoteStore
from safejax._src.storage.store import Store
from safejax.errors import ReadError

BYTES = np.dtype(np.uint8)


class Place(NamedTuple):
    """A store, and the path of a folder in it that is empty."""

    store: Store
    folder: str


@pytest.fixture(params=["local", "memory", "fsspec's local"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "local":
        yield Place(LocalStore(), str(tmp_path))
    elif request.param == "memory":
        memory = fsspec.filesystem("memory")
        memory.mkdir("/folder")
        yield Place(RemoteStore(memory), "/folder")
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]
    else:
        yield Place(RemoteStore(fsspec.filesystem("file")), str(tmp_path))


def nothing(nbytes: int) -> None:
    pass


def written(place: Place, name: str, data: bytes) -> str:
    path = place.store.join(place.folder, name)
    place.store.write(path, iter([memoryview(data)]), nothing)
    return path


# ---- paths


def test_a_path_has_the_parent_that_it_was_joined_to(place: Place) -> None:
    path = place.store.join(place.folder, "w.safetensors")
    assert path == f"{place.folder}/w.safetensors"
    assert place.store.parent(path) == place.folder
    assert place.store.join(f"{place.folder}/", "w.safetensors") == path
    assert place.store.parent("w.safetensors") == ""


def test_a_path_has_one_canonical_form(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store, folder = place
    path = store.join(folder, "w")
    assert store.canonical(path) == path
    assert store.canonical(f"{folder}/") == store.canonical(folder)
    if isinstance(store, LocalStore):
        (Path(folder) / "link").symlink_to("w")
        monkeypatch.chdir(folder)
        assert store.canonical("link") == store.canonical("./w") == path
    elif folder == "/folder":
        assert store.canonical("memory://folder/w") == store.canonical("folder/w") == path


# ---- what is there


def test_what_is_there(place: Place) -> None:
    store, folder = place
    assert store.names_in(folder) == []
    path = written(place, "w", b"abc")
    written(place, "v", b"")
    assert sorted(store.names_in(folder)) == ["v", "w"]
    assert store.exists(path)
    assert not store.is_folder(path)
    assert store.exists(folder)
    assert store.is_folder(folder)
    missing = store.join(folder, "x")
    assert not store.exists(missing)
    assert not store.is_folder(missing)


def test_what_is_missing_cannot_be_read(place: Place) -> None:
    missing = place.store.join(place.folder, "x")
    for read in (place.store.read, place.store.source):
        with pytest.raises(FileNotFoundError):
            read(missing)


# ---- reading


@pytest.mark.parametrize("data", [b"", b"0123456789"])
def test_a_file_is_read_whole_or_as_a_source(place: Place, data: bytes) -> None:
    path = written(place, "w", data)
    assert place.store.read(path) == data
    with observe_reads() as log:
        file = place.store.source(path)
        assert (file.name, file.nbytes) == (path, len(data))
        assert file.prefix(0, len(data) // 2) == data[: len(data) // 2]
        assert log.reads == []
        everything = file.read(0, BYTES, Window.whole((len(data),)))
    assert everything.tobytes() == data
    assert log.nbytes == len(data)


def test_a_part_of_a_source_is_its_bytes(place: Place) -> None:
    file = place.store.source(written(place, "w", bytes(range(100))))
    window = Window(3, (4, 2), (20, 1))
    with observe_reads() as log:
        part = file.read(10, BYTES, window)
    assert part.tolist() == [[13, 14], [33, 34], [53, 54], [73, 74]]
    assert log.needed == 8


def test_an_unknown_way_of_access(place: Place) -> None:
    path = written(place, "w", b"abc")
    unknown: Any = "fast"
    with pytest.raises(ValueError, match=r"access: expected .*'auto'.* got 'fast'"):
        place.store.source(path, unknown)


def test_only_local_files_can_be_mapped(place: Place) -> None:
    path = written(place, "w", b"abc")
    if isinstance(place.store, LocalStore):
        assert place.store.source(path, "map").nbytes == 3
    else:
        match = rf"requested from {place.store.kind}, got 'map'"
        with pytest.raises(ValueError, match=match):
            place.store.source(path, "map")


def test_a_file_system_names_itself() -> None:
    assert RemoteStore(fsspec.filesystem("memory")).kind == "MemoryFileSystem"
    assert LocalStore().kind == "the local file system"


# ---- writing


def test_a_file_is_replaced(place: Place) -> None:
    path = written(place, "w", b"the old file")
    seen: list[int] = []
    place.store.write(path, iter([memoryview(b"new "), memoryview(b"file")]), seen.append)
    assert place.store.read(path) == b"new file"
    assert seen == [4, 4]
    assert place.store.names_in(place.folder) == ["w"]


@pytest.mark.parametrize("before", [None, b"the old file"])
def test_a_write_that_fails_leaves_what_was_there(place: Place, before: bytes | None) -> None:
    path = place.store.join(place.folder, "w")
    if before is not None:
        written(place, "w", before)

    def chunks() -> Iterator[memoryview]:
        yield memoryview(b"half of ")
        raise ReadError("the rest is gone")

    with pytest.raises(ReadError, match="the rest is gone"):
        place.store.write(path, chunks(), nothing)
    assert place.store.exists(path) == (before is not None)
    assert before is None or place.store.read(path) == before
    assert place.store.names_in(place.folder) == ([] if before is None else ["w"])


def test_the_first_bytes_can_be_written_last_where_the_store_rewrites(place: Place) -> None:
    path = place.store.join(place.folder, "w")
    done: list[int] = []

    def head() -> bytes:
        assert sum(done) == 8
        return b"NEW"

    def write() -> None:
        chunks = iter([memoryview(b"old "), memoryview(b"file")])
        place.store.write(path, chunks, done.append, head)

    if place.store.rewrites:
        write()
        assert place.store.read(path) == b"NEW file"
    else:
        with pytest.raises(AssertionError, match="cannot be changed once they are sent"):
            write()
        assert not place.store.exists(path)


def test_a_file_is_removed(place: Place) -> None:
    path = written(place, "w[1]", b"abc")
    written(place, "w1", b"abc")
    place.store.remove(path)
    assert place.store.names_in(place.folder) == ["w1"]
    with pytest.raises(FileNotFoundError):
        place.store.remove(path)


def test_a_folder_is_made_if_it_is_not_there(place: Place) -> None:
    path = place.store.join(place.folder, "new")
    for _ in range(2):
        place.store.make_folder(path)
        place.store.look_again(place.folder)
        assert place.store.is_folder(path)
    file = written(place, "w", b"abc")
    with pytest.raises(NotADirectoryError, match="expected a folder for a set of files"):
        place.store.make_folder(file)
    assert place.store.read(file) == b"abc"


def test_no_bucket_is_made_by_the_way() -> None:
    memory = fsspec.filesystem("memory")
    RemoteStore(memory).make_folder("bucket")
    assert not memory.exists("bucket")


def test_a_file_is_written_at_once_but_in_a_transaction_of_the_caller(tmp_path: Path) -> None:
    fs = fsspec.filesystem("file", skip_instance_cache=True)
    assert LocalStore().writes_at_once
    assert RemoteStore(fs).writes_at_once
    with fs.transaction:
        assert not RemoteStore(fs).writes_at_once
    assert RemoteStore(fs).writes_at_once


def test_a_new_file_is_as_private_as_those_it_is_written_instead_of(tmp_path: Path) -> None:
    store = LocalStore()
    old = [str(tmp_path / name) for name in ("a", "b", "missing")]
    for path, mode in zip(old, (0o644, 0o600), strict=False):
        store.write(path, iter([memoryview(b"x")]), nothing)
        os.chmod(path, mode)
    new = str(tmp_path / "new")
    store.write(new, iter([memoryview(b"x")]), nothing, instead_of=old)
    assert os.stat(new).st_mode & 0o777 == 0o600
    # What is there has a mode of its own.
    store.write(old[0], iter([memoryview(b"y")]), nothing, instead_of=old)
    assert os.stat(old[0]).st_mode & 0o777 == 0o644


# ---- folders that are replaced


def test_a_folder_that_stays_is_the_same(place: Place) -> None:
    with place.store.watched(place.folder) as is_same:
        assert is_same()
        written(place, "w", b"abc")
        assert is_same()


def test_a_folder_that_is_replaced_is_another_where_that_can_be_seen(tmp_path: Path) -> None:
    folder, old = tmp_path / "model", tmp_path / "old"
    folder.mkdir()
    store = LocalStore()
    assert store.replaces_folders
    with store.watched(str(folder)) as is_same:
        folder.rename(old)
        folder.mkdir()
        assert not is_same()
        folder.rmdir()
        old.rename(folder)
        assert is_same()


def test_the_folder_of_a_name_without_one_is_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with LocalStore().watched(LocalStore().parent("index.json")) as is_same:
        assert is_same()
        monkeypatch.chdir("/")
        assert not is_same()


def test_a_system_that_cannot_open_folders_sees_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_DIRECTORY")
    with LocalStore().watched(str(tmp_path / "missing")) as is_same:
        assert is_same()


# ---- which store it is


def test_where_paths_are(tmp_path: Path) -> None:
    memory, local = fsspec.filesystem("memory"), fsspec.filesystem("file")
    here, there = LocalStore(), RemoteStore(memory)
    for path, fs, expected in [
        ("w", None, (here, "w")),
        ("/deep/w", None, (here, "/deep/w")),
        ("file:///deep/w", None, (here, "/deep/w")),
        ("local:///deep/w", None, (here, "/deep/w")),
        ("/deep/w", local, (here, "/deep/w")),
        ("file:///deep/w", local, (here, "/deep/w")),
        ("w", DirFileSystem(str(tmp_path), local), (here, f"{tmp_path}/w")),
        ("memory://deep/w", None, (there, "/deep/w")),
        ("/deep/w", memory, (there, "/deep/w")),
        ("w", DirFileSystem("/deep", memory), (there, "/deep/w")),
        ("w", DirFileSystem("er", DirFileSystem("/deep", memory)), (there, "/deep/er/w")),
    ]:
        assert locate(path, fs) == expected
    assert not there.replaces_folders
