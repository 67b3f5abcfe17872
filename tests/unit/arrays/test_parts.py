"""Arrays over several devices are read shard by shard."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import safejax
from safejax import SaveHandle
from safejax._src.arrays.parts import boxes_of, view_of_array, view_of_share
from safejax._src.reading.shares import pieces

MESH = jax.make_mesh((2, 4), ("x", "y"))
SPECS = {
    "rows": PartitionSpec("x"),
    "columns": PartitionSpec(None, "y"),
    "both": PartitionSpec("x", "y"),
    "exchanged": PartitionSpec("y", "x"),
    "two axes on one": PartitionSpec(None, ("x", "y")),
    "the last of three": PartitionSpec(None, None, "x"),
    "replicated": PartitionSpec(),
}
VALUES = np.arange(8 * 16 * 2, dtype=np.float32).reshape(8, 16, 2)


def array(spec: str, dtype: str = "float32") -> jax.Array:
    return jax.device_put(jnp.asarray(VALUES, dtype), NamedSharding(MESH, SPECS[spec]))


def copy_is_kept(whole: jax.Array) -> bool:
    """Whether JAX keeps a copy of the array on the host, for which it has no public name."""
    return whole._npy_value is not None  # type: ignore[attr-defined]


@pytest.mark.parametrize("spec", SPECS)
def test_the_shards_are_the_array_and_no_copy_of_it_is_kept(spec: str) -> None:
    whole = array(spec)
    view = view_of_array(whole)
    np.testing.assert_array_equal(view.read(), VALUES)
    assert safejax.serialize({"w": whole}) == safejax.serialize({"w": VALUES})
    turned = safejax.serialize({"w": whole}, transform=safejax.transpose("w", axes=(2, 0, 1)))
    assert turned == safejax.serialize({"w": np.ascontiguousarray(VALUES.transpose(2, 0, 1))})
    assert not copy_is_kept(whole)
    np.asarray(whole)
    assert copy_is_kept(whole) or spec == "replicated"


WAYS: dict[str, dict[str, Any]] = {
    "a file": {},
    "with digests": {"checksum": True},
    "a folder": {"max_shard_bytes": 1},
    "cast": {"transform": safejax.cast("bfloat16")},
    "stacked": {"transform": safejax.stack("w.{i}")},
    "reshaped": {"transform": safejax.reshape("w.*", (16, 16))},
    "computed": {"transform": safejax.elementwise(lambda block: block + 1, "w.*")},
    "padded": {"transform": safejax.pad("w.*", axis=0, to=11)},
}


@pytest.mark.parametrize("save", [safejax.save, safejax.save_async])
@pytest.mark.parametrize("way", WAYS)
def test_no_way_to_save_leaves_a_copy_with_the_array(
    way: str, save: Callable[..., SaveHandle | None], tmp_path: Path
) -> None:
    """(issue 18, 5)"""
    tree = {"w": [array("both"), array("rows")]}
    handle = save(tree, tmp_path / "m", **WAYS[way])
    if handle is not None:
        handle.result()
    assert not any(map(copy_is_kept, tree["w"]))
    host = {"w": [VALUES, VALUES]}
    safejax.save(host, tmp_path / "host", **WAYS[way])
    found, expected = (safejax.load(tmp_path / name) for name in ("m", "host"))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("dtype", ["int4", "bool", "bfloat16", "complex64"])
def test_shards_of_other_dtypes(dtype: str) -> None:
    values = jnp.asarray(VALUES % 7, dtype)
    whole = jax.device_put(values, NamedSharding(MESH, SPECS["both"]))
    assert safejax.serialize({"w": whole}) == safejax.serialize({"w": values})


def test_a_part_needs_only_the_shards_that_it_touches() -> None:
    view = view_of_array(array("both"))
    assert len(view.sources) == 8
    assert len(view.index((0,)).sources) == 4
    assert len(view.index((0, slice(0, 4))).sources) == 1
    assert len(view_of_array(array("replicated")).sources) == 1


@pytest.mark.parametrize("spec", SPECS)
def test_boxes_cover_the_array_once(spec: str) -> None:
    whole = array(spec)
    covered = np.zeros(VALUES.shape, int)
    boxes = boxes_of(whole.sharding, whole.shape)
    for box in boxes:
        covered[tuple(slice(*bounds) for bounds in box)] += 1
    assert (covered == 1).all()
    assert {device for devices in boxes.values() for device in devices} == set(jax.devices())


@pytest.mark.parametrize("spec", SPECS)
def test_what_other_processes_hold_is_absent(spec: str) -> None:
    whole = array(spec)
    view = view_of_array(VALUES)
    # As if each two of the devices were in a process.
    holders = {
        box: tuple(sorted({device.id // 2 for device in devices}))
        for box, devices in boxes_of(whole.sharding, whole.shape).items()
    }
    covered = np.zeros(VALUES.shape, int)
    for process in range(4):
        share = view_of_share(view, holders, process)
        assert share.shape == VALUES.shape
        # The boxes of others are few parts, however many they are.
        mine = [box for box, each in holders.items() if process in each]
        assert len(share.sources) <= 3 * len(mine)
        for box in holders:
            index = tuple(slice(*bounds) for bounds in box)
            part = share.index(index)
            assert part.has_values == (box in mine)
            assert part.elsewhere == (box not in mine)
            if box in mine:
                covered[index] += 1
                assert np.array_equal(part.read(), VALUES[index])
                assert {source.holders for source in part.sources} == {holders[box]}
            else:
                with pytest.raises(safejax.ReadError, match="that only other processes hold"):
                    part.read()
        assert share.elsewhere == (len(mine) < len(holders))
    assert covered.min() >= 1


def test_a_process_may_hold_nothing_of_an_array() -> None:
    share = view_of_share(view_of_array(VALUES), {((0, 8), (0, 16), (0, 2)): (1,)}, 0)
    assert len(share.sources) == 1
    assert share.elsewhere
    assert list(pieces(share)) == []


def test_an_array_that_is_deleted_while_it_is_saved_is_an_error() -> None:
    whole = array("rows")
    view = view_of_array(whole)
    whole.delete()
    with pytest.raises(safejax.LeafError, match="deleted, or donated"):
        view.read()
