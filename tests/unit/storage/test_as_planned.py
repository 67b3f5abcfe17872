"""Files elsewhere are requested as planned, whichever way they are loaded: the server counts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax._src.reading.requests import Cost
from tests.support.leaves import by
from tests.support.servers import HttpServer

SIDE = 1024
VALUES = np.arange(SIDE * SIDE, dtype=np.int32).reshape(SIDE, SIDE)  # 4 MiB, 4 blocks
TREE = {
    "a": VALUES, "b": VALUES[:3], "four": (VALUES % 7).astype(ml_dtypes.float4_e2m1fn),
    "half": VALUES[:32].astype(np.float16), "z": VALUES + 1,
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "verify": {"verify": True},
    "cast": {"transform": safejax.cast("bfloat16", where="half")},
}


@pytest.fixture(scope="module")
def server() -> Iterator[HttpServer]:
    server = HttpServer()
    server.files["/m.safetensors"] = safejax.serialize(TREE, checksum=True)
    yield server
    server.close()


def where(name: str, aval: Any) -> NamedSharding:
    return by(P(None, "x")) if name in ("a", "four") else by(P("x") if name == "z" else P())


@pytest.mark.parametrize("sharding", [None, where])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_planned_is_what_the_server_counts(
    server: HttpServer, way: str, sharding: Any
) -> None:
    options = {**WAYS[way], "sharding": sharding}
    url = f"{server.url}/m.safetensors"
    tree = safejax.load(url, **options)
    planned = safejax.plan(tree)
    assert safejax.plan(url, **options).processes == planned.processes
    # The whole tree.
    server.clear()
    with safejax.observe_reads() as log:
        placed = safejax.materialize(tree)
    counted = Cost(server.sent, len(server.requests), log.needed)
    assert planned.reads == planned.processes[0].reads == counted
    assert log.nbytes == server.sent
    assert counted.needed == sum(leaf.nbytes for leaf in TREE.values()) - TREE["four"].nbytes // 2
    # Leaf by leaf.
    for name, lazy in safejax.load(url, **options).items():
        alone = safejax.plan({name: lazy}).reads
        server.clear()
        with safejax.observe_reads() as log:
            array = lazy.placed()
        assert alone == Cost(server.sent, len(server.requests), log.needed), name
        assert np.asarray(array).tobytes() == np.asarray(placed[name]).tobytes()
    assert np.asarray(placed["a"]).tobytes() == VALUES.tobytes()


@pytest.mark.parametrize("verify", [False, True])
def test_each_device_needs_what_is_planned_for_it(server: HttpServer, verify: bool) -> None:
    tree = safejax.load(f"{server.url}/m.safetensors", sharding=where, verify=verify)
    for name, leaf in tree.items():
        for device, planned in safejax.plan({name: leaf}).devices.items():
            index = leaf.sharding.devices_indices_map(leaf.shape)[device]
            server.clear()
            with safejax.observe_reads() as log:
                leaf.content.view.index(index).read()
            assert planned.reads == Cost(server.sent, len(server.requests), log.needed), name


def test_parts_are_requested_as_they_are_logged(server: HttpServer) -> None:
    for verify in (False, True):
        tree = safejax.load(f"{server.url}/m.safetensors", verify=verify)
        for name, index in (("a", np.s_[3:5, 7]), ("four", np.s_[::3]), ("z", np.s_[:, :9])):
            server.clear()
            with safejax.observe_reads() as log:
                part = np.asarray(tree[name][index])
            assert (server.sent, len(server.requests)) == (log.nbytes, len(log.reads))
            assert log.needed <= log.nbytes
            assert part.tobytes() == TREE[name][index].tobytes()


def test_a_small_tree_with_digests_is_one_request(server: HttpServer) -> None:
    tree = {f"w{number}": VALUES[number] for number in range(100)}
    server.files["/many.safetensors"] = safejax.serialize(tree, checksum=True)
    loaded = safejax.load(f"{server.url}/many.safetensors", verify=True)
    server.clear()
    placed = safejax.materialize(loaded)
    assert len(server.requests) == 1
    assert all(np.asarray(placed[name]).tobytes() == tree[name].tobytes() for name in tree)
    damaged = bytearray(server.files["/many.safetensors"])
    damaged[-5] ^= 1
    server.files["/bad.safetensors"] = bytes(damaged)
    loaded = safejax.load(f"{server.url}/bad.safetensors", verify=True)
    with pytest.raises(safejax.ChecksumError, match=r"bad\.safetensors: leaf 'w9"):
        safejax.materialize(loaded)


def test_large_reads_of_a_local_file_land_where_they_belong(tmp_path: Path) -> None:
    """A read of several leaves goes to several places; large ones go by several threads."""
    tree = {f"w{number}": VALUES + number for number in range(6)} | TREE
    path = tmp_path / "m.safetensors"
    safejax.save(tree, path)
    for sharding in (None, by(P("x")), by(P(None, "x"))):
        options: dict[str, Any] = {"access": "read"}
        chosen = {name: leaf for name, leaf in tree.items() if name != "b"}
        loaded = safejax.load(path, transform=safejax.drop("b"), sharding=sharding, **options)
        planned = safejax.plan(loaded).reads
        with safejax.observe_reads() as log:
            placed = safejax.materialize(loaded)
        assert planned == Cost(log.nbytes, len(log.reads), log.needed)
        for name, array in chosen.items():
            assert np.asarray(placed[name]).tobytes() == array.tobytes(), name


def test_a_file_that_is_cut_short_is_an_error_in_every_thread(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safejax.save({f"w{number}": VALUES for number in range(6)}, path)
    tree = safejax.load(path, access="read")
    with path.open("r+b") as file:
        file.truncate(9 << 20)
    with pytest.raises(safejax.ReadError, match=r"m\.safetensors"):
        safejax.materialize(tree)


def test_any_file_system_of_fsspec_is_requested_as_planned() -> None:
    memory = fsspec.filesystem("memory", skip_instance_cache=True)
    safejax.save(TREE, "/as-planned/m.safetensors", fs=memory, checksum=True)
    for verify in (False, True):
        tree = safejax.load("/as-planned/m.safetensors", fs=memory, verify=verify, sharding=where)
        planned = safejax.plan(tree).reads
        with safejax.observe_reads() as log:
            safejax.materialize(tree)
        assert planned == Cost(log.nbytes, len(log.reads), log.needed)
    memory.rm("/as-planned", recursive=True)
