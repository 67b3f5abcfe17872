"""What the devices of a sharding hold of an array, and how they take it.

A tree may have thousands of leaves that one device takes as they lie in memory: each of them is
placed with few calls of Python.
"""

from functools import lru_cache
from typing import Any, Final, NamedTuple, cast, final

import jax
from jax.sharding import Sharding
from numpy.typing import NDArray

from safejax._src.arrays import jax_private
from safejax._src.dtypes import Dtype
from safejax._src.reading.memory import ALIGNMENT, is_aligned
from safejax._src.reading.view import View


def array_in_place(
    view: View, aval: Any, sharding: Sharding, *, committed: bool
) -> tuple[jax.Array, list[NDArray[Any]]] | None:
    """The array of a view that one device takes as it lies; None if it does not.

    With it comes its block of a mapped file, if it uses that without a copy. `aval` is what
    tracing sees of the array.
    """
    target = _target_of(sharding)
    if target is None or view.dtype != aval.dtype:
        return None
    is_copied = not target.is_cpu or view.nbytes <= _COPIED_IN_CALL
    values = view.in_place(view.dtype.alignment if is_copied else ALIGNMENT)
    if values is None:
        return None
    array = jax_private.array_of_block(aval, sharding, target.devices, values, committed)
    stays = target.is_cpu and view.is_mapped and is_aligned(values)
    return array, [values] if stays else []


def only_device(sharding: Sharding) -> Any | None:
    """The device that holds all of an array; None if there are more, or none of this process."""
    target = _target_of(sharding)
    return None if target is None else target.devices[0]


def alignment_for(device: Any, dtype: Dtype) -> int:
    """Bytes that a block must begin on for a device to take it as it lies."""
    # Others than the CPU copy it to memory of their own.
    return ALIGNMENT if device.platform == "cpu" else dtype.alignment


@lru_cache(maxsize=1024)
def parts_of(
    sharding: Sharding, shape: tuple[int, ...]
) -> tuple[list[tuple[Any, tuple[slice, ...]]], dict[Any, int]]:
    """The distinct parts of an array, each with the first device of this process that holds it.

    With them, which of the parts each device of this process holds.
    """
    numbers: dict[tuple[tuple[int, int], ...], int] = {}
    parts: list[tuple[Any, tuple[slice, ...]]] = []
    part_of: dict[Any, int] = {}
    for device, index in cast("Any", sharding.addressable_devices_indices_map(shape)).items():
        bounds = tuple((part.start, part.stop) for part in index)
        part_of[device] = numbers.setdefault(bounds, len(parts))
        if part_of[device] == len(parts):
            parts.append((device, index))
    return parts, part_of


_COPIED_IN_CALL: Final = 64 << 10
"""Bytes of a block that XLA's CPU client copies before it returns, where it is not aligned.

Above 100 KiB it copies in a thread of its own.
"""


@final
class _Target(NamedTuple):
    """The one device of a sharding, in a list, and whether it is a CPU."""

    devices: list[Any]
    is_cpu: bool


@lru_cache(maxsize=64)
def _target_of(sharding: Sharding) -> _Target | None:
    devices = list(sharding.device_set)
    if len(devices) > 1 or not sharding.is_fully_addressable:
        return None
    return _Target(devices, devices[0].platform == "cpu")
