"""verify: files that are whole are valid, and of others all that is wrong is said."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import safejax
from tests.support.files import file_of, golden
from tests.support.hostile_headers import EIGHT, HOSTILE, info

GOLDEN = Path(__file__).parents[2] / "golden"
FILES = golden(GOLDEN)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(GOLDEN)))
def test_golden_files_are_valid(path: Path) -> None:
    found = safejax.verify(path)
    assert found.faults == ()
    assert found.tensors == len(safejax.inspect(path).tensors)
    has_digests = safejax.inspect(path).files[0].digests
    assert bool(found.without_digests) != has_digests


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_not(name: str) -> None:
    data, part = HOSTILE[name]
    found = safejax.verify(data)
    assert not found.is_valid
    assert any(each in fault for each in part.split("|") for fault in found.faults)
    assert len(str(found)) < 30_000


def test_every_tensor_at_fault_is_named() -> None:
    header = {"a": info("F33"), "b": info(), "c": info(shape=(3,)), "__metadata__": {"k": 1}}
    found = safejax.verify(file_of(header, EIGHT))
    assert len(found.faults) == 3
    for name, fault in zip(("__metadata__", "'a'", "'c'"), found.faults, strict=True):
        assert name in fault
    assert json.loads(found.to_json())["faults"] == list(found.faults)
    assert found._repr_html_().count("fault: ") == 3  # pyright: ignore[reportPrivateUsage]


def test_every_damaged_tensor_is_named_and_only_where_there_are_digests() -> None:
    tree = {"a": jnp.ones(3 << 18), "b": jnp.ones(5), "c": jnp.ones(7)}
    data = bytearray(safejax.serialize(tree, checksum=True))
    spans = {name: each.span for name, each in safejax.inspect(data).tensors.items()}
    whole = safejax.verify(data)
    assert (whole.is_valid, whole.nbytes, whole.without_digests) == (True, (3 << 20) + 48, ())
    for span in (spans["a"], spans["c"]):
        assert span is not None
        data[span[1] - 1] ^= 1
    read: list[tuple[int, int]] = []
    found = safejax.verify(data, progress=lambda *at: read.append(at))
    assert ["'a'" in found.faults[0], "'c'" in found.faults[1]] == [True, True]
    assert len(found.faults) == 2
    assert "in 1 block [" in found.faults[0]
    assert read[-1] == (whole.nbytes, whole.nbytes)
    assert safejax.verify(data, digests=False).is_valid


def test_all_that_is_wrong_with_an_index_is_said(tmp_path: Path) -> None:
    tree = {name: jnp.ones(30) for name in "abcd"}
    safejax.save(tree, tmp_path, max_shard_bytes=130, checksum=True)
    assert safejax.verify(tmp_path).is_valid
    assert safejax.verify(tmp_path).nbytes == 480
    index = tmp_path / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    del table["weight_map"]["b"]
    table["weight_map"]["x"] = table["weight_map"]["a"]
    table["weight_map"]["y"] = "gone.safetensors"
    index.write_text(json.dumps(table))
    second = tmp_path / table["weight_map"]["c"]
    second.write_bytes(second.read_bytes()[:-1] + b"!")
    third = tmp_path / table["weight_map"]["d"]
    third.write_bytes(third.read_bytes()[:-1])
    found = safejax.verify(tmp_path)
    text = "\n".join(found.faults)
    assert "gone.safetensors: there is no such file" in text
    assert "tensor 'x': expected it in model-00001-of-00004.safetensors" in text
    assert f"{second}: leaf 'c': expected the bytes that were saved" in text
    assert f"{third}: invalid header: expected 120 bytes of data, got 119" in text
    index.write_text("{")
    assert "invalid index" in safejax.verify(tmp_path).faults[0]


def test_a_record_that_cannot_be_true(tmp_path: Path) -> None:
    record = {"version": 1, "dtypes": {"a": "int4", "z": "int4"}, "paths": {"q": ["q"]}}
    header = {"__metadata__": {"safejax": json.dumps(record)}, "a": info()}
    found = safejax.verify(file_of(header, EIGHT))
    assert len(found.faults) == 3
    with pytest.raises(safejax.InvalidFileError):
        safejax.decode(file_of(header, EIGHT))


def test_what_is_no_path_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is nothing"):
        safejax.verify(tmp_path / "m.safetensors")
    with pytest.raises(TypeError, match="expected a path"):
        safejax.verify({"w": np.ones(3)})
    (tmp_path / "notes.txt").write_text("")
    assert "expected a folder with one index" in safejax.verify(tmp_path).faults[0]
