"""Leaves that are read together: neighbours in a file whose bytes are requested.

A request takes as long as many kilobytes do, and a file may have thousands of small leaves. So
they are placed in groups, each of which is planned as a whole, and holds a bounded number of bytes.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, Final, Protocol, TypeVar, cast

import jax
from jax.sharding import Sharding

from safejax._src.arrays.content import Content
from safejax._src.arrays.precision import needs_x64
from safejax._src.reading.batch import Batch
from safejax._src.reading.view import View

GROUP_BYTES: Final = 64 << 20
"""Most bytes that the leaves of a group have in a process, if there is more than one leaf."""


class Leaf(Protocol):
    """What is asked here of a lazy leaf."""

    @property
    def content(self) -> Content: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def sharding(self) -> Sharding: ...


_Leaf = TypeVar("_Leaf", bound=Leaf)


def read_together(leaves: Iterable[_Leaf]) -> list[list[_Leaf]]:
    """The leaves in groups; those of a group need x64, or none of them does."""
    return list(groups_of(leaves, jax.process_index()))


def groups_of(leaves: Iterable[_Leaf], process: int) -> Iterator[list[_Leaf]]:
    """The groups in which a process reads the leaves that it holds a part of, or all of them.

    They are in the order in which their sources come first, and in that of a file within it.
    """
    leaves = list(leaves)
    for wide in (False, True):
        chosen = [leaf for leaf in leaves if needs_x64(leaf.content.view.dtype) == wide]
        group: list[_Leaf] = []
        held = 0
        for leaf in sorted(chosen, key=_order()):
            nbytes = _bytes_held(leaf, process)
            if group and held + nbytes > GROUP_BYTES:
                yield group
                group, held = [], 0
            group.append(leaf)
            held += nbytes
        if group:
            yield group


def blocks_of(leaf: Leaf, process: int) -> Iterator[View]:
    """The parts of a leaf that a process reads, each once."""
    content = leaf.content
    own = (slice(None),) * content.key_axes
    for bounds in _held_by(leaf.sharding, leaf.shape, process):
        yield content.view.index((*(slice(*each) for each in bounds), *own))


def _order() -> Callable[[Leaf], tuple[int, int]]:
    """The key by which leaves are sorted."""
    sources: dict[Any, int] = {}

    def key(leaf: Leaf) -> tuple[int, int]:
        view = leaf.content.view
        batch = Batch(is_dry=True)
        view.read_in_batch(batch.empty(view.shape, view.dtype), batch)
        source, begin = batch.first or (None, 0)
        return sources.setdefault(source, len(sources)), begin

    return key


def _bytes_held(leaf: Leaf, process: int) -> int:
    return sum(view.nbytes for view in blocks_of(leaf, process))


@lru_cache(maxsize=256)
def _held_by(
    sharding: Sharding, shape: tuple[int, ...], process: int
) -> tuple[tuple[tuple[int, int, int], ...], ...]:
    """The distinct indices that the devices of a process hold."""
    indices = cast("dict[Any, tuple[slice, ...]]", sharding.devices_indices_map(shape))
    found = [
        tuple(part.indices(size) for part, size in zip(index, shape, strict=True))
        for device, index in indices.items()
        if device.process_index == process
    ]
    return tuple(dict.fromkeys(found))
