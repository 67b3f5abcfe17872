"""A port: kernels of another program's files, transposed, in heads and stacked, onto a mesh.

The shapes are those of Llama 3 8B, with as many layers as fit the size that was asked for: seven of
them are 3 GB. For the first call, which is not timed, two layers have a sixteenth of the width.
"""

import importlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, final

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray
from safetensors.flax import load_file
from safetensors.numpy import save_file

import safejax
from benchmarks.job import Job, Work, flush, touched

_SIZES: Final = {"d": 4096, "h": 32, "kv": 8, "k": 128, "f": 14336}
_FILES: Final = 8

# Their name, their axes, ours with its axes from theirs, and how it is sharded.
_ROWS: Final = {
    "self_attn.q_proj": (("h", "k", "d"), "q", (2, 0, 1), ("x", "y")),
    "self_attn.k_proj": (("kv", "k", "d"), "k", (2, 0, 1), ("x", "y")),
    "self_attn.v_proj": (("kv", "k", "d"), "v", (2, 0, 1), ("x", "y")),
    "self_attn.o_proj": (("d", "h", "k"), "o", (1, 2, 0), ("y", None, "x")),
    "mlp.gate_proj": (("f", "d"), "gate", (1, 0), ("x", "y")),
    "mlp.up_proj": (("f", "d"), "up", (1, 0), ("x", "y")),
    "mlp.down_proj": (("d", "f"), "down", (1, 0), ("y", "x")),
}
_AXES: Final = {
    "q": "(h k) d -> d h k", "k": "(kv k) d -> d kv k", "v": "(kv k) d -> d kv k",
    "o": "d (h k) -> h k d", "gate": "f d -> d f", "up": "f d -> d f", "down": "d f -> f d",
}  # fmt: skip


def write(job: Job) -> None:
    """Write the layers as a set of files, as safetensors writes them."""
    os.makedirs(job.path)
    files: list[dict[str, Any]] = [{} for _ in range(_FILES)]
    for number, (name, shape) in enumerate(_Model.of(job).stored()):
        bits = np.random.default_rng(number).integers(0, 30_000, shape, np.uint16)
        files[number % _FILES][name] = bits.view(ml_dtypes.bfloat16)
    for number, tensors in enumerate(files, 1):
        path = os.path.join(job.path, f"model-{number:05}-of-{_FILES:05}.safetensors")
        save_file(tensors, path, {"format": "pt"})
        flush(path)


