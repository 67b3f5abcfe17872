"""The sides: each loads a file onto the devices, or saves from them, or is a limit of that."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.flax import load_file
from safetensors.numpy import save_file

import safejax
from safejax._src.arrays.pinned import allocate
from safejax._src.arrays.staging import forced

LEAF_BYTES: Final = 64 << 20

Work = Callable[[], Any]


@dataclass(frozen=True)
class Side:
    """A side of a case: `prepare` returns what is timed; what that returns is waited for."""

    case: str
    name: str
    prepare: Callable[[], Work]


class Bench:
    """The files, and the sides. `nbytes` are those of each file's data, in equal leaves."""

    def __init__(self, folder: str, nbytes: int) -> None:
        self.folder = Path(folder)
        self.devices = jax.devices()
        count = max(4, nbytes // LEAF_BYTES)
        columns = 1024
        rows = max(8, nbytes // count // 2 // columns // 8 * 8)
        rng = np.random.default_rng(0)
        # Finite values only, so that a cast is one of numbers.
        self.leaf = rng.standard_normal((rows, columns)).astype(ml_dtypes.bfloat16)
        self.names = [f"layers.{number:03}" for number in range(count)]
        self.nbytes = count * self.leaf.nbytes
        self.own, self.foreign = str(self.folder / "own"), str(self.folder / "foreign")
        self.wide = str(self.folder / "float32")
        tree = dict.fromkeys(self.names, self.leaf)
        safejax.save(tree, self.own)
        save_file(tree, self.foreign)
        half = self.names[: max(1, count // 2)]
        safejax.save(dict.fromkeys(half, self.leaf.astype(np.float32)), self.wide)
        self.left_out: dict[str, str] = {}

    def sides(self) -> list[Side]:
        """All sides, those of a case one after the other."""
        load, loads = "load", list[Side]()
        loads.append(Side(load, "limit: page-locked memory copied", self._link))
        loads.append(Side(load, "the same once more", self._link))
        loads += self._both(load, self.own)
        loads.append(Side(load, "safejax, as it is measured", partial(self._load, None, self.own)))
        loads.append(Side(load, "device_put of the mapped file", self._mapped))
        loads.append(Side(load, "safetensors.flax", lambda: lambda: load_file(self.own)))
        if self._has_fastsafetensors():
            loads.append(Side(load, "fastsafetensors", self._fastsafetensors))
        lazily = [
            Side("into one jit", name, partial(self._into_jit, way)) for way, name in _WAYS.items()
        ]
        foreign = self._both("another writer's file", self.foreign)
        widen = self._both("bfloat16 to float32", self.own, transform=safejax.cast("float32"))
        narrow = self._both("float32 to bfloat16", self.wide, transform=safejax.cast("bfloat16"))
        rows = self._both("by rows", self.own, sharding=self._by(PartitionSpec("x")))
        whole = self._both("replicated", self.own, sharding=self._by(PartitionSpec()))
        several = [*rows, *whole] if len(self.devices) > 1 else []
        saves = [Side("save", name, partial(self._save, way)) for way, name in _WAYS.items()]
        saves.append(Side("save", "device_get", self._get))
        return [*loads, *lazily, *foreign, *widen, *narrow, *several, *saves]

    def _both(self, case: str, path: str, **options: Any) -> list[Side]:
        return [
            Side(case, name, partial(self._load, way, path, **options))
            for way, name in _WAYS.items()
        ]

    def _by(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(jax.make_mesh((len(self.devices),), ("x",)), spec)

    # ---- loading

    def _load(self, way: bool | None, path: str, **options: Any) -> Work:
        def run() -> Any:
            with forced(way):
                return safejax.materialize(safejax.load(path, **options))

        return run

    def _into_jit(self, way: bool) -> Work:
        # Compiled before: it is the placing that is timed.
        touch = jax.jit(lambda tree: sum(leaf[0, 0].astype(jnp.float32) for leaf in tree.values()))
        compiled = touch.lower(safejax.load(self.own)).compile()

        def run() -> Any:
            with forced(way):
                return compiled(safejax.load(self.own))

        return run

    def _link(self) -> Work:
        """As many bytes, which are in page-locked memory already, copied by JAX alone."""
        buffers = [allocate(self.leaf.shape, self.leaf.dtype, self.devices[0]) for _ in range(2)]
        for buffer in buffers:
            np.copyto(buffer.memory, self.leaf)
        count = len(self.names)
        return lambda: [buffers[number % 2].begin_copy() for number in range(count)]

    def _mapped(self) -> Work:
        mapped = np.memmap(self.own, np.uint8, "r")
        begin, step = mapped.nbytes - self.nbytes, self.leaf.nbytes
        parts = [
            mapped[begin + number * step :][:step].view(self.leaf.dtype).reshape(self.leaf.shape)
            for number in range(len(self.names))
        ]
        return lambda: jax.device_put(parts, self.devices[0])

    def _has_fastsafetensors(self) -> bool:
        missing = [
            name for name in ("fastsafetensors", "torch") if importlib.util.find_spec(name) is None
        ]
        if missing:
            self.left_out["fastsafetensors"] = f"{' and '.join(missing)} not installed"
        elif self.devices[0].platform != "gpu":
            self.left_out["fastsafetensors"] = "it is for GPUs"
        return "fastsafetensors" not in self.left_out

    def _fastsafetensors(self) -> Work:
        loader: Any = importlib.import_module("fastsafetensors")
        torch: Any = importlib.import_module("torch")

        def run() -> Any:
            files = loader.SafeTensorsFileLoader(
                loader.SingleGroup(), torch.device("cuda:0"), nogds=True
            )
            files.add_filenames({0: [self.own]})
            there = files.copy_files_to_device()
            tensors = [there.get_tensor(name) for name in self.names]
            torch.cuda.synchronize()
            del tensors
            files.close()

        return run

    # ---- saving

    def _on_device(self) -> dict[str, jax.Array]:
        """Arrays of which JAX has no copy on the host."""
        leaf = jax.device_put(self.leaf, self.devices[0])
        copy = jax.jit(jnp.copy)
        return jax.block_until_ready({name: copy(leaf) for name in self.names})

    def _save(self, way: bool) -> Work:
        tree, path = self._on_device(), str(self.folder / "saved")

        def run() -> None:
            with forced(way):
                safejax.save(tree, path)

        return run

    def _get(self) -> Work:
        tree = self._on_device()
        return lambda: jax.device_get(tree)


_WAYS: Final = {True: "safejax, staged", False: "safejax, plain"}


def check(result: Any, bench: Bench) -> None:
    """Check the bits of what a side of the case `load` gave."""
    leaves = jax.tree.leaves(result)
    if leaves and all(isinstance(leaf, jax.Array) for leaf in leaves):
        expected = bench.leaf.tobytes()
        assert all(np.asarray(leaf).tobytes() == expected for leaf in (leaves[0], leaves[-1]))


def file_system(folder: str) -> str:
    """Where the files are, in a word."""
    return "memory" if os.path.realpath(folder).startswith("/dev/shm") else "disk"
