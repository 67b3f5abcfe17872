"""Files of other programs: the error for one says what it is, and its remedy works."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np
import pytest

import safejax
from safejax import InvalidFileError
from safejax.testing import assert_trees_identical

W = np.arange(6, dtype=np.float32).reshape(2, 3)

LFS = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345
"""


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"content")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"))
    return buffer.getvalue()


def written(write: Callable[[Any], Any]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


FILES: dict[str, tuple[bytes, str]] = {
    "Git LFS": (LFS, r"a pointer of Git LFS.*run 'git lfs pull'"),
    "HTML": (b"\n <!DOCTYPE html><html>", "an HTML page: download the file itself"),
    "more HTML": (b"<html lang='en'>", "an HTML page"),
    "PyTorch": (zipped("archive/data.pkl"), r"of PyTorch: .*weights_only=True"),
    "a zip archive": (zipped("model.safetensors"), "a zip archive: unpack it"),
    ".npz": (written(lambda file: np.savez(file, w=W)), r"an archive of NumPy"),
    ".npy": (written(lambda file: np.save(file, W)), r"an array of NumPy"),
    "a pickle": (pickle.dumps({"w": W}, protocol=4), r"a pickle, for example of PyTorch: "),
    "an old pickle": (pickle.dumps({"w": W}, protocol=2), r"a pickle, for example of PyTorch: "),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(16), "a GGUF file: get the safetensors files"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(8), "an HDF5 file: load it with h5py or Keras"),
    "gzip": (gzip.compress(b"content" * 9), "a compressed file: decompress it"),
    "bz2": (bz2.compress(b"content" * 9), "a compressed file: decompress it"),
    "xz": (lzma.compress(b"content" * 9), "a compressed file: decompress it"),
    "tar": (tarred(), "a tar archive: unpack it"),
    "macOS": (b"\0\5\x16\7\0\2\0\0" + bytes(20), r"without '\._' in front"),
    "msgpack": (flax.serialization.msgpack_serialize({"params": {"w": W}}), "a msgpack file"),
    "JSON": (b'{\n  "architectures": ["Bert"]\n}', "a JSON file: name the safetensors file"),
    "a list in JSON": (b'[{"a": 1}, {"b": 2}]', "a JSON file"),
    "nothing": (b"", "an empty file: its download, copy or save was not completed"),
    "zeros": (bytes(1000), "begins with zeros: its download or copy was not completed"),
}


# By their paths these are loaded: tests/unit/checkpoint/test_foreign.py.
LOADED = {"msgpack": {"params": {"w": W}}, ".npz": {"w": W}, ".npy": W}


@pytest.mark.parametrize("kind", FILES)
def test_the_error_says_what_the_file_is(kind: str, tmp_path: Path) -> None:
    data, message = FILES[kind]
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    error = f"expected a safetensors file, got .*{message}"
    with pytest.raises(InvalidFileError, match=error):
        safejax.deserialize(data)
    if kind in LOADED:
        assert_trees_identical(safejax.load(path), LOADED[kind])
        return
    with pytest.raises(InvalidFileError, match=f"{re.escape(str(path))}: {error}"):
        safejax.load(path)


def test_a_file_is_not_taken_for_another_one() -> None:
    """Lengths of headers may look like the first bytes of others."""
    for length in (0x0280, 0x0480, 0x81A1, 0x8B1F):
        text = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})
        data = length.to_bytes(8, "little") + text.ljust(length).encode() + bytes(8)
        assert safejax.deserialize(data)["w"].shape == (2,)
        for wrong in (data[:-1], data[:100]):
            with pytest.raises(InvalidFileError, match="cut short"):
                safejax.deserialize(wrong)
