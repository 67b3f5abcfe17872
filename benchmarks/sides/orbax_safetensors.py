"""Orbax's safetensors layout, which loads flat dicts and cannot save."""

import logging

from absl import logging as absl_logging
from orbax.checkpoint.experimental import v1

from benchmarks.job import Job, Work, loading

absl_logging.set_verbosity(absl_logging.ERROR)
logging.getLogger().setLevel(logging.ERROR)


def load(job: Job) -> Work:
    """Load until ready, and touch every value."""
    abstract = job.abstract()
    layout = v1.options.CheckpointLayout.SAFETENSORS

    def run() -> dict[str, object]:
        with v1.Context(checkpoint_layout=layout):
            return v1.load(job.path, abstract)

    return loading(job, run)
