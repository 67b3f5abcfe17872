"""Save and load: the main functions, for whole trees."""

from collections.abc import Mapping
from typing import Any, TypeVar, Unpack, cast, overload

from safejax._src.arguments import (
    check_source,
    refuse_path,
)
from safejax._src.arrays.materialize import Progress
from safejax._src.checkpoint.background import (
    begin_to_write,
    begin_to_write_by_all,
    write_by_all_in_turn,
    write_in_turn,
)
from safejax._src.checkpoint.codec import IN_MEMORY, Buffer, decode, encode
from safejax._src.checkpoint.handle import SaveHandle
from safejax._src.checkpoint.opening import Path, open_path, shown_path
from safejax._src.checkpoint.options import (
    LoadOptions,
    Paths,
    TreeOptions,
    parse_options,
    shows_options,
)
from safejax._src.checkpoint.saving import stored_leaves
from safejax._src.checkpoint.task import SaveTask
from safejax._src.leaves.steps import TransformArgument
from safejax._src.moved import names_new_way
from safejax._src.processes.agreement import TIMEOUT
from safejax._src.public import set_module
from safejax._src.reading.remote import FileSystem
from safejax._src.storage.files import PathLike

_Tree = TypeVar("_Tree")


@set_module("safejax")
def save(
    tree: Any,
    path: PathLike,
    *,
    transform: TransformArgument | None = None,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int | None = None,
    checksum: bool = False,
    progress: Progress | None = None,
    fs: FileSystem = None,
    timeout: float = TIMEOUT,
) -> None:
    """Store a pytree as a safetensors file at `path`: completely, or not at all.

    Leaves are JAX arrays (lazy ones are streamed from their file), NumPy arrays, typed PRNG
    keys, Python scalars, strings and None, in any pytree. `transform` is applied to the Leaves
    first. `metadata` maps strings to strings. `checksum` records digests of the leaves' bytes,
    which `load(..., verify=True)` checks (`pip install 'safejax[checksum]'`).
    `progress(done, total)` is called with bytes of the file. The tree is not changed, and the
    same tree always gives the same bytes.

    With `max_shard_bytes`, `path` is a folder. Tensors are distributed, by name, over files
    `model-00001-of-0000N.safetensors` with at most that many bytes of data each (a larger tensor
    gets a file of its own), and `model.safetensors.index.json` records which file holds which
    tensor, as Hugging Face's libraries do; if one file is enough, it is `model.safetensors`. The
    folder is replaced as a whole, so that no reader sees half of it; other files in it are kept.

    What replaces a file or a folder has its mode and, where allowed, its group and owner; the
    umask is for what is new. `path` may be a URL, or a path of the fsspec file system `fs`. The
    file then appears only when it is complete, as far as that file system guarantees it.

    A tree with an array that spans several processes of `jax.distributed` is saved by all of
    them: each calls `save` with the same tree and arguments, in the same order, and writes its
    own bytes into the one file, in a folder that all share. An error in one process is raised in
    all of them. `timeout` is how many seconds they wait for one that shows no progress, and
    `progress` is called with the bytes that its own process writes. `docs/many-processes.md` has
    the rest. A tree without such arrays is saved by each process that calls `save`, alone.

    >>> import jax.numpy as jnp, safejax, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "params.safetensors")
    >>> safejax.save({"mlp": {"w": jnp.ones((4, 2))}}, path, metadata={"step": "3"})
    >>> safejax.load(path)["mlp"]["w"]
    LazyArray(float32[4,2], name='mlp.w', unread)

    Raises `LeafError` for a leaf that no file can hold, `TransformError` if the transform cannot
    be applied, and `OSError` if the file cannot be written; an existing file is then kept.
    `ProcessError` if another process has another tree, failed or did not come.
    """
    task = SaveTask(
        function="save", tree=tree, path=path, transform=transform, metadata=metadata,
        max_shard_bytes=max_shard_bytes, checksum=checksum, progress=progress, fs=fs,
        timeout=timeout,
    )  # fmt: skip
    if task.spans_processes:
        write_by_all_in_turn(task.agree(), progress)
    else:
        write_in_turn(task.plan(), task.target, fs, progress)


