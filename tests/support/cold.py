"""Files of which nothing is in memory, and how much of one is."""

import ctypes
import json
import mmap
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safejax._src.reading.memory import address

PAGE = mmap.PAGESIZE


def chilled(path: str | Path) -> str:
    """The path of a file that is dropped from the page cache; skips the test if it stays there."""
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("this system does not drop a file from its page cache")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    if resident(mapped(str(path))) != 0:
        pytest.skip(f"{path}: its file system, for example tmpfs, does not drop it from memory")
    return str(path)


def mapped(path: str) -> np.ndarray:
    """The bytes of a file, mapped."""
    with open(path, "rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def pages(array: np.ndarray) -> np.ndarray:
    """For each page of an array in a mapped file, whether it is in memory now."""
    begin = address(array) // PAGE * PAGE
    nbytes = address(array) + array.nbytes - begin
    seen = np.zeros(-(-nbytes // PAGE), np.uint8)
    mincore = ctypes.CDLL(None).mincore
    arguments = (ctypes.c_void_p(begin), ctypes.c_size_t(nbytes), ctypes.c_void_p(address(seen)))
    assert mincore(*arguments) == 0
    return seen & 1 == 1


def resident(array: np.ndarray) -> float:
    """The fraction of an array's pages that are in memory now."""
    return float(pages(array).mean())


def brought_in(path: str) -> int:
    """The bytes of a file that are in memory now."""
    return int(pages(mapped(path)).sum()) * PAGE


def sparse_file(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A cold file of float32 tensors, all zeros, that takes no room on the disk: it has holes."""
    entries: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        nbytes = 4 * int(np.prod(shape))
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    header = json.dumps(entries).encode()
    header += b" " * (-(8 + len(header)) % PAGE)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + at)
    return chilled(path)


def waits_of_plain_mapping(path: str) -> int:
    """How often a loop that touches each page of the file, just mapped, waits for one."""
    whole = mapped(path)
    before = waits()
    whole[::PAGE].sum()
    return waits() - before


def waits() -> int:
    """How often this process has waited for a page that was not in memory."""
    if sys.platform == "win32":
        pytest.skip("this system does not count them")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt
