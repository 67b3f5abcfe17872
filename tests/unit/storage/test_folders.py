"""Checkpoints of several files: folders, indices and lists, read and written."""

import ctypes
import errno
import fcntl
import json
import os
import random
import re
import resource
import signal
import stat
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import objax
import pytest
import safetensors
import safetensors.numpy

import safejax
import safejax._src.storage.folders
import safejax.haiku
import safejax.objax
from safejax import ChecksumError, InvalidFileError, LeafError, ReadError
from safejax.testing import assert_reads, assert_same_bits, assert_trees_identical
from tests.support.children import CHILDREN
from tests.support.effort import LARGE
from tests.support.files import header_of, names_in

TREE = {
    "layers": [{"w": np.arange(6, dtype=np.float32).reshape(2, 3) + i} for i in range(4)],
    "heads": {7: jnp.arange(3, dtype=jnp.int4), 11: np.float64(0.1) * np.ones(2)},
    "key": jax.random.key(3),
    "empty": {},
    "none": None,
    "step": 10**30,
    "tuple": (np.zeros((0, 2), np.int8), "text"),
}
INDEX = "model.safetensors.index.json"


def index_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / INDEX).read_text())


# ---- written, and read by safejax and by others


@pytest.mark.parametrize("nbytes", [1, 24, 30, 48, 10**9])
@pytest.mark.parametrize("checksum", [False, True])
def test_a_tree_is_saved_to_several_files_and_loaded(
    tmp_path: Path, nbytes: int, checksum: bool
) -> None:
    folder = tmp_path / "model"
    safejax.save(TREE, folder, max_shard_bytes=nbytes, metadata={"by": "us"}, checksum=checksum)
    for path in (folder, str(folder), *folder.glob("*.index.json")):
        assert_trees_identical(safejax.load(path, verify=checksum), TREE)
    assert safejax.metadata(folder) == {"by": "us"}
    whole = safejax.flatten(TREE)
    stored = {name for name, leaf in whole.items() if hasattr(leaf, "shape")}
    files = sorted(folder.glob("*.safetensors"))
    sizes = [sum(info["data_offsets"][1] for info in [last(path)]) for path in files]
    assert all(size <= max(nbytes, 24) for size in sizes)
    assert {name for path in files for name in safetensors.numpy.load_file(path)} == stored
    if nbytes == 10**9:
        assert names_in(folder) == ["model.safetensors"]
        assert (folder / "model.safetensors").read_bytes() == safejax.serialize(
            TREE, metadata={"by": "us"}, checksum=checksum
        )
        return
    count = len(files)
    assert [path.name for path in files] == [
        f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)
    ]
    index = index_of(folder)
    assert index["metadata"]["total_size"] == sum(sizes)
    elements = sum(
        array.size for path in files for array in safetensors.numpy.load_file(path).values()
    )
    assert index["metadata"]["total_parameters"] == elements
    assert index["weight_map"].keys() == stored
    for name, file in index["weight_map"].items():
        with safetensors.safe_open(folder / file, "np") as opened:
            assert name in opened.keys()  # noqa: SIM118
            assert opened.metadata()["by"] == "us"


