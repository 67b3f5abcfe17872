"""Requested: what processes request of leaves together, each what it needs, or each byte once."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from safejax._src.arrays.lazy import LazyArray
from safejax._src.arrays.placing import Placement
from safejax._src.arrays.read_once import Spread, groups_read_once, read_at_a_time
from safejax._src.arrays.together import blocks_of, groups_of
from safejax._src.planning.plan import LeafPlan
from safejax._src.reading.batch import Batch
from safejax._src.reading.requests import FREE, Cost


def requested(leaves: list[LazyArray], spreads: Mapping[int, Spread]) -> dict[int, Cost]:
    """What each process requests by the reads that serve several blocks of leaves.

    `spreads` says how leaves are read in parts, which are then passed on; by the leaf's `id`.
    """
    asked = [leaf for leaf in leaves if leaf.content.view.plans_reads and not leaf.is_placed]
    processes = {device.process_index for leaf in asked for device in leaf.sharding.device_set}
    costs: dict[int, Cost] = {}
    for process in sorted(processes):
        total = FREE
        for group in _groups(asked, spreads, process):
            batch = Batch(is_dry=True)
            for leaf in group:
                for view in blocks_of(leaf, process):
                    view.read_in_batch(batch.empty(view.shape, view.dtype), batch)
            total += batch.cost
        costs[process] = total
    return costs


def _groups(
    leaves: list[LazyArray], spreads: Mapping[int, Spread], process: int
) -> Iterator[list[LazyArray]]:
    """The groups of leaves that a process reads, with the parts for those that are passed on."""
    for group in groups_read_once([(leaf, spreads.get(id(leaf))) for leaf in leaves]):
        for some in read_at_a_time(group, process):
            yield [read_for(leaf, spread) for leaf, spread in some]
    yield from groups_of((leaf for leaf in leaves if id(leaf) not in spreads), process)


def read_for(leaf: LazyArray, spread: Spread) -> LazyArray:
    """A leaf whose devices hold the parts that they read of another one."""
    placement = Placement(spread.sharding, committed=True)
    return LazyArray(spread.content, leaf.name, placement, dtype=leaf.dtype)


def passed_on(placed: LeafPlan, read: LeafPlan) -> LeafPlan:
    """The plan of a leaf that is placed as one plan says, and whose parts are read as another.

    The parts are passed on, so that nothing is used in place.
    """
    blocks = (
        *(replace(block, reads=FREE, in_place=False) for block in placed.blocks),
        *(replace(block, nbytes=0, in_place=False) for block in read.blocks),
    )
    return placed._replace(blocks=blocks, is_together=read.is_together)
