"""Orbax: steps of its `CheckpointManager` as safetensors files, and its own checkpoints, lazily.

    with ocp.CheckpointManager(folder, options=options) as manager:
        manager.save(step, args=safejax.orbax.Save(state))
        state = manager.restore(step, args=safejax.orbax.Restore(like, sharding=sharding))

Orbax decides which steps are kept, and when they are whole; their files are those of
`safejax.save`, which `safejax.load` and every safetensors reader read.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Final, TypeVar, overload

import jax

from safejax._src.adapter import explain_missing
from safejax._src.api.loading import load as load_files
from safejax._src.arguments import checked_size
from safejax._src.checkpoint.deferred import HeldSave, hold
from safejax._src.checkpoint.opening import open_path
from safejax._src.checkpoint.options import Options
from safejax._src.checkpoint.orbax_folders import find_item, is_item
from safejax._src.checkpoint.orbax_items import open_item
from safejax._src.checkpoint.task import SaveTask
from safejax._src.format.index import STEM
from safejax._src.leaves.abstract import abstract
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.shardings import ShardingFunction, ShardingTree
from safejax._src.leaves.steps import TransformArgument
from safejax._src.processes.agreement import TIMEOUT
from safejax._src.pytrees.structure import is_something
from safejax._src.storage.files import PathLike, checked_path
from safejax._src.tensorstores import Folder, open_arrays

try:
    import orbax.checkpoint as ocp
    from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals
except ModuleNotFoundError as error:
    explain_missing(
        error, "orbax", dict.fromkeys(("orbax", "orbax.checkpoint"), "orbax-checkpoint")
    )
    raise

__all__ = ["Handler", "Restore", "Save", "load"]

_Tree = TypeVar("_Tree")

CACHE_BYTES: Final = 128 << 20
"""How many bytes of decoded chunks `load` keeps by default."""


@overload
def load(
    path: PathLike,
    *,
    item: str | None = None,
    step: int | None = None,
    like: None = None,
    sharding: ShardingTree | ShardingFunction = None,
    transform: TransformArgument | None = None,
    strict: bool = True,
    cache_bytes: int = CACHE_BYTES,
) -> Any: ...
@overload
def load(
    path: PathLike,
    *,
    item: str | None = None,
    step: int | None = None,
    like: _Tree,
    sharding: ShardingTree | ShardingFunction = None,
    transform: TransformArgument | None = None,
    strict: bool = True,
    cache_bytes: int = CACHE_BYTES,
) -> _Tree: ...
def load(
    path: PathLike,
    *,
    item: str | None = None,
    step: int | None = None,
    like: Any = None,
    sharding: ShardingTree | ShardingFunction = None,
    transform: TransformArgument | None = None,
    strict: bool = True,
    cache_bytes: int = CACHE_BYTES,
) -> Any:
    """The pytree of a checkpoint that Orbax has written, with lazy leaves.

    `path` is the folder of an item, of a step, or of a `CheckpointManager`, whose last step is
    taken unless `step` says which; a local path, or a URL that tensorstore knows, for example
    `gs://`. `item` is needed for a step of several items, none of which is `default`. Arrays in
    OCDBT, zarr and zarr3 are read by tensorstore; typed keys, scalars, strings and empty
    containers come back as such. Without `like`, a named tuple comes back as a dict of its fields,
    and a tuple as a list unless Orbax was told to store rich types; entries that are None or empty
    are not matched with `like`. An item that was saved with `Save` is loaded, too.

    Only what describes the arrays is read, and scalars. An array is read chunk by chunk, each of
    which is decoded as a whole: whatever devices of this process need of a leaf is read together,
    and each chunk once. Chunks of which only a part was needed are kept, of all leaves together at
    most `cache_bytes` bytes. `safejax.plan(tree)` says what is read.

    `safejax.save(safejax.orbax.load(path), new)` converts a checkpoint, in bounded memory. It
    reads each chunk once if `cache_bytes` has room for the chunks of one leaf that are next to each
    other along all axes but the first; for arrays that are divided along their columns, those are
    all chunks of the leaf.

    `like`, `sharding`, `transform` and `strict` are those of `safejax.load`.

    >>> import jax.numpy as jnp, orbax.checkpoint as ocp, safejax.orbax, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "step")
    >>> with ocp.StandardCheckpointer() as checkpointer:
    ...     checkpointer.save(path, {"w": jnp.ones((4, 2))})
    >>> safejax.orbax.load(path)
    {'w': LazyArray(float32[4,2], name='w', unread)}

    Raises `FileNotFoundError` if there is no such step or item, `InvalidFileError` for what is not
    a checkpoint of Orbax, and what `safejax.load` raises.
    """
    most = checked_size(cache_bytes, "cache_bytes", 0)
    folder = find_item(Folder(checked_path(path)), item, step)
    file = repr(folder)
    options = Options(sharding=sharding, transform=transform, strict=strict)
    if not is_item(folder):
        return options.tree(open_path(folder.path), file, like)
    leaves = open_item(folder, open_arrays, CACHE_BYTES if most is None else most)
    if like is not None:
        leaves = _without_nothing(leaves)
    return options.tree(leaves, file, like)


def _without_nothing(leaves: Leaves) -> Leaves:
    """The leaves without None and empty containers, of which Orbax forgets what they were."""
    return leaves.replace({name: leaf for name, leaf in leaves.items() if is_something(leaf)})


class Handler(ocp.AsyncCheckpointHandler):
    """Stores an item of a step as `model.safetensors`, and restores it with lazy leaves.

    Orbax makes one by itself for an item that is saved with `Save`, or restored with `Restore`, so
    few programs name it: those that let a `CheckpointManager` restore, or tell the metadata of, an
    item that it has not saved (`item_handlers=safejax.orbax.Handler()`).

    A save in the background holds the values of the item when `CheckpointManager.save` returns:
    arrays may then be donated, deleted and overwritten, as with `safejax.save_async`. A tree with
    arrays that span several processes is saved by all of them, each of which writes its own part
    of the one file. Any other tree is written by the process `primary_host`, or by each process if
    that is None, for folders that they do not share. `timeout` is how many seconds processes wait
    for one that shows no progress.
    """

    def __init__(self, *, primary_host: int | None = 0, timeout: float = TIMEOUT) -> None:
        self._primary_host = primary_host
        self._timeout = timeout

    @classmethod
    def typestr(cls) -> str:
        """The name that checkpoints record for their handler; it never changes."""
        return "safejax.orbax.Handler"

    async def async_save(self, directory: Any, args: "Save") -> list[Any]:
        """Hold the values of `args.item`; returns futures, which write them to the folder.

        Raises what `safejax.save_async` raises at once; all other errors are those of the futures.
        """
        held = hold_item(os.fspath(directory), args, self._primary_host, self._timeout)
        if held is None:
            return []

        async def commit() -> None:
            held.write()

        # Orbax makes the folder meanwhile, and says when it is there.
        return [CommitFutureAwaitingContractedSignals(commit(), name="safejax_save")]

    def save(self, directory: Any, args: "Save") -> None:
        """Write `args.item` to the folder, which must be there."""
        held = hold_item(os.fspath(directory), args, self._primary_host, self._timeout)
        if held is not None:
            held.write()

    def restore(self, directory: Any, args: "Restore | None" = None) -> Any:
        """The item in a folder, with lazy leaves, as `Restore` says.

        Orbax's own handlers may have saved it: then it is what `safejax.orbax.load` returns.
        """
        args = Restore() if args is None else args
        folder = os.fspath(directory)
        if is_item(Folder(folder)) and not args.verify:
            return load(
                folder,
                like=args.item,
                sharding=args.sharding,
                transform=args.transform,
                strict=args.strict,
            )
        return load_files(
            folder,
            like=args.item,
            sharding=args.sharding,
            transform=args.transform,
            strict=args.strict,
            verify=args.verify,
        )

    def metadata(self, directory: Any) -> Any:
        """The tree of the item, with a `jax.ShapeDtypeStruct` in place of each array."""
        return abstract(self.restore(directory))


@ocp.args.register_with_handler(Handler, for_save=True)
@dataclasses.dataclass
class Save(ocp.args.CheckpointArgs):
    """What to save as an item of a step: a pytree, and how, as `safejax.save` takes it.

    `manager.save(step, args=safejax.orbax.Save(state))`, or within `ocp.args.Composite(...)`.

    `transform` is applied to the Leaves first. `checksum` records digests, which
    `Restore(verify=True)` checks. With `max_shard_bytes`, the item is a set of files of at most
    that many bytes, with an index. `metadata` maps strings to strings.
    """

    item: Any
    transform: TransformArgument | None = None
    checksum: bool = False
    max_shard_bytes: int | None = None
    metadata: Mapping[str, str] | None = None


@ocp.args.register_with_handler(Handler, for_restore=True)
@dataclasses.dataclass
class Restore(ocp.args.CheckpointArgs):
    """How to restore an item of a step: lazily, as `safejax.load` does.

    `item` is the tree `like` of `safejax.load`: of arrays or `jax.ShapeDtypeStruct`s, with their
    shardings; None for the structure that was saved. `sharding`, `transform`, `strict` and
    `verify` are those of `safejax.load`. Nothing is read until it is needed; a step that the
    manager deletes meanwhile is still read where its files are local. A step that Orbax's own
    handlers have saved is restored, too, by `safejax.orbax.load`.
    """

    item: Any = None
    sharding: ShardingTree | ShardingFunction = None
    transform: TransformArgument | None = None
    strict: bool = True
    verify: bool = False


def hold_item(
    folder: str, args: Save, primary_host: int | None = 0, timeout: float = TIMEOUT
) -> HeldSave | None:
    """Hold the values of an item, to be written into a folder; None if another process does so."""
    task = SaveTask(
        function="safejax.orbax.Save",
        tree=args.item,
        # Also for a URL.
        path=f"{folder}/{STEM}.safetensors" if args.max_shard_bytes is None else folder,
        transform=args.transform,
        metadata=args.metadata,
        max_shard_bytes=args.max_shard_bytes,
        checksum=args.checksum,
        progress=None,
        fs=None,
        timeout=timeout,
    )
    is_ours = primary_host in (None, jax.process_index())
    return hold(task) if is_ours or task.spans_processes else None
