"""Save: a tree into a file, or into bytes; at once or in the background."""

from collections.abc import Mapping
from typing import Any

from safejax._src.arguments import refuse_path
from safejax._src.checkpoint.background import (
    begin_to_write,
    begin_to_write_by_all,
    write_by_all_in_turn,
    write_in_turn,
)
from safejax._src.checkpoint.codec import encode
from safejax._src.checkpoint.handle import SaveHandle
from safejax._src.checkpoint.saving import stored_leaves
from safejax._src.checkpoint.task import SaveTask
from safejax._src.format.index import STEM
from safejax._src.leaves.steps import TransformArgument
from safejax._src.moved import names_new_way
from safejax._src.processes.agreement import TIMEOUT
from safejax._src.progress import ProgressArgument, reported
from safejax._src.public import set_module
from safejax._src.reading.filesystems import FileSystem
from safejax._src.storage.files import PathLike


@set_module("safejax")
def save(
    tree: Any,
    path: PathLike,
    *,
    transform: TransformArgument | None = None,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int | None = None,
    name: str = STEM,
    one_writer_per_file: bool = False,
    checksum: bool = False,
    progress: ProgressArgument = None,
    fs: FileSystem = None,
    timeout: float = TIMEOUT,
) -> None:
    """Store a pytree as a safetensors file at `path`: completely, or not at all.

    Leaves are JAX arrays (lazy ones are streamed from their file), NumPy arrays, typed PRNG
    keys, Python scalars, strings and None, in any pytree. `transform` is applied to the Leaves
    first. `metadata` maps strings to strings. `checksum` records digests of the leaves' bytes,
    which `load(..., verify=True)` checks (`pip install 'safejax[checksum]'`).
    `progress(done, total)` is called with bytes of the file; `progress=True` shows them with the
    rate and the time left (`pip install 'safejax[progress]'`). The tree is not changed, and the
    same tree always gives the same bytes.

    With `max_shard_bytes`, `path` is a folder. Tensors are distributed, by name, over files
    `model-00001-of-0000N.safetensors` with at most that many bytes of data each (a larger tensor
    gets a file of its own), and `model.safetensors.index.json` records which file holds which
    tensor, as Hugging Face's libraries do; if one file is enough, it is `model.safetensors`.
    `name="diffusion_pytorch_model"`, which diffusers expects, or `"adapter_model"`, which PEFT
    does, takes the place of `model` in these names. The
    folder is replaced as a whole, so that no reader sees half of it; other files in it are kept.
    Elsewhere than in a local folder, and with `one_writer_per_file`, the names of the files are new
    in each save (`model-<16 hex digits>-00001-of-…`): the index, which is then never missing, is
    written last, and the files of the save before are removed.

    What replaces a file or a folder has its mode and, where allowed, its group and owner; the
    umask is for what is new. `path` may be a URL, or a path of `fs`, which is a file system of
    fsspec or a store of obstore. The file then appears only when it is complete, as far as that
    file system guarantees it.

    A tree with an array that spans several processes of `jax.distributed` is saved by all of
    them: each calls `save` with the same tree and arguments, in the same order, and writes its
    own bytes into the one file, in a folder that all share. With `max_shard_bytes` and
    `one_writer_per_file`, and always elsewhere than in a local folder, whole tensors are dealt out
    among the processes, sent to them by a collective, and written by one process each. An error in
    one process is raised in all of them. `timeout` is how many seconds they wait for one that
    shows no progress, and `progress` is called with the bytes that its own process writes.
    `docs/many-processes.md` has the rest. A tree without such arrays is saved by each process that
    calls `save`, alone.

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
        max_shard_bytes=max_shard_bytes, name=name, one_writer_per_file=one_writer_per_file,
        checksum=checksum, progress=progress, fs=fs, timeout=timeout,
    )  # fmt: skip
    with reported(progress, "save") as report:
        if task.spans_processes:
            task.agree(lambda joint: write_by_all_in_turn(joint, report))
        else:
            write_in_turn(task.plan(), task.target, fs, report)


@set_module("safejax")
def save_async(
    tree: Any,
    path: PathLike,
    *,
    transform: TransformArgument | None = None,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int | None = None,
    name: str = STEM,
    one_writer_per_file: bool = False,
    checksum: bool = False,
    progress: ProgressArgument = None,
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
    What is sent to the one writer of a file is sent in the call, and counts as copies.

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
        max_shard_bytes=max_shard_bytes, name=name, one_writer_per_file=one_writer_per_file,
        checksum=checksum, progress=progress, fs=fs, timeout=timeout,
        max_host_bytes=max_host_bytes,
    )  # fmt: skip
    if task.spans_processes:
        return task.agree(
            lambda joint: begin_to_write_by_all(joint, task.target, progress, max_host_bytes)
        )
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
