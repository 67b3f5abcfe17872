"""A larger model of each framework gives the same outputs on 8 devices after a save and a load.

Parameters and state are saved from the eight devices, loaded lazily onto the same sharding, and
applied under jit; every bit of the outputs is compared. Models have their full sizes, but images
are small and XLA optimizes little, which affects both sides in the same way.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import objax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from objax.zoo.resnet_v2 import ResNet50

import safejax
import safejax.equinox
import safejax.flax
import safejax.haiku
import safejax.objax
from tests.support.leaves import arrays_of, bits, is_key

FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compiler options that halve the time of a compilation."""

HAS_OBJAX_JIT = hasattr(jax.sharding, "PmapSharding")
"""`objax.Jit` and the checked `assign` of objax need functions that JAX 0.10 removed."""


@pytest.fixture
def by_features() -> Callable[..., NamedSharding]:
    """Split the last axis over eight devices where they divide it, and replicate the rest."""
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))

    def sharding(name: str, aval: jax.ShapeDtypeStruct) -> NamedSharding:
        return _by_features(mesh, aval)

    return sharding


def _by_features(mesh: Mesh, aval: Any) -> NamedSharding:
    split = aval.ndim > 1 and aval.shape[-1] % mesh.size == 0
    return NamedSharding(mesh, P(*[None] * (aval.ndim - 1), "model") if split else P())


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def filled(avals: Any, sharding: Callable[..., NamedSharding]) -> Any:
    """Arrays of these shapes on their devices: kernels are normal, and vectors are positive."""
    rng = np.random.default_rng(0)

    def fill(aval: Any) -> jax.Array:
        size = np.prod(aval.shape)
        is_kernel = aval.ndim > 1 and size > max(aval.shape)
        if is_kernel:
            host = rng.normal(size=aval.shape) * np.sqrt(max(aval.shape) / size)
        else:  # This includes variances, which have the shape [1, 1, 1, n] in some frameworks.
            host = rng.uniform(0.5, 1.5, aval.shape)
        return jax.device_put(host.astype(aval.dtype), sharding("", aval))

    return jax.tree.map(fill, avals)


def nbytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def check(
    run: Callable[..., Any], original: Any, loaded: Any, *inputs: Any, log: safejax.ReadLog
) -> None:
    """Check that `loaded` is unread and sharded as `original`, and gives the same with one read."""
    assert jax.tree.structure(loaded) == jax.tree.structure(original)
    for leaf, other in zip(jax.tree.leaves(loaded), jax.tree.leaves(original), strict=True):
        assert isinstance(leaf, safejax.LazyArray)
        assert not leaf.is_placed
        assert leaf.sharding == other.sharding
        assert leaf.dtype == other.dtype
        assert len(leaf.sharding.device_set) == 8
    assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(loaded))
    assert log.nbytes == 0
    after = run(loaded, *inputs)
    assert log.nbytes == sum(leaf.nbytes for leaf in jax.tree.leaves(loaded) if leaf.is_placed)
    run(loaded, *inputs)  # What the function ignores is read by its second call.
    assert log.nbytes == nbytes(original)
    before = run(original, *inputs)
    assert bits(after) == bits(before)
    # An output of NaNs only, or of a single number, would prove little.
    output = np.asarray(jax.tree.leaves(before)[0])
    assert np.isfinite(output).all()
    assert len(np.unique(output)) > output.size // 2


def test_haiku_resnet_50(tmp_path: Path, by_features: Any) -> None:
    model = hk.transform_with_state(
        lambda x, is_training: hk.nets.ResNet50(1000)(x, is_training=is_training)
    )
    x = images(2, 32, 32, 3)
    avals = jax.eval_shape(lambda key, x: model.init(key, x, True), jax.random.key(0), x)
    params, state = filled(avals, by_features)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 25_557_032

    path = tmp_path / "resnet.safetensors"
    safejax.haiku.serialize({"params": params, "state": state}, filename=path)
    loaded = safejax.haiku.deserialize(path, sharding=by_features)
    assert "res_net50/~/initial_conv" in loaded["params"]

    @partial(jax.jit, compiler_options=FAST)
    def run(variables: Any, x: Any) -> Any:
        return model.apply(variables["params"], variables["state"], None, x, False)[0]

    with safejax.observe_reads() as log:
        check(run, {"params": params, "state": state}, loaded, x, log=log)


