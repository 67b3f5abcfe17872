"""Shards: Leaves divided among the files of one checkpoint, with an index of them."""

import heapq
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, final

from safejax._src.checkpoint.layout import Layout, layout
from safejax._src.format import strict_json
from safejax._src.format.index import SINGLE_NAME
from safejax._src.format.record import RECORD_KEY, Record, record_text
from safejax._src.leaves.leaves import Leaves
from safejax._src.pytrees.structure import Structure
from safejax._src.reading.source import HostArray

_OURS: Final = re.compile(r"model((-[0-9a-f]{16})?-\d{5,}-of-\d{5,})?\.safetensors(\.index\.json)?")


@final
@dataclass(frozen=True, slots=True)
class Folder:
    """The files of a folder to write, by name, and what their index records of the tree.

    `writers` is None if all of the folder is replaced as a whole. Otherwise its index is written
    last, the files have new names in each save, and `writers` says which process writes each.
    """

    files: Mapping[str, Layout]
    record: Record
    writers: Mapping[str, int] | None = None

    @property
    def nbytes(self) -> int:
        """The total size of all files in bytes, without the index."""
        return sum(each.nbytes for each in self.files.values())

    def with_arrays(self, instead: Callable[[HostArray], HostArray]) -> "Folder":
        """The folder with the values of `instead(array)` for each array of its layouts."""
        files = {name: layout.with_arrays(instead) for name, layout in self.files.items()}
        return replace(self, files=MappingProxyType(files))

    @property
    def index(self) -> bytes | None:
        """The index, if the files have their own names; None for a single file without one."""
        return self.index_of(str)

    def index_of(self, renamed: Callable[[str], str]) -> bytes | None:
        """The index, if each file has the name `renamed(name)`."""
        if SINGLE_NAME in self.files:
            return None
        weight_map = {
            extent.name: renamed(file)
            for file, each in self.files.items()
            for extent in each.extents
        }
        sizes = (extent.nbytes for each in self.files.values() for extent in each.extents)
        metadata: dict[str, Any] = {"total_size": sum(sizes)}
        if self.record != Record():
            metadata[RECORD_KEY] = record_text(self.record)
        table = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
        return strict_json.write_for_people(table).encode()


def is_ours(name: str) -> bool:
    """Whether a saved folder can have a file of this name; the next save replaces such files."""
    return _OURS.fullmatch(name) is not None


def folder_of(
    leaves: Leaves,
    file: str,
    max_shard_bytes: int,
    *,
    checksum: bool,
    by_all: bool = False,
    writers: int | None = None,
) -> Folder:
    """The files that hold `leaves`, each with at most `max_shard_bytes` of data.

    Tensors are assigned to files in the order of their names; a tensor that is larger gets a
    file of its own. If one file can hold them all, there is no index. If they are written
    `by_all` processes, some values may be elsewhere. Reads nothing.

    With `writers`, the index is written last, and every file is written by one process of that
    number. Tensors are dealt out first, the largest first, each to the process with the fewest
    bytes so far, and then assigned to files of that process. Only a folder without any tensor
    has no index.
    """
    whole = layout(leaves, file, checksum=checksum, by_all=by_all)
    # What belongs to one tensor is recorded in the file that holds it.
    record = Record(whole.record.structure, whole.record.values)
    sizes = {extent.name: extent.nbytes for extent in whole.extents}
    dealt = [sizes] if writers is None else _dealt(sizes, writers)
    shards = [
        (process, names)
        for process, own in enumerate(dealt)
        for names in _assigned(own, max_shard_bytes)
    ]
    files: dict[str, Layout] = {}
    by: dict[str, int] = {}
    if not shards or (len(shards) == 1 and writers is None):
        files[SINGLE_NAME] = whole
        by[SINGLE_NAME] = 0
        shards = []
    for number, (process, names) in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        part = Leaves({each: leaves[each] for each in names}, Structure(), leaves.metadata)
        target = os.path.join(file, name)
        files[name] = layout(part, target, checksum=checksum, by_all=by_all)
        by[name] = process
    written_by = None if writers is None else MappingProxyType(by)
    return Folder(MappingProxyType(files), record, written_by)


def _dealt(sizes: Mapping[str, int], processes: int) -> list[dict[str, int]]:
    """The tensors of each process: about equally many bytes in each."""
    dealt: list[dict[str, int]] = [{} for _ in range(processes)]
    loads = [(0, process) for process in range(processes)]
    for name in sorted(sizes, key=lambda each: (-sizes[each], each)):
        load, process = loads[0]
        dealt[process][name] = sizes[name]
        heapq.heapreplace(loads, (load + sizes[name], process))
    return dealt


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
