"""The union of several files: their leaves, structures and metadata as one."""

from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import chain
from typing import Any

from safejax._src.format.index import Index
from safejax._src.leaves.leaf import is_tensor
from safejax._src.leaves.leaves import Leaves
from safejax._src.pytrees.patterns import exactly
from safejax._src.pytrees.structure import Kind, Structure
from safejax._src.warn import warn_caller
from safejax.errors import InvalidFileError


def union(parts: Sequence[tuple[str, Leaves]], index: Index | None, file: str) -> Leaves:
    """The leaves of several files as one.

    The parts of an index are those of its `files`, in that order. If a name is in several of
    them, the index decides, with a warning; a tensor that it does not name is read, with a
    warning. Raises `InvalidFileError` for a name that is in two files and not in an index, or not
    in the file that the index gives for it.
    """
    parts = list(parts)
    if index is not None:
        parts = _as_decided(parts, index, file)
    owner: dict[str, str] = {}
    entries: dict[str, Any] = {}
    for shard, leaves in parts:
        for name, leaf in leaves.items():
            if name in owner:
                remedy = "load an index of them" if index is None else "let the index name it"
                raise InvalidFileError(
                    f"{file}: tensor {name!r}: expected it in one file, got it in {owner[name]} "
                    f"and {shard}: {remedy}, which says which one is meant"
                )
            owner[name] = shard
            entries[name] = leaf
    if index is not None:
        _warn_of_omitted(owner, entries, index, file)
        entries = {name: entries[name] for name in (*index.weight_map, *entries)}
    metadata = _common(leaves.metadata for _, leaves in parts)
    structure = _common_structure([leaves.structure for _, leaves in parts])
    return Leaves(entries, structure, metadata)


def _as_decided(
    parts: Sequence[tuple[str, Leaves]], index: Index, file: str
) -> list[tuple[str, Leaves]]:
    """The parts without the tensors that the index gives another file for."""
    of_file = dict(zip(index.files, parts, strict=True))
    elsewhere: dict[str, str] = {}
    decided: list[tuple[str, Leaves]] = []
    for shard, (path, leaves) in of_file.items():
        stale = {name for name in leaves if index.weight_map.get(name, shard) != shard}
        elsewhere |= dict.fromkeys(stale, path)
        decided.append((path, _without(stale, leaves) if stale else leaves))
    for name, shard in index.weight_map.items():
        _, leaves = of_file[shard]
        if name not in leaves:
            place = (
                f"it is in {elsewhere[name]}: correct the index"
                if name in elsewhere
                else "no file has it: get the files again, which may be of another version"
            )
            names = [name for _, leaves in parts for name in leaves]
            as_list = ", or load the files as a list" if len(set(names)) == len(names) else ""
            raise InvalidFileError(
                f"{file}: tensor {name!r}: expected it in {shard}, {place}{as_list}"
            )
    if elsewhere:
        warn_caller(
            f"{file}: {len(elsewhere)} tensors are also in files that the index does not give for "
            f"them, and are read from those that it gives; left out: {_places(elsewhere)}",
            UserWarning,
        )
    return decided


def _places(paths: Mapping[str, str]) -> str:
    """The first few names, each with its file."""
    shown = ", ".join(f"{name!r} in {path}" for name, path in sorted(paths.items())[:5])
    return f"{shown}{' …' if len(paths) > 5 else ''}"


def _without(names: Set[str], leaves: Leaves) -> Leaves:
    paths = {name: path for name, path in leaves.structure.paths.items() if name not in names}
    kept = {name: leaf for name, leaf in leaves.items() if name not in names}
    return Leaves(kept, Structure(leaves.structure.kinds, paths), leaves.metadata)


def _warn_of_omitted(
    owner: Mapping[str, str], entries: Mapping[str, Any], index: Index, file: str
) -> None:
    # They are read, since nothing else is meant by their names; Hugging Face's libraries read
    # them, too.
    omitted = {
        name: owner[name]
        for name in entries.keys() - index.weight_map.keys()
        if is_tensor(entries[name])
    }
    if omitted:
        first = min(omitted)
        warn_caller(
            f"{file}: expected the index to name every tensor of its files, but it omits "
            f"{len(omitted)}, which are read: {_places(omitted)}: complete the index, or leave "
            f"them out, for example with transform=drop({exactly(first)!r})",
            UserWarning,
        )


def _common(tables: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The entries of all tables, without those on which the tables disagree."""
    merged: dict[str, str] = {}
    disputed: set[str] = set()
    for table in tables:
        for key, value in table.items():
            if merged.setdefault(key, value) != value:
                disputed.add(key)
    return {key: value for key, value in merged.items() if key not in disputed}


def _common_structure(structures: list[Structure]) -> Structure:
    """The paths of all structures, and the kinds in which they do not contradict each other."""
    if len(structures) == 1:
        return structures[0]
    kinds: dict[str, list[Kind]] = {}
    paths: dict[str, tuple[str, ...]] = {}
    for structure in structures:
        paths |= structure.paths
        for key, kind in structure.kinds.items():
            kinds.setdefault(key, []).append(kind)
    together = {key: _kind_of_all(found) for key, found in kinds.items()}
    return Structure({key: kind for key, kind in together.items() if kind is not None}, paths)


def _kind_of_all(kinds: list[Kind]) -> Kind | None:
    """The kind of a container whose children are in several files; None if they disagree."""
    if len({kind._replace(order=None, aliases=()) for kind in kinds}) > 1:
        return None
    orders = [kind.order for kind in kinds if kind.order is not None]
    whole = tuple(chain.from_iterable(orders)) if len(orders) == len(kinds) else None
    aliases = tuple(chain.from_iterable(kind.aliases for kind in kinds))
    return kinds[0]._replace(order=whole, aliases=aliases)