@pytest.mark.parametrize("options", [{}, {"one_writer_per_file": True}])
@pytest.mark.parametrize("name", ["diffusion_pytorch_model", "adapter_model", "a.b-00001"])
def test_the_files_of_a_folder_may_have_another_name(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    other = tmp_path / "config.json"
    other.write_text("{}")
    for nbytes in (20, 40, 10**9, 20):  # Each save replaces what the one before has written.
        safejax.save(TREE, tmp_path, max_shard_bytes=nbytes, name=name, **options)
        assert_trees_identical(safejax.load(tmp_path), TREE)
        found = {file for file in names_in(tmp_path) if file != other.name}
        assert all(file.startswith((f"{name}-", f"{name}.safetensors")) for file in found)
        if nbytes < 10**9:
            index = json.loads((tmp_path / f"{name}.safetensors.index.json").read_text())
            assert found == {*index["weight_map"].values(), f"{name}.safetensors.index.json"}
    # A set of another name stays, and is found by its own.
    safejax.save({"w": np.ones(3)}, tmp_path, max_shard_bytes=10**9, name="other")
    assert_trees_identical(safejax.load(tmp_path / "other.safetensors"), {"w": np.ones(3)})
    index_path = tmp_path / f"{name}.safetensors.index.json"
    assert_trees_identical(safejax.load(index_path), TREE)


@pytest.mark.parametrize("name", ["", ".a", "a/b", "m.safetensors", "x.json", None, 3])
def test_a_name_is_what_files_can_begin_with(tmp_path: Path, name: Any) -> None:
    for save in (safejax.save, safejax.save_async):
        with pytest.raises(ValueError, match="name: expected what the names of the files begin"):
            save(TREE, tmp_path, max_shard_bytes=30, name=name)
    with pytest.raises(ValueError, match="name: expected max_shard_bytes with it"):
        safejax.save(TREE, tmp_path / "m", name="other")
    assert names_in(tmp_path) == []


def last(path: Path) -> dict[str, Any]:
    """The entry of a file's last tensor."""
    header = header_of(path.read_bytes())
    header.pop("__metadata__", None)
    return list(header.values())[-1]


def test_files_are_filled_up_to_the_limit(tmp_path: Path) -> None:
    tree = {name: np.zeros(6, np.float32) for name in "abcde"}
    for nbytes, expected in {24: "12345", 47: "12345", 48: "11223", 72: "11122"}.items():
        folder = tmp_path / str(nbytes)
        safejax.save(tree, folder, max_shard_bytes=nbytes)
        files = index_of(folder)["weight_map"]
        assert "".join(files[name][len("model-0000")] for name in "abcde") == expected
    safejax.save(tree, tmp_path / "120", max_shard_bytes=120)
    assert names_in(tmp_path / "120") == ["model.safetensors"]


def test_the_same_tree_gives_the_same_files(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    safejax.save(TREE, folders[0], max_shard_bytes=30)
    safejax.save(safejax.load(folders[0]), folders[1], max_shard_bytes=30)
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1]
    assert len(contents[0]) > 3


def test_a_shard_is_a_file_by_itself(tmp_path: Path) -> None:
    safejax.save(TREE, tmp_path / "m", max_shard_bytes=1)
    found: dict[str, Any] = {}
    for path in (tmp_path / "m").glob("*.safetensors"):
        found |= safejax.flatten(safejax.load(path))
    whole = safejax.flatten(TREE)
    for name, leaf in found.items():
        assert_same_bits(leaf, whole[name], name)


def test_only_headers_and_the_needed_bytes_are_read(tmp_path: Path) -> None:
    safejax.save(TREE, tmp_path / "m", max_shard_bytes=30)
    with safejax.observe_reads() as log:
        tree = safejax.load(tmp_path / "m", transform=safejax.stack("layers.{i}.*"))
        assert log.nbytes == 0
    assert_reads(tree["layers"], 4 * 24)
    options = {"like": safejax.abstract(tree), "transform": safejax.stack("layers.{i}.*")}
    assert_trees_identical(safejax.load(tmp_path / "m", **options), tree)


@pytest.mark.parametrize("nbytes", [1, 10**9])
def test_damage_is_found_in_every_file_of_a_set(tmp_path: Path, nbytes: int) -> None:
    folder = tmp_path / "m"
    tree = {"a": np.ones(3, np.float32), "b": np.arange(4, dtype=np.int8)}
    safejax.save(tree, folder, max_shard_bytes=nbytes, checksum=True)
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        whole = path.read_bytes()
        path.unlink()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        for each in (folder, files):
            loaded = safejax.load(each, verify=True)
            with pytest.raises(ChecksumError, match=rf"{path.name}: leaf '[ab]'"):
                safejax.materialize(loaded)
        path.unlink()
        path.write_bytes(whole)
    assert_trees_identical(safejax.load(folder, verify=True), tree)


def test_adapters_read_folders_and_lists(tmp_path: Path) -> None:
    params = {"mlp/~/linear_0": {"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)}}
    safejax.save(params, tmp_path / "m", max_shard_bytes=1)
    assert_trees_identical(safejax.haiku.deserialize(tmp_path / "m"), params)
    files = list((tmp_path / "m").glob("*.safetensors"))
    assert_trees_identical(safejax.haiku.deserialize(files), params)


# ---- folders of other writers


ONE, TWO = np.ones(3, np.float32), np.arange(4, dtype=np.int8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as Hugging Face's libraries write it."""
    folder = tmp_path / "hf"
    folder.mkdir()
    parts = {"a-1.safetensors": {"h.0.w": ONE, "h.1.w": ONE}, "a-2.safetensors": {"wte": TWO}}
    for name, tensors in parts.items():
        safetensors.numpy.save_file(tensors, folder / name, {"format": "pt"})
    weight_map = {name: file for file, tensors in parts.items() for name in tensors}
    (folder / INDEX).write_text(
        json.dumps({"metadata": {"total_size": 28.0}, "weight_map": weight_map})
    )
    (folder / "config.json").write_text("{}")
    return folder


def test_an_index_of_another_writer_is_read(folder: Path) -> None:
    expected = {"h": {"0": {"w": ONE}, "1": {"w": ONE}}, "wte": TWO}
    for path in (folder, folder / INDEX, [folder / "a-1.safetensors", folder / "a-2.safetensors"]):
        assert_trees_identical(safejax.load(path), expected)
        assert safejax.metadata(path) == {"format": "pt"}


def test_leaves_come_in_the_order_of_the_index(folder: Path) -> None:
    names = ["wte", "h.1.w", "h.0.w"]
    files = ["a-2.safetensors", "a-1.safetensors", "a-1.safetensors"]
    table = {"weight_map": dict(zip(names, files, strict=True))}
    (folder / INDEX).write_text(json.dumps(table))
    seen: list[str] = []
    safejax.load(folder, transform=lambda leaves: seen.extend(leaves) or leaves)
    assert seen == names


def test_leaves_that_are_no_arrays_are_loaded_with_their_file(folder: Path) -> None:
    tree = {"wte": TWO, "step": 3, "none": None, "empty": {}}
    safejax.save(tree, folder / "a-2.safetensors")
    expected = {"h": {"0": {"w": ONE}, "1": {"w": ONE}}, **tree}
    assert_trees_identical(safejax.load(folder), expected)


def test_an_index_in_the_current_folder_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = safejax.load(folder)
    monkeypatch.chdir(folder)
    for path in (INDEX, f"./{INDEX}", ".", ["a-1.safetensors", "a-2.safetensors"]):
        assert_trees_identical(safejax.load(path), expected)


WRONG_INDICES: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "expected JSON"),
    "no text": (b"\xff\xfe", "expected JSON"),
    "twice a key": (b'{"weight_map":{"a":"b","a":"b"}}', "appears twice"),
    "a list": ([], "expected a 'weight_map'"),
    "no map": ({"metadata": {}}, "expected a 'weight_map'"),
    "an empty map": ({"weight_map": {}}, "expected a 'weight_map'"),
    "a map that is none": ({"weight_map": ["wte"]}, "expected a 'weight_map'"),
    "a number": ({"weight_map": {"wte": 1}}, "tensor 'wte': expected the name of a file.*got 1"),
    "a file above": ({"weight_map": {"wte": "../hf/a-2.safetensors"}}, r"got '\.\./hf"),
    "a file far above": ({"weight_map": {"wte": "x/../../a-2.safetensors"}}, "the same folder"),
    "a file of this folder": ({"weight_map": {"wte": "./a-2.safetensors"}}, r"got '\./a-2"),
    "a file of the root": ({"weight_map": {"wte": "/etc/passwd"}}, "got '/etc/passwd'"),
    "a file of Windows": ({"weight_map": {"wte": "..\\a"}}, "the same folder"),
    "a file of a drive": ({"weight_map": {"wte": "c:a"}}, "the same folder"),
    "no name": ({"weight_map": {"wte": ""}}, "the same folder"),
    "a tensor too many": (
        {"weight_map": {"h.0.w": "a-1.safetensors", "h.1.w": "a-1.safetensors",
                        "gone": "a-1.safetensors"}},
        "tensor 'gone': expected it in a-1.safetensors, no file has it: get the files again",
    ),
    "a tensor elsewhere": (
        {"weight_map": {"h.0.w": "a-1.safetensors", "h.1.w": "a-1.safetensors",
                        "wte": "a-1.safetensors", "x": "a-2.safetensors"}},
        "'wte': expected it in a-1.safetensors, it is in .*a-2.safetensors",
    ),
    "a record that is none": (
        {"metadata": {"safejax": 1}, "weight_map": {"wte": "a-2.safetensors"}},
        "expected the 'safejax' record to be a string",
    ),
    "a record of another version": (
        {"metadata": {"safejax": '{"version":9}'}, "weight_map": {"wte": "a-2.safetensors"}},
        "expected a version of 1 to 2",
    ),
    "a record that hides a tensor": (
        {"metadata": {"safejax": '{"version":1,"values":{"wte":1}}'},
         "weight_map": {"wte": "a-2.safetensors"}},
        "expected values with names that no tensor has, got one for 'wte'",
    ),
    "a record of a name that is not there": (
        {"metadata": {"safejax": '{"version":1,"paths":{"x":["x"]}}'},
         "weight_map": {"wte": "a-2.safetensors"}},
        "got one for 'x', which is not there",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_INDICES)
def test_a_wrong_index_is_an_error(case: str, folder: Path) -> None:
    content, message = WRONG_INDICES[case]
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / INDEX).write_bytes(data)
    for path in (folder, folder / INDEX):
        with pytest.raises(InvalidFileError, match=message) as caught:
            safejax.load(path)
        assert str(folder / INDEX) in str(caught.value)


def test_the_error_for_missing_files_names_all_of_them(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"2 are not there: .*a-1\.saf.*a-2\.saf"):
        safejax.load(folder)
    with pytest.raises(FileNotFoundError):
        safejax.load(folder / "gone.index.json")
    with pytest.raises(FileNotFoundError):
        safejax.load(folder / "gone")


def test_the_index_decides_which_of_two_files_is_meant(folder: Path) -> None:
    """A stale tensor of another file is left out, with a warning; a list has no index (R2)."""
    safejax.save({"wte": TWO, "h.0.w": ONE * 2, "h": {"1": {"w": ONE * 3}}},
                 folder / "a-2.safetensors")  # fmt: skip
    files = sorted(folder.glob("*.safetensors"))
    message = r"2 tensors are also in files .* left out: 'h\.0\.w' in .*a-2.*, 'h\.1\.w' in .*a-2"
    for path in (folder, folder / INDEX):
        with pytest.warns(UserWarning, match=message) as caught:
            tree = safejax.load(path)
        assert [each.filename for each in caught] == [__file__]
        assert_trees_identical(tree, {"h": {"0": {"w": ONE}, "1": {"w": ONE}}, "wte": TWO})
    with pytest.raises(InvalidFileError, match=r"'h\.0\.w': expected it in one file.*a-1.*a-2"):
        safejax.load(files)


def test_a_tensor_that_the_index_omits_is_read_with_a_warning(folder: Path) -> None:
    """Its remedy leaves it out; if two files have it, the index has to say which (R2)."""
    whole = safejax.load(folder)
    files = {"h.0.w": "a-1.safetensors", "wte": "a-2.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": files}))
    message = r"omits 1, which are read: 'h\.1\.w' in .*a-1\.saf.*: complete the index, or"
    for path in (folder, folder / INDEX):
        with pytest.warns(UserWarning, match=message) as caught:
            tree = safejax.load(path)
        assert [each.filename for each in caught] == [__file__]
        assert_trees_identical(tree, whole)
        remedy = re.search(r"transform=(drop\(.*\))$", str(caught[0].message))
        assert remedy is not None
        with pytest.warns(UserWarning, match="omits 1"):
            left = safejax.load(path, transform=eval(remedy[1], {"drop": safejax.drop}))
        assert left["h"].keys() == {"0"}
    assert "omits 1" in safejax.plan(folder).warnings[0]
    safejax.save({"wte": TWO, "h.1.w": ONE * 3}, folder / "a-2.safetensors")
    with pytest.raises(
        InvalidFileError, match=r"got it in .*a-1.* and .*a-2.*: let the index name"
    ):
        safejax.load(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {**files, "h.1.w": "a-1.safetensors"}}))
    with pytest.warns(UserWarning, match=r"1 tensors are also .* left out: 'h\.1\.w' in .*a-2"):
        tree = safejax.load(folder)
    assert safejax.flatten(tree)["h.1.w"].tolist() == whole["h"]["1"]["w"].tolist()


