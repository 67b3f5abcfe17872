"""Orbax, with its own format and its defaults."""

import logging
from typing import Any

import jax
import numpy as np
from absl import logging as absl_logging
from orbax.checkpoint.experimental import v1

from benchmarks.job import Job, Work, check_tree, loading, saving

absl_logging.set_verbosity(absl_logging.ERROR)
logging.getLogger().setLevel(logging.ERROR)


def write(job: Job) -> None:
    """Write the tree as Orbax saves it."""
    v1.save(job.path, job.arrays())


def save(job: Job) -> Work:
    """Save; TensorStore flushes its files to disk by itself."""
    tree = job.arrays()
    return saving(job, lambda path: v1.save(path, tree), _load_host)


def _load_host(path: str) -> Any:
    return jax.tree.map(np.asarray, v1.load(path))


def load(job: Job) -> Work:
    """Load until ready, and touch every value."""
    abstract = job.abstract()
    return loading(job, lambda: v1.load(job.path, abstract))


def place(job: Job) -> Work:
    """Load until ready, without touching values."""
    abstract = job.abstract()
    return Work(
        lambda: jax.block_until_ready(v1.load(job.path, abstract)),
        lambda tree: check_tree(job, tree),
    )
