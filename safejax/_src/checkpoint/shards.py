"""Shards: Leaves divided among the files of one checkpoint, with an index of them."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, final

from safejax._src.checkpoint.layout import Layout, layout
from safejax._src.format import strict_json
from safejax._src.format.index import SINGLE_NAME
from safejax._src.format.record import RECORD_KEY, Record, record_text
from safejax._src.leaves.leaves import Leaves
from safejax._src.pytrees.structure import Structure
from safejax._src.reading.source import HostArray

_OURS: Final = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors(\.index\.json)?")


@final
@dataclass(frozen=True, slots=True)
class Folder:
    """The files of a folder to write, by name, and their index, which is None for a single file."""

    files: Mapping[str, Layout]
    index: bytes | None

    @property
    def nbytes(self) -> int:
        """The total size of all files in bytes, without the index."""
        return sum(each.nbytes for each in self.files.values())

    def with_arrays(self, instead: Callable[[HostArray], HostArray]) -> "Folder":
        """The folder with the values of `instead(array)` for each array of its layouts."""
        files = {name: layout.with_arrays(instead) for name, layout in self.files.items()}
        return Folder(MappingProxyType(files), self.index)


def is_ours(name: str) -> bool:
    """Whether a saved folder can have a file of this name; the next save replaces such files."""
    return _OURS.fullmatch(name) is not None


def folder_of(
    leaves: Leaves, file: str, max_shard_bytes: int, *, checksum: bool, by_all: bool = False
) -> Folder:
    """The files that hold `leaves`, each with at most `max_shard_bytes` of data.

    Tensors are assigned to files in the order of their names; a tensor that is larger gets a
    file of its own. If one file can hold them all, there is no index. If they are written
    `by_all` processes, some values may be elsewhere. Reads nothing.
    """
    whole = layout(leaves, file, checksum=checksum, by_all=by_all)
    sizes = {extent.name: extent.nbytes for extent in whole.extents}
    shards = _assigned(sizes, max_shard_bytes)
    if len(shards) <= 1:
        return Folder(MappingProxyType({SINGLE_NAME: whole}), None)
    files: dict[str, Layout] = {}
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        part = Leaves({each: leaves[each] for each in names}, Structure(), leaves.metadata)
        target = os.path.join(file, name)
        files[name] = layout(part, target, checksum=checksum, by_all=by_all)
        weight_map.update(dict.fromkeys(names, name))
    # What belongs to one tensor is recorded in the file that holds it.
    record = Record(whole.record.structure, whole.record.values)
    metadata: dict[str, Any] = {"total_size": sum(sizes.values())}
    if record != Record():
        metadata[RECORD_KEY] = record_text(record)
    table = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    return Folder(MappingProxyType(files), strict_json.write_for_people(table).encode())


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
