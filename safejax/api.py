"""The main job: save and load, whole trees at a time."""

import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import jax
from numpy.typing import NDArray

from safejax.access import Access
from safejax.codec import IN_MEMORY, Buffer, decode
from safejax.concretely import concretely_all, needs_x64
from safejax.files import PathLike, checked_path, write_atomically
from safejax.layout import Layout, layout
from safejax.lazy import LazyArray
from safejax.leaves import Leaves, aval_of, checked_metadata, is_array
from safejax.opening import Path, open_path, shown_path
from safejax.readahead import read_ahead
from safejax.remote import resolve_path, write_remotely
from safejax.shardings import ShardingArgument
from safejax.shards import Folder, folder_of
from safejax.steps import TransformArgument, apply
from safejax.strict_json import collector_paused
from safejax.tree import assemble, committed_sharding, flatten

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes done so far and the bytes there are in all."""


def save(
    tree: Any,
    path: PathLike,
    *,
    transform: TransformArgument | None = None,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int | None = None,
    checksum: bool = False,
    progress: Progress | None = None,
    fs: Any = None,
) -> None:
    """Store a pytree as a safetensors file at `path`: wholly, or not at all.

    Leaves are arrays of JAX (lazy ones are streamed from their file) or NumPy, typed PRNG keys,
    Python scalars, strings and None, in any pytree. `transform` is applied to the Leaves first.
    `metadata` maps strings to strings. `checksum` records digests of the leaves' bytes, which
    `load(..., verify=True)` checks (`pip install 'safejax[checksum]'`). `progress(done, total)`
    counts bytes of the file. The tree is not changed, and the same tree always gives the same
    bytes.

    With `max_shard_bytes`, `path` is a folder: tensors go, by name, into files
    `model-00001-of-0000N.safetensors` with at most so many bytes of data (a larger tensor has
    one of its own), and `model.safetensors.index.json` says which is where, as Hugging Face's
    libraries have it; all into `model.safetensors` if that is enough. The folder is replaced as
    one, so that no reader sees half of it; other files in it stay.

    `path` may be a URL, or a path of the fsspec file system `fs`: the file is there when all of
    it is, as far as that file system can promise.

    >>> import jax.numpy as jnp, safejax, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "params.safetensors")
    >>> safejax.save({"mlp": {"w": jnp.ones((4, 2))}}, path, metadata={"step": "3"})
    >>> safejax.load(path)["mlp"]["w"]
    LazyArray(float32[4,2], name='mlp.w', unread)

    Raises `LeafError` for a leaf that no file can hold, `TransformError` where the transform
    does not fit, `OSError` where the file cannot be written; the old file is then still there.
    """
    target = checked_path(path)
    leaves = _leaves(tree, transform, metadata)
    plan: Layout | Folder
    if max_shard_bytes is None:
        plan = layout(leaves, target, checksum=checksum)
    else:
        plan = folder_of(leaves, target, _checked_size(max_shard_bytes), checksum=checksum)
    done = 0

    def wrote(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, plan.nbytes)

    fs, target = resolve_path(target, fs)
    if isinstance(plan, Folder):
        if fs is not None:
            raise ValueError(
                f"{target}: max_shard_bytes: expected a local folder, which can be replaced as "
                f"one, got one of {type(fs).__name__}: save it locally and copy it, the index last"
            )
        plan.write(target, wrote)
    elif fs is None:
        write_atomically(target, plan.chunks(), wrote, plan.late_head)
    else:
        if checksum:  # What is sent cannot be changed: digests are made before.
            for _ in plan.chunks():
                pass
        write_remotely(fs, target, plan.chunks(), wrote)


def serialize(
    tree: Any,
    *,
    transform: TransformArgument | None = None,
    metadata: Mapping[str, str] | None = None,
    checksum: bool = False,
) -> bytes:
    """The bytes of the safetensors file that `save` would write.

    >>> import jax.numpy as jnp, safejax
    >>> safejax.deserialize(safejax.serialize({"w": jnp.arange(3)}))["w"].sum().item()
    3
    """
    return layout(_leaves(tree, transform, metadata), IN_MEMORY, checksum=checksum).to_bytes()


def load(
    path: Path,
    *,
    like: Any = None,
    sharding: ShardingArgument = None,
    transform: TransformArgument | None = None,
    strict: bool = True,
    verify: bool = False,
    access: Access = "auto",
    fs: Any = None,
) -> Any:
    """The pytree at a path, with lazy leaves; only headers are read.

    `path` is a safetensors file, an index (`*.index.json`), a folder with one of these, or a
    list of files. The index says which tensor is in which file, and all of it must be true.

    The order is: decode, `transform`, match `like`, choose the sharding; each leaf is read and
    placed when its values are first needed, and a process reads only what its devices hold.

    `like` is a tree of arrays or `jax.ShapeDtypeStruct`s: its structure is rebuilt, leaves are
    matched by name, and shapes and dtypes are checked. Without it, the structure that the file
    records is built; node types that are not built in come back as dicts of their fields.
    With `strict=False` leaves that are missing come from `like`, and unexpected ones are left
    out, with a `PartialLoadWarning` that names them.

    `sharding` is one `Sharding` or `Device`, a prefix tree of them (None: the default), or a
    function `(name, aval) -> Sharding | None`, as `sharding_rules` makes. Where it says nothing,
    the sharding of `like`'s leaf counts if that is committed or abstract, else JAX's default
    device, uncommitted.

    `verify` checks what is read, when it is read, against the digests that
    `save(..., checksum=True)` recorded, in blocks of 1 MiB or more: a slice is checked by the
    blocks it touches.

    `path` may be a URL, or a path of the fsspec file system `fs`: of such a file the ranges that
    are needed are requested. `access` says how local files are got at: by default they are
    mapped, and used in place where they are aligned (`"map"`), but on a network file system
    they are read (`"read"`); with `"copy"` no array looks at the file once it is placed.

    >>> import jax, jax.numpy as jnp, safejax, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "params.safetensors")
    >>> safejax.save({"w": jnp.ones((4, 2))}, path)
    >>> mesh = jax.make_mesh((1,), ("x",))
    >>> rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    >>> tree = safejax.load(path, sharding=rows)
    >>> tree["w"].shape, tree["w"].is_placed
    ((4, 2), False)

    Raises `FileNotFoundError`; `InvalidFileError` for what is no safetensors file;
    `MismatchError` with everything that does not match `like`; `ShardingError` with every leaf
    that the sharding does not divide; `TransformError`; `ChecksumError` where `verify` finds no
    digests, and, when a leaf is read, other bytes than were saved.
    """
    with collector_paused():
        leaves = open_path(path, fs, verify=verify, access=access)
        return _load(leaves, like, sharding, transform, strict, shown_path(path))


def deserialize(
    data: Buffer,
    *,
    like: Any = None,
    sharding: ShardingArgument = None,
    transform: TransformArgument | None = None,
    strict: bool = True,
    verify: bool = False,
) -> Any:
    """The pytree in the bytes of a safetensors file, with lazy leaves, as `load` gives it."""
    return _load(decode(data, verify=verify), like, sharding, transform, strict, IN_MEMORY)


def materialize(tree: Any, *, progress: Progress | None = None) -> Any:
    """The same tree with every lazy leaf a plain, placed `jax.Array`; read in parallel.

    Call it before a loop: dispatch then costs what it costs for any array. What is used in
    place is brought into memory in the background, ahead of its first touch. Leaves that are no
    lazy arrays stay as they are. `progress(done, total)` counts bytes of leaves.

    >>> import jax.numpy as jnp, safejax
    >>> tree = safejax.deserialize(safejax.serialize({"w": jnp.ones(3)}))
    >>> isinstance(safejax.materialize(tree)["w"], safejax.LazyArray)
    False
    """
    lazy: dict[int, LazyArray] = {}
    for leaf in jax.tree_util.tree_leaves(tree):
        if isinstance(leaf, LazyArray):
            lazy[id(leaf)] = leaf
    total = sum(leaf.nbytes for leaf in lazy.values())
    done = 0
    one_at_a_time = threading.Lock()
    in_place: list[NDArray[Any]] = []

    def place(leaves: list[LazyArray]) -> None:
        nonlocal done
        for leaf in leaves:
            in_place.extend(leaf.place_here())
            if progress is not None:
                with one_at_a_time:
                    done += leaf.nbytes
                    progress(done, total)

    # By themselves those that are worth it; all others are placed by one thread, in each mode.
    groups: list[list[LazyArray]] = [[], []]
    for leaf in lazy.values():
        if leaf.is_worth_a_thread:
            groups.append([leaf])
        else:
            groups[needs_x64(leaf.content.view.dtype)].append(leaf)
    tasks = [(partial(place, group), group[0].content.view.dtype) for group in groups if group]
    concretely_all(tasks, workers=min(8, os.cpu_count() or 1))
    placed = jax.tree.map(lambda leaf: leaf.placed() if isinstance(leaf, LazyArray) else leaf, tree)
    read_ahead(in_place)
    return placed


def abstract(tree: Any) -> Any:
    """The same tree with each array a `jax.ShapeDtypeStruct`, sharding included; reads nothing.

    The result serves as `like`. Leaves that are no arrays stay as they are.

    >>> import jax.numpy as jnp, safejax
    >>> safejax.abstract({"w": jnp.ones(3), "step": 1})["step"]
    1
    """

    def of_leaf(leaf: Any) -> Any:
        if not is_array(leaf):
            return leaf
        # An uncommitted array follows the others: a sharding in like would commit it.
        aval = aval_of(leaf)
        return jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=committed_sharding(leaf))

    return jax.tree.map(of_leaf, tree)


def metadata(source: Path | Buffer, *, fs: Any = None) -> dict[str, str]:
    """The user's metadata in a file, by its path or its bytes; only the header is read.

    What `save(..., metadata=m)` stored comes back as it was; safejax's own record is not shown.
    Of several files, it is what they do not contradict each other in.

    >>> import jax.numpy as jnp, safejax
    >>> safejax.metadata(safejax.serialize({"w": jnp.ones(3)}, metadata={"step": "7"}))
    {'step': '7'}
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return dict(decode(source).metadata)
    return dict(open_path(source, fs).metadata)


def _leaves(
    tree: Any, transform: TransformArgument | None, metadata: Mapping[str, str] | None
) -> Leaves:
    """What is stored of a tree."""
    leaves = tree if isinstance(tree, Leaves) else flatten(tree)
    leaves = apply(transform, leaves)
    if metadata is None:
        return leaves
    return leaves.replace(metadata={**leaves.metadata, **checked_metadata(metadata)})


def _checked_size(nbytes: object) -> int:
    if type(nbytes) is not int or nbytes < 1:
        raise ValueError(f"max_shard_bytes: expected a number of bytes, 1 or more, got {nbytes!r}")
    return nbytes


def _load(
    leaves: Leaves,
    like: Any,
    sharding: ShardingArgument,
    transform: TransformArgument | None,
    strict: bool,
    file: str,
) -> Any:
    return assemble(
        apply(transform, leaves), like=like, sharding=sharding, strict=strict, file=file
    )
