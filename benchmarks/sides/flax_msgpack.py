"""Flax's own serialization: msgpack bytes."""

from typing import Any

import jax
from flax.serialization import msgpack_restore, msgpack_serialize, to_bytes

from benchmarks.job import Job, Work, loading, saving, write_flushed


def write(job: Job) -> None:
    """The tree as msgpack."""
    write_flushed(job.path, iter([msgpack_serialize(job.spec.tree())]))


def save(job: Job) -> Work:
    """Bytes of the tree, written and flushed to disk."""
    tree = job.arrays()
    return saving(job, lambda path: write_flushed(path, iter([to_bytes(tree)])), _read)


def load(job: Job) -> Work:
    """Load to ready, every value touched."""
    return loading(job, lambda: jax.device_put(_read(job.path)))


def _read(path: str) -> Any:
    with open(path, "rb") as file:
        return msgpack_restore(file.read())