@pytest.mark.parametrize(
    ("files", "place"),
    [
        ({"h.0.w": 1, "h.1.w": 1, "wte": 1, "x": 2}, r"'wte'.*, it is in .*: correct the index"),
        ({"h.0.w": 1, "h.1.w": 1, "wte": 2, "gone": 1}, r"'gone'.*, no file has it: get the files"),
    ],
)
def test_what_the_index_alone_has_is_an_error_and_its_remedy_works(
    files: dict[str, int], place: str, folder: Path
) -> None:
    whole = safejax.load(folder)
    names = {name: f"a-{number}.safetensors" for name, number in files.items()}
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))
    with pytest.raises(InvalidFileError, match=place) as caught:
        safejax.load(folder)
    assert str(caught.value).endswith(", or load the files as a list")
    assert_trees_identical(safejax.load(sorted(folder.glob("*.safetensors"))), whole)
    # A list would not do if a name is in two of them.
    safejax.save({"wte": TWO, "h.0.w": ONE}, folder / "a-2.safetensors")
    with pytest.raises(InvalidFileError, match=place) as caught:
        safejax.load(folder)
    assert "list" not in str(caught.value)


def test_files_of_one_name_in_two_folders_are_different_files(tmp_path: Path) -> None:
    """The index decides by the whole path of a file (R2)."""
    for number, name in enumerate(("x", "y")):
        (tmp_path / name).mkdir()
        safejax.save({"w": ONE * number, name: ONE}, tmp_path / name / "m.safetensors")
    files = {"w": "y/m.safetensors", "x": "x/m.safetensors", "y": "y/m.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": files}))
    with pytest.warns(UserWarning, match="1 tensors are also in files"):
        tree = safejax.load(tmp_path)
    assert_trees_identical(tree, {"w": ONE, "x": ONE, "y": ONE})


