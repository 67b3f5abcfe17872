"""Statistics of a tensor's values, which are read in a bounded window."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.reading.view import View

WINDOW_ELEMENTS: Final = 1 << 20
"""How many elements are held in memory at a time, as 64-bit numbers."""

_BINS: Final = 24
_BARS: Final = " ▁▂▃▄▅▆▇█"

Reals = NDArray[np.float64]


@final
@dataclass(frozen=True, slots=True)
class Statistics:
    """What a tensor's values are like; of complex ones, what their absolute values are like.

    `min`, `max`, `mean` and `std` (that of the population) are those of the finite values, and
    None if there are none. `nans` and `infs` count the others. `histogram` counts the finite values
    in bins of equal width from `min` to `max`.
    """

    size: int
    nans: int
    infs: int
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    histogram: tuple[int, ...]

    @property
    def bars(self) -> str:
        """The histogram as one line of text, a character for each bin."""
        most = max(self.histogram, default=0)
        return "".join(_BARS[-(-count * 8 // most)] for count in self.histogram) if most else ""


def statistics_of(view: View, read: Callable[[int], None] = lambda _: None) -> Statistics:
    """The statistics of the values that a view shows, which are read twice, block by block.

    `read(n)` is called after every `n` bytes; each byte counts once.
    """
    count = nans = infs = 0
    low, high = np.inf, -np.inf
    # Of NumPy, whose numbers overflow to infinity where those of Python raise.
    mean, squares = np.float64(0), np.float64(0)
    with np.errstate(all="ignore"):
        for values, _ in _blocks(view):
            finite = values[np.isfinite(values)]
            nans += int(np.isnan(values).sum())
            infs += int(np.isinf(values).sum())
            if finite.size:
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
                # Chan, Golub and LeVeque: the variance of two samples together.
                own = np.float64(finite.mean())
                total = count + finite.size
                squares += ((finite - own) ** 2).sum()
                squares += (own - mean) ** 2 * count * finite.size / total
                mean += (own - mean) * finite.size / total
                count = total
        bins = np.zeros(_BINS if high > low else 1, np.int64)
        for values, nbytes in _blocks(view):
            finite = values[np.isfinite(values)]
            if high > low:
                # In halves: the difference of two finite numbers may not be finite.
                part = (finite / 2 - low / 2) / (high / 2 - low / 2)
                of = np.minimum((part * _BINS).astype(np.int64), _BINS - 1)
                bins += np.bincount(of, minlength=_BINS)
            else:
                bins[0] += finite.size
            read(nbytes)
    if not count:
        return Statistics(view.size, nans, infs, None, None, None, None, ())
    std = float(np.sqrt(squares / count))
    return Statistics(view.size, nans, infs, low, high, float(mean), std, tuple(bins.tolist()))


def reals(array: NDArray[Any]) -> Reals:
    """The values as 64-bit numbers; of complex ones, their absolute values."""
    return (np.abs(array) if array.dtype.kind == "c" else array).astype(np.float64).reshape(-1)


def _blocks(view: View) -> Iterator[tuple[Reals, int]]:
    """The values block by block, each with the bytes that it has in the file."""
    if not view.size:
        return
    for block in view.blocks(WINDOW_ELEMENTS * view.dtype.itemsize):
        yield reals(block.read()), block.nbytes
