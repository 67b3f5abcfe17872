"""Folders whose index is written last, by one process: what a reader finds at each moment."""

import json
import os
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from fsspec.implementations.memory import MemoryFileSystem

import safejax
from safejax._src.checkpoint.indexed import new_token, write_indexed
from safejax._src.checkpoint.shards import folder_of
from safejax._src.checkpoint.stream import to_bytes
from safejax._src.leaves.flatten import flatten
from safejax._src.storage.location import locate
from tests.support.shared_files import SharedFiles

INDEX = "model.safetensors.index.json"
FILE = re.compile(r"model-([0-9a-f]{16})-(\d{5}-of-\d{5}\.safetensors)")


def tree(step: int) -> dict[str, Any]:
    """A tree of 3 tensors, of 160, 40 and 6 bytes."""
    return {"a": np.arange(40.0, dtype=np.float32) + step, "b": [np.arange(5) + step], "c": step,
            "d": jnp.ones(3, jnp.bfloat16) * step}  # fmt: skip


class Elsewhere:
    """A folder of files that have one writer each, here or where no folder can be replaced."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.path = str(folder / "m") if kind != "memory" else "/deep/m"
        memory = MemoryFileSystem(skip_instance_cache=True)
        memory.store, memory.pseudo_dirs = {}, [""]
        self.fs: Any = {"memory": memory, "shared": SharedFiles(), "local": None}[kind]
        self.options: dict[str, Any] = {"fs": self.fs, "max_shard_bytes": 100}
        self.options["one_writer_per_file"] = kind == "local"

    def files(self) -> dict[str, bytes]:
        if isinstance(self.fs, MemoryFileSystem):
            paths = map(str, self.fs.ls(self.path, detail=False))
            return {path.rpartition("/")[2]: self.fs.cat_file(path) for path in paths}
        return {path.name: path.read_bytes() for path in Path(self.path).iterdir()}

    def put(self, name: str, data: bytes) -> None:
        if isinstance(self.fs, MemoryFileSystem):
            self.fs.pipe_file(f"{self.path}/{name}", data)
        else:
            Path(self.path).mkdir(exist_ok=True)
            (Path(self.path) / name).write_bytes(data)

    def of_another(self) -> Any:
        """The same file system, with transactions of its own."""
        if not isinstance(self.fs, MemoryFileSystem):
            return self.fs and SharedFiles(skip_instance_cache=True)
        other = MemoryFileSystem(skip_instance_cache=True)
        other.store, other.pseudo_dirs = self.fs.store, self.fs.pseudo_dirs
        return other

    def step(self) -> int:
        """The step of the tree that a reader finds; all of it is checked."""
        found = safejax.load(self.path, fs=self.fs)
        step = found["c"]
        expected = tree(step)
        assert np.array_equal(np.asarray(found["a"]), expected["a"])
        assert np.array_equal(np.asarray(found["b"][0]), expected["b"][0])
        assert np.array_equal(np.asarray(found["d"]), np.asarray(expected["d"]))
        return step


@pytest.fixture(params=["memory", "shared", "local"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Elsewhere:
    return Elsewhere(request.param, tmp_path)


@pytest.mark.parametrize("checksum", [False, True])
def test_the_files_are_those_of_the_layout_under_names_of_their_own(
    place: Elsewhere, checksum: bool
) -> None:
    safejax.save(tree(1), place.path, checksum=checksum, metadata={"x": "y"}, **place.options)
    assert place.step() == 1
    found = place.files()
    index = json.loads(found.pop(INDEX))
    leaves = safejax.flatten(tree(1)).replace(metadata={"x": "y"})
    expected = folder_of(leaves, place.path, 100, checksum=checksum, writers=1)
    names = {name: FILE.fullmatch(name) for name in found}
    tokens = {match[1] for match in names.values() if match}
    assert len(tokens) == 1
    plain = {f"model-{match[2]}": found[name] for name, match in names.items() if match}
    assert plain == {name: to_bytes(layout) for name, layout in expected.files.items()}
    assert set(index["weight_map"].values()) == set(found)
    assert safejax.metadata(place.path, fs=place.fs) == {"x": "y"}
    safejax.load(place.path, fs=place.fs, verify=checksum)


def test_other_readers_read_them(place: Elsewhere, tmp_path: Path) -> None:
    safejax.save(tree(1), place.path, **place.options)
    files = place.files()
    weight_map = json.loads(files[INDEX])["weight_map"]
    for name, expected in {"a": tree(1)["a"], "b.0": tree(1)["b"][0]}.items():
        (tmp_path / "one").write_bytes(files[weight_map[name]])
        with safetensors.safe_open(tmp_path / "one", "np") as file:
            assert np.array_equal(file.get_tensor(name), expected)


def test_the_next_save_replaces_them_and_leaves_what_is_not_ours(place: Elsewhere) -> None:
    old = ["model.safetensors", "model-00001-of-00002.safetensors"]
    kept = ["notes", "model.fp16.safetensors", "model-x-00001-of-00002.safetensors"]
    killed = f"model-{new_token()}-00001-of-00009.safetensors"
    for name in [*old, *kept, killed]:
        place.put(name, b"x")
    before: set[str] = set()
    for step in range(3):
        safejax.save(tree(step), place.path, **place.options)
        assert place.step() == step
        found = set(place.files())
        assert {name for name in found if not FILE.fullmatch(name)} == {INDEX, *kept}
        files = {name for name in found if FILE.fullmatch(name)}
        assert len(files) == 2
        assert not files & before
        before = files


def test_a_whole_folder_replaces_them_too(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_shard_bytes": 100}
    safejax.save(tree(1), tmp_path / "m", one_writer_per_file=True, **options)
    safejax.save(tree(2), tmp_path / "m", **options)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX]
    assert sorted(os.listdir(tmp_path / "m")) == names
    safejax.save(tree(3), tmp_path / "m", one_writer_per_file=True, **options)
    assert sum(FILE.fullmatch(name) is not None for name in os.listdir(tmp_path / "m")) == 2


def test_the_files_of_an_index_are_removed_when_it_is_sure_to_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tree without tensors has no index, and that of the tree before is removed."""
    options: dict[str, Any] = {"max_shard_bytes": 100, "one_writer_per_file": True}
    safejax.save(tree(1), tmp_path / "m", **options)
    before, at_flushes = set(os.listdir(tmp_path / "m")), list[set[str]]()
    monkeypatch.setattr(os, "fsync", lambda _: at_flushes.append(set(os.listdir(tmp_path / "m"))))
    safejax.save({"step": 2}, tmp_path / "m", **options)
    assert at_flushes[-1] == before - {INDEX} | {"model.safetensors"}
    assert os.listdir(tmp_path / "m") == ["model.safetensors"]
    assert safejax.load(tmp_path / "m") == {"step": 2}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_save_that_fails_leaves_what_was_there(
    place: Elsewhere, error: type[BaseException]
) -> None:
    safejax.save(tree(1), place.path, **place.options)
    before = place.files()

    def stop(done: int, total: int) -> None:
        if done == total:
            assert len(place.files()) >= len(before)
            raise error

    with pytest.raises(error):
        safejax.save(tree(2), place.path, progress=stop, **place.options)
    assert place.files() == before
    assert place.step() == 1