# The names in a folder, with the one that is loaded, or None.
CHOICES: dict[str, tuple[list[str], str | None]] = {
    "a variant of an index": (["model.safetensors.index.fp16.json"], None),
    "the canonical name": (["model.safetensors", "consolidated.safetensors"], "model.safetensors"),
    "a plain name": (
        ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors"],
        "diffusion_pytorch_model.safetensors",
    ),
    "any plain name": (["w.bf16.safetensors", "w.safetensors"], "w.safetensors"),
    "what macOS adds": (["._model.safetensors", "model.safetensors"], "model.safetensors"),
    "what macOS adds to others": (["._w.safetensors", "w.safetensors"], "w.safetensors"),
    "one name": (["w.fp16.safetensors"], "w.fp16.safetensors"),
    "the canonical name before another index": (
        ["model.safetensors", "consolidated.safetensors.index.json"], "model.safetensors",
    ),
    "two names": (["a.safetensors", "b.safetensors"], None),
    "two variants": (["model.bf16.safetensors", "model.fp16.safetensors"], None),
    "two canonical names": (["diffusion_pytorch_model.safetensors", "model.safetensors"], None),
}  # fmt: skip


@pytest.mark.parametrize("case", CHOICES)
@pytest.mark.parametrize("place", ["local", "remote"])
def test_the_file_of_a_folder_is_chosen_by_its_name(case: str, place: str, tmp_path: Path) -> None:
    """Canonical before other names, plain ones before variants, no hidden ones (R3, R4, R5)."""
    names, chosen = CHOICES[case]
    fs = fsspec.filesystem("memory") if place == "remote" else None
    folder = "/choices" if place == "remote" else str(tmp_path)
    write = tmp_path.joinpath if fs is None else None
    for name in names:
        if name.endswith("json"):
            data = json.dumps({"weight_map": {"other": "other-1.bin"}}).encode()
        else:
            data = safetensors.numpy.save({name.removesuffix(".safetensors"): ONE})
            data = b"\0\5\x16\7" if name.startswith(".") else data
        if write is not None:
            write(name).write_bytes(data)
        else:
            fs.pipe_file(f"{folder}/{name}", data)  # pyright: ignore[reportOptionalMemberAccess]
    try:
        if chosen is not None:
            (name,) = safejax.flatten(safejax.load(folder, fs=fs))
            assert f"{name}.safetensors" == chosen
        elif "index" in names[0]:
            with pytest.raises(FileNotFoundError, match=r"expected the 1 files of the index"):
                safejax.load(folder, fs=fs)
        else:
            with pytest.raises(InvalidFileError, match=f"got {names[0]}.*: name the file"):
                safejax.load(folder, fs=fs)
    finally:
        if fs is not None:
            fs.rm(folder, recursive=True)


@pytest.mark.parametrize("index", ["model.safetensors.index.fp16.json", "w.safetensors.index.json"])
@pytest.mark.parametrize("beside", [(), ("consolidated",)])
def test_the_index_of_a_folder_is_chosen_by_its_name(
    folder: Path, index: str, beside: tuple[str, ...]
) -> None:
    """An index of a variant is one, and the canonical one comes first (R3, R4)."""
    expected = {"h": {"0": {"w": ONE}, "1": {"w": ONE}}, "wte": TWO}
    (folder / f".{INDEX}").write_text("{")
    for name in beside:
        (folder / f"{name}.safetensors.index.json").write_text("{}")
    assert_trees_identical(safejax.load(folder), expected)
    (folder / INDEX).rename(folder / index)
    for path in (folder / index, *([] if beside == ("consolidated",) else [folder])):
        assert_trees_identical(safejax.load(path), expected)


def test_a_canonical_file_that_another_index_names_is_a_part_of_its_set(tmp_path: Path) -> None:
    """The index comes before the files that it names (R4)."""
    tree = {"a": ONE, "b": TWO}
    for name, file in {"a": "model", "b": "more"}.items():
        safejax.save({name: tree[name]}, tmp_path / f"{file}.safetensors")
    files = {"a": "model.safetensors", "b": "more.safetensors"}
    (tmp_path / "w.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert_trees_identical(safejax.load(tmp_path), tree)


def test_a_folder_needs_an_index_or_a_single_file(folder: Path) -> None:
    (folder / INDEX).unlink()
    with pytest.raises(InvalidFileError, match=r"got a-1\.safetensors, a-2\.safetensors: name"):
        safejax.load(folder)
    (folder / "a-1.safetensors").unlink()
    assert_trees_identical(safejax.load(folder), {"wte": TWO})
    (folder / "a-2.safetensors").unlink()
    with pytest.raises(InvalidFileError, match=r"got none, only config\.json: name another"):
        safejax.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InvalidFileError, match="got none, since it is empty"):
        safejax.load(folder)
    for name in "ab":
        (folder / f"{name}.safetensors.index.json").write_text("{}")
    safetensors.numpy.save_file({"wte": TWO}, folder / "c.safetensors")
    with pytest.raises(InvalidFileError, match=r"got a\.safetensors\.index\.json, b\.saf"):
        safejax.load(folder)


@pytest.mark.parametrize(
    ("name", "is_part"),
    [
        ("model-00001-of-00002", True), ("model-00007-of-00012", True),
        ("model-0123456789abcdef-00001-of-00001", True), ("model-00001-of-00002.fp16", True),
        ("model.fp16-00002-of-00002", True), ("model-00001-of-00001", False),
        ("model-1-of-2", False), ("model-00001-of-00002x", False),
    ],
)  # fmt: skip
def test_a_part_of_several_files_is_not_loaded_as_the_whole(
    name: str, is_part: bool, tmp_path: Path
) -> None:
    """A first save whose index comes last may be cut off after one file."""
    safejax.save({"a": ONE}, tmp_path / f"{name}.safetensors")
    if not is_part:
        assert_trees_identical(safejax.load(tmp_path), {"a": ONE})
        return
    with pytest.raises(InvalidFileError, match=r"one of several files, whose index is not there"):
        safejax.load(tmp_path)
    assert_trees_identical(safejax.load(tmp_path / f"{name}.safetensors"), {"a": ONE})


def test_the_error_for_a_stale_index_names_the_other_set(folder: Path) -> None:
    """The files beside an index whose own are gone load as the error says."""
    for name in ("a-1", "a-2"):
        (folder / f"{name}.safetensors").rename(folder / f"b-{name}.safetensors")
    with pytest.raises(
        FileNotFoundError,
        match=r"2 are not there.*b-a-1\.safetensors, b-a-2\.safetensors are there without.*list",
    ):
        safejax.load(folder)
    tree = safejax.load([folder / "b-a-1.safetensors", folder / "b-a-2.safetensors"])
    assert_trees_identical(tree, {"h": {"0": {"w": ONE}, "1": {"w": ONE}}, "wte": TWO})


