"""A port: kernels of another program's files, transposed, in heads and stacked, onto a mesh.

The shapes are those of Llama 3 8B, with as many layers as fit the size that was asked for.
"""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

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

_D, _H, _KV, _K, _F = 4096, 32, 8, 128, 14336
_FILES: Final = 8

# Their name, their shape, ours with its axes from theirs, and how it is sharded.
_ROWS: Final = {
    "self_attn.q_proj": ((_H, _K, _D), "q", (2, 0, 1), ("x", "y")),
    "self_attn.k_proj": ((_KV, _K, _D), "k", (2, 0, 1), ("x", "y")),
    "self_attn.v_proj": ((_KV, _K, _D), "v", (2, 0, 1), ("x", "y")),
    "self_attn.o_proj": ((_D, _H, _K), "o", (1, 2, 0), ("y", None, "x")),
    "mlp.gate_proj": ((_F, _D), "gate", (1, 0), ("x", "y")),
    "mlp.up_proj": ((_F, _D), "up", (1, 0), ("x", "y")),
    "mlp.down_proj": ((_D, _F), "down", (1, 0), ("y", "x")),
}
_AXES: Final = {
    "q": "(h k) d -> d h k", "k": "(kv k) d -> d kv k", "v": "(kv k) d -> d kv k",
    "o": "d (h k) -> h k d", "gate": "f d -> d f", "up": "f d -> d f", "down": "d f -> f d",
}  # fmt: skip


def write(job: Job) -> None:
    """Write the layers as a set of files, as safetensors writes them."""
    os.makedirs(job.path)
    files: list[dict[str, Any]] = [{} for _ in range(_FILES)]
    for number, (name, shape) in enumerate(_stored(job)):
        bits = np.random.default_rng(number).integers(0, 30_000, shape, np.uint16)
        files[number % _FILES][name] = bits.view(ml_dtypes.bfloat16)
    for number, tensors in enumerate(files, 1):
        path = os.path.join(job.path, f"model-{number:05}-of-{_FILES:05}.safetensors")
        save_file(tensors, path, {"format": "pt"})
        flush(path)


def _layers(job: Job) -> int:
    of_layer = sum(2 * int(np.prod(shape)) for shape, *_ in _ROWS.values())
    return max(2, job.spec.nbytes // of_layer)


def _stored(job: Job) -> Iterator[tuple[str, tuple[int, int]]]:
    for layer in range(_layers(job)):
        for theirs, (shape, ours, *_) in _ROWS.items():
            rows = int(np.prod(shape[: 2 if ours in "qkv" else 1]))
            yield f"model.layers.{layer}.{theirs}.weight", (rows, int(np.prod(shape)) // rows)


def port(job: Job) -> Work:
    """Load all layers, on their devices and touched."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, -1), ("x", "y"))
    shardings = {
        ours: NamedSharding(mesh, PartitionSpec(None, *axes)) for _, ours, _, axes in _ROWS.values()
    }
    paths = sorted(os.path.join(job.path, name) for name in os.listdir(job.path))
    sides: dict[str, Callable[[], dict[str, Any]]] = {
        "safejax": lambda: _by_safejax(paths, shardings),
        "safetensors.flax": lambda: _by_safetensors(paths, shardings, _layers(job)),
        "NumPy by hand": lambda: _by_hand(paths, shardings, _layers(job)),
    }

    def check(tree: dict[str, Any]) -> None:
        mapped = _mapped(paths)
        for theirs, (shape, ours, axes, _) in _ROWS.items():
            expected = mapped[f"model.layers.1.{theirs}.weight"].reshape(shape).transpose(axes)
            assert tree[ours].sharding.is_equivalent_to(shardings[ours], tree[ours].ndim), ours
            assert np.asarray(tree[ours][1]).tobytes() == expected.tobytes(), ours

    return Work(lambda: touched(sides[job.side]()), check)


def _by_safejax(paths: list[str], shardings: dict[str, NamedSharding]) -> dict[str, Any]:
    rows = [
        (f"model.layers.{{i}}.{theirs}.weight", ours, _AXES[ours])
        for theirs, (_, ours, *_) in _ROWS.items()
    ]
    table = safejax.correspond(rows, sizes={"h": _H, "kv": _KV, "k": _K})
    return safejax.materialize(
        safejax.load(paths, transform=table, sharding=lambda name, _: shardings[name])
    )


def _by_safetensors(
    paths: list[str], shardings: dict[str, NamedSharding], layers: int
) -> dict[str, Any]:
    tensors = {name: leaf for path in paths for name, leaf in load_file(path).items()}
    tree: dict[str, Any] = {}
    for theirs, (shape, ours, axes, _) in _ROWS.items():
        names = [f"model.layers.{layer}.{theirs}.weight" for layer in range(layers)]
        parts = [tensors.pop(name).reshape(shape).transpose(axes) for name in names]
        tree[ours] = jax.device_put(jnp.stack(parts), shardings[ours])
    return tree


def _by_hand(paths: list[str], shardings: dict[str, NamedSharding], layers: int) -> dict[str, Any]:
    mapped = _mapped(paths)
    tree: dict[str, Any] = {}
    for theirs, (shape, ours, axes, _) in _ROWS.items():
        views = [
            mapped[f"model.layers.{layer}.{theirs}.weight"].reshape(shape).transpose(axes)
            for layer in range(layers)
        ]

        def block(index: Any, views: list[NDArray[Any]] = views) -> NDArray[Any]:
            return np.stack([view[index[1:]] for view in views[index[0]]])

        whole = (layers, *views[0].shape)
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
