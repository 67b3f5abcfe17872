"""Indices: which of them take a part of a leaf, and where JAX puts that part."""

from types import EllipsisType
from typing import Any, cast

import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from safejax._src.arrays.placing import Placement, default_placement
from safejax._src.arrays.switch import is_in_default_memory
from safejax._src.reading.windows import BasicIndex, explicit_index


def placement_of_part(
    placement: Placement, index: tuple[BasicIndex, ...], shape: tuple[int, ...], *, is_key: bool
) -> Placement | None:
    """Where JAX puts `array[index]` of an array of `shape` at `placement`; None if unknown.

    An index that takes everything gives the array itself. A part of an array on one device stays
    there if the array is committed; if it is not, the part is computed on the default device. On
    a mesh, JAX keeps the partition of every axis that is taken whole, and replicates the others;
    explicit axes refuse to be cut where they are partitioned. Pinned by tests on every supported
    JAX; where they differ from each other, the answer is None.
    """
    entries = explicit_index(index, shape)
    if all(entry == (0, 1, size) for entry, size in zip(entries, shape, strict=True)):
        return placement
    sharding = placement.sharding
    if not is_in_default_memory(sharding):
        return None
    if isinstance(sharding, SingleDeviceSharding):
        return placement if placement.committed else default_placement()
    if is_key or not isinstance(sharding, NamedSharding):
        return None
    kinds: set[AxisType] = set(sharding.mesh.axis_types)
    if kinds not in ({AxisType.Auto}, {AxisType.Explicit}) or _has_unusual_spec(sharding.spec):
        return None
    explicit = kinds == {AxisType.Explicit}
    one_device = sharding.mesh.size == 1
    reverses = any(isinstance(entry, tuple) and entry[1] < 0 for entry in entries)
    if reverses and any(each not in (slice(None), slice(None, None, -1), ...) for each in index):
        return None  # JAX keeps the partition of reversed axes where nothing else is asked for.
    padded = (*sharding.spec, *(None,) * (len(shape) - len(sharding.spec)))
    spec: list[Any] = []
    for entry, axes, size in zip(entries, padded, shape, strict=True):
        whole = isinstance(entry, tuple) and entry[2] == size
        if not whole and axes is not None and explicit:
            return None
        if isinstance(entry, tuple):
            if not entry[2]:
                return None
            spec.append(axes if whole or one_device else None)
    if not explicit:
        if tuple(spec) == padded:
            return placement
        if one_device:  # Its compiler reports no partition.
            spec = []
        while spec and spec[-1] is None:
            spec.pop()
    return Placement(NamedSharding(sharding.mesh, PartitionSpec(*spec)), placement.committed)


def _has_unusual_spec(spec: Any) -> bool:
    return bool(getattr(spec, "unreduced", None) or getattr(spec, "reduced", None))


def basic_index(index: Any, shape: tuple[int, ...]) -> tuple[BasicIndex, ...] | None:
    """The index as NumPy's basic one, or None where JAX's own indexing has to answer."""
    entries = cast("tuple[Any, ...]", index) if isinstance(index, tuple) else (index,)
    basic: list[BasicIndex] = []
    for entry in entries:
        if isinstance(entry, EllipsisType):
            basic.append(entry)
        elif isinstance(entry, slice):
            parts = (entry.start, entry.stop, entry.step)
            if entry.step == 0 or not all(part is None or _is_int(part) for part in parts):
                return None
            basic.append(entry)
        elif _is_int(entry):
            basic.append(int(entry))
        else:
            return None
    axes = len(basic) - basic.count(...)
    if axes > len(shape) or basic.count(...) > 1:
        return None
    # Trailing slices, so that an index on a key array leaves the key's own axes alone.
    if ... not in basic:
        basic.append(...)
    at = basic.index(...)
    basic[at : at + 1] = [slice(None)] * (len(shape) - axes)
    for entry, size in zip(basic, shape, strict=True):
        # JAX clamps what is out of range.
        if isinstance(entry, int) and not -size <= entry < size:
            return None
    return tuple(basic)


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