def test_objax_resnet_50(tmp_path: Path, by_features: Any) -> None:
    made: list[Any] = []

    def make() -> Any:
        made.append(ResNet50(3, 1000))
        return made[-1].vars().tensors()

    avals = jax.eval_shape(make)
    objax.random.DEFAULT_GENERATOR.seed(0)
    (model,) = made
    variables = model.vars()
    originals = filled(avals, by_features)
    for variable, value in zip(variables, originals, strict=True):
        variable.assign(value, check=False)
    x = jnp.asarray(images(2, 3, 32, 32))

    path = tmp_path / "resnet.safetensors"
    safejax.objax.serialize(params=variables, filename=path)

    def forward(x: Any) -> Any:
        return model(x, training=False)

    if HAS_OBJAX_JIT:
        jitted = objax.Jit(forward, variables)

        def run(values: Any, x: Any) -> Any:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
            return jitted(x)

    else:

        @partial(jax.jit, compiler_options=FAST)
        def run(values: Any, x: Any) -> Any:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value, check=False)
            return forward(x)

    # The model is abstract until it is loaded into, so only the file has its values.
    for variable, aval in zip(variables, avals, strict=True):
        variable.assign(jax.ShapeDtypeStruct(aval.shape, aval.dtype), check=False)
    with safejax.observe_reads() as log:
        safejax.objax.deserialize_with_assignment(path, variables, sharding=by_features)
        loaded = variables.tensors()
        check(run, originals, loaded, x, log=log)


class Block(nn.Module):
    """A layer of a transformer with causal attention."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        mask = nn.make_causal_mask(x[..., 0])
        x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x), mask=mask)
        y = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x)))
        return x + nn.Dense(width)(y)


class Transformer(nn.Module):
    """A language model of the size of BERT-small: 30,522 words, width 512, 4 layers."""

    words: int = 30_522
    width: int = 512
    layers: int = 4

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed = nn.Embed(self.words, self.width)
        place = self.param("place", nn.initializers.normal(), (128, self.width))
        x = embed(tokens) + place[: tokens.shape[1]]
        for _ in range(self.layers):
            x = Block(8)(x)
        return embed.attend(nn.LayerNorm()(x))


def test_flax_transformer(tmp_path: Path, by_features: Any) -> None:
    model = Transformer()
    tokens = np.random.default_rng(1).integers(0, 30_522, (2, 16), np.int32)
    avals = jax.eval_shape(model.init, jax.random.key(0), tokens)
    variables = filled(avals, by_features)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 28_303_360

    path = tmp_path / "transformer.safetensors"
    safejax.flax.serialize(variables, filename=path)
    loaded = safejax.flax.deserialize(path, sharding=by_features)
    run = jax.jit(model.apply, compiler_options=FAST)
    with safejax.observe_reads() as log:
        check(run, variables, loaded, tokens, log=log)


class Convnet(nnx.Module):
    """Convolutions of the width of VGG's, with BatchNorm and Dropout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        widths = (3, 64, 128, 256, 512, 512)
        pairs = list(pairwise(widths))
        self.convs = nnx.List([nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in pairs])
        self.norms = nnx.List([nnx.BatchNorm(b, rngs=rngs) for _, b in pairs])
        self.hidden = nnx.Linear(512, 4096, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(4096, 1000, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.max_pool(nnx.relu(norm(conv(x))), (2, 2), (2, 2))
        return self.out(self.dropout(nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))))


