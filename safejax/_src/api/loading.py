"""Load: the tree in a file, or in bytes, with lazy leaves; and the user's metadata."""

from typing import Any, TypeVar, Unpack, cast, overload

from safejax._src.arguments import check_source, refuse_path
from safejax._src.checkpoint.codec import IN_MEMORY, Buffer, decode
from safejax._src.checkpoint.finding import Path, shown_path
from safejax._src.checkpoint.opening import open_path
from safejax._src.checkpoint.options import (
    LoadOptions,
    Paths,
    TreeOptions,
    parse_options,
    shows_options,
)
from safejax._src.moved import names_new_way
from safejax._src.public import set_module
from safejax._src.reading.filesystems import FileSystem

_Tree = TypeVar("_Tree")


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
    whole is still read. Files of Flax's msgpack and NumPy's `.npz` and `.npy`, which their first
    bytes show, are read as lazily (`docs/from-msgpack.md`); a pickle is never loaded.

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

    `path` may be a URL, or a path of `fs`, which is a file system of fsspec or a store of obstore;
    only the byte ranges that are needed are requested. Those that are less than 64 KiB apart are
    one request, as are those up to 128 KiB apart of which an eighth or more is needed; a request
    has at most 8 MiB, and 16 are under way at the same time, with 48 MiB in memory of their own.
    All devices of the process ask together, and so do neighbouring leaves of at most 64 MiB in
    `materialize`. A request that fails for the moment is made five times at most, none of them a
    minute after the first failed, and one of which no byte arrives for 30 seconds has failed.

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
