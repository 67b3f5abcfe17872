"""Shards: the files of one checkpoint, and the index that says which tensor is in which file.

The index is authoritative, as in Hugging Face's libraries. It is JSON with a `weight_map` from
names to files, and `metadata` that contains our record of the tree.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NamedTuple, cast, final

from safejax import strict_json
from safejax.errors import InvalidFileError
from safejax.files import write_chunks
from safejax.folders import write_folder_atomically
from safejax.layout import Layout, layout
from safejax.leaves import RECORD_KEY, Leaves, is_array
from safejax.record import Record, read_record, record_text
from safejax.structure import Kind, Structure

INDEX_SUFFIX: Final = ".safetensors.index.json"
INDEX_NAME: Final = f"model{INDEX_SUFFIX}"
SINGLE_NAME: Final = "model.safetensors"

_OURS: Final = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors(\.index\.json)?")


# ---- writing


@final
@dataclass(frozen=True, slots=True)
class Folder:
    """The files of a folder to write, by name, and their index, which is None for a single file."""

    files: Mapping[str, Layout]
    index: bytes | None

    @property
    def nbytes(self) -> int:
        """The total size of all files in bytes, without the index."""
        return sum(plan.nbytes for plan in self.files.values())

    def write(self, path: str, wrote: Callable[[int], None]) -> None:
        """Make the folder at `path` hold all of these files, or leave it as it was."""

        def fill(folder: str) -> None:
            for name, plan in self.files.items():
                with open(os.path.join(folder, name), "xb") as file:
                    write_chunks(file.fileno(), plan.chunks(), wrote, plan.late_head)
            if self.index is not None:
                with open(os.path.join(folder, INDEX_NAME), "xb") as file:
                    write_chunks(file.fileno(), iter([memoryview(self.index)]), lambda _: None)

        write_folder_atomically(path, fill, lambda name: _OURS.fullmatch(name) is not None)


def folder_of(leaves: Leaves, file: str, max_shard_bytes: int, *, checksum: bool) -> Folder:
    """The files that hold `leaves`, each with at most `max_shard_bytes` of data.

    Tensors are assigned to files in the order of their names; a tensor that is larger gets a
    file of its own. If one file can hold them all, there is no index. Reads nothing.
    """
    whole = layout(leaves, file, checksum=checksum)
    sizes = {entry.name: entry.nbytes for entry, _, _ in whole.leaves}
    shards = _assigned(sizes, max_shard_bytes)
    if len(shards) <= 1:
        return Folder({SINGLE_NAME: whole}, None)
    files: dict[str, Layout] = {}
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        part = Leaves({each: leaves[each] for each in names}, Structure(), leaves.metadata)
        files[name] = layout(part, os.path.join(file, name), checksum=checksum)
        weight_map.update(dict.fromkeys(names, name))
    # What belongs to one tensor is recorded in the file that holds it.
    record = Record(whole.record.structure, whole.record.values)
    metadata: dict[str, Any] = {"total_size": sum(sizes.values())}
    if record != Record():
        metadata[RECORD_KEY] = record_text(record)
    table = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    return Folder(files, strict_json.write_for_people(table).encode())


def _assigned(sizes: Mapping[str, int], max_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = []
    room = 0
    for name in sorted(sizes):
        if not shards or sizes[name] > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= sizes[name]
    return shards


# ---- reading


@final
class Index(NamedTuple):
    """Which tensor is in which file, and what the record says about the tree."""

    weight_map: Mapping[str, str]
    record: Record | None = None

    @property
    def files(self) -> list[str]:
        """The files, in the order in which the index first names them."""
        return list(dict.fromkeys(self.weight_map.values()))


def read_index(data: bytes, file: str) -> Index:
    """The index in `data`; `InvalidFileError` if it is invalid or names files in other folders."""

    def fault(sentence: str) -> InvalidFileError:
        return InvalidFileError(f"{file}: invalid index: {sentence}")

    try:
        table = strict_json.parse(data.decode())
    except ValueError as error:
        raise fault(f"expected JSON: {error}") from None
    weight_map = _object(table).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise fault("expected a 'weight_map' from names to files, got none")
    for name, shard in cast("dict[str, object]", weight_map).items():
        if not isinstance(shard, str) or not _is_inside(shard):
            raise fault(
                f"tensor {name!r:.80}: expected the name of a file in the same folder, got "
                f"{shard!r:.80}"
            )
    text = _object(_object(table).get("metadata")).get(RECORD_KEY)
    if text is None:
        return Index(weight_map)
    if not isinstance(text, str):
        raise fault(f"expected the {RECORD_KEY!r} record to be a string, got {text!r:.80}")
    _, record = read_record({RECORD_KEY: text}, file)
    return Index(weight_map, record)


def _object(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _is_inside(shard: str) -> bool:
    parts = re.split(r"[/\\]", shard)
    return all(part not in ("", ".", "..") for part in parts) and ":" not in parts[0]


def union(parts: Sequence[tuple[str, Leaves]], index: Index | None, file: str) -> Leaves:
    """The leaves of several files as one; an index must name exactly the tensors of its files.

    Raises `InvalidFileError` for a name that is in two files, or not in the file that the index
    gives for it.
    """
    owner: dict[str, str] = {}
    entries: dict[str, Any] = {}
    for shard, leaves in parts:
        for name, leaf in leaves.items():
            if name in owner:
                raise InvalidFileError(
                    f"{file}: tensor {name!r}: expected it in one file, got it in {owner[name]} "
                    f"and {shard}"
                )
            owner[name] = shard
            entries[name] = leaf
    if index is not None:
        _check_places(owner, entries, index, file)
        entries = {name: entries[name] for name in (*index.weight_map, *entries)}
    metadata = _common(leaves.metadata for _, leaves in parts)
    structure = _common_structure([leaves.structure for _, leaves in parts])
    return Leaves(entries, structure, metadata)


def _check_places(
    owner: Mapping[str, str], entries: Mapping[str, Any], index: Index, file: str
) -> None:
    for name, shard in index.weight_map.items():
        found = owner.get(name)
        if found is None or os.path.basename(found) != os.path.basename(shard):
            elsewhere = "no file has it" if found is None else f"it is in {found}"
            raise InvalidFileError(f"{file}: tensor {name!r}: expected it in {shard}, {elsewhere}")
    for name in entries.keys() - index.weight_map.keys():
        if is_array(entries[name]):
            raise InvalidFileError(
                f"{file}: tensor {name!r} of {owner[name]}: expected the index to name every "
                "tensor of its files, but it omits this one: load the files as a list, or "
                "complete the index"
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
