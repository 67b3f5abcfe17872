"""Ahead: values on devices are on their way to the host before the file gets to them."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

import jax

from safejax._src.arrays.fetching import begin_fetch
from safejax._src.arrays.switch import SWITCH
from safejax._src.checkpoint.layout import Extent
from safejax._src.reading.source import HostArray

AHEAD_BYTES: Final = 256 << 20
"""Bytes of tensors that are on their way at a time, if that is more than one."""


def fetched_ahead(extents: Sequence[Extent], most: int = AHEAD_BYTES) -> Iterator[Extent]:
    """The extents in order; those after the one that is taken are being fetched, up to `most`."""
    # To ask about the devices brings them up, which a save of NumPy's arrays alone must not do.
    on_devices = any(isinstance(array, jax.Array) for each in extents for array in each.arrays)
    return _ahead(extents, most) if on_devices and SWITCH.is_possible() else iter(extents)


def _ahead(extents: Sequence[Extent], most: int) -> Iterator[Extent]:
    uses = Counter(id(array) for extent in extents for array in extent.arrays)
    begun: deque[Extent] = deque()
    nbytes = 0
    for extent in extents:
        begun.append(extent.with_arrays(partial(_begin, uses)))
        nbytes += extent.nbytes
        while nbytes > most and len(begun) > 1:
            nbytes -= begun[0].nbytes
            yield begun.popleft()
    while begun:
        yield begun.popleft()


def _begin(uses: Counter[int], array: HostArray) -> HostArray:
    return begin_fetch(array, keep=uses[id(array)] > 1)