# What is in a folder, and what the error for it says.
OTHER_FOLDERS: dict[str, tuple[list[str], str]] = {
    "PyTorch": (["pytorch_model.bin", "config.json"], r"none, but pytorch_model\.bin, which are p"),
    "Flax": (["flax_model.msgpack"], r"flax_model\.msgpack, which are files of Flax"),
    "a pipeline": (
        ["model_index.json", "unet/m.safetensors", "vae/m.safetensors", "tokenizer/vocab.json"],
        r"folders that have some: name one of \S*/unet, \S*/vae$",
    ),
    "steps": (["step_1/model.safetensors.index.json"], r"name one of \S*/step_1$"),
    "a cache": (["models--o--n/snapshots/abc/m.safetensors"], r"snapshot_download\('owner/name'\)"),
    "a repository in a cache": (
        ["refs/main", "snapshots/abc/m.safetensors", "blobs/x"],
        r"name one of \S*/snapshots/abc$",
    ),
    "Orbax": (
        ["_CHECKPOINT_METADATA", "default/d"],
        r"a checkpoint of Orbax: load it with safejax\.orbax\.load, or .*`safejax convert",
    ),
    "steps of Orbax": (
        ["20/_CHECKPOINT_METADATA", "20/state/manifest.ocdbt", "3/_CHECKPOINT_METADATA"],
        "a checkpoint of Orbax: load it with",
    ),
    "others": (["config.json", ".hidden"], r"none, only config\.json: name another folder"),
}


@pytest.mark.parametrize("case", OTHER_FOLDERS)
def test_the_error_for_another_folder_says_what_is_there(case: str, tmp_path: Path) -> None:
    names, message = OTHER_FOLDERS[case]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            safejax.save({"w": ONE}, tmp_path / name)
        else:
            (tmp_path / name).write_text("{}")
    with pytest.raises(InvalidFileError, match=message) as caught:
        safejax.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    found = re.search(r"name one of ([^\s,]*)", str(caught.value))
    if found and case != "steps":
        assert_trees_identical(safejax.load(found[1]), {"w": ONE})


def test_the_error_for_a_path_at_which_there_is_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    safejax.save({"w": ONE}, tmp_path / "model.safetensors")
    for path, message in {
        "owner/some-name.v2": r"huggingface_hub\.snapshot_download\('owner/some-name\.v2'\)",
        "~/model.safetensors": r"'~' is not expanded: pass os\.path\.expanduser\(path\)",
        "modle.safetensors": r"its folder has model\.safetensors",
        str(tmp_path / "gone"): r"its folder has model\.safetensors",
        "a/b/c.safetensors": r"there is nothing: 'a/b/c\.safetensors'",
    }.items():
        with pytest.raises(FileNotFoundError, match=message) as caught:
            safejax.load(path)
        assert caught.value.filename == path
    tree = safejax.load(os.path.expanduser("~/model.safetensors"))
    assert_trees_identical(tree, {"w": ONE})


def test_a_list_of_files(tmp_path: Path) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    safejax.save({"l": [ONE, 3], "x": {1: ONE}}, paths[0], metadata={"a": "1", "both": "1"})
    safejax.save({"m": {"b": None, "w": ONE}}, paths[1], metadata={"b": "2", "both": "2"})
    expected = {"l": [ONE, 3], "x": {1: ONE}, "m": {"b": None, "w": ONE}}
    assert_trees_identical(safejax.load(paths), expected)
    assert_trees_identical(safejax.load(tuple(map(str, paths))), expected)
    assert safejax.metadata(paths) == {"a": "1", "b": "2"}
    with pytest.raises(InvalidFileError, match="an empty list"):
        safejax.load([])
    with pytest.raises(TypeError, match="expected a path"):
        safejax.load([3])  # pyright: ignore
    with pytest.raises(InvalidFileError, match=r"'l\.0': expected it in one file"):
        safejax.load([paths[0], paths[0]])


def test_a_container_that_two_files_record_differently_is_a_dict(tmp_path: Path) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    safejax.save({"l": [ONE]}, paths[0])
    safejax.save({"l": {1: ONE}}, paths[1])
    assert_trees_identical(safejax.load(paths), {"l": {"0": ONE, "1": ONE}})


def test_containers_that_files_record_consistently_are_kept(tmp_path: Path) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    safejax.save({"a.b": {"w": ONE}, "o": OrderedDict(d=ONE, c=ONE)}, paths[0])
    safejax.save({"c.d": {"w": ONE}, "o": OrderedDict(b=ONE, a=ONE)}, paths[1])
    tree = safejax.load(paths)
    assert tree.keys() == {"a.b", "c.d", "o"}
    assert tree["a.b"].keys() == tree["c.d"].keys() == {"w"}
    assert type(tree["o"]) is OrderedDict
    assert tree["o"].keys() == set("abcd")
    # A single file is the whole tree, in its order.
    assert list(safejax.load(paths[:1])["o"]) == ["d", "c"]


