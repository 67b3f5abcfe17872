"""Shards: which leaves go to which file is known before any is read, and does not change."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from safejax import Leaves, decode, encode, flatten, observe_reads
from safejax._src.checkpoint.shards import Folder, folder_of

SIZES = {"a": 4, "b": 4, "c": 9, "d": 0, "e": 1}
ASSIGNED: list[tuple[int, list[str]]] = [
    (18, ["abcde"]),
    (17, ["abcd", "e"]),
    (9, ["ab", "cd", "e"]),
    (8, ["ab", "c", "de"]),
    (4, ["a", "b", "c", "de"]),
    (1, ["a", "b", "c", "de"]),
]


def divided(max_shard_bytes: int, *, checksum: bool = False) -> Folder:
    leaves = Leaves({name: np.zeros(size, np.int8) for name, size in SIZES.items()})
    return folder_of(leaves, "f", max_shard_bytes, checksum=checksum)


@pytest.mark.parametrize(("most", "expected"), ASSIGNED)
def test_tensors_are_assigned_in_the_order_of_their_names(most: int, expected: list[str]) -> None:
    folder = divided(most)
    found = {
        name: "".join(sorted(extent.name for extent in layout.extents))
        for name, layout in folder.files.items()
    }
    assert list(found.values()) == expected
    assert all(map(folder.is_ours, found))
    assert folder.nbytes == sum(layout.nbytes for layout in folder.files.values())
    if len(expected) == 1:
        assert folder.index is None
    else:
        assert folder.index is not None
        weights = json.loads(folder.index)["weight_map"]
        assert weights == {each: name for name, names in found.items() for each in names}


def test_dividing_reads_nothing() -> None:
    leaves = decode(encode(flatten({"a": np.zeros(5), "b": [np.zeros(3), 2]})))
    with observe_reads() as log:
        assert len(folder_of(leaves, "f", 8, checksum=True).files) == 2
        assert not log.reads


def test_each_file_has_room_for_its_own_digests() -> None:
    folder = divided(8, checksum=True)
    digests = [layout.record.digests for layout in folder.files.values()]
    assert [each.of for each in digests if each is not None] == [
        {"a": bytes(8), "b": bytes(8)}, {"c": bytes(8)}, {"e": bytes(8)}
    ]  # fmt: skip
    assert folder.index is not None
    assert b"digests" not in folder.index


def test_a_folder_cannot_be_changed() -> None:
    folder: Any = divided(8)
    for field in dataclasses.fields(folder):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(folder, field.name, None)
    with pytest.raises(TypeError):
        folder.files["model.safetensors"] = None


OURS = {
    "model.safetensors": True,
    "model.safetensors.index.json": True,
    "model-00001-of-00002.safetensors": True,
    "model-123456-of-123456.safetensors": True,
    "model-0123456789abcdef-00001-of-00002.safetensors": True,
    "model-0123456789abcde-00001-of-00002.safetensors": False,
    "model-0123456789abcdef.safetensors": False,
    "model-1-of-2.safetensors": False,
    "other.safetensors": False,
    "config.json": False,
    "xmodel.safetensors": False,
    "model.safetensors.bak": False,
}


@pytest.mark.parametrize("name", OURS)
def test_files_of_other_names_are_not_ours(name: str) -> None:
    assert divided(8).is_ours(name) == OURS[name]
    leaves = Leaves({"a": np.zeros(3, np.int8)})
    other = folder_of(leaves, "f", 8, checksum=False, stem="xmodel")
    assert other.is_ours(name) == (name == "xmodel.safetensors")
    assert other.is_ours(f"x{name}") == OURS[name]


# ---- files that have one writer each

DEALT: list[tuple[int, int, list[list[str]]]] = [
    (1, 8, [["ab", "c", "de"]]),
    (2, 18, [["cd"], ["abe"]]),
    (2, 4, [["c", "d"], ["a", "b", "e"]]),
    (3, 18, [["c"], ["ae"], ["bd"]]),
    (6, 18, [["c"], ["a"], ["b"], ["e"], ["d"], []]),
]


@pytest.mark.parametrize(("processes", "most", "expected"), DEALT)
def test_tensors_are_dealt_out_by_their_sizes(
    processes: int, most: int, expected: list[list[str]]
) -> None:
    leaves = Leaves({name: np.zeros(size, np.uint8) for name, size in SIZES.items()})
    folder = folder_of(leaves, "f", most, checksum=False, writers=processes)
    assert folder.writers is not None
    assert folder.writers.keys() == folder.files.keys()
    found: list[list[str]] = [[] for _ in range(processes)]
    for name, file in folder.files.items():
        found[folder.writers[name]].append("".join(sorted(each.name for each in file.extents)))
    assert found == expected
    count = sum(map(len, expected))
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    assert list(folder.files) == names
    weights = json.loads(folder.index_of(lambda name: f"new {name}") or b"")["weight_map"]
    assert set(weights.values()) == {f"new {name}" for name in names}
    assert weights.keys() == SIZES.keys()


def test_tensors_of_one_size_are_dealt_out_by_name() -> None:
    leaves = Leaves({name: np.zeros(8) for name in "dbac"})
    folder = folder_of(leaves, "f", 8, checksum=False, writers=2)
    names = [each.extents[0].name for each in folder.files.values()]
    assert names == ["a", "c", "b", "d"]
    assert list((folder.writers or {}).values()) == [0, 0, 1, 1]


def test_leaves_without_tensors_are_one_file_of_the_first_process() -> None:
    folder = folder_of(Leaves({"a": 1}), "f", 8, checksum=False, writers=3)
    assert folder.writers == {"model.safetensors": 0}
    assert folder.index is None
