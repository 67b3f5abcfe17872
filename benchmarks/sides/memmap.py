"""`numpy.memmap` at a known offset."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.job import Job, Work
from benchmarks.trees import same_bits, tensors_of


def row(job: Job) -> Work:
    """A row of a leaf as NumPy, from an open file that is mapped once or for each row."""
    name, shape = list(job.spec.shapes().items())[-1]
    row = shape[0] // 2 + 1
    file = open(job.path, "rb")  # noqa: SIM115 - open until the process ends
    begin, _, _ = tensors_of(job.path)[name]
    leaf = np.memmap(file, np.float32, "r", begin, shape)

    def mapped_anew() -> NDArray[np.float32]:
        return np.array(np.memmap(file, np.float32, "r", begin, shape)[row])

    def mapped_before() -> NDArray[np.float32]:
        return np.array(leaf[row])

    def check(result: NDArray[np.float32]) -> None:
        assert same_bits(result, np.asarray(leaf)[row])

    run = mapped_anew if job.side.endswith("anew") else mapped_before
    return Work(run, check, calls=20_000)