def test_files_elsewhere(folder: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(str(folder) + "/", "/hf/", recursive=True)
    try:
        expected = safejax.load(folder)
        files = ["/hf/a-1.safetensors", "/hf/a-2.safetensors"]
        for path in ("/hf", f"/hf/{INDEX}", files):
            assert_trees_identical(safejax.load(path, fs=fs), expected)
        for url in ("memory://hf", f"memory://hf/{INDEX}", [f"memory:/{file}" for file in files]):
            assert_trees_identical(safejax.load(url), expected)
        fs.rm("/hf/a-2.safetensors")
        with pytest.raises(FileNotFoundError, match=r"1 are not there: /hf/a-2"):
            safejax.load("/hf", fs=fs)
    finally:
        fs.rm("/hf", recursive=True)


# ---- replaced as one


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a set of files, and others."""
    folder = tmp_path / "model"
    safejax.save(version(1), folder, max_shard_bytes=1)
    (folder / "config.json").write_text("{}")
    (folder / "sub").mkdir()
    (folder / "sub" / "vocab.txt").write_text("a")
    (folder / "link").symlink_to("config.json")
    return folder


def version(number: int) -> dict[str, Any]:
    """A tree whose leaves all contain its number, on which the number of files depends too."""
    return {str(i): np.full(5, number, np.int32) for i in range(2 + number % 3)}


def test_other_files_stay_and_old_shards_go(saved: Path) -> None:
    saved.chmod(0o750)
    mode = saved.stat().st_mode
    before = safejax.load(saved)
    safejax.save(version(2), saved, max_shard_bytes=1)
    others = ["config.json", "link", "sub"]
    shards = [f"model-{number:05}-of-00004.safetensors" for number in range(1, 5)]
    assert names_in(saved) == sorted([*others, *shards, INDEX])
    assert (saved / "sub" / "vocab.txt").read_text() == "a"
    assert os.readlink(saved / "link") == "config.json"
    assert saved.stat().st_mode == mode
    assert_trees_identical(before, version(1))
    safejax.save(version(3), saved, max_shard_bytes=1000)
    assert names_in(saved) == sorted([*others, "model.safetensors"])
    safejax.save(version(4), saved, max_shard_bytes=1)
    assert_trees_identical(safejax.load(saved), version(4))
    assert names_in(saved.parent) == ["model"]


def test_a_folder_that_has_the_name_of_a_file_of_ours_stays(saved: Path) -> None:
    folder = saved / "model-00009-of-00009.safetensors"
    folder.mkdir()
    (folder / "notes").write_text("a")
    safejax.save(version(2), saved, max_shard_bytes=1)
    assert (folder / "notes").read_text() == "a"
    assert_trees_identical(safejax.load(saved), version(2))
    folder.rename(saved / "model.safetensors")
    with pytest.raises(IsADirectoryError, match="move it elsewhere"):
        safejax.save(version(3), saved, max_shard_bytes=1000)
    assert (saved / "model.safetensors" / "notes").read_text() == "a"
    assert_trees_identical(safejax.load(saved), version(2))


def test_a_tree_is_saved_to_the_folder_that_it_was_loaded_from(saved: Path) -> None:
    tree = safejax.load(saved)

    def double_of(array: Any) -> Any:
        return array * 2

    double = safejax.elementwise(double_of, "*")
    safejax.save(tree, saved, transform=double, max_shard_bytes=1)
    assert_trees_identical(safejax.load(saved), jax.tree.map(double_of, version(1)))
    assert_trees_identical(tree, version(1))


def test_a_link_to_a_folder_is_written_through(saved: Path) -> None:
    link = saved.parent / "link"
    link.symlink_to("model")
    safejax.save(version(5), link, max_shard_bytes=1)
    assert link.is_symlink()
    assert_trees_identical(safejax.load(saved), version(5))


@pytest.mark.parametrize("error", [None, TypeError, OSError])
def test_folders_are_renamed_where_they_cannot_be_exchanged(
    error: type[Exception] | None, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safejax.materialize(safejax.load(saved))  # What else is called in C is found now.

    def library(*_: Any, **options: Any) -> object:
        if error is not None and options:
            raise error
        return object()

    monkeypatch.setattr(ctypes, "CDLL", library)
    safejax.save(version(2), saved, max_shard_bytes=1)
    assert_trees_identical(safejax.load(saved), version(2))
    assert (saved / "config.json").exists()
    assert names_in(saved.parent) == ["model"]


@pytest.mark.parametrize("there", [False, True])
def test_everything_is_flushed_before_the_folder_gets_its_name(
    there: bool, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved if there else saved.parent / "new"
    old = saved.stat().st_ino if there else None
    flushed: list[tuple[int, int | None, bool]] = []

    def fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        size = found.st_size if stat.S_ISREG(found.st_mode) else None
        is_new = folder.exists() and folder.stat().st_ino != old
        flushed.append((found.st_ino, size, is_new))

    monkeypatch.setattr(os, "fsync", fsync)
    safejax.save(version(2), folder, max_shard_bytes=1)
    files = [path.stat() for path in folder.glob("model*")]
    assert len(files) == 5
    inside = [(each.st_ino, each.st_size, False) for each in files]
    # What is kept of the old folder is only linked, but its folders are new ones.
    inside += [((folder / "sub").stat().st_ino, None, False)] if there else []
    assert sorted(flushed[:-2]) == sorted(inside)
    folders = [(folder.stat().st_ino, None, False), (folder.parent.stat().st_ino, None, True)]
    assert flushed[-2:] == folders


def test_old_files_are_removed_when_the_new_ones_are_sure_to_stay(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the folders of others in it are flushed, and what is added at the last moment."""
    (saved / "sub" / "deep").mkdir(parents=True)
    (saved / "sub" / "deep" / "notes").write_text("x")
    parent, names = saved.parent.stat().st_ino, set(names_in(saved))
    flushed: list[int] = []

    def fsync(descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        if inode == parent:
            (old,) = (path for path in saved.parent.iterdir() if path != saved)
            assert set(names_in(old)) == {*names, "late.txt"}
        elif saved.stat().st_ino != inode:
            (saved / "late.txt").write_text("late")
        flushed.append(inode)

    monkeypatch.setattr(os, "fsync", fsync)
    safejax.save(version(2), saved, max_shard_bytes=1)
    inodes = [path.stat().st_ino for path in (saved / "sub" / "deep", saved / "sub", saved)]
    assert set(inodes) <= set(flushed[:-1])
    assert flushed[-2:] == [inodes[-1], parent]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.EACCES])
def test_folders_are_renamed_only_if_exchanging_is_not_supported(
    number: int, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing:
        @staticmethod
        def renameat2(*_: Any) -> int:
            ctypes.set_errno(number)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Refusing)
    if number == errno.EACCES:
        with pytest.raises(PermissionError):
            safejax.save(version(2), saved, max_shard_bytes=1)
    else:
        safejax.save(version(2), saved, max_shard_bytes=1)
    assert_trees_identical(safejax.load(saved), version(1 if number == errno.EACCES else 2))
    assert names_in(saved.parent) == ["model"]


def test_a_folder_gets_its_name_back_if_the_other_cannot_be_renamed(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, calls = os.rename, []

    def failing(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO), target)
        rename(source, target)

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="Input/output error"):
        safejax.save(version(2), saved, max_shard_bytes=1)
    assert len(calls) == 3
    assert_trees_identical(safejax.load(saved), version(1))
    assert names_in(saved.parent) == ["model"]


