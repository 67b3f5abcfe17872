"""Files of which nothing is in memory: opened, one row read, one leaf read whole."""

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import safejax
from benchmarks import measure
from benchmarks.job import Facts, Job, Work, touch
from benchmarks.trees import same_bits, tensors_of

_POPULATE_READ: Final = 22


def write_shards(job: Job) -> None:
    """Write the leaves as files of their own."""
    Path(job.path).mkdir()
    for name, leaf in job.spec.leaves():
        safejax.save({name: leaf}, Path(job.path) / f"{name}.safetensors")


def _from_disk(
    job: Job, run: Callable[[], Any], needed: Callable[[], int], check: Callable[[Any], None]
) -> Work:
    """Work that says how many bytes came from the disk, and how many pages of them were needed."""
    found: Facts = {}

    def checked(result: Any) -> None:
        brought = measure.resident_bytes(job.path)
        if brought is not None:
            found.update(disk=brought, needed=needed())
        check(result)

    return Work(run, checked, lambda: found)


def _pages(begin: int, nbytes: int) -> int:
    page = mmap.PAGESIZE
    return (-(-(begin + nbytes) // page) - begin // page) * page


def _header(path: str) -> int:
    """The bytes of the pages of a file's header, as they are read by hand."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        nbytes = int.from_bytes(os.pread(descriptor, 8, 0), "little")
        return _pages(0, 8 + len(os.pread(descriptor, nbytes, 8)))
    finally:
        os.close(descriptor)


def cold_open(job: Job) -> Work:
    """Open all files, as the tree of their leaves; by hand, read their headers."""
    files = measure.files_of(job.path)

    def by_hand() -> int:
        return sum(map(_header, files))

    def check(result: Any) -> None:
        assert job.side != "safejax" or len(result) == len(files)

    run = by_hand if job.side != "safejax" else lambda: safejax.load(files)
    return _from_disk(job, run, by_hand, check)


def cold_row(job: Job) -> Work:
    """Open the file, and read a row as NumPy; by hand, its bytes are read."""
    name, shape = list(job.spec.shapes().items())[-1]
    row, nbytes = shape[0] // 2 + 1, 4 * shape[1]
    begin = tensors_of(job.path)[name][0] + row * nbytes

    def by_hand() -> NDArray[Any]:
        _header(job.path)
        descriptor = os.open(job.path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            return np.frombuffer(os.pread(descriptor, nbytes, begin), np.float32)
        finally:
            os.close(descriptor)

    def ours() -> NDArray[Any]:
        return np.array(safejax.load(job.path)[name][row])

    def check(result: NDArray[Any]) -> None:
        assert same_bits(result, dict(job.spec.leaves())[name][row])

    run = ours if job.side == "safejax" else by_hand
    return _from_disk(job, run, lambda: _header(job.path) + _pages(begin, nbytes), check)


def cold_whole(job: Job) -> Work:
    """Open the file, and touch one leaf; by hand, the system is asked for its pages, in order.

    None of the other ways that were tried was faster, where the read-ahead is 8 MiB: to touch the
    pages, to ask for them by four threads, or to copy with `preadv`, also by four threads, and
    with `O_DIRECT`.
    """
    name, shape = list(job.spec.shapes().items())[-1]
    begin = tensors_of(job.path)[name][0]

    def by_hand() -> NDArray[Any]:
        with open(job.path, "rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        first = begin // mmap.PAGESIZE * mmap.PAGESIZE
        end = begin + 4 * int(np.prod(shape))
        for at in range(first, end, 32 << 20):
            mapping.madvise(_POPULATE_READ, at, min(end - at, 32 << 20))
        leaf = np.ndarray(shape, np.float32, mapping, begin)
        touch(leaf)
        return leaf

    def ours() -> NDArray[Any]:
        leaf = np.asarray(safejax.materialize(safejax.load(job.path)[name]))
        touch(leaf)
        return leaf

    def check(result: NDArray[Any]) -> None:
        assert same_bits(result, dict(job.spec.leaves())[name])

    run = ours if job.side == "safejax" else by_hand
    nbytes = 4 * int(np.prod(shape))
    return _from_disk(job, run, lambda: _header(job.path) + _pages(begin, nbytes), check)
