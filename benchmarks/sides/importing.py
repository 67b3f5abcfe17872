"""The time of an import after `import jax`."""

import importlib

from benchmarks.job import Job, Work

_MODULES = {
    "safejax": "safejax",
    "safetensors.flax": "safetensors.flax",
    "Orbax": "orbax.checkpoint.experimental.v1",
    "flax msgpack": "flax.serialization",
    "equinox": "equinox",
}


def import_module(job: Job) -> Work:
    """Import the side's module."""
    return Work(lambda: importlib.import_module(_MODULES[job.side]))
