"""Shards: which part of a tensor is on which devices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final


@final
@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a tensor, and the devices that hold it, such as `cpu:0`.

    On each axis it has the elements from `begin` to `end`, half-open.
    """

    begin: tuple[int, ...]
    end: tuple[int, ...]
    devices: tuple[str, ...]


def shards_of(indices: Mapping[Any, Sequence[slice]], shape: Sequence[int]) -> tuple[Shard, ...]:
    """The distinct parts of a tensor of this shape, by the slices of it that each device holds.

    There may be fewer slices than axes; the other axes are whole.
    """
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], list[str]] = {}
    for device, slices in indices.items():
        ranges = [part.indices(size) for part, size in zip(slices, shape, strict=False)]
        ranges += [(0, size, 1) for size in shape[len(ranges) :]]
        key = tuple(each[0] for each in ranges), tuple(each[1] for each in ranges)
        found.setdefault(key, []).append(f"{device.platform}:{device.id}")
    return tuple(Shard(*key, tuple(devices)) for key, devices in sorted(found.items()))
