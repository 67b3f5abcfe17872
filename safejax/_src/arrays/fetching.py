"""Fetching: values come from a device to the host while something else goes on.

They come as an array in page-locked memory, which a device writes at the rate of its link, and
which is NumPy's array without a further copy; JAX's own `array_serialization` does the same
(jax-ml/jax#22114). JAX lets go of it when it has been used, whereas what `copy_to_host_async`
copies is kept for as long as the array on the device lives.
"""

import contextlib
from typing import Any, Final

import jax
from jax.sharding import Sharding, SingleDeviceSharding

from safejax._src.arrays.devices import only_device
from safejax._src.arrays.pinned import PINNED, has_pinned_memory
from safejax._src.arrays.precision import needs_x64
from safejax._src.arrays.switch import SWITCH, is_in_default_memory
from safejax._src.dtypes import is_below_a_byte
from safejax._src.reading.source import HostArray

_MOST_BYTES: Final = 1 << 30
"""Bytes of an array up to which XLA uses page-locked memory itself; to allocate more is slow."""


def begin_fetch(array: HostArray, *, keep: bool = False) -> HostArray:
    """An array of the same values, which are on their way to the host.

    It is `array` itself where the values are there already or, with `keep`, where JAX keeps them
    with the array, since they are needed more than once.
    """
    if not isinstance(array, jax.Array) or array.is_deleted():
        return array
    device = _device_of(array.sharding)
    if device is None or (device.platform == "cpu" and not SWITCH.forced()):
        return array
    # Whoever reads the array has the error: it was deleted since, or may not be copied.
    with contextlib.suppress(RuntimeError):
        if not keep and _is_fit(array) and has_pinned_memory(device):
            return jax.device_put(array, SingleDeviceSharding(device, memory_kind=PINNED))
        array.copy_to_host_async()
    return array


def _device_of(sharding: Sharding) -> Any | None:
    """The only device that holds an array in the memory that it computes in, if there is one."""
    device = only_device(sharding)
    return device if device is not None and is_in_default_memory(sharding) else None


def _is_fit(array: jax.Array) -> bool:
    # What x64 would narrow, and what XLA packs, is left to `copy_to_host_async`.
    dtype = array.dtype
    return array.nbytes <= _MOST_BYTES and not needs_x64(dtype) and not is_below_a_byte(dtype)
