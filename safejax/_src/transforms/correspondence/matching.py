"""Matching: which rows of a table of correspondences take which names, and what they make."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import NamedTuple, final

from safejax._src.pytrees.lookup import Lookup, Match
from safejax._src.transforms.correspondence.axes import Tensor, names_of
from safejax._src.transforms.correspondence.rows import Name, Row, Side


@final
class Hit(NamedTuple):
    """A row that takes a name, as the name at `place` in it, with these placeholders."""

    row: int
    place: int
    values: dict[str, str]


@final
class Index:
    """The rows, by the names that they take: a table may have 20,000 of them."""

    def __init__(self, rows: Sequence[Row], is_inverse: bool) -> None:
        self._exact: dict[str, list[Hit]] = {}
        self._places: list[tuple[int, int]] = []
        names: list[Name] = []
        matches: list[Match] = []
        for number, row in enumerate(rows):
            source, _ = row.sides(is_inverse)
            for place, name in enumerate(source.names if source is not None else ()):
                if not name.template.placeholders:
                    self._exact.setdefault(name.template.parts[0], []).append(
                        Hit(number, place, {})
                    )
                    continue
                self._places.append((number, place))
                names.append(name)
                matches.append(name.matcher(row.numbers))
        self._lookup = Lookup((name.template for name in names), matches)

    def hits(self, name: str) -> list[Hit]:
        """The rows that take a name, in their order."""
        exact = self._exact.get(name, [])
        if not self._places:
            return exact
        found = [Hit(*self._places[number], values) for number, values in self._lookup.hits(name)]
        return sorted([*exact, *found], key=_order) if exact else found


def _order(hit: Hit) -> tuple[int, int]:
    return hit.row, hit.place


Place = tuple[int, tuple[int, ...]]
"""Which of a row's names, and the numbers in it that the other side does not have in its name."""


@final
@dataclass(slots=True)
class Group:
    """The names that a row takes for one leaf of the other side, or for several that it makes.

    `values` are those of the placeholders that both sides have.
    """

    row: int
    source: Side
    target: Side | None
    values: dict[str, str]
    stacked: tuple[str, ...] = ()
    """The placeholders that only the names before have: each becomes an axis."""
    names: dict[Place, str] = field(default_factory=dict[Place, str])

    @property
    def first(self) -> str:
        """One of the names, for messages."""
        return next(iter(self.names.values()))

    @property
    def scope(self) -> tuple[object, ...]:
        """What no other group has."""
        return (self.row, *self.values.values())

    @property
    def is_plain(self) -> bool:
        """Whether the leaf only gets another name."""
        return self.source.tensors is None and not self.stacked and not self.source.lead

    def counts(self) -> tuple[int, ...]:
        """How many numbers there are of each placeholder that is stacked, as the largest says."""
        if not self.stacked:
            return ()
        numbers = zip(*(numbers for _, numbers in self.names), strict=True)
        return tuple(max(each) + 1 for each in numbers)

    def missing(self) -> Iterator[str]:
        """The names that are not there, although others of the group are."""
        counts = self.counts()
        for place, name in enumerate(self.source.names):
            for numbers in product(*map(range, counts)):
                if (place, numbers) not in self.names:
                    at = dict(zip(self.stacked, map(str, numbers), strict=True))
                    yield name.fill({**self.values, **at})

    def made(self, counts: Sequence[int]) -> Iterator[tuple[Place, str, dict[str, str]]]:
        """The new names, with the values of their placeholders.

        `counts` are the sizes of the axes that become numbers.
        """
        assert self.target is not None
        for place, name in enumerate(self.target.names):
            for numbers in product(*map(range, counts)):
                at = dict(zip(self.source.lead, map(str, numbers), strict=True))
                values = {**self.values, **at}
                yield (place, numbers), name.fill(values), values


def groups_of(
    rows: Sequence[Row], is_inverse: bool, hits: Sequence[tuple[str, list[Hit]]]
) -> list[Group]:
    """The groups, in the order of their first names."""
    found: dict[tuple[object, ...], Group] = {}
    kinds = [_kind(row, is_inverse) for row in rows]
    for name, taken in hits:
        for row, place, values in taken:
            source, target, shared, lead = kinds[row]
            assert source is not None
            key = (row, *[values[each] for each in shared])
            group = found.get(key)
            if group is None:
                own = {each: values[each] for each in shared}
                group = found[key] = Group(row, source, target, own, lead)
            group.names[place, tuple([int(values[each]) for each in lead])] = name
    return list(found.values())


def _kind(
    row: Row, is_inverse: bool
) -> tuple[Side | None, Side | None, tuple[str, ...], tuple[str, ...]]:
    """The sides of a row, the placeholders that both have, and those that are stacked."""
    source, target = row.sides(is_inverse)
    if source is None or not source.names[0].template.placeholders:
        return source, target, (), ()
    if target is not None:
        lead = target.lead
    else:  # What is restored has all its numbers.
        lead = () if row.restored is None else source.placeholders
    shared = tuple(name for name in source.placeholders if name not in lead)
    return source, target, shared, lead


def tensors_of(side: Side, count: int) -> tuple[Tensor, ...]:
    """The axes of a side's tensors, with names for `count` axes where a row says nothing."""
    if side.tensors is not None:
        return side.tensors
    return ((*((name,) for name in side.lead), *((f"_.{n}",) for n in range(count))),)


def scope_of(group: Group, tensors: tuple[Tensor, ...]) -> tuple[object, ...] | None:
    """The scope of a group that has names with sizes of their own."""
    return group.scope if _has_own(tensors) else None


@lru_cache(maxsize=1024)
def _has_own(tensors: tuple[Tensor, ...]) -> bool:
    return any(name.startswith("_") for name in names_of(tensors))
