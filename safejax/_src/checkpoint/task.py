"""Tasks: what a call of `save` or `save_async` stores, and where."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, final

import jax

from safejax._src.arguments import check_timeout, check_tree_and_path, checked_size
from safejax._src.checkpoint.agreeing import agree_to_save
from safejax._src.checkpoint.distributed import Joint
from safejax._src.checkpoint.division import only_holder, spans_processes
from safejax._src.checkpoint.layout import Layout
from safejax._src.checkpoint.saving import leaves_of, planned, stored_leaves
from safejax._src.checkpoint.shards import Folder, checked_stem
from safejax._src.format.index import STEM
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import TransformArgument
from safejax._src.progress import ProgressArgument, check_progress
from safejax._src.reading.filesystems import FileSystem
from safejax._src.storage.files import PathLike, checked_path
from safejax._src.storage.location import locate
from safejax.errors import ProcessError

_Result = TypeVar("_Result")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SaveTask:
    """The arguments of a call of `function`, which are checked when they are used.

    In a save by several processes, whatever is wrong with them is raised in all.
    """

    function: str
    tree: Any
    path: PathLike
    transform: TransformArgument | None
    metadata: Mapping[str, str] | None
    max_shard_bytes: int | None
    checksum: bool
    progress: ProgressArgument
    fs: FileSystem
    timeout: float
    one_writer_per_file: bool = False
    name: str = STEM
    max_host_bytes: int | None = None

    @property
    def spans_processes(self) -> bool:
        """Whether all processes have to save the tree together."""
        return spans_processes(self.tree)

    @property
    def target(self) -> str:
        return checked_path(self.path)

    def plan(self) -> Layout | Folder:
        """What is to be written, by this process alone."""
        return self._plan_of(self._leaves(), None if self._replaces_folder() else 1)

    def agree(self, then: Callable[[Joint], _Result]) -> _Result:
        """What `then` returns, which writes the tree once all processes have agreed on it."""
        holder = only_holder(self.tree)
        if holder is not None:
            # That process does not wait for this one, so there is nothing to agree on.
            raise ProcessError(
                f"{self.function} to {self.path!s}: expected process {holder} to save this tree, "
                f"of which it alone has the arrays, got process {jax.process_index()}: call it "
                f"with `if jax.process_index() == {holder}`"
            )
        options = {
            "max_shard_bytes": self.max_shard_bytes,
            "one_writer_per_file": self.one_writer_per_file,
            "name": self.name,
            "checksum": self.checksum,
        }
        return agree_to_save(
            self._leaves, self._plan_by_all, options, self.path, self.fs, self.timeout, then
        )

    def _leaves(self) -> Leaves:
        check_tree_and_path(self.tree, self.path, self.function)
        check_progress(self.progress, self.function)
        checked_path(self.path)
        checked_size(self.max_host_bytes, "max_host_bytes", 0)
        check_timeout(self.timeout)
        return leaves_of(self.tree)

    def _replaces_folder(self) -> bool:
        """Whether a folder that this process writes alone is replaced as a whole."""
        if self.max_shard_bytes is None or self.one_writer_per_file:
            return False
        store, _ = locate(self.target, self.fs)
        return store.replaces_folders

    def _plan_by_all(self, leaves: Leaves, writers: int | None) -> Layout | Folder:
        return self._plan_of(leaves, writers, by_all=True)

    def _plan_of(
        self, leaves: Leaves, writers: int | None, *, by_all: bool = False
    ) -> Layout | Folder:
        most = checked_size(self.max_shard_bytes, "max_shard_bytes", 1)
        if self.one_writer_per_file and most is None:
            raise ValueError(
                f"{self.target}: one_writer_per_file: expected max_shard_bytes with it, got none: "
                "pass for example max_shard_bytes=2 << 30, for a folder of several files"
            )
        if self.name != STEM and most is None:
            raise ValueError(
                f"{self.target}: name: expected max_shard_bytes with it, since it is that of the "
                "files in a folder, got none: put the name of a file into its path"
            )
        stem = checked_stem(self.name)
        stored = stored_leaves(leaves, self.transform, self.metadata)
        return planned(
            stored, self.target, most, checksum=self.checksum, by_all=by_all, writers=writers,
            stem=stem,
        )  # fmt: skip
