"""Save a real model, a Flax ResNet-50, load it lazily over 8 devices, and run it.

Each line reports how many bytes have been read from the file: none until values are needed.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax


class Bottleneck(nn.Module):
    """Three convolutions with a shortcut around them; the last one is four times as wide."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x, train=False):
        def convolve(y, features, kernel, stride=1):
            y = nn.Conv(features, (kernel, kernel), stride, use_bias=False)(y)
            return nn.BatchNorm(use_running_average=not train)(y)

        y = nn.relu(convolve(x, self.features, 1))
        y = nn.relu(convolve(y, self.features, 3, self.stride))
        y = convolve(y, 4 * self.features, 1)
        if x.shape != y.shape:
            x = convolve(x, 4 * self.features, 1, self.stride)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network; by default ResNet-50."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    classes: int = 1000

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(self.width, (7, 7), 2, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = Bottleneck(self.width << stage, stride)(x, train)
        return nn.Dense(self.classes)(x.mean((1, 2)))


def main(model=None, size=64):
    """Save, load and run; returns the loaded tree, and whether the outputs are equal."""
    model = model or ResNet()
    images = jax.random.normal(jax.random.key(1), (2, size, size, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)  # params and batch_stats

    path = Path(tempfile.mkdtemp()) / "resnet.safetensors"
    safejax.save(variables, path, metadata={"model": "ResNet"})
    total = path.stat().st_size
    print(f"saved      {len(jax.tree.leaves(variables))} leaves, {total:,} bytes")

    # Kernels are split over the devices along their last axis if it is divisible; everything
    # else is replicated.
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))

    def by_features(name, aval):
        split = name.endswith("kernel") and aval.shape[-1] % mesh.size == 0
        return NamedSharding(mesh, P(*[None] * (aval.ndim - 1), "model") if split else P())

    with safejax.observe_reads() as log:
        loaded = safejax.load(path, sharding=by_features)
        kernel = loaded["params"]["Dense_0"]["kernel"]
        print(f"loaded     {log.nbytes:,} bytes read; {kernel!r}")

        run = jax.jit(model.apply)
        jax.tree.map(lambda leaf: leaf.sharding.shard_shape(leaf.shape), loaded)
        compiled = run.lower(loaded, images).compile()
        print(f"compiled   {log.nbytes:,} bytes read; shapes and shardings are in the header")

        row = np.asarray(kernel[0])
        print(f"one row    {log.nbytes:,} bytes read; {row[:3]}…")
        log.clear()

        logits = compiled(safejax.materialize(loaded), images)
        print(f"applied    {log.nbytes:,} bytes read, each once, replicas included")

    placed = jax.device_put(variables, jax.tree.map(lambda leaf: leaf.sharding, loaded))
    equal = bool((run(placed, images) == logits).all())
    print(f"outputs    {logits.shape}, equal bit for bit to those before saving: {equal}")
    print(f"on disk    {safejax.metadata(path)}; any safetensors reader opens it")
    return loaded, equal


if __name__ == "__main__":
    main()