@final
@dataclass(frozen=True, slots=True)
class _Model:
    """The sizes of a job's model: of its axes by name, and how many layers it has."""

    sizes: dict[str, int]
    layers: int

    @staticmethod
    def of(job: Job) -> "_Model":
        whole = _Model(_SIZES, 1)
        of_layer = sum(2 * int(np.prod(whole.shape(theirs))) for theirs in _ROWS)
        if job.spec.nbytes >= of_layer:
            return _Model(_SIZES, max(2, job.spec.nbytes // of_layer))
        narrow = {"d": _SIZES["d"] // 16, "k": _SIZES["k"] // 16, "f": _SIZES["f"] // 16}
        return _Model(_SIZES | narrow, 2)

    def shape(self, theirs: str) -> tuple[int, ...]:
        """The shape of a kernel, with its heads apart."""
        return tuple(self.sizes[axis] for axis in _ROWS[theirs][0])

    def names(self, theirs: str) -> list[str]:
        """The name of a kernel in each layer."""
        return [f"model.layers.{layer}.{theirs}.weight" for layer in range(self.layers)]

    def stored(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """The names, and the shapes as they are in the files."""
        for theirs, (_, ours, *_) in _ROWS.items():
            shape = self.shape(theirs)
            rows = int(np.prod(shape[: 2 if ours in "qkv" else 1]))
            for name in self.names(theirs):
                yield name, (rows, int(np.prod(shape)) // rows)


def port(job: Job) -> Work:
    """Load all layers, on their devices and touched."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, -1), ("x", "y"))
    shardings = {
        ours: NamedSharding(mesh, PartitionSpec(None, *axes)) for _, ours, _, axes in _ROWS.values()
    }
    paths = sorted(os.path.join(job.path, name) for name in os.listdir(job.path))
    model = _Model.of(job)
    by = {
        "safejax": _by_safejax,
        "NumPy by hand": _by_hand,
        "safetensors.flax": _by_safetensors,
        "safetensors.torch": _by_torch,
    }[job.side]

    def check(tree: dict[str, Any]) -> None:
        mapped = _mapped(paths)
        for theirs, (_, ours, axes, _) in _ROWS.items():
            assert tree[ours].sharding.is_equivalent_to(shardings[ours], tree[ours].ndim), ours
            names = model.names(theirs)
            for layer in (0, model.layers - 1):  # The bits of each layer are others.
                expected = mapped[names[layer]].reshape(model.shape(theirs)).transpose(axes)
                for shard in tree[ours].addressable_shards:
                    part = np.ascontiguousarray(expected[shard.index[1:]])
                    assert np.asarray(shard.data)[layer].tobytes() == part.tobytes(), (ours, layer)

    return Work(lambda: touched(by(model, paths, shardings)), check)


def _by_safejax(model: _Model, paths: list[str], shardings: dict[str, Any]) -> dict[str, Any]:
    rows = [
        (f"model.layers.{{i}}.{theirs}.weight", ours, _AXES[ours])
        for theirs, (_, ours, *_) in _ROWS.items()
    ]
    table = safejax.correspond(rows, sizes={axis: model.sizes[axis] for axis in ("h", "kv", "k")})
    return safejax.materialize(
        safejax.load(paths, transform=table, sharding=lambda name, _: shardings[name])
    )


def _by_safetensors(model: _Model, paths: list[str], shardings: dict[str, Any]) -> dict[str, Any]:
    tensors = {name: leaf for path in paths for name, leaf in load_file(path).items()}
    tree: dict[str, Any] = {}
    for theirs, (_, ours, axes, _) in _ROWS.items():
        shape = model.shape(theirs)
        parts = [tensors.pop(name).reshape(shape).transpose(axes) for name in model.names(theirs)]
        tree[ours] = jax.device_put(jnp.stack(parts), shardings[ours])
    return tree


def _by_torch(model: _Model, paths: list[str], shardings: dict[str, Any]) -> dict[str, Any]:
    torch = importlib.import_module("torch")
    load = importlib.import_module("safetensors.torch").load_file
    tensors = {name: leaf for path in paths for name, leaf in load(path).items()}
    tree: dict[str, Any] = {}
    for theirs, (_, ours, axes, _) in _ROWS.items():
        shape = model.shape(theirs)
        parts = [tensors.pop(name).reshape(shape).permute(axes) for name in model.names(theirs)]
        # NumPy has no bfloat16 that torch knows.
        bits = torch.stack(parts).view(torch.int16).numpy()
        tree[ours] = jax.device_put(bits.view(ml_dtypes.bfloat16), shardings[ours])
    return tree


def _by_hand(model: _Model, paths: list[str], shardings: dict[str, Any]) -> dict[str, Any]:
    mapped = _mapped(paths)
    tree: dict[str, Any] = {}
    for theirs, (_, ours, axes, _) in _ROWS.items():
        shape = model.shape(theirs)
        views = [mapped[name].reshape(shape).transpose(axes) for name in model.names(theirs)]

        def block(index: Any, views: list[NDArray[Any]] = views) -> NDArray[Any]:
            # NumPy stacks them in the order of the file, and XLA transposes them.
            return np.stack([view[index[1:]] for view in views[index[0]]])

        whole = (model.layers, *views[0].shape)
        tree[ours] = jax.make_array_from_callback(whole, shardings[ours], block)
    return tree


def _mapped(paths: list[str]) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for path in paths:
        data = np.memmap(path, np.uint8, "r")
        begin = 8 + int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8:begin].tobytes())
        header.pop("__metadata__")
        for name, entry in header.items():
            low, high = (begin + offset for offset in entry["data_offsets"])
            found[name] = data[low:high].view(ml_dtypes.bfloat16).reshape(entry["shape"])
    return found
