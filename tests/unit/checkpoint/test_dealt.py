"""Saves by several processes into files that have one writer each, after an exchange of values.

Each task runs in all processes at once. What they agree on is compared there or here.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax._src.arrays import all_to_all
from safejax._src.checkpoint.saving import stored_leaves
from safejax._src.checkpoint.shards import folder_of
from safejax._src.checkpoint.stream import to_bytes
from tests.support.shared_files import SharedFiles
from tests.support.together import Together, devices_together

TIMEOUT = 40.0
"""Seconds; far more than any task takes in which no process has to be given up."""

INDEX = "model.safetensors.index.json"
TOKEN = re.compile(r"(?<=model-)[0-9a-f]{16}-")
HOST = np.arange(64 * 48, dtype=np.float32).reshape(64, 48)
ELSEWHERE: dict[str, Any] = {"fs": SharedFiles(), "timeout": TIMEOUT}


@pytest.fixture(scope="module")
def four() -> Iterator[Together]:
    with Together(4) as together:
        yield together


def spread(values: Any, *spec: Any, shape: tuple[int, ...] = (-1,), turn: int = 1) -> jax.Array:
    """An array over the devices of all processes, in their order, or in turn every `turn`th."""
    values = np.asarray(values)
    found = devices_together()
    devices = np.array([each for first in range(turn) for each in found[first::turn]])
    axes = ("x", "y")[: len(shape)]
    mesh = Mesh(devices.reshape(shape), axes, axis_types=(AxisType.Auto,) * len(axes))
    return jax.make_array_from_callback(
        values.shape, NamedSharding(mesh, P(*spec)), lambda index: values[index], dtype=values.dtype
    )


def in_one(values: Any, process: int) -> jax.Array:
    """An array on the devices of one process."""
    devices = np.array(jax.local_devices(process)[:2])
    sharding = NamedSharding(Mesh(devices, ("x",)), P(None, "x"))
    return jax.make_array_from_callback(
        values.shape, sharding, lambda index: values[index], dtype=values.dtype
    )


def every_dtype() -> dict[str, Any]:
    """Arrays of 64 elements, of every dtype that JAX has without its x64 mode."""
    names = (
        "bool int8 uint8 int16 uint16 int32 uint32 float16 float32 bfloat16 complex64 int4 uint4"
        " float8_e4m3fn float8_e5m2 float8_e4m3b11fnuz float8_e8m0fnu float4_e2m1fn"
    )
    values = (np.arange(64) % 5).reshape(8, 8)
    return {name: values.astype(getattr(ml_dtypes, name, None) or name) for name in names.split()}


def trees(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A tree that spans the processes, with leaves of each kind; and the same tree in this one."""
    two = (2, -1)
    nans = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16).reshape(256, 256)
    odd = np.arange(8 * 3).reshape(3, 8).astype(ml_dtypes.float4_e2m1fn)
    keys = jax.random.split(jax.random.key(1), 8)
    alone: dict[str, Any] = {
        name: HOST + number
        for number, name in enumerate(
            [
                "rows",
                "columns",
                "both",
                "exchanged",
                "replicated",
                "part",
                "parts",
                "turned",
                "other",
                "alone0",
                "alone1",
            ]
        )
    }
    alone |= {
        "dtypes": every_dtype(), "nans": nans, "odd": odd, "keys": keys, "numpy": HOST.T * 2,
        "scalar": 7, "text": "text", "none": None, "empty": np.zeros((0, 4), np.float16),
        "number": np.float32(3), "local": jnp.arange(5), "weak": jnp.asarray(2.0) * 3,
        "wide": np.arange(3) * 1j, "list": [HOST[0], {}, (1, 2)], "lazy": HOST - 1,
        "lazy rows": HOST - 2,
    }  # fmt: skip
    file = folder / f"lazy-{jax.process_index()}"
    safejax.save({name: alone[name] for name in alone if "lazy" in name}, file)
    rows = spread(HOST, "x").sharding
    data = np.asarray(jax.random.key_data(keys))
    tree = {
        **alone,
        "rows": spread(alone["rows"], "x"),
        "columns": spread(alone["columns"], None, "x"),
        "both": spread(alone["both"], "x", "y", shape=two),
        "exchanged": spread(alone["exchanged"], "y", "x", shape=two),
        "replicated": spread(alone["replicated"]),
        "part": spread(alone["part"], "x", shape=two),
        "parts": spread(alone["parts"], None, "y", shape=two),
        "turned": spread(alone["turned"], None, "x", turn=2),
        "other": spread(alone["other"], ("y", "x"), shape=two),
        "alone0": in_one(alone["alone0"], 0),
        "alone1": in_one(alone["alone1"], 1),
        "dtypes": {
            name: spread(each, "x", "y", shape=two) for name, each in alone["dtypes"].items()
        },
        "nans": spread(nans, "x", turn=2),
        # A byte has elements of two processes.
        "odd": spread(odd, None, "x", turn=2) if jax.process_count() == 2 else spread(odd),
        "keys": jax.random.wrap_key_data(spread(data, "x")),
        "empty": spread(alone["empty"], None, "x") if jax.process_count() == 2 else alone["empty"],
        "number": spread(alone["number"]),
        "lazy": safejax.load(file)["lazy"],
        "lazy rows": safejax.load(file, sharding=rows)["lazy rows"],
    }
    return tree, alone


