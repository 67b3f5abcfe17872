"""Tensors: what is said of one of them, and of all with the same dtype or prefix."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, final

from safejax._src.inspection import text
from safejax._src.inspection.shards import Shard
from safejax._src.inspection.statistics import Statistics

_SHOWN: Final = 12


@final
@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor: `dtype` is the name of JAX's dtype, or the file's code where JAX has none.

    `nbytes` is the size of its data in the file, and `span` says where that is, in bytes,
    half-open; of a leaf of a tree that is not a file's, `file` and `span` are None. `aligned` says
    that the data begins on a multiple of 64 bytes, and `in_place` that arrays on the CPU use it in
    the mapped file, without a copy (those of 64 bits do so only in JAX's x64 mode, and are not
    counted).
    `key` is the implementation of typed PRNG keys, whose shape is that of their data. `digests`
    is how many blocks of it have one. `sharding` is that of a leaf of a tree, as text, and `shards`
    has each distinct part of it, with the devices that hold it, where they are known.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: str | None
    span: tuple[int, int] | None
    aligned: bool
    in_place: bool
    key: str | None
    weak_type: bool
    digests: int
    sharding: str | None
    shards: tuple[Shard, ...]
    statistics: Statistics | None

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    @property
    def notes(self) -> str:
        """What the table says in its last column."""
        notes = [f"{self.key} keys"] if self.key else []
        notes += ["weakly typed"] if self.weak_type else []
        notes += ["in place"] if self.in_place else []
        notes += [] if self.aligned or self.span is None or not self.nbytes else ["not aligned"]
        return ", ".join(notes)


@final
@dataclass(frozen=True, slots=True)
class Total:
    """The tensors of one dtype, or below one prefix: how many, with how many elements and bytes."""

    tensors: int
    size: int
    nbytes: int


def totals(tensors: Iterable[TensorInfo], key: Callable[[TensorInfo], str]) -> dict[str, Total]:
    """The totals of what has the same key, the one with the most bytes first."""
    found: dict[str, Total] = {}
    for tensor in tensors:
        seen = found.get(key(tensor), Total(0, 0, 0))
        found[key(tensor)] = Total(
            seen.tensors + 1, seen.size + tensor.size, seen.nbytes + tensor.nbytes
        )
    return dict(sorted(found.items(), key=lambda entry: -entry[1].nbytes))


def lines_of_totals(what: str, found: Mapping[str, Total]) -> list[str]:
    """A line for each of the first totals, and how many more there are."""
    lines = [
        f"{what} {key}: {text.counted(total.tensors, 'tensor')}, {text.size(total.nbytes)}"
        for key, total in list(found.items())[:_SHOWN]
    ]
    return lines + ([f"… {len(found) - _SHOWN} more"] if len(found) > _SHOWN else [])
