"""The job of a side, the work that it returns, and functions that sides share."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from numpy.typing import NDArray

from benchmarks.trees import Spec, same_bits, truncated

Facts: TypeAlias = dict[str, float]


@final
@dataclass(frozen=True, slots=True)
class Job:
    """The tree and the files of one side in one case.

    `path` is the file or folder, in the format of the side, that holds the tree; `target` is one
    to write to. `layout` names how leaves are distributed over the devices; "" is one device.
    """

    side: str
    spec: Spec
    path: str
    target: str
    layout: str = ""

    def sharding(self, shape: tuple[int, ...]) -> Sharding:
        """The sharding of a leaf of this shape."""
        devices = jax.devices()
        if not self.layout:
            return SingleDeviceSharding(devices[0])
        grid = np.array(devices)
        if self.layout == "mesh":
            mesh = jax.sharding.Mesh(grid.reshape(2, -1), ("x", "y"))
            return NamedSharding(mesh, PartitionSpec("x", "y") if len(shape) == 2 else _EVERYWHERE)
        mesh = jax.sharding.Mesh(grid, ("x",))
        axes = {"rows": ("x",), "columns": (None, "x"), "replicated": ()}[self.layout]
        return NamedSharding(mesh, PartitionSpec(*axes) if len(shape) == 2 else _EVERYWHERE)

    def shardings(self) -> dict[str, Sharding]:
        """The sharding of each leaf by name."""
        return {name: self.sharding(shape) for name, shape in self.spec.shapes().items()}

    def abstract(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The tree after a load, as shapes, dtypes and shardings."""
        return {
            name: jax.ShapeDtypeStruct(shape, np.float32, sharding=self.sharding(shape))
            for name, shape in self.spec.shapes().items()
        }

    def arrays(self) -> dict[str, jax.Array]:
        """The tree as plain arrays on their devices."""
        tree = {name: jax.device_put(leaf) for name, leaf in self.spec.leaves()}
        return jax.block_until_ready(tree)


_EVERYWHERE = PartitionSpec()


def _accept(result: Any) -> None:
    del result


@final
@dataclass(frozen=True, slots=True)
class Work:
    """The work of a side: `run` is timed, `calls` times in a row.

    `check` is called with the result of `run`, and raises an error if it is wrong. `facts`
    returns numbers other than times. Both are called once, and not timed.
    """

    run: Callable[[], Any]
    check: Callable[[Any], None] = _accept
    facts: Callable[[], Facts] = field(default=dict)
    calls: int = 1


# ---- loading


def touched(tree: Any) -> Any:
    """The tree, ready, after every value on every device has been read."""
    for leaf in jax.tree.leaves(jax.block_until_ready(tree)):
        if len(leaf.sharding.device_set) == 1:
            touch(np.asarray(leaf))
            continue
        for shard in leaf.addressable_shards:
            touch(np.asarray(shard.data))
    return tree


def touch(array: NDArray[Any]) -> None:
    """Read every value, as fast as memory allows."""
    flat = array.reshape(-1).view(np.uint8)
    if flat.nbytes % 8 == 0 and flat.ctypes.data % 8 == 0:
        flat = flat.view(np.uint64)
    np.bitwise_xor.reduce(flat)


def loading(job: Job, load: Callable[[], Any], *, exact: bool = True) -> Work:
    """The work of loading and touching the job's tree; not `exact` if it was stored as bfloat16."""
    return Work(lambda: touched(load()), lambda tree: check_tree(job, tree, exact=exact))


def check_tree(job: Job, tree: Any, *, exact: bool = True) -> None:
    """Raise an error unless the tree is the job's, bit for bit, with the job's shardings."""
    found = named(tree)
    for name, leaf in job.spec.leaves():
        array = found.pop(name)
        expected = leaf if exact else truncated(leaf)
        assert isinstance(array, jax.Array), f"{name} is a {type(array)}"
        assert array.sharding.is_equivalent_to(job.sharding(leaf.shape), leaf.ndim), name
        assert same_bits(np.asarray(array), expected), f"{name} has other values"
    assert not found, f"unexpected {list(found)[:3]}"


def named(tree: Any) -> dict[str, Any]:
    """The leaves by name: the keys on the path to each, joined by dots."""
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        found[".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)] = leaf
    return found


# ---- saving


def saving(job: Job, save: Callable[[str], None], load: Callable[[str], Any]) -> Work:
    """The work of saving the tree; for the check, `load` reads it back as arrays of any kind."""

    def check(result: object) -> None:
        del result
        found = named(load(job.target))
        for name, leaf in job.spec.leaves():
            array = np.asarray(found.pop(name))
            assert same_bits(array, leaf.astype(array.dtype)), f"{name} has other values"
        assert not found, f"unexpected {list(found)[:3]}"

    remove(job.target)
    return Work(lambda: save(job.target), check)


def remove(path: str) -> None:
    """Remove the file or folder, if it exists."""
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.exists(path):
        os.unlink(path)


def flush(path: str) -> None:
    """Flush a written file to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_flushed(path: str, chunks: Iterator[Any]) -> None:
    """Write the chunks to a new file, and flush it to disk."""
    with open(path, "wb", buffering=0) as file:
        for chunk in chunks:
            rest = memoryview(chunk).cast("B")
            while rest:
                rest = rest[file.write(rest) :]
        os.fsync(file.fileno())


def to_bfloat16(tree: Any) -> Any:
    """The tree with every leaf cast on its device."""
    return jax.tree.map(lambda leaf: leaf.astype(jax.numpy.bfloat16), tree)


def to_float32(tree: Any) -> Any:
    """The tree with every leaf cast on its device."""
    return jax.tree.map(lambda leaf: leaf.astype(jax.numpy.float32), tree)