def test_nnx_convnet(tmp_path: Path, by_features: Any) -> None:
    """The counter of Dropout is restored too: the second call differs from the first as before."""
    x = images(2, 32, 32, 3)
    abstract = nnx.eval_shape(lambda: Convnet(nnx.Rngs(0)))
    key = jax.device_put(jax.random.key(7), by_features("", jax.ShapeDtypeStruct((), "uint32")))
    graph, avals = nnx.split(abstract)
    model = nnx.merge(
        graph,
        jax.tree.map(lambda aval: key if is_key(aval) else filled(aval, by_features), avals),
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == 10_111_976

    path = tmp_path / "convnet.safetensors"
    safejax.flax.serialize(model, filename=path)

    @partial(jax.jit, compiler_options=FAST)
    def apply(state: Any, x: Any) -> Any:
        model = nnx.merge(graph, state)
        return model(x), nnx.state(model)

    def run(model: Any, x: Any) -> Any:
        y, state = apply(nnx.state(model), x)
        nnx.update(model, state)
        return y

    with safejax.observe_reads() as log:
        safejax.flax.load_into(abstract, path, sharding=by_features)
        leaves = jax.tree.leaves(nnx.to_pure_dict(nnx.state(abstract)))
        assert all(isinstance(leaf, safejax.LazyArray) for leaf in leaves)
        assert not any(leaf.is_placed for leaf in leaves)
        assert log.nbytes == 0
        after = [run(abstract, x), run(abstract, x)]
        assert log.nbytes == nbytes(nnx.state(model))
    before = [run(model, x), run(model, x)]
    assert bits(after) == bits(before)
    assert bits(before[0]) != bits(before[1])
    for one, other in zip(*map(leaves_with_keys, (abstract, model)), strict=True):
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)
        assert bits(one) == bits(other)


def leaves_with_keys(model: Any) -> list[jax.Array]:
    return [
        jax.random.key_data(leaf) if is_key(leaf) else leaf
        for leaf in jax.tree.leaves(nnx.state(model))
    ]


def test_equinox_mlp(tmp_path: Path, by_features: Any) -> None:
    def make() -> eqx.nn.MLP:
        return eqx.nn.MLP(784, 10, 2048, 3, key=jax.random.key(0))

    like = eqx.filter_eval_shape(make)
    model = eqx.combine(filled(eqx.filter(like, _is_abstract), by_features), like)
    assert sum(leaf.size for leaf in arrays_of(model)) == 10_020_874

    path = tmp_path / "mlp.safetensors"
    safejax.equinox.serialize(model, filename=path)
    loaded = safejax.equinox.deserialize(path, like=like, sharding=by_features)
    assert loaded.activation is like.activation
    run = jax.jit(lambda arrays, x: jax.vmap(eqx.combine(arrays, like))(x), compiler_options=FAST)
    with safejax.observe_reads() as log:
        check(
            run,
            eqx.filter(model, eqx.is_array),
            eqx.filter(loaded, eqx.is_array),
            images(2, 784),
            log=log,
        )


class EquinoxConvnet(eqx.Module):
    convs: list[eqx.nn.Conv2d]
    norms: list[eqx.nn.BatchNorm]
    pool: eqx.nn.MaxPool2d
    out: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        widths = (3, 64, 128, 256, 512, 512)
        pairs = list(pairwise(widths))
        keys = jax.random.split(key, len(widths))
        self.convs = [
            eqx.nn.Conv2d(a, b, 3, padding=1, key=k)
            for (a, b), k in zip(pairs, keys[1:], strict=True)
        ]
        self.norms = [eqx.nn.BatchNorm(b, axis_name="batch", mode="batch") for _, b in pairs]
        self.pool = eqx.nn.MaxPool2d(2, 2)
        self.out = eqx.nn.Linear(512, 1000, key=keys[0])

    def __call__(self, x: jax.Array, state: eqx.nn.State) -> tuple[jax.Array, eqx.nn.State]:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x, state = norm(conv(x), state)
            x = self.pool(jax.nn.relu(x))
        return self.out(x.reshape(-1)), state


def test_equinox_convnet_with_state(tmp_path: Path, by_features: Any) -> None:
    like = eqx.filter_eval_shape(lambda: eqx.nn.make_with_state(EquinoxConvnet)(jax.random.key(0)))
    both = eqx.combine(filled(eqx.filter(like, _is_abstract), by_features), like)
    assert sum(leaf.size for leaf in arrays_of(both[0])) == 4_426_728

    path = tmp_path / "convnet.safetensors"
    safejax.equinox.serialize(both, filename=path)
    loaded = safejax.equinox.deserialize(path, like=like, sharding=by_features)

    @partial(jax.jit, compiler_options=FAST)
    def run(arrays: Any, x: Any) -> Any:
        model, state = eqx.combine(arrays, like)
        return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)

    with safejax.observe_reads() as log:
        check(
            run,
            eqx.filter(both, eqx.is_array),
            eqx.filter(loaded, eqx.is_array),
            images(2, 3, 32, 32),
            log=log,
        )


def _is_abstract(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)