def test_a_save_whose_files_another_one_has_removed_is_an_error(place: Elsewhere) -> None:
    def save_another(done: int, total: int) -> None:
        if done == total:
            other = folder_of(flatten(tree(2)), place.path, 100, checksum=False, writers=1)
            write_indexed(other, *locate(place.path, place.of_another()), lambda _: None)

    with pytest.raises(FileNotFoundError, match="to which nobody else saves"):
        safejax.save(tree(1), place.path, progress=save_another, **place.options)
    assert place.step() == 2
    assert len(place.files()) == 3


def test_files_of_another_folder_are_not_written_through_a_link(tmp_path: Path) -> None:
    """As in the cache of a model hub, where several folders have links to one file."""
    safejax.save(tree(1), tmp_path / "blobs", max_shard_bytes=100)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in os.listdir(tmp_path / "blobs"):
            (tmp_path / folder / name).symlink_to(tmp_path / "blobs" / name)
    for new in (tree(2), {"c": 3}):
        safejax.save(new, tmp_path / "a", max_shard_bytes=100, one_writer_per_file=True)
        assert safejax.load(tmp_path / "a")["c"] == new["c"]
        assert safejax.load(tmp_path / "b")["c"] == 1
        assert not any(path.is_symlink() for path in (tmp_path / "a").iterdir())
    (tmp_path / "a" / "model.safetensors").unlink()
    (tmp_path / "a" / "model.safetensors").symlink_to(tmp_path / "other")
    (tmp_path / "other").write_bytes(safejax.serialize({"c": 4}))
    safejax.save({"c": 5}, tmp_path / "a", max_shard_bytes=100, one_writer_per_file=True)
    assert safejax.load(tmp_path / "other")["c"] == 4


def test_a_save_whose_index_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    place = Elsewhere("shared", tmp_path)
    safejax.save(tree(1), place.path, **place.options)
    before = place.files()
    place.fs.refuses = INDEX
    with pytest.raises(OSError, match="Input/output error"):
        safejax.save(tree(2), place.path, **place.options)
    assert place.files() == before


def test_until_the_index_is_written_a_reader_finds_the_old_tree(place: Elsewhere) -> None:
    safejax.save(tree(1), place.path, **place.options)
    seen: list[int] = []
    safejax.save(
        tree(2), place.path, progress=lambda *_: seen.append(place.step()), **place.options
    )
    assert set(seen) == {1}
    assert place.step() == 2


def test_a_tree_without_tensors_is_one_file(place: Elsewhere) -> None:
    for step in range(2):
        safejax.save(tree(step), place.path, **place.options)
        safejax.save({"c": step, "text": "x"}, place.path, **place.options)
        assert list(place.files()) == ["model.safetensors"]
        assert safejax.load(place.path, fs=place.fs) == {"c": step, "text": "x"}


