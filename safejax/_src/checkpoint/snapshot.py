"""Snapshots: layouts whose values stay, whatever happens to the arrays that they come from.

What is on a CPU device is not copied: NumPy's array of it is held. XLA gives no buffer to another
array while one of NumPy refers to it, so that donation and deletion leave its values as they are.
(To hold the array of JAX would not be enough.) What is on another device is copied to the host,
all arrays at the same time. NumPy's own arrays are copied, since their owners may write to them.
Bytes of files that cannot change are left where they are.

Nothing of JAX is left to run when the layout is written.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import numpy as np
from numpy.typing import NDArray

from safejax._src import dtypes
from safejax._src.checkpoint.layout import Extent, Layout
from safejax._src.checkpoint.shards import Folder
from safejax._src.reading.array import on_the_host
from safejax._src.reading.source import HostArray
from safejax.errors import LeafError


def copied_bytes(plan: Layout | Folder) -> int:
    """How many bytes of host memory `snapshot` takes for copies; reads nothing."""
    arrays = {id(array): array for extent in _extents(plan) for array in extent.arrays}
    return sum(map(_copied_bytes, arrays.values()))


def snapshot(plan: Layout | Folder) -> Layout | Folder:
    """The same layout, or folder, with values that the owners of arrays cannot change any more.

    Waits until the arrays are computed. Each array is held, or copied, once, however many leaves
    show parts of it. Raises `LeafError`, which names the leaf, for an array that is deleted.
    """
    return plan.with_arrays(held(plan))


def held(plan: Layout | Folder) -> Callable[[HostArray], NDArray[Any]]:
    """What a snapshot has in the place of each array of a plan."""
    extents = list(_extents(plan))
    for extent in extents:
        for array in extent.arrays:
            if isinstance(array, jax.Array) and not (_is_on_cpu(array) or array.is_deleted()):
                array.copy_to_host_async()
    found: dict[int, NDArray[Any]] = {}
    for extent in extents:
        for array in extent.arrays:
            if id(array) not in found:
                found[id(array)] = _held(array, extent.name)
    return lambda array: found[id(array)]


def _extents(plan: Layout | Folder) -> Iterator[Extent]:
    for layout in [plan] if isinstance(plan, Layout) else plan.files.values():
        yield from layout.extents


def _held(array: HostArray, name: str) -> NDArray[Any]:
    if isinstance(array, np.ndarray):
        own = cast("NDArray[Any]", array)
        return np.array(own, own.dtype.newbyteorder("="), order="C")
    try:
        return on_the_host(array)
    except LeafError as error:  # Another thread deleted it since the layout was made.
        raise LeafError(f"leaf {name!r}: {error}") from error


def _copied_bytes(array: HostArray) -> int:
    if isinstance(array, jax.Array):
        is_in_place = _is_on_cpu(array) and not dtypes.is_below_a_byte(np.dtype(array.dtype))
        return 0 if is_in_place else array.nbytes
    return cast("NDArray[Any]", array).nbytes


def _is_on_cpu(array: jax.Array) -> bool:
    return all(device.platform == "cpu" for device in array.sharding.device_set)
