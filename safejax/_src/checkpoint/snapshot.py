"""Snapshots: layouts whose values stay, whatever happens to the arrays that they come from.

What is on a CPU device is not copied: NumPy's array of it is held. XLA gives no buffer to another
array while one of NumPy refers to it, so that donation and deletion leave its values as they are.
(To hold the array of JAX would not be enough.) What is on another device is copied to the host,
all arrays at the same time. NumPy's own arrays are copied, since their owners may write to them.
Bytes of files that cannot change are left where they are.

Nothing of JAX is left to run when the layout is written.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, cast, final

import jax
import numpy as np
from numpy.typing import NDArray

from safejax._src import dtypes
from safejax._src.checkpoint.layout import Layout
from safejax._src.checkpoint.shards import Folder
from safejax._src.reading.array import on_the_host
from safejax._src.reading.source import HostArray
from safejax.errors import LeafError


@final
class Holding:
    """The arrays that a plan takes its values from, each once, however many leaves show it."""

    def __init__(self, plan: Layout | Folder) -> None:
        self._plan = plan
        self._arrays: dict[int, tuple[HostArray, str]] = {}
        for layout in [plan] if isinstance(plan, Layout) else plan.files.values():
            for extent in layout.extents:
                for array in extent.arrays:
                    self._arrays.setdefault(id(array), (array, extent.name))

    def copied_bytes(self) -> int:
        """How many bytes of host memory `hold` takes for copies; reads nothing."""
        return sum(_copied_bytes(array) for array, _ in self._arrays.values())

    def hold(self) -> Callable[[], Layout | Folder]:
        """Hold, or copy, each array; what is returned makes the plan with that, in any thread.

        Waits until the arrays are computed. Raises `LeafError`, which names the leaf, for an array
        that is deleted.
        """
        return partial(self._plan.with_arrays, self.held())

    def held(self) -> Callable[[HostArray], NDArray[Any]]:
        """As `hold`, but returns what stands in the place of each array."""
        for array, _ in self._arrays.values():
            if isinstance(array, jax.Array) and not (_is_on_cpu(array) or array.is_deleted()):
                array.copy_to_host_async()
        held = {key: _held(array, name) for key, (array, name) in self._arrays.items()}
        return lambda array: held[id(array)]


def copied_bytes(plan: Layout | Folder) -> int:
    """How many bytes of host memory `snapshot` takes for copies; reads nothing."""
    return Holding(plan).copied_bytes()


def snapshot(plan: Layout | Folder) -> Layout | Folder:
    """The same layout, or folder, with values that the owners of arrays cannot change any more.

    Waits until the arrays are computed. Each array is held, or copied, once, however many leaves
    show parts of it. Raises `LeafError`, which names the leaf, for an array that is deleted.
    """
    return Holding(plan).hold()()


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
    return _is_of_cpu(array.sharding)


@lru_cache(maxsize=1024)
def _is_of_cpu(sharding: jax.sharding.Sharding) -> bool:
    return all(device.platform == "cpu" for device in sharding.device_set)
