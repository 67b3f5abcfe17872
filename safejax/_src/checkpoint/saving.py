"""Saving: a file, or a folder of files, is written to its place: completely, or not at all."""

import os
from collections.abc import Callable
from typing import TypeAlias

from safejax._src.arrays.materialize import Progress
from safejax._src.checkpoint.layout import Layout
from safejax._src.checkpoint.shards import Folder, is_ours
from safejax._src.checkpoint.stream import Stream, final_chunks
from safejax._src.format.index import INDEX_NAME
from safejax._src.reading.remote import FileSystem
from safejax._src.storage.files import write_chunks
from safejax._src.storage.folders import write_folder_atomically
from safejax._src.storage.location import locate

_Wrote: TypeAlias = Callable[[int], None]
"""Called with a number of bytes, after they have been written."""


def write(
    plan: Layout | Folder, path: str, fs: FileSystem = None, progress: Progress | None = None
) -> None:
    """Write the file, or the folder of files, to `path`, which is left as it was if that fails.

    `path` may be a URL or a path on the fsspec file system `fs`; a folder must be a local one.
    `progress(done, total)` is called with bytes of files, without those of an index. Raises
    `ValueError` for a folder elsewhere, and `OSError` if something cannot be written.
    """
    store, target = locate(path, fs)
    wrote = _reporting(progress, plan.nbytes)
    if isinstance(plan, Folder):
        if not store.replaces_folders:
            raise ValueError(
                f"{target}: max_shard_bytes: expected a local folder, which can be replaced as a "
                f"whole, got one of {store.kind}: save locally and copy, the index last"
            )
        _write_folder(plan, target, wrote)
    elif store.rewrites:
        stream = Stream(plan)
        store.write(target, stream.chunks(), wrote, stream.late_head)
    else:
        store.write(target, final_chunks(plan), wrote)


def _write_folder(folder: Folder, path: str, wrote: _Wrote) -> None:
    def fill(temporary: str) -> None:
        for name, layout in folder.files.items():
            stream = Stream(layout)
            with open(os.path.join(temporary, name), "xb") as file:
                write_chunks(file.fileno(), stream.chunks(), wrote, stream.late_head)
        if folder.index is not None:
            with open(os.path.join(temporary, INDEX_NAME), "xb") as file:
                write_chunks(file.fileno(), iter([memoryview(folder.index)]), lambda _: None)

    write_folder_atomically(path, fill, is_ours)


def _reporting(progress: Progress | None, total: int) -> _Wrote:
    """A function to call with numbers of written bytes, which reports their sum to `progress`."""
    done = 0

    def wrote(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    return wrote
