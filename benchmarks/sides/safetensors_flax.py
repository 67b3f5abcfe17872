"""`safetensors.flax`, the format's own binding for JAX."""

from typing import Any

import jax
from safetensors.flax import load_file, save_file

from benchmarks.job import (
    Job,
    Work,
    check_tree,
    flush,
    loading,
    saving,
    to_bfloat16,
    to_float32,
)


def save(job: Job) -> Work:
    """Save, and flush to disk, which safetensors does not do."""
    tree = job.arrays()
    return saving(job, lambda path: _save(tree, path), load_file)


def save_cast(job: Job) -> Work:
    """Cast, save, and flush to disk."""
    tree = job.arrays()
    return saving(job, lambda path: _save(to_bfloat16(tree), path), load_file)


def _save(tree: dict[str, Any], path: str) -> None:
    save_file(dict(tree), path)
    flush(path)


def load(job: Job) -> Work:
    """Load until ready, and touch every value."""
    return loading(job, lambda: _load(job))


def load_cast(job: Job) -> Work:
    """Load bfloat16 and cast to float32."""
    return loading(job, lambda: to_float32(load_file(job.path)), exact=False)


def place(job: Job) -> Work:
    """Load until ready, without touching values."""
    return Work(
        lambda: jax.block_until_ready(load_file(job.path)), lambda tree: check_tree(job, tree)
    )


def _load(job: Job) -> Any:
    tree = load_file(job.path)
    return jax.device_put(tree, job.shardings()) if job.layout else tree


def convert(job: Job) -> Work:
    """Convert a float32 file to a bfloat16 file, in memory."""
    return saving(job, lambda path: _save(to_bfloat16(load_file(job.path)), path), load_file)
