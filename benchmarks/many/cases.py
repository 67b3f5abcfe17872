"""What the processes of a group do together, by safejax and by Orbax."""

import logging
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax

STEPS: Final = 8
_COLUMNS: Final = 2048
_ROWS: Final = 2048

Seconds = dict[str, dict[str, list[float]]]
"""By case and side: the seconds of each round."""


def run(names: list[str], sides: list[str], mib: int, repeats: int, folder: str) -> Seconds:
    """Run the cases, the sides taking turns; the first round is not counted."""
    group = Group(mib, folder)
    seconds: Seconds = {}
    for name in names:
        for turn in range(repeats + 1):
            for side in sides if turn % 2 else reversed(sides):
                for measured, value in CASES[name](group, side).items():
                    if turn:
                        seconds.setdefault(measured, {}).setdefault(side, []).append(value)
    return seconds


class Group:
    """The tree of all processes, and what is done with it."""

    def __init__(self, mib: int, folder: str) -> None:
        self.folder = Path(folder)
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
        self.rows = NamedSharding(mesh, P("data"))
        kernel = _ROWS * _COLUMNS * 4
        self.shapes = {
            f"layer_{number}": {"kernel": (_ROWS, _COLUMNS), "bias": (_COLUMNS,)}
            for number in range(max(1, (mib << 20) // kernel))
        }
        self.touched = jax.jit(lambda tree: sum(leaf.sum() for leaf in jax.tree.leaves(tree)))
        self._step = jax.jit(partial(jax.tree.map, lambda x: x * 1.0001), donate_argnums=0)
        self._orbax: Any = None

    def tree(self) -> Any:
        """New arrays, with other values in each process, that are on their devices."""

        def array(shape: tuple[int, ...]) -> jax.Array:
            part = self.rows.shard_shape(shape)
            values = np.random.default_rng(jax.process_index()).random(part, np.float32)
            local = [jax.device_put(values, device) for device in jax.local_devices()]
            return jax.make_array_from_single_device_arrays(shape, self.rows, local)

        shapes = jax.tree.map(array, self.shapes, is_leaf=lambda x: isinstance(x, tuple))
        return jax.block_until_ready(shapes)

    def abstract(self) -> Any:
        """The tree's shapes, dtypes and shardings."""
        return jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=self.rows),
            self.shapes, is_leaf=lambda x: isinstance(x, tuple),
        )  # fmt: skip

    def steps(self, tree: Any) -> Any:
        """The tree after some steps, each of which donates the one before."""
        for _ in range(STEPS):
            tree = self._step(tree)
        return jax.block_until_ready(tree)

    def path(self, side: str) -> str:
        """Where a side saves; what was there is gone in all processes."""
        path = self.folder / side
        self.meet()
        if jax.process_index() == 0:
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
            os.sync()
        self.meet()
        return str(path)

    def meet(self) -> None:
        """Wait for all processes."""
        multihost_utils.sync_global_devices("benchmark")

    def orbax(self) -> Any:
        """Orbax's checkpointer, which saves in the background."""
        import orbax.checkpoint as ocp
        from absl import logging as absl_logging

        if self._orbax is None:
            absl_logging.set_verbosity(absl_logging.ERROR)
            logging.getLogger().setLevel(logging.ERROR)
            self._orbax = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        return self._orbax


def _save(group: Group, side: str) -> dict[str, float]:
    """Save, and wait until all of it is flushed to disk."""
    tree, path = group.tree(), group.path(side)
    seconds = _timed(group, lambda: _save_and_flush(group, side, tree, path))
    return {"save": seconds}


def _save_and_flush(group: Group, side: str, tree: Any, path: str) -> None:
    if side == "safejax":
        safejax.save(tree, path)
        return
    import orbax.checkpoint as ocp

    group.orbax().save(path, args=ocp.args.StandardSave(tree))
    group.orbax().wait_until_finished()
    group.meet()
    if jax.process_index() == 0:
        _flush(path)


def _load(group: Group, side: str) -> dict[str, float]:
    """Load what was saved, from the page cache, onto the same devices, and touch every value."""
    tree, path = group.tree(), group.path(side)
    _save_and_flush(group, side, tree, path)
    group.meet()
    abstract = group.abstract()

    def load() -> Any:
        if side == "safejax":
            return safejax.materialize(safejax.load(path, like=abstract))
        import orbax.checkpoint as ocp

        return group.orbax().restore(path, args=ocp.args.StandardRestore(abstract))

    return {"load": _timed(group, lambda: group.touched(load()))}


def _in_the_background(group: Group, side: str) -> dict[str, float]:
    """Save in the background, and go on with steps that donate what is being saved."""
    tree, path = group.tree(), group.path(side)
    group.steps(group.tree())
    group.meet()
    start = time.perf_counter()
    if side == "safejax":
        saving = safejax.save_async(tree, path)
        wait: Callable[[], object] = saving.result
    else:
        import orbax.checkpoint as ocp

        group.orbax().save(path, args=ocp.args.StandardSave(tree))
        wait = group.orbax().wait_until_finished
    blocked = time.perf_counter() - start
    group.steps(tree)
    stepped = time.perf_counter() - start
    wait()
    group.meet()
    if side != "safejax" and jax.process_index() == 0:
        _flush(path)
    group.meet()
    done = time.perf_counter() - start
    slowest = multihost_utils.process_allgather(np.array([blocked, stepped, done])).reshape(-1, 3)
    return dict(zip(("blocked", "steps", "on disk"), map(float, slowest.max(0)), strict=True))


def _timed(group: Group, task: Callable[[], Any]) -> float:
    """The seconds until all processes have done it."""
    group.meet()
    start = time.perf_counter()
    jax.block_until_ready(task())
    group.meet()
    return time.perf_counter() - start


def _flush(path: str) -> None:
    """Flush all files below a folder to disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                os.fsync(file.fileno())


CASES: Final[dict[str, Callable[[Group, str], dict[str, float]]]] = {
    "save": _save, "load": _load, "background": _in_the_background,
}  # fmt: skip
"""What is measured, by a name for the command line."""
