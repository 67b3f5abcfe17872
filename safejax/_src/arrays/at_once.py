"""Leaves that are placed at once, by several threads.

Neighbours in a file whose bytes are requested are read together.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from safejax._src.arrays.precision import needs_x64
from safejax._src.arrays.staging import session
from safejax._src.arrays.switch import SWITCH, Measurable
from safejax._src.arrays.together import Leaf, read_together
from safejax._src.arrays.untraced import run_all_untraced
from safejax._src.dtypes import Dtype
from safejax._src.reading.readahead import read_ahead


class Placeable(Leaf, Measurable, Protocol):
    """What is asked here of a lazy leaf."""

    @property
    def is_worth_a_thread(self) -> bool: ...

    def place_in_this_thread(self) -> list[NDArray[Any]]: ...


_Leaf = TypeVar("_Leaf", bound=Placeable)


def place_at_once(
    leaves: Iterable[_Leaf],
    place_many: Callable[[Sequence[_Leaf]], list[NDArray[Any]]],
    report: Callable[[_Leaf], None] = lambda _: None,
) -> None:
    """Place leaves, outside of any trace, and raise the first failure.

    `place_many` places some in this thread whose bytes are requested together. `report` is called
    with each leaf that is placed, by several threads. Blocks that are used in place in a mapped
    file are brought into memory in the background.
    """
    in_place: list[NDArray[Any]] = []

    def place(group: list[_Leaf]) -> None:
        for leaf in group:
            in_place.extend(leaf.place_in_this_thread())
            report(leaf)

    def place_together(group: list[_Leaf]) -> None:
        in_place.extend(place_many(group))
        for leaf in group:
            report(leaf)

    # A leaf that is worth a thread gets a task; the others share one task for each x64 mode.
    shared: list[list[_Leaf]] = [[], []]
    alone: list[_Leaf] = []
    asked: list[_Leaf] = []
    for leaf in leaves:
        view = leaf.content.view
        if view.plans_reads:
            asked.append(leaf)
        elif leaf.is_worth_a_thread:
            alone.append(leaf)
        else:
            shared[needs_x64(view.dtype)].append(leaf)
    workers = min(8, os.cpu_count() or 1)

    def place_each(leaves: Sequence[_Leaf]) -> None:
        tasks = [(partial(place, [leaf]), _stored_dtype([leaf])) for leaf in leaves]
        run_all_untraced(tasks, workers)

    with session():
        alone = SWITCH.measured(alone, place_each)
        together = read_together(asked)
        tasks = [(partial(place_together, group), _stored_dtype(group)) for group in together]
        groups = [*filter(None, shared), *([leaf] for leaf in _large_first(alone, workers))]
        tasks += [(partial(place, group), _stored_dtype(group)) for group in groups]
        run_all_untraced(tasks, workers)
    read_ahead(in_place)


def _large_first(leaves: Sequence[_Leaf], workers: int) -> list[_Leaf]:
    """The leaves, beginning with those that one thread would be left alone with at the end.

    All others keep their order, which may be that of the files.
    """
    sizes = [leaf.content.view.nbytes for leaf in leaves]
    least = sum(sizes) // (4 * workers)
    order = sorted(range(len(sizes)), key=lambda at: -sizes[at] if sizes[at] > least else 0)
    return [leaves[at] for at in order]


def _stored_dtype(group: Sequence[Placeable]) -> Dtype:
    return group[0].content.view.dtype