TURNED = safejax.chain(safejax.transpose("rows"), safejax.reshape("rows", (32, 96)))
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "checksum": {"checksum": True, "metadata": {"step": "3", "a": "é"}},
    "cast": {"transform": safejax.cast("bfloat16", where="rows")},
    "turned": {"transform": TURNED, "checksum": True},
}


def digests_of(path: Path) -> dict[str, str]:
    """The digest of each file of a folder, by its name without the token of the save."""
    files = {TOKEN.sub("", each.name): each.read_bytes() for each in path.iterdir()}
    files[INDEX] = TOKEN.sub("", files[INDEX].decode()).encode()
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def expected_digests(alone: Any, path: Path, **options: Any) -> dict[str, str]:
    """What `digests_of` finds if one process had written it all."""
    checksum = options.get("checksum", False)
    leaves = stored_leaves(alone, options.get("transform"), options.get("metadata"))
    most, count = options["max_shard_bytes"], jax.process_count()
    folder = folder_of(leaves, str(path), most, checksum=checksum, writers=count)
    assert folder.index is not None
    files = {INDEX: folder.index, **{name: to_bytes(each) for name, each in folder.files.items()}}
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def save_in_all_ways(process: int, folder: Path, buffer: int | None, local: bool) -> list[str]:
    """Save the tree with each of the options; the ones whose files are not as they should be."""
    before = all_to_all.BUFFER_BYTES
    if buffer is not None:
        # Else no array that is small enough for a test would be sent in several rounds.
        all_to_all.BUFFER_BYTES = buffer  # type: ignore[misc]
    tree, alone = trees(folder)
    place: dict[str, Any] = {"one_writer_per_file": True} if local else {"fs": SharedFiles()}
    wrong: list[str] = []
    for name, options in OPTIONS.items():
        options = {"max_shard_bytes": 2 * HOST.nbytes, **options}
        safejax.save(tree, folder / "set", timeout=TIMEOUT, **place, **options)
        # The expected files are the same for all, and the next save comes after all have looked.
        if process == 0 and digests_of(folder / "set") != expected_digests(
            alone, folder / "set", **options
        ):
            wrong.append(name)
    all_to_all.BUFFER_BYTES = before  # type: ignore[misc]
    return wrong


CASES = [(None, True), (1 << 12, False)]


@pytest.mark.parametrize(("buffer", "local"), CASES)
def test_the_files_have_the_bytes_of_a_save_in_one_process(
    pair: Together, tmp_path: Path, buffer: int | None, local: bool
) -> None:
    assert pair.run(save_in_all_ways, tmp_path, buffer, local) == [[], []]
    tree = safejax.load(tmp_path / "set", verify=True)
    assert np.array_equal(np.asarray(tree["columns"]), HOST + 1)
    assert tree["scalar"] == 7


@pytest.mark.parametrize(("buffer", "local"), CASES)
def test_so_they_have_if_there_are_four_processes(
    four: Together, tmp_path: Path, buffer: int | None, local: bool
) -> None:
    assert four.run(save_in_all_ways, tmp_path, buffer, local) == [[]] * 4
