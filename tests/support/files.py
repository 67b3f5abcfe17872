"""The bytes of safetensors files, taken apart and put together, and what is in a folder."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy


def open_below(folder: Path) -> list[str]:
    """What this process has open in a folder, or had there before it was removed.

    Its other descriptors come and go with servers and pools of threads.
    """
    found: list[str] = []
    for each in os.scandir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # It was closed meanwhile.
            path = os.readlink(each.path)
            if path.startswith(f"{folder}/"):
                found.append(path)
    return sorted(found)


def golden(folder: Path, pattern: str = "*.safetensors") -> list[Path]:
    """The files below a folder, without one with dtypes that an older ml_dtypes does not have."""
    found = sorted(folder.rglob(pattern))
    return [each for each in found if hasattr(ml_dtypes, "int1") or each.stem != "rare_dtypes"]


def data_begin(data: bytes) -> int:
    """The offset in bytes at which a file's data begins: behind its length and its header."""
    return 8 + int.from_bytes(data[:8], "little")


def header_of(data: bytes) -> dict[str, Any]:
    """The header of a file, which must be well-formed."""
    return json.loads(data[8 : data_begin(data)])


def file_of(header: dict[str, Any] | str | bytes, data: bytes = b"") -> bytes:
    """The bytes of a file with this header, given as a table, JSON text or bytes."""
    text = json.dumps(header) if isinstance(header, dict) else header
    encoded = text.encode() if isinstance(text, str) else text
    return len(encoded).to_bytes(8, "little") + encoded + data


def with_header(data: bytes, header: dict[str, Any]) -> bytes:
    """The file with another header in front of the same data."""
    return file_of(header, data[data_begin(data) :])


def names_in(folder: Path) -> list[str]:
    """The names of the files and folders in a folder, sorted."""
    return sorted(os.listdir(folder))


def written_by_safejax_0_5(params: Mapping[str, Any]) -> bytes:
    """The file that safejax 0.5 wrote for nested mappings: keys joined by dots, without a record.

    It is its `flatten_dict`, and what safetensors writes.
    """

    def flat(tree: Mapping[str, Any], prefix: str) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for key, value in tree.items():
            name = f"{prefix}.{key}" if prefix else key
            nested = isinstance(value, Mapping)
            found |= flat(value, name) if nested else {name: np.array(value, order="C")}
        return found

    return safetensors.numpy.save(flat(params, ""))


def same_bytes(tree: Any, expected: Any) -> bool:
    """Whether a dict of leaves has the names and the bytes of a dict of arrays."""
    return tree.keys() == expected.keys() and all(
        np.asarray(tree[name]).tobytes() == expected[name].tobytes() for name in expected
    )
