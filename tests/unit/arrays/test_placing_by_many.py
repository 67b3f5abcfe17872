"""Loads in two processes of four devices each, over meshes of any shape: bits, and bytes read."""

from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from tests.support.together import Together

EACH = 4
"""The devices of each process."""

RNG = np.random.default_rng(0)
HOST: dict[str, Any] = {
    "float32": np.frombuffer(RNG.bytes(64 * 48 * 4), np.float32).reshape(64, 48),
    "bfloat16": np.frombuffer(RNG.bytes(32 * 64 * 2), ml_dtypes.bfloat16).reshape(32, 64),
    "int4": RNG.integers(-8, 8, (16, 16)).astype(ml_dtypes.int4),
    "three axes": RNG.normal(size=(8, 16, 6)).astype(np.float16),
}
SPECS = (P("x"), P(None, "y"), P("x", "y"), P("y", "x"), P(("x", "y")), P(None, ("y", "x")), P())


def mesh_of(shape: tuple[int, int]) -> Mesh:
    """A mesh over the first devices of each process; of one device, it is in process 0."""
    each = -(-shape[0] * shape[1] // 2)
    devices = [device for p in range(2) for device in jax.local_devices(p)[: min(each, EACH)]]
    grid = np.array(devices[: shape[0] * shape[1]]).reshape(shape)
    return Mesh(grid, ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def shardings_of(layout: str) -> list[dict[str, NamedSharding]]:
    """Trees of shardings, in which each leaf has each spec once, or another mesh than others."""
    if layout == "mixed":
        meshes = [mesh_of(shape) for shape in ((1, 8), (2, 2), (4, 2), (1, 1))]
        return [
            {
                name: NamedSharding(meshes[(number + shift) % 4], SPECS[(number * 2 + shift) % 7])
                for number, name in enumerate(HOST)
            }
            for shift in range(4)
        ]
    rows, columns = map(int, layout.split("x"))
    return [dict.fromkeys(HOST, NamedSharding(mesh_of((rows, columns)), spec)) for spec in SPECS]


def load_all(process: int, layout: str, path: Path, access: Any) -> list[str]:
    """What is wrong with the leaves of this process, or with what was read for them."""
    del process
    wrong: list[str] = []
    for shardings in shardings_of(layout):
        with safejax.observe_reads() as log:
            tree = safejax.load(path, sharding=shardings, access=access)
            assert log.nbytes == 0
            tree = safejax.materialize(tree)
        held = 0
        for name, values in HOST.items():
            asked, leaf = shardings[name], tree[name]
            same = leaf.sharding == asked and leaf.shape == values.shape
            is_needed = np.zeros(values.shape, bool)
            for shard in leaf.addressable_shards:
                part = np.ascontiguousarray(values[shard.index])
                same &= np.asarray(shard.data).tobytes() == part.tobytes()
                is_needed[shard.index] = True
            local = [each for each in asked.device_set if each.process_index == jax.process_index()]
            if not same or len(leaf.addressable_shards) != len(local):
                wrong.append(f"{name} over {asked}")
            held += int(is_needed.sum()) * values.dtype.itemsize
        if log.needed != held or (access == "map" and log.nbytes != held):
            wrong.append(f"read {log.nbytes}, needed {log.needed}, has {held}: {shardings}")
    return wrong


@pytest.mark.parametrize("access", ["map", "read"])
@pytest.mark.parametrize("layout", ["1x8", "8x1", "2x2", "4x2", "1x1", "mixed"])
def test_each_process_reads_what_its_devices_hold(
    pair: Together, layout: str, access: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    safejax.save(HOST, path)
    assert pair.run(load_all, layout, path, access) == [[], []]
