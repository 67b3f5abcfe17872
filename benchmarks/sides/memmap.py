"""`numpy.memmap` on an offset that is known."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.job import Job, Work
from benchmarks.trees import same_bits, tensors_of


def row(job: Job) -> Work:
    """Some row of a leaf as NumPy, from a file that is open and mapped, or mapped each time."""
    name, shape = list(job.spec.shapes().items())[-1]
    row = shape[0] // 2 + 1
    file = open(job.path, "rb")  # noqa: SIM115 - open for as long as the process lives
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
