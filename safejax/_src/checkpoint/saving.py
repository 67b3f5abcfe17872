"""Saving: a file, or a folder of files, is written to its place: completely, or not at all."""

import contextlib
import errno
import os
from collections.abc import Generator, Mapping
from typing import Any, Final

from safejax._src.checkpoint.indexed import Wrote, write_file, write_indexed
from safejax._src.checkpoint.layout import Layout, layout
from safejax._src.checkpoint.shards import Folder, folder_of
from safejax._src.checkpoint.stream import Stream
from safejax._src.format.index import STEM
from safejax._src.leaves.flatten import flatten
from safejax._src.leaves.leaves import Leaves, checked_metadata
from safejax._src.leaves.steps import TransformArgument, apply
from safejax._src.progress import Progress
from safejax._src.reading.filesystems import FileSystem
from safejax._src.storage.files import write_chunks
from safejax._src.storage.folders import write_folder_atomically
from safejax._src.storage.location import locate
from safejax._src.storage.store import Store

_NO_ROOM: Final = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def leaves_of(tree: Any) -> Leaves:
    """The Leaves of a tree, which may be Leaves itself."""
    return tree if isinstance(tree, Leaves) else flatten(tree)


def stored_leaves(
    tree: Any, transform: TransformArgument | None, metadata: Mapping[str, str] | None
) -> Leaves:
    """The Leaves of a tree as they are stored: transformed, and with the user's metadata."""
    leaves = apply(transform, leaves_of(tree))
    if metadata is None:
        return leaves
    return leaves.replace(metadata={**leaves.metadata, **checked_metadata(metadata)})


def planned(
    leaves: Leaves,
    target: str,
    max_shard_bytes: int | None,
    *,
    checksum: bool,
    by_all: bool = False,
    writers: int | None = None,
    stem: str = STEM,
) -> Layout | Folder:
    """The file that holds `leaves` or, with `max_shard_bytes`, the folder of files.

    If it is written `by_all` processes, some values may be elsewhere. With `writers`, the folder's
    index is written last, and each file by one process of that number. The names of its files
    begin with `stem`.
    """
    if max_shard_bytes is None:
        return layout(leaves, target, checksum=checksum, by_all=by_all)
    return folder_of(
        leaves, target, max_shard_bytes, checksum=checksum, by_all=by_all, writers=writers,
        stem=stem,
    )  # fmt: skip


_TOLD: Final = "_room_is_told"
"""The attribute of an error that says how much room there is."""


def write(
    plan: Layout | Folder, path: str, fs: FileSystem = None, progress: Progress | None = None
) -> None:
    """Write the file, or the folder of files, to `path`, which is left as it was if that fails.

    `path` may be a URL or a path on the fsspec file system `fs`; a folder that is replaced as a
    whole must be a local one. `progress(done, total)` is called with bytes of files, without
    those of an index. Raises `OSError` if something cannot be written.
    """
    store, target = locate(path, fs)
    write_at(plan, store, target, progress)


def write_at(
    plan: Layout | Folder, store: Store, target: str, progress: Progress | None = None
) -> None:
    """Like `write`, to a path in a store."""
    wrote = reporting(progress, plan.nbytes)
    with room_is_told(store, target, plan.nbytes):
        _write(plan, store, target, wrote)


def _write(plan: Layout | Folder, store: Store, target: str, wrote: Wrote) -> None:
    if isinstance(plan, Layout):
        write_file(store, target, plan, wrote)
    elif plan.writers is not None:
        write_indexed(plan, store, target, wrote)
    else:
        assert store.replaces_folders, "the index has to be written last"
        _write_folder(plan, target, wrote)


def _write_folder(folder: Folder, path: str, wrote: Wrote) -> None:
    def fill(temporary: str) -> None:
        for name, each in folder.files.items():
            stream = Stream(each)
            with open(os.path.join(temporary, name), "xb") as file:
                write_chunks(file.fileno(), stream.chunks(), wrote, stream.late_head)
        write_index(folder, temporary)

    write_folder_atomically(path, fill, folder.is_ours)


def write_index(plan: Folder, folder: str) -> None:
    """Write the index of the plan, if it has one, to a folder that is not in its place yet."""
    if plan.index is not None:
        with open(os.path.join(folder, plan.index_name), "xb") as file:
            write_chunks(file.fileno(), iter([memoryview(plan.index)]), lambda _: None)


@contextlib.contextmanager
def room_is_told(store: Store, target: str, nbytes: int) -> Generator[None]:
    """An error about a disk that is full names the file, and says how many bytes it needs.

    Blocks may be in each other: the innermost knows best how many bytes were free.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.errno not in _NO_ROOM or hasattr(error, _TOLD):
            raise
        free = store.free_bytes(target)
        found = "" if free is None else f", and there are {free} free"
        remedy = "make room, or save elsewhere"
        if error.errno == errno.EFBIG:
            remedy = "save it as several files, with max_shard_bytes="
        reason = (
            f"{os.strerror(error.errno)}; {nbytes} bytes are needed{found}: {remedy}; what was "
            "there before is unchanged"
        )
        told = OSError(error.errno, reason, target)
        setattr(told, _TOLD, True)
        raise told from error


def reporting(progress: Progress | None, total: int) -> Wrote:
    """A function to call with numbers of written bytes, which reports their sum to `progress`."""
    done = 0

    def wrote(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    return wrote
