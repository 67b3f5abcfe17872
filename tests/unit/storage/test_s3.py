"""Files in S3, by s3fs: few requests, as moto's server counts them; one version or an error."""

import json
from typing import Any

import fsspec
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from tests.support.opened import check_opened_and_read_by_pieces
from tests.support.servers import Rounds, S3Server, needs_s3

needs_s3()

BIG = np.arange(2048 * 2048, dtype=np.float32).reshape(2048, 2048)  # 16 MiB


@pytest.fixture(scope="module")
def fs(s3_running: tuple[S3Server, Any]) -> Any:
    return fsspec.filesystem("s3", skip_instance_cache=True)


@pytest.fixture
def server(s3_server: S3Server, outside: Any, fs: Any) -> S3Server:
    outside.pipe("bucket/big.safetensors", safejax.serialize({"w": BIG}))
    fs.invalidate_cache()
    s3_server.clear()
    return s3_server


def test_a_file_is_opened_by_one_request_and_read_by_its_pieces(server: S3Server, fs: Any) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P(None, "x"))
    tree = safejax.load("s3://bucket/big.safetensors", fs=fs, sharding=sharding)
    check_opened_and_read_by_pieces(server, tree, BIG)


def test_a_folder_of_four_files_is_opened_in_two_rounds(server: S3Server, fs: Any) -> None:
    names = {f"w{k}": f"model-{k}.safetensors" for k in range(4)}
    for k, (name, file) in enumerate(names.items()):
        fs.pipe(f"bucket/set/{file}", safejax.serialize({name: BIG[k]}))
    index = json.dumps({"metadata": {}, "weight_map": names}).encode()
    fs.pipe("bucket/set/model.safetensors.index.json", index)
    fs.invalidate_cache()
    server.clear()
    server.rounds = Rounds()
    tree = safejax.load("bucket/set", fs=fs)
    assert server.rounds.count == 2
    assert len(server.requests) == 6  # the list, the index and four files
    server.rounds = None
    assert all(np.array_equal(tree[f"w{k}"], BIG[k]) for k in range(4))


@pytest.mark.parametrize("versions", [False, True])
def test_an_object_that_is_replaced_is_an_error(server: S3Server, fs: Any, versions: bool) -> None:
    if versions:
        fs = fsspec.filesystem("s3", version_aware=True, skip_instance_cache=True)
    tree = safejax.load("bucket/big.safetensors", fs=fs)
    fs.pipe("bucket/big.safetensors", safejax.serialize({"w": BIG + 1}))
    with pytest.raises(safejax.ReadError, match=r"big\.safetensors: .*replaced since: etag was"):
        np.asarray(tree["w"])


def test_a_server_that_is_busy_for_the_moment(server: S3Server, fs: Any) -> None:
    tree = safejax.load("bucket/big.safetensors", fs=fs)
    server.clear()
    server.fault = lambda request: "503" if request.number <= 2 else None
    assert np.asarray(tree["w"]).tobytes() == BIG.tobytes()
    assert len(server.requests) == 4


def test_objects_that_cannot_be_loaded(server: S3Server, fs: Any) -> None:
    fs.pipe("bucket/empty.safetensors", b"")
    with pytest.raises(safejax.InvalidFileError, match="got an empty file"):
        safejax.load("s3://bucket/empty.safetensors", fs=fs)
    with pytest.raises(FileNotFoundError, match=r"there is nothing; its folder has big\.safeten"):
        safejax.load("s3://bucket/gone.safetensors", fs=fs)
    with pytest.raises(FileNotFoundError, match="there is nothing"):
        safejax.load("s3://nowhere/gone.safetensors", fs=fs)
    # A folder whose name is that of a file.
    fs.pipe("bucket/folder.safetensors/model.safetensors", safejax.serialize({"w": BIG[:2]}))
    fs.invalidate_cache()
    tree = safejax.load("bucket/folder.safetensors", fs=fs)
    assert np.asarray(tree["w"]).tobytes() == BIG[:2].tobytes()
