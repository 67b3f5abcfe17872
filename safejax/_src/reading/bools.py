"""Bools: each is one byte, and a file may hold other bytes than 0 and 1."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def proper_bools(array: NDArray[Any]) -> NDArray[Any]:
    """The array with each byte 0 or 1, on which XLA relies; itself if they are."""
    raw = array.view(np.uint8)
    if raw.size == 0 or raw.max() <= 1:
        return array
    return np.asarray(raw != 0)  # For a 0-d array, NumPy returns a scalar.
