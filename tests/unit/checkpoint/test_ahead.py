"""Values on devices are fetched ahead of the file, in its order, a bounded number of bytes.

CPU devices have page-locked memory of JAX's kind, too, so that all of it runs here when forced.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jax.sharding import SingleDeviceSharding

import safejax
from safejax._src.arrays.fetching import begin_fetch
from safejax._src.arrays.staging import forced
from safejax._src.arrays.switch import SWITCH
from safejax._src.checkpoint.ahead import fetched_ahead
from safejax._src.checkpoint.layout import Extent, layout
from safejax._src.checkpoint.stream import Stream
from safejax._src.leaves.flatten import flatten
from safejax.errors import LeafError
from tests.support.leaves import by

PINNED = SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")


@pytest.fixture
def on() -> Iterator[None]:
    with forced(True):
        yield


def extents(tree: Any) -> tuple[Extent, ...]:
    return layout(flatten(tree), "m.safetensors").extents


def are_fetched(found: Iterator[Extent]) -> list[bool]:
    return [
        getattr(array, "sharding", None) == PINNED for extent in found for array in extent.arrays
    ]


@pytest.mark.parametrize("checksum", [False, True])
def test_the_file_has_the_same_bytes(checksum: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 1 << 16, (64, 96), np.uint16)
    with jax.enable_x64(True):
        tree = {
            "f32": jnp.asarray(rng.standard_normal((300, 70)), jnp.float32),
            "bf16": jax.device_put(raw.view(ml_dtypes.bfloat16)),
            "f64": jnp.arange(9000.0),
            "int4": jnp.arange(20000).astype(jnp.int4),
            "bool": jnp.arange(70000) % 3 == 0,
            "small": [jnp.float32(number) for number in range(5)],
            "key": jax.random.key(1),
            "numpy": rng.standard_normal(30000),
            "rows": jax.device_put(raw, by(P("x"))),
            "all": jax.device_put(raw, by(P())),
            "there": jax.device_put(raw, jax.devices()[3]),
            "pinned": jax.device_put(raw, PINNED),
            "empty": jnp.zeros((0, 3)),
        }
    options: dict[str, Any] = {
        "checksum": checksum,
        "transform": safejax.cast("float16", where="f32"),
    }
    files = [tmp_path / "plain", tmp_path / "ahead"]
    for path, way in zip(files, (False, True), strict=True):
        with forced(way):
            assert SWITCH.is_possible() == way
            safejax.save(tree, path, **options)
            assert safejax.serialize(tree, checksum=checksum)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_so_many_bytes_are_on_their_way(on: None) -> None:
    tree = {f"w{number}": jnp.full(100, number, jnp.float32) for number in range(6)}
    taken: list[str] = []

    class Counted(tuple[Extent, ...]):
        """The extents, which note how many were begun."""

        def __iter__(self) -> Iterator[Extent]:
            for extent in super().__iter__():
                taken.append(extent.name)
                yield extent

    counted = Counted(extents(tree))
    found = fetched_ahead(counted, most=1000)
    begun: list[int] = []
    for extent in found:
        taken_now = taken[1 + len(counted) :]  # The first, and all of them, were looked at before.
        begun.append(len(taken_now))
        assert np.asarray(extent.values).tobytes() == np.asarray(tree[extent.name]).tobytes()
    assert begun == [3, 4, 5, 6, 6, 6]
    assert are_fetched(fetched_ahead(counted, most=1)) == [True] * 6


def test_what_is_needed_more_than_once_is_fetched_once(on: None) -> None:
    array = jnp.arange(6000.0)
    split = safejax.unstack("w", "w.{i}")
    tree = {"w": array.reshape(2, 3000), "v": jnp.ones(3000)}
    leaves = split(flatten(tree))
    found = list(fetched_ahead(layout(leaves, "m.safetensors").extents))
    assert {extent.name: are_fetched(iter([extent])) for extent in found} == {
        "w.0": [False], "w.1": [False], "v": [True],
    }  # fmt: skip


def test_what_is_on_the_host_stays_where_it_is(on: None) -> None:
    for array in (np.ones(3), jax.device_put(np.ones(3, np.float32), PINNED)):
        assert begin_fetch(array) is array
    with forced(None):
        assert not SWITCH.is_possible()
        array = jnp.ones(3)
        assert begin_fetch(array) is array


def test_an_array_that_is_deleted_meanwhile_is_an_error(on: None) -> None:
    tree = {"w": jnp.ones(30000), "v": jnp.ones(20000)}
    plan = layout(flatten(tree), "m.safetensors")
    tree["w"].delete()
    with pytest.raises(LeafError, match=r"leaf 'w': .*deleted"):
        b"".join(Stream(plan).chunks())
