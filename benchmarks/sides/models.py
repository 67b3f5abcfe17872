"""From a file to the first output of a real model, which has to be compiled.

ResNet-50 is Haiku's and MiniLM the Flax model of the examples; a transformer of 2 GiB is written
here. Their weights are generated, and in a file of another writer. For the first call, which is not
timed, models are small. What cannot be done sooner is as for `first_step`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, final

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint.experimental import v1
from safetensors.flax import load_file
from safetensors.numpy import save_file

import safejax
from benchmarks.job import Job, Work, flush, touched
from benchmarks.trees import MIB
from examples import minilm as example

_VALUES: Final = np.random.default_rng(0).standard_normal(MIB, np.float32)


@final
@dataclass(frozen=True, slots=True)
class _Model:
    """A function of a tree of weights and of inputs; `shapes` is the tree, a nested dict."""

    run: Callable[..., jax.Array]
    shapes: Any
    inputs: tuple[Any, ...]

    def weights(self) -> dict[str, Any]:
        """The weights by name, no two leaves alike; variances are about 1, and others small."""
        found: dict[str, Any] = {}
        leaves, _ = jax.tree_util.tree_flatten_with_path(self.shapes)
        for number, (path, leaf) in enumerate(leaves):
            name = ".".join(key.key for key in path)
            values = 0.02 * np.resize(np.roll(_VALUES, 7 * number), leaf.shape)
            found[name] = np.asarray(1 + values if "var_ema" in name else values, leaf.dtype)
        return found


def _is_small(job: Job) -> bool:
    return job.spec.nbytes < MIB


def _resnet(job: Job) -> _Model:
    side = 32 if _is_small(job) else 224

    def forward(images: Any, is_training: bool) -> Any:
        if _is_small(job):
            net = hk.nets.ResNet((1, 1, 1, 1), 10, channels_per_group=(16, 16, 32, 32))
        else:
            net = hk.nets.ResNet50(1000)
        return net(images, is_training)

    def initialized(images: Any) -> Any:
        params, state = model.init(jax.random.key(0), images, True)
        return {"params": params, "state": state}

    def run(tree: Any, images: Any) -> jax.Array:
        return model.apply(tree["params"], tree["state"], None, images, False)[0]

    model: Any = hk.transform_with_state(forward)
    images = jnp.ones((1, side, side, 3))
    return _Model(run, jax.eval_shape(initialized, images), (images,))


def _minilm(job: Job) -> _Model:
    small = example.Config(64, 32, 2, 2, 64, 32, 2, 1e-12)
    config = small if _is_small(job) else example.Config(30522, 384, 6, 12, 1536, 512, 2, 1e-12)
    model: Any = example.Bert(config)
    tokens = jnp.arange(2 * 16, dtype=jnp.int32).reshape(2, 16)

    def run(params: Any, tokens: Any, mask: Any) -> jax.Array:
        # The positions are no weights.
        positions = {"position_ids": jnp.arange(config.max_position_embeddings)[None]}
        return model.apply({"params": params, "buffers": positions}, tokens, mask)[1]

    inputs = (tokens, jnp.ones_like(tokens))
    shapes: Any = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return _Model(run, shapes["params"], inputs)


def _transformer(job: Job) -> _Model:
    layers, d, h, f, v = (2, 32, 2, 64, 64) if _is_small(job) else (8, 2048, 16, 8192, 16384)
    k = d // h
    shapes = {"q": (d, h, k), "k": (d, h, k), "v": (d, h, k), "o": (h, k, d)}
    shapes |= {"gate": (d, f), "up": (d, f), "down": (f, d)}

    def normalized(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)

    def run(tree: Any, tokens: Any) -> jax.Array:
        x = tree["embedding"][tokens]
        mask = jnp.tril(jnp.ones((len(tokens), len(tokens)), bool))
        for number in range(layers):
            layer, y = tree[f"layer_{number}"], normalized(x)
            q, keys, values = (jnp.einsum("td,dhk->thk", y, layer[each]) for each in "qkv")
            scores = jnp.einsum("thk,shk->hts", q, keys) * k**-0.5
            scores = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
            x += jnp.einsum("hts,shk,hkd->td", scores, values, layer["o"])
            y = normalized(x)
            x += (jax.nn.silu(y @ layer["gate"]) * (y @ layer["up"])) @ layer["down"]
        return normalized(x)[-1] @ tree["embedding"].T

    leaf = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    tree: dict[str, Any] = {f"layer_{number}": leaf for number in range(layers)}
    tree["embedding"] = jax.ShapeDtypeStruct((v, d), jnp.float32)
    return _Model(run, tree, (jnp.arange(16),))


def _write(job: Job, model: _Model) -> None:
    save_file(model.weights(), job.path, {"format": "pt"})
    flush(job.path)


def _nested(leaves: dict[str, Any]) -> Any:
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *path, last = name.split(".")
        inner = tree
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = leaf
    return tree


def _work(job: Job, model: _Model) -> Work:
    """Load, compile and run, in the order that the side stands for."""
    # A function of its own for each call: nothing is compiled yet.
    function: Any = jax.jit(lambda *arguments: model.run(*arguments))
    inputs, orbax = model.inputs, f"{job.path}.orbax"

    def placed() -> Any:
        return jax.device_put(_nested(model.weights()), jax.devices()[0])

    def compiled(tree: Any) -> Any:
        return function.lower(tree, *inputs).compile()(tree, *inputs)

    ready = touched(placed()) if job.side == "compile and run" else None
    if job.side == "Orbax, restored" and not os.path.exists(orbax):
        v1.save(orbax, placed())
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), model.shapes
    )
    runs: dict[str, Callable[[], Any]] = {
        "safejax": lambda: compiled(safejax.prefetch(safejax.load(job.path))),
        "safejax, lazy": lambda: function(safejax.load(job.path), *inputs),
        "safejax, materialized": lambda: function(
            safejax.materialize(safejax.load(job.path)), *inputs
        ),
        "safetensors.flax": lambda: function(_nested(load_file(job.path)), *inputs),
        "Orbax, restored": lambda: function(v1.load(orbax, abstract), *inputs),
        "compile and run": lambda: compiled(ready),
        "load only": lambda: safejax.materialize(safejax.load(job.path)),
    }

    def check(result: Any) -> None:
        if job.side != "load only":
            expected = np.asarray(jax.jit(model.run)(placed(), *inputs))
            assert np.isfinite(expected).all()
            np.testing.assert_allclose(np.asarray(result), expected, rtol=1e-4, atol=1e-6)

    return Work(lambda: jax.block_until_ready(runs[job.side]()), check)


def write_resnet(job: Job) -> None:
    """Write the weights of ResNet-50."""
    _write(job, _resnet(job))


def write_minilm(job: Job) -> None:
    """Write the weights of MiniLM."""
    _write(job, _minilm(job))


def write_transformer(job: Job) -> None:
    """Write the weights of the transformer."""
    _write(job, _transformer(job))


def resnet(job: Job) -> Work:
    """The classes of an image of 224 × 224."""
    return _work(job, _resnet(job))


def minilm(job: Job) -> Work:
    """The pooled outputs of two sentences of 16 tokens."""
    return _work(job, _minilm(job))


def transformer(job: Job) -> Work:
    """The logits of the token after 16."""
    return _work(job, _transformer(job))
