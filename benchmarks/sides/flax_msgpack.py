"""Flax's own serialization: msgpack bytes."""

from typing import Any

import jax
from flax.serialization import msgpack_restore, msgpack_serialize, to_bytes

from benchmarks.job import Job, Work, loading, saving, write_flushed


def write(job: Job) -> None:
    """Write the tree as msgpack."""
    write_flushed(job.path, iter([msgpack_serialize(job.spec.tree())]))


def save(job: Job) -> Work:
    """Write the bytes of the tree, and flush them to disk."""
    tree = job.arrays()
    return saving(job, lambda path: write_flushed(path, iter([to_bytes(tree)])), _read)


def load(job: Job) -> Work:
    """Load until ready, and touch every value."""
    return loading(job, lambda: jax.device_put(_read(job.path)))


def _read(path: str) -> Any:
    with open(path, "rb") as file:
        return msgpack_restore(file.read())
