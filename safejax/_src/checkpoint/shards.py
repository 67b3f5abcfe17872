"""Shards: Leaves divided among the files of one checkpoint, with an index of them."""

import heapq
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, final

from safejax._src.checkpoint.layout import Layout, layout
from safejax._src.format import strict_json
from safejax._src.format.index import STEM
from safejax._src.format.record import RECORD_KEY, Record, record_text
from safejax._src.leaves.leaves import Leaves
from safejax._src.pytrees.structure import Structure
from safejax._src.reading.source import HostArray
from safejax._src.storage.store import MAX_WHOLE_BYTES
from safejax.errors import InvalidFileError

_OURS: Final = re.compile(r"((-[0-9a-f]{16})?-\d{5,}-of-\d{5,})?\.safetensors(\.index\.json)?")

_STEM: Final = re.compile(r"(?!\.)(?!.*\.(safetensors|json)$)[^/\\:\0\n]+")


@final
@dataclass(frozen=True, slots=True)
class Folder:
    """The files of a folder to write, by name, and what their index records of the tree.

    `writers` is None if all of the folder is replaced as a whole. Otherwise its index is written
    last, the files have new names in each save, and `writers` says which process writes each.
    `stem` is what the names of all files begin with.
    """

    files: Mapping[str, Layout]
    record: Record
    writers: Mapping[str, int] | None = None
    stem: str = STEM

    @property
    def single_name(self) -> str:
        """The name of the file if there is only one, without an index."""
        return f"{self.stem}.safetensors"

    @property
    def index_name(self) -> str:
        """The name of the index."""
        return f"{self.stem}.safetensors.index.json"

    def is_ours(self, name: str) -> bool:
        """Whether a save under this name can have such a file; the next one replaces it."""
        return name.startswith(self.stem) and _OURS.fullmatch(name[len(self.stem) :]) is not None

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
        if self.single_name in self.files:
            return None
        weight_map = {
            extent.name: renamed(file)
            for file, each in self.files.items()
            for extent in each.extents
        }
        extents = [extent for each in self.files.values() for extent in each.extents]
        metadata: dict[str, Any] = {
            "total_parameters": sum(math.prod(extent.view.shape) for extent in extents),
            "total_size": sum(extent.nbytes for extent in extents),
        }
        if self.record != Record():
            metadata[RECORD_KEY] = record_text(self.record)
        table = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
        encoded = strict_json.write_for_people(table).encode()
        if len(encoded) > MAX_WHOLE_BYTES:
            raise InvalidFileError(
                f"{self.index_name}: expected an index of at most {MAX_WHOLE_BYTES} bytes, got "
                f"{len(encoded)} for {len(extents)} tensors: readers refuse it; store fewer or "
                "shorter names"
            )
        return encoded


def checked_stem(name: object) -> str:
    """What the names of a folder's files begin with; `ValueError` if that cannot be."""
    if isinstance(name, str) and _STEM.fullmatch(name):
        return name
    raise ValueError(
        "name: expected what the names of the files begin with, as in "
        f"'diffusion_pytorch_model', got {name!r}: leave out the folder and the ending"
    )


def folder_of(
    leaves: Leaves,
    file: str,
    max_shard_bytes: int,
    *,
    checksum: bool,
    by_all: bool = False,
    writers: int | None = None,
    stem: str = STEM,
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
        files[f"{stem}.safetensors"] = whole
        by[f"{stem}.safetensors"] = 0
        shards = []
    for number, (process, names) in enumerate(shards, 1):
        name = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        part = Leaves({each: leaves[each] for each in names}, Structure(), leaves.metadata)
        target = os.path.join(file, name)
        files[name] = layout(part, target, checksum=checksum, by_all=by_all)
        by[name] = process
    written_by = None if writers is None else MappingProxyType(by)
    return Folder(MappingProxyType(files), record, written_by, stem)


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