@set_module("safejax")
def save_async(
    tree: Any,
    path: PathLike,
    *,
    transform: TransformArgument | None = None,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int | None = None,
    checksum: bool = False,
    progress: Progress | None = None,
    fs: FileSystem = None,
    timeout: float = TIMEOUT,
    max_host_bytes: int | None = None,
) -> SaveHandle:
    """Store a pytree as `save` does, in the background; returns as soon as its values are safe.

    From then on, arrays of the tree may be donated, deleted and overwritten: the file will have
    the values, and the bytes, of `save` at the time of the call. The arguments are those of
    `save`. `handle.result()` waits, and raises the error of the save.

    Arrays on CPU devices are held and not copied: XLA takes new memory where one of them is
    donated. Arrays on other devices are copied to the host, and NumPy arrays are copied. All saves
    in the background together hold at most `max_host_bytes` bytes of such copies (by default, any
    number): a call that needs more waits for earlier saves, and a tree that needs more by itself
    is written, block by block, before the call returns. Lazy leaves are read from their files
    later, also if it is their file that is replaced. A JAX array that shares the memory of a NumPy
    array, as `jax.device_put` may make it on the CPU, changes with that one: leave it unchanged.

    Saves to one path, and to a folder and what is in it, go in the order of the calls, those of
    `save` included; others go side by side. `progress` and the functions of `elementwise`
    transforms are called in another thread. The interpreter waits for all saves before it exits.

    In several processes, all of them call it as they call `save`. They agree on what is saved
    before the call returns, and go on in the background, where no device and no collective is used.

    >>> import jax, jax.numpy as jnp, safejax, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "params.safetensors")
    >>> step = jax.jit(lambda params: {"w": params["w"] + 1}, donate_argnums=0)
    >>> params = {"w": jnp.zeros(3)}
    >>> handle = safejax.save_async(params, path)
    >>> params = step(params)
    >>> handle.result()
    >>> safejax.load(path)["w"].tolist()
    [0.0, 0.0, 0.0]

    Raises `LeafError`, `TransformError`, `TypeError`, and `ProcessError` for trees that differ, at
    once. All other errors, such as `OSError`, are raised by `handle.result()`; an existing file is
    then kept.
    """
    task = SaveTask(
        function="save_async", tree=tree, path=path, transform=transform, metadata=metadata,
        max_shard_bytes=max_shard_bytes, checksum=checksum, progress=progress, fs=fs,
        timeout=timeout, max_host_bytes=max_host_bytes,
    )  # fmt: skip
    if task.spans_processes:
        return begin_to_write_by_all(task.agree(), task.target, progress, max_host_bytes)
    return begin_to_write(task.plan(), task.target, fs, progress, max_host_bytes)


@set_module("safejax")
@names_new_way
def serialize(
    tree: Any,
    *,
    transform: TransformArgument | None = None,
    metadata: Mapping[str, str] | None = None,
    checksum: bool = False,
) -> bytes:
    """The bytes of the safetensors file that `save` would write.

    The arguments are those of `save`, and so are the errors.

    >>> import jax.numpy as jnp, safejax
    >>> safejax.deserialize(safejax.serialize({"w": jnp.arange(3)}))["w"].sum().item()
    3
    """
    refuse_path(tree, "serialize", "pass safejax.load(path), or take the file's own bytes")
    return encode(stored_leaves(tree, transform, metadata), checksum=checksum)


