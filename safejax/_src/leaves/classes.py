"""Containers of different classes at one place: their leaves are not each other's."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, final

from safejax._src.leaves.report import Renaming, pattern_of
from safejax._src.pytrees.names import SEPARATOR, join
from safejax._src.pytrees.structure import Kind, Segments, Structure, container_segments, paths_of

_DICTS: Final = {"OrderedDict", "FrozenDict", "FlatMap", "VarCollection"}
"""Classes that hold whatever they are given: another one of them holds the same."""


@final
class Classes(NamedTuple):
    """The classes of containers, by where they are, in a file and in `like`.

    Only classes with fields of their own count, such as namedtuples and dataclasses. They are the
    same if their last names are, since programs move classes from one module to another.
    """

    stored: Mapping[Segments, str]
    wanted: Mapping[Segments, str]
    structures: tuple[Structure, Structure]

    @classmethod
    def of(cls, stored: Structure, wanted: Structure) -> "Classes":
        """The classes that two structures record."""
        return cls(_classes(stored.kinds), _classes(wanted.kinds), (stored, wanted))

    def apart(self, names: Iterable[str], file: str) -> set[str]:
        """Those of the names that are in containers of different classes."""
        differ = {path for path, name in self.stored.items() if self.wanted.get(path, name) != name}
        if not differ:
            return set()
        return {
            name
            for structure in self.structures
            for name, path in paths_of(set(names), structure, file).items()
            if any(path[:depth] in differ for depth in range(len(path) + 1))
        }

    def renamings(self) -> Iterable[Renaming]:
        """The renaming that brings each class to where the only one of its name is in `like`."""
        stored, wanted = _only_ones(self.stored), _only_ones(self.wanted)
        moves = {
            join(stored[name]): join(wanted[name])
            for name in stored.keys() & wanted.keys()
            if stored[name] and wanted[name]
        }
        # What is in a container that moves goes with it.
        moves = {
            old: new
            for old, new in sorted(moves.items())
            if not any(
                _moved(old, {above: to}) == new for above, to in moves.items() if above != old
            )
        }
        if any(old != new for old, new in moves.items()):
            rules = ", ".join(
                f"{pattern_of(old, '.*')}: {pattern_of(new, '.*')}" for old, new in moves.items()
            )
            yield Renaming(f"transform=rename({{{rules}}})", lambda name: _moved(name, moves))


def _moved(name: str, moves: Mapping[str, str]) -> str:
    for old, new in moves.items():
        if name.startswith(old + SEPARATOR):
            return new + name[len(old) :]
    return name


def _classes(kinds: Mapping[str, Kind]) -> dict[Segments, str]:
    classes: dict[Segments, str] = {}
    for key, kind in kinds.items():
        _, dot, name = kind.type.rpartition(".")
        if dot and name not in _DICTS:
            classes[container_segments(key)] = name
    return classes


def _only_ones(classes: Mapping[Segments, str]) -> dict[str, Segments]:
    counts = Counter(classes.values())
    return {name: path for path, name in classes.items() if counts[name] == 1}