def test_a_file_that_is_added_at_the_last_moment_stays(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, parent = os.fsync, saved.parent.stat().st_ino

    def late(descriptor: int) -> None:
        # The new folder is flushed when it has all that it takes from the old one.
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode) and found.st_ino != parent:
            (saved / "late.txt").write_text("late")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", late)
    safejax.save(version(2), saved, max_shard_bytes=1)
    assert (saved / "late.txt").read_text() == "late"
    assert_trees_identical(safejax.load(saved), version(2))


def test_files_are_flushed_with_the_modes_that_are_handed_on(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut does not make a private set one for all."""
    for file in saved.glob("model*"):
        file.chmod(0o600)
    flushed: dict[int, int] = {}

    def fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        flushed[found.st_ino] = stat.S_IMODE(found.st_mode)

    monkeypatch.setattr(os, "fsync", fsync)
    safejax.save(version(2), saved, max_shard_bytes=1)
    assert {flushed[file.stat().st_ino] for file in saved.glob("model*")} == {0o600}


def modes_in(folder: Path) -> dict[str, int]:
    """The permissions of a folder and of what is in it."""
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    return {".": stat.S_IMODE(folder.stat().st_mode), **found}


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o2770, 0o555])
def test_a_folder_and_its_files_hand_on_their_modes(saved: Path, mode: int) -> None:
    """A private set stays private, also where it has more files than before (S9)."""
    for path in saved.glob("model*"):
        path.chmod(0o640)
    (saved / INDEX).chmod(0o600)
    (saved / "config.json").chmod(0o444)
    saved.chmod(mode)
    before = modes_in(saved)
    safejax.save(version(1), saved, max_shard_bytes=1)
    assert modes_in(saved) == before
    safejax.save(version(2), saved, max_shard_bytes=1)
    after = modes_in(saved)
    new = after.keys() - before.keys()
    assert new
    # A file that replaces none of its name is as private as the most private one.
    assert {after[name] for name in new} == {0o600}
    assert {name: after[name] for name in after if name in before} == {
        name: before[name] for name in before if name in after
    }
    safejax.save(version(2), saved / "model.safetensors")
    assert modes_in(saved)["model.safetensors"] == 0o666 & ~_umask()


def _umask() -> int:
    """The umask of this process, which can only be read by setting it."""
    before = os.umask(0o022)
    os.umask(before)
    return before


def test_the_umask_is_for_new_folders(tmp_path: Path) -> None:
    """A new folder and its files follow the umask (S9)."""
    safejax.save(version(1), tmp_path / "new", max_shard_bytes=1)
    modes = modes_in(tmp_path / "new")
    assert modes.pop(".") == 0o777 & ~_umask()
    assert set(modes.values()) == {0o666 & ~_umask()}


def test_a_private_set_is_private_while_it_is_written(saved: Path) -> None:
    """Nobody else can enter the new folder before its files have their modes (S9)."""
    saved.chmod(0o755)
    seen: set[int] = set()

    def progress(done: int, total: int) -> None:
        for path in saved.parent.iterdir():
            if path != saved:
                seen.add(stat.S_IMODE(path.stat().st_mode))

    safejax.save(version(2), saved, max_shard_bytes=1, progress=progress)
    assert seen == {0o700}


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
def test_a_folder_hands_on_its_owners(saved: Path) -> None:
    """Owners and groups of a folder and of its files are handed on (S9)."""
    for path in (saved, *saved.glob("model*")):
        os.chown(path, 65534, 12345)
    safejax.save(version(2), saved, max_shard_bytes=1)
    for path in (saved, *saved.glob("model*")):
        assert (path.stat().st_uid, path.stat().st_gid) == (65534, 12345)


def test_litter_of_other_folders_and_files_is_removed(saved: Path) -> None:
    """A save of one step removes what killed saves of other steps left behind (R18)."""
    for number in range(3):
        litter = saved.parent / f".step_{number}.{number:016x}.safejax-tmp"
        litter.mkdir()
        (litter / "model-00001-of-00002.safetensors").write_bytes(b"torn")
        (saved.parent / f".m{number}.{number:016x}.safejax-tmp").write_bytes(b"torn")
    safejax.save(version(2), saved, max_shard_bytes=1)
    assert names_in(saved.parent) == ["model"]


def test_a_new_folder_that_is_removed_before_it_is_locked_is_made_again(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another save may take a new folder for litter, as long as it has no lock (R18)."""
    mkdir, made = os.mkdir, []

    def removed(path: Any, *options: Any) -> None:
        mkdir(path, *options)
        made.append(path)
        if len(made) < 3:
            os.rmdir(path)

    monkeypatch.setattr(os, "mkdir", removed)
    safejax.save(version(2), saved, max_shard_bytes=1)
    assert_trees_identical(safejax.load(saved), version(2))
    assert names_in(saved.parent) == ["model"]


@pytest.mark.parametrize("lock", ["by nobody", "by somebody"])
def test_the_old_folder_is_no_litter_while_its_files_are_linked(
    saved: Path, lock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another save does not remove the old folder before what it got last is kept (R18)."""
    exchange = safejax._src.storage.folders._exchange

    def interrupted(one: str, other: str) -> None:
        (saved / "late.txt").write_text("late")
        exchange(one, other)
        safejax.save({"a": ONE}, saved.parent / "other")

    # Only here is there such a moment.
    monkeypatch.setattr(safejax._src.storage.folders, "_exchange", interrupted)
    descriptor = os.open(saved, os.O_RDONLY)
    try:
        if lock == "by somebody":
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        safejax.save(version(2), saved, max_shard_bytes=1)
    finally:
        os.close(descriptor)
    assert (saved / "late.txt").read_text() == "late"
    assert names_in(saved.parent) == ["model", "other"]


def test_a_dangling_link_stays(saved: Path) -> None:
    (saved / "dangling").symlink_to("nowhere")
    safejax.save(version(2), saved, max_shard_bytes=1)
    assert os.readlink(saved / "dangling") == "nowhere"


def test_a_save_does_not_remove_the_temporary_folder_of_another_one(saved: Path) -> None:
    inner: list[bool] = []

    def progress(done: int, total: int) -> None:
        if not inner:
            inner.append(True)
            safejax.save(version(3), saved, max_shard_bytes=1)
            assert_trees_identical(safejax.load(saved), version(3))

    safejax.save(version(2), saved, max_shard_bytes=1, progress=progress)
    assert inner
    assert_trees_identical(safejax.load(saved), version(2))
    assert names_in(saved.parent) == ["model"]


def test_files_are_copied_where_they_cannot_be_linked(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    safejax.save(version(2), saved, max_shard_bytes=1)
    assert_trees_identical(safejax.load(saved), version(2))
    assert (saved / "sub" / "vocab.txt").read_text() == "a"
    assert (saved / "link").is_symlink()


FAILURES = {
    "a leaf": lambda folder: safejax.save({"a": ONE, "b": object()}, folder, max_shard_bytes=1),
    "an abstract leaf": lambda folder: safejax.save(
        {"a": ONE, "b": jax.ShapeDtypeStruct((2,), "int8")}, folder, max_shard_bytes=1
    ),
    "a callback": lambda folder: safejax.save(
        version(2), folder, max_shard_bytes=1, progress=lambda done, total: 1 // (total - done)
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_leaves_the_old_set(case: str, saved: Path) -> None:
    before = names_in(saved)
    with pytest.raises((LeafError, ZeroDivisionError)):
        FAILURES[case](saved)
    assert names_in(saved) == before
    assert names_in(saved.parent) == ["model"]
    assert_trees_identical(safejax.load(saved), version(1))


def _save_within(folder: Path, limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    safejax.save({"a": np.zeros(10), "b": np.zeros(10**6)}, folder, max_shard_bytes=100)


def test_a_full_disk_leaves_the_old_set(saved: Path) -> None:
    child = CHILDREN.Process(target=_save_within, args=(saved, 10**6))
    child.start()
    child.join(120)
    assert child.exitcode == 1
    assert names_in(saved.parent) == ["model"]
    assert_trees_identical(safejax.load(saved), version(1))


@pytest.mark.parametrize("max_shard_bytes", [None, 100])
def test_an_error_about_a_full_disk_names_the_path_and_the_bytes(
    tmp_path: Path, max_shard_bytes: int | None
) -> None:
    """The user's path is named, and not that of a temporary file, with the bytes needed."""
    path = tmp_path / "m"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large; \d+ bytes are needed") as caught:
            safejax.save({"a": np.zeros(10**5)}, path, max_shard_bytes=max_shard_bytes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    (needed,) = re.findall(r"(\d+) bytes are needed, and there are \d+ free", str(caught.value))
    safejax.save({"a": np.zeros(10**5)}, path, max_shard_bytes=max_shard_bytes)
    written = [path] if path.is_file() else list(path.iterdir())
    assert int(needed) == sum(each.stat().st_size for each in written)


def test_bad_arguments_are_errors(saved: Path) -> None:
    for nbytes in (0, -1, 1.5, True, "5GB"):
        with pytest.raises(ValueError, match=r"max_shard_bytes: expected a number of bytes"):
            safejax.save(version(1), saved, max_shard_bytes=nbytes)  # pyright: ignore
    with pytest.raises(NotADirectoryError, match="expected a folder for a set of files"):
        safejax.save(version(1), saved / "config.json", max_shard_bytes=1)
    with pytest.raises(FileNotFoundError, match="make the folder first"):
        safejax.save(version(1), saved / "gone" / "model", max_shard_bytes=1)


def test_progress_ends_at_the_bytes_of_all_files(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    safejax.save(TREE, tmp_path / "m", max_shard_bytes=30, progress=lambda *at: seen.append(at))
    total = sum(path.stat().st_size for path in (tmp_path / "m").glob("*.safetensors"))
    assert seen[-1] == (total, total)


def _save_versions(folder: Path, count: int) -> None:
    for number in range(count):
        safejax.save(version(number), folder, max_shard_bytes=1)


def _versions_in(tree: dict[str, Any]) -> set[int]:
    numbers = {int(number) for leaf in tree.values() for number in np.asarray(leaf)}
    (number,) = numbers
    assert tree.keys() == version(number).keys()
    return numbers


def test_a_reader_sees_one_set_while_others_write(saved: Path) -> None:
    child = CHILDREN.Process(target=_save_versions, args=(saved, 150))
    child.start()
    seen: set[int] = set()
    while child.is_alive():
        seen |= _versions_in(safejax.load(saved))
    child.join()
    assert child.exitcode == 0
    assert len(seen) > 5
    assert (saved / "sub" / "vocab.txt").exists()


def test_a_killed_save_leaves_one_set(saved: Path) -> None:
    chance = random.Random(0)
    kills = 30 if LARGE else 8
    interrupted = 0
    for _ in range(kills):
        child = CHILDREN.Process(target=_save_versions, args=(saved, 10**6))
        child.start()
        before = saved.stat().st_ino
        while saved.stat().st_ino == before:  # until it has saved once
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.01))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        interrupted += len(names_in(saved.parent)) > 1
        _versions_in(safejax.load(saved))
        safejax.save(version(1), saved, max_shard_bytes=1)
        assert names_in(saved.parent) == ["model"]
        assert (saved / "sub" / "vocab.txt").exists()
    assert interrupted > kills // 8


def test_a_folder_that_is_replaced_again_and_again_is_an_error(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "samestat", lambda *_: False)
    for path in (saved, saved / INDEX):
        with pytest.raises(ReadError, match="it was replaced 100 times"):
            safejax.load(path)


def test_variables_of_several_files_are_shared_as_in_each_file(tmp_path: Path) -> None:
    paths: list[Path] = []
    for letter in "xy":
        shared, own = objax.TrainVar(jnp.ones(3)), objax.StateVar(jnp.zeros(2))
        names = {f"{letter}a": shared, f"{letter}b": shared, f"{letter}c": own}
        paths.append(tmp_path / letter)
        safejax.objax.serialize(objax.VarCollection(names), filename=paths[-1])
    found = safejax.objax.deserialize(paths)
    assert list(found.keys()) == ["xa", "xb", "xc", "ya", "yb", "yc"]
    for letter in "xy":
        assert found[f"{letter}a"] is found[f"{letter}b"]
    assert len({id(variable) for variable in found.values()}) == 4
    assert len(safejax.load(paths)) == 6