@overload
def load(
    path: Paths, *, like: None = None, fs: FileSystem = None, **options: Unpack[LoadOptions]
) -> Any: ...
@overload
def load(
    path: Paths, *, like: _Tree, fs: FileSystem = None, **options: Unpack[LoadOptions]
) -> _Tree: ...
@set_module("safejax")
@names_new_way
@shows_options
def load(
    path: Paths, *, like: Any = None, fs: FileSystem = None, **options: Unpack[LoadOptions]
) -> Any:
    """The pytree at a path, with lazy leaves: only headers are read, unless `like` has NumPy's.

    `path` is a safetensors file, an index (`*.safetensors.index*.json`), a folder, or a list of
    files. Of several in a folder, that with the canonical name is taken, and a plain name before
    its variants. An index says which tensor is in which file; a tensor that is in another file,
    too, or that the index omits, is a warning, and one that is missing is an error. A file that is
    changed in place after it was opened is an error when a leaf is read; one that is replaced as a
    whole is still read.

    The order is: decode, `transform`, match `like`, choose the sharding. Each leaf is read and
    placed on its devices when its values are first needed, and a process reads only the bytes
    that its own devices hold.

    `like` is a tree of arrays or `jax.ShapeDtypeStruct`s. Its structure is rebuilt, leaves are
    matched by name, and shapes and dtypes are checked; to a type checker the result has the type of
    `like`. Where it has an array or a scalar of NumPy, so has the result, unless `sharding` has one
    for that leaf: it is read at once, and has exactly the file's dtype. With
    `like=safejax.abstract(tree)` all are lazy. Without `like`, the structure that the file records
    is built; node types that are not built in come back as dicts of their fields. With
    `strict=False`, missing leaves are taken from `like` and unexpected ones are left out, with a
    `PartialLoadWarning` that names them.

    `sharding` is one `Sharding` or `Device`, a prefix tree of them (None is the default), or a
    function `(name, aval) -> Sharding | Device | None`, as `sharding_rules` makes. Within
    `jax.set_mesh(mesh)`, a `PartitionSpec` is a sharding over that mesh. A mesh alone is for `like`
    whose shardings are over an abstract one. Where it gives no sharding, that of the leaf in `like`
    is used if it is committed or abstract, and otherwise JAX's default device, uncommitted.

    `transform` is a transform, a chain of them, or any function from Leaves to Leaves.

    `verify` compares what is read, when it is read, with the digests that
    `save(..., checksum=True)` recorded, in blocks of 1 MiB or more. A slice is verified by the
    blocks that it overlaps.

    `path` may be a URL, or a path of the fsspec file system `fs`; only the byte ranges that are
    needed are requested. Those that are less than 64 KiB apart are one request, as are those up to
    128 KiB apart of which an eighth or more is needed; a request has at most 8 MiB, and 16 are
    under way at the same time, with 48 MiB in memory of their own. All devices of the process ask
    together, and so do neighbouring leaves of at most 64 MiB in `materialize`. A request that fails
    for the moment is made five times at most, none of them a minute after the first failed, and
    one of which no byte arrives for 30 seconds has failed.

    `access` says how local files are read. By default they are mapped, and used in place where they
    are aligned (`"map"`), but on a network file system they are read (`"read"`). With `"copy"`, no
    array refers to the file once it is placed.

    >>> import jax, jax.numpy as jnp, safejax, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "params.safetensors")
    >>> safejax.save({"w": jnp.ones((4, 2))}, path)
    >>> mesh = jax.make_mesh((1,), ("x",))
    >>> rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    >>> tree = safejax.load(path, sharding=rows)
    >>> tree["w"].shape, tree["w"].is_placed
    ((4, 2), False)

    Raises `FileNotFoundError`; `InvalidFileError` for a file that is not a safetensors file;
    `MismatchError`, which reports everything that does not match `like`; `ShardingError`, which
    reports every leaf that the sharding does not divide; `TransformError`; `ChecksumError` where
    `verify` finds no digests and, when a leaf is read, where its bytes are not those that were
    saved; `ReadError` for a remote file that cannot be opened. What is NumPy's in `like` is read by
    the load, which raises what reading raises.
    """
    parsed = parse_options(load, options)
    check_source(path)
    refuse_path(like, "load: like", "pass like=safejax.load(path)")
    files = cast("Path", path)
    leaves = open_path(files, fs, verify=parsed.verify, access=parsed.access)
    return parsed.tree(leaves, shown_path(files), like)


@overload
def deserialize(data: Buffer, *, like: None = None, **options: Unpack[TreeOptions]) -> Any: ...
@overload
def deserialize(data: Buffer, *, like: _Tree, **options: Unpack[TreeOptions]) -> _Tree: ...
@set_module("safejax")
@names_new_way
@shows_options
def deserialize(data: Buffer, *, like: Any = None, **options: Unpack[TreeOptions]) -> Any:
    """The pytree in the bytes of a safetensors file, with lazy leaves that read `data` later.

    The options are those of `load`, without the ones that say how a file is read; so are the
    errors.

    >>> import jax.numpy as jnp, safejax
    >>> safejax.deserialize(safejax.serialize({"w": jnp.ones((4, 2))}))
    {'w': LazyArray(float32[4,2], name='w', unread)}
    """
    parsed = parse_options(deserialize, options)
    refuse_path(like, "deserialize: like", "pass like=safejax.load(path)")
    return parsed.tree(decode(data, verify=parsed.verify), IN_MEMORY, like)


@set_module("safejax")
def metadata(source: Paths | Buffer, *, fs: FileSystem = None) -> dict[str, str]:
    """The user's metadata in a file, given its path or its bytes; only the header is read.

    The strings that `save(..., metadata=m)` stored come back unchanged; safejax's own record is
    left out. For several files, entries on which they disagree are left out.

    >>> import jax.numpy as jnp, safejax
    >>> safejax.metadata(safejax.serialize({"w": jnp.ones(3)}, metadata={"step": "7"}))
    {'step': '7'}
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return dict(decode(cast("Buffer", source)).metadata)
    return dict(open_path(cast("Path", source), fs).metadata)
