"""Views of JAX's arrays, which for an array over several devices show its shards.

NumPy would assemble such an array in a copy, which JAX then keeps for as long as the array lives.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeAlias, cast

import jax
import numpy as np
from numpy.typing import NDArray

from safejax._src.reading.array import AbsentSource, ArraySource
from safejax._src.reading.concatenation import concatenation
from safejax._src.reading.source import HostArray, Source
from safejax._src.reading.view import Strided, View
from safejax._src.reading.windows import Window

Box: TypeAlias = tuple[tuple[int, int], ...]
"""The elements of an array that a shard holds: along each axis half-open, `(begin, end)`."""


def view_of_array(array: jax.Array | NDArray[Any]) -> View:
    """The values of a NumPy array, or of a JAX array that has no keys; reads nothing.

    Of what several devices hold, the copy on the first of them in this process is read. Parts
    that no device of this process holds are there as `AbsentSource`s.
    """
    if isinstance(array, np.ndarray) or len(array.sharding.device_set) == 1:
        return _whole(ArraySource(array), array.dtype, array.shape)
    sources: dict[Box, Source] = {}
    for shard in array.addressable_shards:
        sources.setdefault(
            _box(shard.index, array.shape), ArraySource(cast("HostArray", shard.data))
        )
    if not array.is_fully_addressable:
        for index in _indices(array.sharding, array.shape).values():
            sources.setdefault(_box(index, array.shape), _ABSENT)
    parts = {
        box: _whole(source, array.dtype, tuple(end - begin for begin, end in box))
        for box, source in sources.items()
    }
    return _joined(parts, 0)


def boxes_of(sharding: jax.sharding.Sharding, shape: tuple[int, ...]) -> dict[Box, list[Any]]:
    """The devices, of all processes, that hold each distinct part of an array of `shape`."""
    held: dict[Box, list[Any]] = {}
    for device, index in _indices(sharding, shape).items():
        held.setdefault(_box(index, shape), []).append(device)
    return held


_ABSENT: Final = AbsentSource()


def _indices(sharding: jax.sharding.Sharding, shape: tuple[int, ...]) -> dict[Any, Any]:
    return cast("dict[Any, Any]", sharding.devices_indices_map(shape))


def _box(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _whole(source: Source, dtype: Any, shape: tuple[int, ...]) -> View:
    dtype = np.dtype(dtype)
    native = dtype if dtype.isnative else dtype.newbyteorder("=")
    return Strided(source, 0, native, Window.whole(shape))


def _joined(parts: Mapping[Box, View], axis: int) -> View:
    """The parts as one view; they agree on the axes before `axis`, and form a grid."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    along: dict[tuple[int, int], dict[Box, View]] = {}
    for box in sorted(parts):
        along.setdefault(box[axis], {})[box] = parts[box]
    return concatenation(tuple(_joined(each, axis + 1) for each in along.values()), axis)
