"""A save by several processes into a folder, of whose files each is written by one process.

The folder has whole tensors, dealt out among the processes (`checkpoint/shards.py`).

1. Process 0 makes the folder and chooses the token of the names, which all learn.
2. Group by group, with a file of each process: the tensors come whole to their writers
   (`checkpoint/reshard.py`), each writes its file, and lets go of the tensors.
3. All agree that they have written. Process 0 writes the index, removes the files of the save
   before, and all learn that it has.

For a save in the background, all tensors come to their writers first, in the thread of the
caller: a collective in another one could meet those of a training step.

Until all agree in step 3, whoever fails removes its own new files. From then on only process 0
does, and not if the index may be there.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import zip_longest
from types import MappingProxyType
from typing import Any, Final, cast, final

import numpy as np

from safejax._src.checkpoint.indexed import IndexedFiles, Wrote, new_token
from safejax._src.checkpoint.layout import Extent, Layout
from safejax._src.checkpoint.ours import Ours
from safejax._src.checkpoint.reshard import reshard
from safejax._src.checkpoint.saving import reporting, room_is_told
from safejax._src.checkpoint.shards import Folder
from safejax._src.checkpoint.snapshot import copied_bytes, snapshot
from safejax._src.processes.agreement import Round
from safejax._src.processes.preparing import agreed
from safejax._src.progress import Progress
from safejax._src.reading.array import AbsentSource
from safejax._src.reading.view import Strided
from safejax._src.reading.windows import Window
from safejax._src.storage.store import Store


@final
class Dealt:
    """What this process does in such a save, on which all have agreed."""

    def __init__(self, ours: Ours, across: Round) -> None:
        assert isinstance(ours.plan, Folder)
        assert ours.plan.writers is not None
        self._shares = ours.shares
        self._across = across
        self._plan = ours.plan
        self._writers = ours.plan.writers
        self._held: Mapping[str, Layout] | None = None

    @property
    def nbytes(self) -> int:
        """The size in bytes of the files that this process writes."""
        return sum(layout.nbytes for layout in self._own().values())

    def copied_bytes(self) -> int:
        """How many bytes of host memory `hold` takes; reads nothing."""
        received = 0
        whole: dict[str, Layout] = {}
        for name, layout in self._own().items():
            shares = self._shares[name]
            received += sum(share.extent.nbytes for share in shares if not share.is_whole)
            extents = tuple(share.extent for share in shares if share.is_whole)
            whole[name] = replace(layout, extents=extents)
        return received + copied_bytes(replace(self._plan, files=whole))

    def agree_to_hold(self, fits: bool) -> bool:
        """Whether all processes can `hold` their files, since all of them must or none."""
        return bool(self._across.agree(fits, all))

    def hold(self) -> Folder:
        """The files of this process, with values that stay; all processes call it together."""
        files: dict[str, Layout] = {}
        for group in _groups(self._writers, self._plan.single_name):
            files |= reshard(group, self._plan.files, self._shares, self._across)
        own = replace(self._plan, files=MappingProxyType(files))
        held = cast("Folder", snapshot(own))
        # From here on, no array is kept that the caller may let go of.
        self._held = held.files
        self._shares = {}
        files = {
            name: held.files.get(name, _emptied(self._plan.files[name]))
            for name in self._plan.files
        }
        self._plan = replace(self._plan, files=MappingProxyType(files))
        return held

    def write(self, store: Store, path: str, progress: Progress | None) -> None:
        """Write what is ours, with all other processes, and the index of it all."""
        across, process = self._across, self._across.process

        def begin() -> tuple[IndexedFiles, str]:
            token = new_token()
            files = IndexedFiles(self._plan, store, path, token)
            if process == 0:
                files.begin()
            return files, token

        (files, _), token = agreed(across, begin, lambda made: made[1], lambda values: values[0])
        if process != 0:
            files = IndexedFiles(self._plan, store, path, token)
            files.begin()
        self._write_files(files, room_is_told(store, path, self._plan.nbytes), progress)
        if process == 0:
            try:
                with across.telling():
                    files.check()
                    files.commit()
            except BaseException:
                files.give_up(of_all=True)
                raise
            files.remove_replaced(across.alive)
        across.note = "what was there before may have been replaced"
        across.agree(None, _nothing)
        files.look_again()

    def _write_files(
        self, files: IndexedFiles, room: AbstractContextManager[None], progress: Progress | None
    ) -> None:
        across = self._across
        report = reporting(progress, self.nbytes)

        def wrote(nbytes: int) -> None:
            across.alive()
            report(nbytes)

        # Once this process has said that it is done, others may go on without it.
        is_done = False
        try:
            # All learn of an error before files are removed, or another one may be that its own
            # is not there.
            with across.telling(), room:
                for group in _groups(self._writers, self._plan.single_name):
                    self._write_group(group, files, wrote)
                is_done = True
                across.agree(None, _nothing)
        except BaseException:
            if not is_done or across.has_failed:
                files.give_up(of_all=across.process == 0)
            raise

    def _write_group(self, group: Mapping[str, int], files: IndexedFiles, wrote: Wrote) -> None:
        """Write the file of a group; its values are let go of when this returns."""
        for name, layout in self._whole(group).items():
            files.write(name, layout, wrote)

    def _whole(self, group: Mapping[str, int]) -> Mapping[str, Layout]:
        """The file of a group that this process writes, with tensors that are all here."""
        if self._held is None:
            return reshard(group, self._plan.files, self._shares, self._across)
        return {name: self._held[name] for name in group if name in self._held}

    def _own(self) -> Mapping[str, Layout]:
        return {
            name: layout
            for name, layout in self._plan.files.items()
            if self._writers[name] == self._across.process and name != self._plan.single_name
        }


def _groups(writers: Mapping[str, int], single: str) -> list[dict[str, int]]:
    """The files in groups, each with one file of each process that has one left."""
    files: dict[int, list[str]] = {}
    for name, writer in writers.items():
        if name != single:  # It has no tensor, and is written in place of an index.
            files.setdefault(writer, []).append(name)
    rows = zip_longest(*files.values())
    return [{name: writers[name] for name in row if name is not None} for row in rows]


_NO_VALUES: Final = Strided(AbsentSource(), 0, np.dtype(np.uint8), Window.whole((0,)))


def _emptied(layout: Layout) -> Layout:
    """The layout without the values of its tensors, which another process writes."""
    extents = (Extent(name, begin, _NO_VALUES, stored) for name, begin, _, stored in layout.extents)
    return replace(layout, extents=tuple(extents))


def _nothing(values: list[Any]) -> None:
    del values
