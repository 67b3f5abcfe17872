"""Views of JAX's arrays, which for an array over several devices show its shards.

NumPy would assemble such an array in a copy, which JAX then keeps for as long as the array lives.
"""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias, cast, final

import jax
import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.array import AbsentSource, ArraySource
from safejax._src.reading.concatenation import concatenation
from safejax._src.reading.held import held_by
from safejax._src.reading.source import HostArray, Source
from safejax._src.reading.view import Strided, View
from safejax._src.reading.windows import Window

Box: TypeAlias = tuple[tuple[int, int], ...]
"""The elements of an array that a shard holds: along each axis half-open, `(begin, end)`."""

Holders: TypeAlias = tuple[int, ...]
"""The processes that hold a part of an array, in rising order."""


def view_of_array(array: jax.Array | NDArray[Any]) -> View:
    """The values of a NumPy array, or of a JAX array that has no keys; reads nothing.

    Of what several devices hold, the copy on the first of them in this process is read. Parts
    that no device of this process holds are there as `AbsentSource`s; the others know then which
    processes hold them.
    """
    if isinstance(array, np.ndarray):
        return _whole(ArraySource(array), array.dtype, array.shape)
    is_whole = array.is_fully_addressable
    if is_whole and len(array.sharding.device_set) == 1:
        return _whole(ArraySource(array), array.dtype, array.shape)
    parts: dict[Box, View] = {}
    boxes = _boxes_here(array.sharding, array.shape)
    for shard in array.addressable_shards:
        box = boxes[shard.device]
        if box not in parts:
            source = ArraySource(cast("HostArray", shard.data))
            parts[box] = _whole(source, array.dtype, _sizes(box))
    if not is_whole:
        holders = holders_of(array.sharding, array.shape)
        parts = {box: held_by(part, holders[box]) for box, part in parts.items()}
    return _joined(parts, np.dtype(array.dtype), tuple((0, size) for size in array.shape))


@lru_cache(maxsize=1024)
def _boxes_here(sharding: jax.sharding.Sharding, shape: tuple[int, ...]) -> Mapping[Any, Box]:
    """What each device of this process holds."""
    indices = cast("dict[Any, Any]", sharding.addressable_devices_indices_map(shape))
    return MappingProxyType({device: _box(index, shape) for device, index in indices.items()})


def view_of_share(view: View, holders: Mapping[Box, Holders], process: int) -> View:
    """What a process has of the values of `view`, if they are divided like this.

    Its other parts are there as `AbsentSource`s.
    """
    parts = {
        box: held_by(view.index(tuple(slice(*bounds) for bounds in box)), each)
        for box, each in holders.items()
        if process in each
    }
    whole = tuple((0, size) for size in view.shape)
    # The boxes may be without the last axes, as those of keys are.
    parts = {(*box, *whole[len(box) :]): part for box, part in parts.items()}
    return _joined(parts, view.dtype, whole)


@lru_cache(maxsize=1024)
def holders_of(sharding: jax.sharding.Sharding, shape: tuple[int, ...]) -> Mapping[Box, Holders]:
    """The processes that hold each distinct part of an array of `shape`."""
    return MappingProxyType(
        {
            box: tuple(sorted({device.process_index for device in devices}))
            for box, devices in boxes_of(sharding, shape).items()
        }
    )


def boxes_of(sharding: jax.sharding.Sharding, shape: tuple[int, ...]) -> dict[Box, list[Any]]:
    """The devices, of all processes, that hold each distinct part of an array of `shape`."""
    held: dict[Box, list[Any]] = {}
    indices = cast("dict[Any, Any]", sharding.devices_indices_map(shape))
    for device, index in indices.items():
        held.setdefault(_box(index, shape), []).append(device)
    return held


_ABSENT: Final = AbsentSource()


def _box(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _sizes(box: Box) -> tuple[int, ...]:
    return tuple(end - begin for begin, end in box)


def _whole(source: Source, dtype: Any, shape: tuple[int, ...]) -> View:
    dtype = np.dtype(dtype)
    native = dtype if dtype.isnative else dtype.newbyteorder("=")
    return Strided(source, 0, native, Window.whole(shape))


def _joined(parts: Mapping[Box, View], dtype: Dtype, whole: Box) -> View:
    """The parts of the box `whole` as one view.

    They are some of the boxes of a grid. The gaps between them are absent, however many boxes of
    other processes lie there.
    """
    views = list(parts.values())

    def made(node: _Node) -> View:
        if isinstance(node, int):
            return views[node]
        if isinstance(node, _Gap):
            return _absent(dtype, node.shape)
        return concatenation(tuple(map(made, node.nodes)), node.axis)

    return made(_arranged(tuple(parts), whole))


@final
class _Gap(NamedTuple):
    """A part that no device of this process holds."""

    shape: tuple[int, ...]


@final
class _Row(NamedTuple):
    """Parts that lie next to each other along an axis."""

    axis: int
    nodes: "tuple[_Node, ...]"


_Node: TypeAlias = int | _Gap | _Row
"""How parts make a whole; an int is the number of one of them."""


# Most arrays of a tree are divided like another one.
@lru_cache(maxsize=1024)
def _arranged(boxes: tuple[Box, ...], whole: Box) -> _Node:
    """How boxes make the box `whole`."""
    numbers = {box: number for number, box in enumerate(boxes)}

    def arranged(inside: list[Box], whole: Box, axis: int) -> _Node:
        if not inside:
            return _Gap(_sizes(whole))
        if axis == len(whole):
            (box,) = inside
            return numbers[box]
        along: dict[tuple[int, int], list[Box]] = {}
        for box in sorted(inside):
            along.setdefault(box[axis], []).append(box)
        nodes: list[_Node] = []

        def gap(begin: int, end: int) -> None:
            if begin < end:
                nodes.append(_Gap(_sizes(_with(whole, axis, (begin, end)))))

        at, last = whole[axis]
        for bounds, within in along.items():
            gap(at, bounds[0])
            nodes.append(arranged(within, _with(whole, axis, bounds), axis + 1))
            at = bounds[1]
        gap(at, last)
        return _Row(axis, tuple(nodes))

    return arranged(list(boxes), whole, 0)


@lru_cache(maxsize=1024)
def _absent(dtype: Dtype, shape: tuple[int, ...]) -> View:
    return _whole(_ABSENT, dtype, shape)


def _with(box: Box, axis: int, bounds: tuple[int, int]) -> Box:
    return (*box[:axis], bounds, *box[axis + 1 :])
