"""`safetensors.numpy`, and `jax.device_put` of the arrays that it returns."""

import json
import os
from typing import Any

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from benchmarks.job import Job, Work, check_tree, flush, loading, saving, to_float32


def write(job: Job) -> None:
    """Write a stock file: as safetensors does, with data not at a multiple of 64 bytes."""
    tree = job.spec.tree()
    for padding in ("", "12345678"):
        save_file(tree, job.path, {"note": padding} if padding else None)
        with open(job.path, "rb") as file:
            begin = 8 + int.from_bytes(file.read(8), "little")
        if begin % 64:
            break
    assert begin % 64
    flush(job.path)


def write_set(job: Job) -> None:
    """Write a folder of eight stock files with an index, as Hugging Face's libraries do."""
    os.makedirs(job.path)
    leaves = list(job.spec.leaves())
    weight_map: dict[str, str] = {}
    size = -(-len(leaves) // 8)
    for number, begin in enumerate(range(0, len(leaves), size), 1):
        part = dict(leaves[begin : begin + size])
        file = f"model-{number:05}-of-00008.safetensors"
        save_file(part, os.path.join(job.path, file), {"format": "pt"})
        flush(os.path.join(job.path, file))
        weight_map |= dict.fromkeys(part, file)
    with open(os.path.join(job.path, "model.safetensors.index.json"), "w") as index:
        json.dump({"metadata": {}, "weight_map": weight_map}, index)


def save(job: Job) -> Work:
    """Save, and flush to disk."""
    tree = job.arrays()

    def run(path: str) -> None:
        save_file(jax.tree.map(np.asarray, tree), path)
        flush(path)

    return saving(job, run, load_file)


def load(job: Job) -> Work:
    """Load until ready, and touch every value."""
    return loading(job, lambda: _load(job))


def load_cast(job: Job) -> Work:
    """Load bfloat16 and cast to float32."""
    return loading(job, lambda: to_float32(_load(job)), exact=False)


def place(job: Job) -> Work:
    """Load until ready, without touching values."""
    return Work(lambda: jax.block_until_ready(_load(job)), lambda tree: check_tree(job, tree))


def _load(job: Job) -> Any:
    return jax.device_put(load_file(job.path), job.shardings())


def open_file(job: Job) -> Work:
    """Open a file and list its names, with the reference reader."""

    def run() -> int:
        with safe_open(job.path, "numpy") as file:
            return len(file.keys())

    def check(count: int) -> None:
        assert count == len(job.spec.shapes())

    return Work(run, check)
