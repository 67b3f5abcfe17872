"""Moves: what a structure records of a container follows the container to its new name."""

from collections.abc import Iterable, Mapping, Set
from typing import Final, NamedTuple

from safejax._src.pytrees.names import SEPARATOR, join, split
from safejax._src.pytrees.structure import (
    MAX_DEPTH,
    Kind,
    KindTree,
    Segments,
    Structure,
    container_key,
    container_segments,
    paths_of,
)


class _Move(NamedTuple):
    """A leaf's old path and its new one, whose last `kept` segments are the same."""

    old: Segments
    new: Segments
    kept: int


def moved(structure: Structure, names: Mapping[str, str]) -> Structure:
    """The structure of leaves that get other names: `names` maps each new name to its old one.

    A container moves whole if all leaves below it have the same new container, in which no other
    leaf is, and keep the rest of their names. What is recorded of it (whether it is a list, and
    which keys are ints) moves with it. What is recorded of any other container stays, for an
    inverse that brings its leaves back.
    """
    is_whole = len(names) == 1 and "" in names  # The only leaf takes the place of the tree.
    nameless = is_whole or "" in names.values()
    if not structure.kinds and not structure.paths and not nameless:
        return structure
    # What is too deep for a tree gets a name here that is not.
    old_paths = paths_of(names.values(), structure, deepest=None)
    moves = [_move(old, old_paths[old], new, is_whole) for new, old in names.items()]
    kinds = _moved_kinds(structure.kinds, moves)
    flat = any(kind.flat for kind in kinds.values())
    path_in = KindTree(kinds).path_of if flat else split
    paths = {name: path for name, path in structure.paths.items() if name not in old_paths}
    for name, move in zip(names, moves, strict=True):
        implied = path_in(name)
        if implied != move.new and (move.kept or not move.new):
            paths[name] = move.new
    if kinds == structure.kinds and paths == structure.paths:
        return structure
    return structure._replace(kinds=kinds, paths=paths)


_FEW: Final = 16
"""So many texts are looked for at the beginning of each name."""


def left_of(structure: Structure, kept: Set[str], lost: Set[str]) -> Structure:
    """The structure where the leaves `kept` are left of those and `lost`, which do not come back.

    What is recorded of a container goes with the last leaf in it, but for the tree itself.
    """
    recorded = {container_segments(key): key for key in structure.kinds if key}
    if not recorded:
        return structure
    # A leaf that is a container is an empty one; others whose names extend its own are not in it.
    emptied = recorded.keys() & _ends(lost, structure, recorded)
    others = recorded.keys() - emptied - _ends(kept, structure, recorded)
    others -= _containers(kept, structure, others)
    if others:
        emptied |= others & _containers(lost, structure, others)
    if not emptied:
        return structure
    gone = {recorded[container] for container in emptied}
    return structure._replace(
        kinds={key: kind for key, kind in structure.kinds.items() if key not in gone}
    )


def _ends(names: Set[str], structure: Structure, containers: Iterable[Segments]) -> set[Segments]:
    """Which of the containers are leaves with these names."""
    found = {path for name, path in structure.paths.items() if name in names}
    for container in containers:
        name = join(container)
        if name in names and name not in structure.paths:
            found.add(container)
    return found


def _containers(names: Iterable[str], structure: Structure, wanted: Set[Segments]) -> set[Segments]:
    """What the paths of the leaves go through, until all that are wanted are found."""
    flat = any(kind.flat for kind in structure.kinds.values())
    path_in = KindTree(structure.kinds).path_of if flat else None
    found: set[Segments] = set()
    seen: set[str] = set()
    left = {container: join(container) + SEPARATOR for container in wanted}
    begins = tuple(left.values())
    for name in names:
        if not left:
            break
        if len(left) <= _FEW and not name.startswith(begins) and name not in structure.paths:
            continue
        path = structure.paths.get(name)
        if path is not None:
            path = path[:-1]
        elif path_in is not None:
            path = path_in(name)[:-1]
        else:  # Most leaves are next to others.
            above, dot, _ = name.rpartition(SEPARATOR)
            if not dot or above in seen:
                continue
            seen.add(above)
            path = split(above)
        for depth in range(min(len(path), MAX_DEPTH), 0, -1):
            container = path[:depth]
            if container in found:
                break
            found.add(container)
            if left.pop(container, None) is not None and len(left) <= _FEW:
                begins = tuple(left.values())
    return found


def _move(old_name: str, old: Segments, name: str, is_whole: bool) -> _Move:
    """The move of a leaf to `name`, with as long an end of its path as fits."""
    if is_whole:
        rest = old[len(split(old_name)) :] if old_name else old
        return _Move(old, rest, len(rest))
    if name.endswith(SEPARATOR + old_name):
        above = split(name[: -len(SEPARATOR + old_name)])
        return _Move(old, (*above, *old), len(old))
    if not old_name:  # A tree that is one leaf, or the key "", which no longer name ends in.
        return _Move(old, split(name), 0) if name else _Move(old, old, len(old))
    if old_name.endswith(SEPARATOR + name):
        count = len(split(old_name[: -len(SEPARATOR + name)]))
        if join(old[:count]) + SEPARATOR + name == old_name:
            return _Move(old, old[count:], len(old) - count)
    for at in range(max(len(old) - MAX_DEPTH, 0), len(old)):
        end = join(old[at:])
        if name == end:
            return _Move(old, old[at:], len(old) - at)
        if name.endswith(SEPARATOR + end):
            above = split(name[: -len(SEPARATOR + end)])
            return _Move(old, (*above, *old[at:]), len(old) - at)
    return _Move(old, split(name), 0)


_APART: Final = object()


def _moved_kinds(kinds: Mapping[str, Kind], moves: list[_Move]) -> dict[str, Kind]:
    recorded = {container_segments(key): kind for key, kind in kinds.items()}
    targets: dict[Segments, Segments | object] = {}
    below: dict[Segments, int] = {}
    for move in moves:
        for depth in range(min(len(move.old), MAX_DEPTH) + 1):
            container, rest = move.old[:depth], len(move.old) - depth
            if container not in recorded:
                continue
            target = move.new[: len(move.new) - rest] if rest <= move.kept else _APART
            below[container] = below.get(container, 0) + 1
            if targets.setdefault(container, target) != target:
                targets[container] = _APART
    wanted = {target for target in targets.values() if target is not _APART}
    arrived: dict[object, int] = dict.fromkeys(wanted, 0)
    for move in moves:
        for depth in range(min(len(move.new), MAX_DEPTH) + 1):
            if move.new[:depth] in arrived:
                arrived[move.new[:depth]] += 1
    went = {
        container: target
        for container, target in targets.items()
        if isinstance(target, tuple) and arrived[target] == below[container]
    }
    result = {container: kind for container, kind in recorded.items() if container not in went}
    result |= {target: recorded[container] for container, target in went.items()}
    return {container_key(container): kind for container, kind in result.items()}
