"""Pickle, with the tree as NumPy arrays."""

import os
import pickle
from typing import Any

import jax

from benchmarks.job import Job, Work, loading, saving


def write(job: Job) -> None:
    """Write the pickled tree."""
    _save(job.spec.tree(), job.path)


def save(job: Job) -> Work:
    """Save, and flush to disk."""
    tree = job.arrays()
    return saving(job, lambda path: _save(jax.device_get(tree), path), _read)


def load(job: Job) -> Work:
    """Load until ready, and touch every value."""
    return loading(job, lambda: jax.device_put(_read(job.path)))


def _save(tree: Any, path: str) -> None:
    with open(path, "wb") as file:
        pickle.dump(tree, file, protocol=pickle.HIGHEST_PROTOCOL)
        file.flush()
        os.fsync(file.fileno())


def _read(path: str) -> Any:
    with open(path, "rb") as file:
        return pickle.load(file)
