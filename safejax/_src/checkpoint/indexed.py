"""Indexed: a folder whose index is written last, and makes the files that it names a checkpoint.

So it is where a folder cannot be replaced as a whole, or a file has to be written by one process.
The names of the files carry a token that is new in each save, so that the files of the save
before stay as they are until the new index is there. They are removed afterwards, and so is what
killed saves left in the folder.
"""

import contextlib
import errno
import secrets
from collections.abc import Callable, Iterable
from typing import TypeAlias, final

from safejax._src.checkpoint.layout import Layout
from safejax._src.checkpoint.shards import Folder
from safejax._src.checkpoint.stream import Stream, final_chunks
from safejax._src.storage.store import Store

Wrote: TypeAlias = Callable[[int], None]
"""Called with a number of bytes, after they have been written."""


def new_token() -> str:
    """What the names of the files of one save have, and of no other one."""
    return secrets.token_hex(8)


def write_file(
    store: Store, path: str, layout: Layout, wrote: Wrote, instead_of: tuple[str, ...] = ()
) -> None:
    """Write the file of a layout; `wrote(n)` is called after every `n` bytes."""
    if store.rewrites:
        stream = Stream(layout)
        store.write(path, stream.chunks(), wrote, stream.late_head, instead_of)
    else:
        chunks = final_chunks(layout)
        store.write(path, chunks, wrote, instead_of=instead_of, nbytes=layout.nbytes)


def write_indexed(plan: Folder, store: Store, folder: str, wrote: Wrote) -> None:
    """Write all files of the plan and then the index; what was there is kept if that fails."""
    files = IndexedFiles(plan, store, folder, new_token())
    files.begin()
    try:
        for name in plan.files:
            files.write(name, plan.files[name], wrote)
        files.check()
        files.commit()
    except BaseException:
        files.give_up()
        raise
    files.remove_replaced(lambda: None)


@final
class IndexedFiles:
    """The files of one save into a folder.

    `begin` comes first. `commit` is for one process, once all files are written by whomever.
    """

    def __init__(self, plan: Folder, store: Store, folder: str, token: str) -> None:
        self._plan = plan
        self._store = store
        self._folder = folder
        self._token = token
        self._replaced: tuple[str, ...] = ()
        self._written: list[str] = []
        self._index: bytes | None = None

    def begin(self) -> None:
        """Make the folder, unless it is there, and see which files are replaced."""
        if not self._store.writes_at_once:
            raise ValueError(
                f"{self._folder}: max_shard_bytes: expected to write to {self._store.kind} at "
                "once, so that the index comes after its files, got a transaction of the caller: "
                "save outside of it"
            )
        self._store.make_folder(self._folder)
        new = set(map(self.named, self._plan.files))
        self._replaced = tuple(
            self._store.join(self._folder, name)
            for name in sorted(self._names())
            if self._plan.is_ours(name) and name not in new
        )

    def named(self, file: str) -> str:
        """The name that a file of the plan has in this save."""
        stem = self._plan.stem
        return file.replace(f"{stem}-", f"{stem}-{self._token}-", 1)

    def write(self, file: str, layout: Layout, wrote: Wrote) -> None:
        """Write a file of the plan, which has this layout."""
        if file == self._plan.single_name:
            return  # It has no tensor, and is written in place of an index.
        path = self._store.join(self._folder, self.named(file))
        self._written.append(path)
        write_file(self._store, path, layout, wrote, self._replaced)

    def check(self) -> None:
        """Raise `OSError` if files of the plan are not seen here.

        They are on another disk, or another save to the same folder, which goes on at the same
        time, has removed them: an index would name files that are not there.
        """
        names = {self.named(file) for file in self._plan.files if file != self._plan.single_name}
        for name in sorted(names.difference(self._names())):
            path = self._store.join(self._folder, name)
            # A list of names may be an old one, on a network.
            if not self._store.exists(path):
                raise FileNotFoundError(
                    errno.ENOENT,
                    "expected the files that this save has written, got no such file: save to a "
                    "folder that all processes of the save share, and to which nobody else saves",
                    path,
                )

    def commit(self) -> None:
        """Make the files the checkpoint of the folder."""
        index = self._store.join(self._folder, self._plan.index_name)
        self._index = self._plan.index_of(self.named)
        if self._index is not None:
            chunks = iter([memoryview(self._index)])
            instead_of = (*self._replaced, index)
            self._store.write(index, chunks, lambda _: None, instead_of=instead_of)
            return
        single = self._store.join(self._folder, self._plan.single_name)
        layout, instead_of = self._plan.files[self._plan.single_name], (*self._replaced, single)
        write_file(self._store, single, layout, lambda _: None, instead_of)
        if index in self._replaced:
            self._store.remove(index)
            # Before the files that it names are removed: after a power cut, it may be back.
            self._store.flush(self._folder)

    def give_up(self, *, of_all: bool = False) -> None:
        """Remove the new files that are written here, or those `of_all` processes.

        Not if the index names them already, or may do so.
        """
        if self._may_be_committed():
            return
        if not of_all:
            self._remove(self._written)
            return
        names = [self.named(file) for file in self._plan.files if file != self._plan.single_name]
        self._remove(self._store.join(self._folder, name) for name in names)

    def remove_replaced(self, alive: Callable[[], None]) -> None:
        """Remove the files of saves before this one; `alive` is called again and again."""
        kept = (
            {self._plan.index_name}
            if self._index is not None
            else {self._plan.single_name, self._plan.index_name}
        )
        names = {self._store.join(self._folder, name) for name in kept}
        self._remove((path for path in self._replaced if path not in names), alive)

    def look_again(self) -> None:
        """Forget what is remembered of the folder, to which others have written."""
        self._store.look_again(self._folder)

    def _may_be_committed(self) -> bool:
        if self._index is None:
            return False
        try:
            return (
                self._store.read(self._store.join(self._folder, self._plan.index_name))
                == self._index
            )
        except FileNotFoundError:
            return False
        except Exception:  # noqa: BLE001 - whatever a file system raises
            return True

    def _remove(self, paths: Iterable[str], alive: Callable[[], None] = lambda: None) -> None:
        for path in paths:
            alive()
            # What cannot be removed is removed by the next save.
            with contextlib.suppress(Exception):
                self._store.remove(path)

    def _names(self) -> list[str]:
        self._store.look_again(self._folder)
        try:
            return self._store.names_in(self._folder)
        except FileNotFoundError:  # A folder without files does not exist everywhere.
            return []