def test_a_save_in_the_background(place: Elsewhere) -> None:
    handles = [safejax.save_async(tree(step), place.path, **place.options) for step in range(3)]
    for handle in handles:
        handle.result()
    assert place.step() == 2
    assert len(place.files()) == 3


def test_a_tree_is_saved_over_the_files_that_it_reads(place: Elsewhere) -> None:
    safejax.save(tree(1), place.path, **place.options)
    for _ in range(2):
        safejax.save(safejax.load(place.path, fs=place.fs), place.path, **place.options)
    assert place.step() == 1


def test_progress_counts_every_byte_once(place: Elsewhere) -> None:
    seen: list[tuple[int, int]] = []
    safejax.save(tree(1), place.path, progress=lambda *at: seen.append(at), **place.options)
    done = [done for done, _ in seen]
    assert done == sorted(set(done))
    total = sum(len(data) for name, data in place.files().items() if name != INDEX)
    assert seen[-1] == (total, total)


def test_private_files_stay_private(tmp_path: Path) -> None:
    place = Elsewhere("local", tmp_path)
    safejax.save(tree(1), place.path, **place.options)
    for path in Path(place.path).iterdir():
        path.chmod(0o600)
    safejax.save(tree(2), place.path, **place.options)
    assert {path.stat().st_mode & 0o777 for path in Path(place.path).iterdir()} == {0o600}


def test_a_file_at_the_path_is_an_error(place: Elsewhere) -> None:
    fs = SharedFiles() if place.fs is None else place.fs
    fs.pipe_file(place.path, b"x")
    with pytest.raises(NotADirectoryError, match="expected a folder for a set of files"):
        safejax.save(tree(1), place.path, **place.options)
    assert fs.cat_file(place.path) == b"x"


def test_a_folder_in_a_folder_that_is_missing_is_an_error(tmp_path: Path) -> None:
    for kind in ("shared", "local"):
        place = Elsewhere(kind, tmp_path / "none")
        with pytest.raises(FileNotFoundError):
            safejax.save(tree(1), place.path, **place.options)
    assert os.listdir(tmp_path) == []


def test_it_needs_max_shard_bytes(tmp_path: Path) -> None:
    match = r"m: one_writer_per_file: expected max_shard_bytes with it, .* max_shard_bytes=2 << 30"
    for save in (safejax.save, safejax.save_async):
        with pytest.raises(ValueError, match=match):
            save(tree(1), tmp_path / "m", one_writer_per_file=True)


def test_a_transaction_of_the_caller_is_refused(tmp_path: Path) -> None:
    place = Elsewhere("shared", tmp_path)
    safejax.save(tree(1), place.path, **place.options)
    with place.fs.transaction, pytest.raises(ValueError, match=r"m: max_shard_bytes: .* outside"):
        safejax.save(tree(2), place.path, **place.options)
    assert place.step() == 1


# ---- readers, while it is replaced


class Replaced(SharedFiles):
    """Files that another save replaces each time that an index was read, a number of times."""

    def __init__(self, folder: str, times: int) -> None:
        super().__init__()
        self.folder = folder
        self.left = times

    def cat_file(self, path: str, *arguments: Any, **options: Any) -> Any:
        data = super().cat_file(path, *arguments, **options)
        if path.endswith(INDEX) and self.left:
            self.left -= 1
            safejax.save(tree(self.left), self.folder, fs=SharedFiles(), max_shard_bytes=100)
        return data


@pytest.fixture
def saved(tmp_path: Path) -> str:
    safejax.save(tree(9), tmp_path / "m", fs=SharedFiles(), max_shard_bytes=100)
    return str(tmp_path / "m")


def test_a_reader_of_an_index_that_is_replaced_reads_the_new_one(saved: str) -> None:
    # The index is read to choose it, to open it, and to see whether it is still the same.
    found = safejax.load(saved, fs=Replaced(saved, 4))
    assert found["c"] == 0
    assert np.array_equal(np.asarray(found["a"]), tree(0)["a"])


class Emptied(SharedFiles):
    """Files whose folder is saved to as soon as a reader has seen their names, some times."""

    def __init__(self, folder: str, times: int) -> None:
        super().__init__()
        self.folder = folder
        self.left = times

    def ls(self, path: str, *arguments: Any, **options: Any) -> Any:
        names = super().ls(path, *arguments, **options)
        if self.left:
            self.left -= 1
            new = {"c": self.left} if self.left % 2 else tree(self.left)
            safejax.save(new, self.folder, fs=SharedFiles(), max_shard_bytes=100)
        return names


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_a_reader_of_a_folder_that_gets_or_loses_its_index_looks_again(
    saved: str, times: int
) -> None:
    files = Emptied(saved, times)
    assert safejax.load(saved, fs=files)["c"] == files.left


def test_a_reader_gives_up_in_the_end(saved: str) -> None:
    with pytest.raises(safejax.ReadError, match=r"index\.json: expected an index that stays"):
        safejax.load(f"{saved}/{INDEX}", fs=Replaced(saved, 1000))
