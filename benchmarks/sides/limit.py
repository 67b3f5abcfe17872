"""The limit: the best that the machine can do, without a library."""

import mmap
import os
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from benchmarks.job import Job, Work, saving, touch, write_flushed
from benchmarks.trees import same_bits, tensors_of, truncated

# ---- writing


def save(job: Job) -> Work:
    """Write the raw bytes, and flush them."""
    tree = job.arrays()

    def chunks() -> Iterator[Any]:
        for leaf in tree.values():
            yield np.asarray(leaf).reshape(-1).view(np.uint8).data

    return saving(job, lambda path: write_flushed(path, chunks()), lambda path: _raw(job, path))


def save_cast(job: Job) -> Work:
    """Cast with NumPy, which is faster than XLA here, write the raw bytes, and flush them."""
    tree = job.arrays()

    def run(path: str) -> None:
        write_flushed(path, _narrowed(np.asarray(leaf) for leaf in tree.values()))

    return saving(job, run, lambda path: _raw(job, path, jax.numpy.bfloat16))


def _raw(job: Job, path: str, dtype: Any = np.float32) -> dict[str, NDArray[Any]]:
    flat = np.fromfile(path, np.uint8).view(dtype)
    found: dict[str, NDArray[Any]] = {}
    begin = 0
    for name, shape in job.spec.shapes().items():
        size = int(np.prod(shape))
        found[name] = flat[begin : begin + size].reshape(shape)
        begin += size
    return found


# ---- reading


def load(job: Job) -> Work:
    """Map the file, and touch it once for each device that needs all of it."""
    times = len(jax.devices()) if job.layout == "replicated" else 1

    def run() -> dict[str, NDArray[Any]]:
        tree = mapped(job.path)
        for _ in range(times):
            for leaf in tree.values():
                touch(leaf)
        return tree

    return Work(run, lambda tree: _check(job, tree))


def copy(job: Job) -> Work:
    """Copy the file with `preadv` into new private memory in huge pages, and touch it."""

    def run() -> dict[str, NDArray[Any]]:
        tree: dict[str, NDArray[Any]] = {}
        descriptor = os.open(job.path, os.O_RDONLY)
        try:
            tensors = tensors_of(job.path)
            begin = min(begin for begin, _, _ in tensors.values())
            end = os.fstat(descriptor).st_size
            memory = fresh(end - begin)
            reached = begin
            while reached < end:
                reached += os.preadv(descriptor, [memory[reached - begin :]], reached)
            for name, (at, dtype, shape) in tensors.items():
                leaf = np.ndarray(shape, dtype, memory.data, at - begin)
                touch(leaf)
                tree[name] = leaf
        finally:
            os.close(descriptor)
        return tree

    return Work(run, lambda tree: _check(job, tree))


def strided(job: Job) -> Work:
    """Copy each device's part once, from the mapping to new private memory, and touch it."""
    indices = {
        len(shape): list(job.sharding(shape).devices_indices_map(shape).values())
        for shape in job.spec.shapes().values()
    }

    def run() -> dict[str, NDArray[Any]]:
        tree = mapped(job.path)
        memory = fresh(sum(leaf.nbytes for leaf in tree.values() if leaf.ndim == 2))
        reached = 0
        for leaf in tree.values():
            if leaf.ndim != 2:
                continue
            for index in indices[leaf.ndim]:
                part = leaf[index]
                block = np.ndarray(part.shape, part.dtype, memory.data, reached)
                block[...] = part
                touch(block)
                reached += part.nbytes
        return tree

    return Work(run, lambda tree: _check(job, tree))


def load_cast(job: Job) -> Work:
    """Cast each leaf with NumPy, from the mapping to new private memory, and touch it."""

    def run() -> dict[str, NDArray[Any]]:
        tensors = mapped(job.path)
        memory = fresh(sum(4 * leaf.size for leaf in tensors.values()))
        tree: dict[str, NDArray[Any]] = {}
        reached = 0
        for name, leaf in tensors.items():
            tree[name] = np.ndarray(leaf.shape, np.float32, memory.data, reached)
            np.copyto(tree[name], leaf)
            touch(tree[name])
            reached += 4 * leaf.size
        return tree

    return Work(run, lambda tree: _check(job, tree, exact=False))


def convert(job: Job) -> Work:
    """Read each leaf, cast it with NumPy and write it, one step after the other; then flush."""

    def touched_one_by_one() -> Iterator[NDArray[Any]]:
        for leaf in mapped(job.path).values():
            touch(leaf)
            yield leaf

    def run(target: str) -> None:
        write_flushed(target, _narrowed(touched_one_by_one()))

    def read_back(path: str) -> dict[str, NDArray[Any]]:
        flat = np.fromfile(path, np.uint8).view(jax.numpy.bfloat16)
        found: dict[str, NDArray[Any]] = {}
        begin = 0
        for name, leaf in mapped(job.path).items():
            found[name] = flat[begin : begin + leaf.size].reshape(leaf.shape)
            begin += leaf.size
        return found

    return saving(job, run, read_back)


def _narrowed(leaves: Iterable[NDArray[Any]]) -> Iterator[memoryview]:
    """The bytes of each leaf as bfloat16, in a buffer that the next leaf overwrites."""
    buffer = np.empty(0, jax.numpy.bfloat16)
    for leaf in leaves:
        if buffer.size < leaf.size:
            buffer = np.empty(leaf.size, jax.numpy.bfloat16)
        narrow = buffer[: leaf.size]
        np.copyto(narrow, leaf.reshape(-1), casting="unsafe")
        yield narrow.view(np.uint8).data


def mapped(path: str) -> dict[str, NDArray[Any]]:
    """The tensors of a file, each where it lies in a mapping of it."""
    with open(path, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return {
        name: np.ndarray(shape, dtype, mapping, begin)
        for name, (begin, dtype, shape) in tensors_of(path).items()
    }


def fresh(nbytes: int) -> NDArray[np.uint8]:
    """Private memory that was never touched, in huge pages if the system has them."""
    memory = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def _check(job: Job, tree: dict[str, NDArray[Any]], *, exact: bool = True) -> None:
    for name, leaf in job.spec.leaves():
        assert same_bits(tree[name], leaf if exact else truncated(leaf)), name
