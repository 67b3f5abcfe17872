"""Equinox's own serialization: each leaf as `.npy`, one after the other."""

import os
from typing import Any

import equinox

from benchmarks.job import Job, Work, loading, saving


def write(job: Job) -> None:
    """Write the tree as Equinox serialises it."""
    _save(job.arrays(), job.path)


def save(job: Job) -> Work:
    """Save, and flush to disk."""
    tree = job.arrays()
    return saving(job, lambda path: _save(tree, path), lambda path: _load(job, path))


def load(job: Job) -> Work:
    """Load until ready, and touch every value."""
    return loading(job, lambda: _load(job, job.path))


def _save(tree: Any, path: str) -> None:
    with open(path, "wb") as file:
        equinox.tree_serialise_leaves(file, tree)
        file.flush()
        os.fsync(file.fileno())


def _load(job: Job, path: str) -> Any:
    # Equinox adds a suffix to a path, but not to an open file.
    with open(path, "rb") as file:
        return equinox.tree_deserialise_leaves(file, job.abstract())
