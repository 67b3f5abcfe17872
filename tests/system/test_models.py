"""A ResNet-50 of Flax gives after a save and a load what it gave before, bit for bit."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from examples.quickstart import ResNet


@pytest.fixture(scope="module")
def model() -> ResNet:
    return ResNet()


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, 32, 32, 3))


@pytest.fixture(scope="module")
def variables(model: ResNet, images: jax.Array) -> Any:
    # Values as after some training: vectors of zeros and ones would hide a mix-up.
    rng = np.random.default_rng(0)

    def fill(aval: jax.ShapeDtypeStruct) -> jax.Array:
        if aval.ndim < 2:
            host = rng.uniform(0.5, 1.5, aval.shape)
        else:
            host = rng.normal(size=aval.shape) * np.sqrt(aval.shape[-1] / aval.size)
        return jax.device_put(host.astype(aval.dtype))

    return jax.tree.map(fill, jax.eval_shape(model.init, jax.random.key(0), images))


@pytest.fixture(scope="module")
def path(variables: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resnet") / "resnet.safetensors"
    safejax.save(variables, path)
    return path


def bits(array: Any) -> bytes:
    return np.asarray(array).tobytes()


def test_is_of_the_size_of_resnet_50(variables: Any) -> None:
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 25_557_032


def test_outputs_on_one_device_are_equal(
    model: ResNet, images: jax.Array, variables: Any, path: Path
) -> None:
    run = jax.jit(model.apply)
    with safejax.observe_reads() as log:
        loaded = safejax.load(path)
        assert jax.tree.structure(loaded) == jax.tree.structure(variables)
        lowered = run.lower(loaded, images)
        assert "params" in repr(loaded)
        assert jax.tree.map(lambda x: x.shape, loaded) == jax.tree.map(np.shape, variables)
        assert log.nbytes == 0
        after = run(loaded, images)
        assert log.nbytes == sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    assert lowered.as_text() == run.lower(variables, images).as_text()
    assert bits(after) == bits(run(variables, images))


@pytest.mark.parametrize("axis", [0, -1], ids=["rows", "columns"])
def test_outputs_over_eight_devices_are_equal(
    model: ResNet, images: jax.Array, variables: Any, path: Path, axis: int
) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))

    def split(name: str, aval: jax.ShapeDtypeStruct) -> NamedSharding:
        if aval.ndim < 2 or aval.shape[axis] % 8:
            return NamedSharding(mesh, P())
        spec = [None] * aval.ndim
        spec[axis] = "x"
        return NamedSharding(mesh, P(*spec))

    loaded = safejax.load(path, sharding=split)
    placed = jax.device_put(variables, jax.tree.map(lambda leaf: leaf.sharding, loaded))
    run = jax.jit(model.apply)
    with safejax.observe_reads() as log:
        after = run(loaded, images)
    assert log.nbytes == sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    assert bits(after) == bits(run(placed, images))
    for leaf, original in zip(jax.tree.leaves(loaded), jax.tree.leaves(placed), strict=True):
        for shard, expected in zip(
            leaf.addressable_shards, original.addressable_shards, strict=True
        ):
            assert (shard.device, shard.index) == (expected.device, expected.index)
            assert bits(shard.data) == bits(expected.data)
