"""Stores of obstore as `fs`: S3 by moto's server, HTTP, memory and local files."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax._src.reading.file import MappedSource
from tests.support.files import same_bytes
from tests.support.opened import check_opened_and_read_by_pieces
from tests.support.servers import HttpServer, Request, Rounds, S3Server, needs_s3

needs_s3("obstore")
STORES: Any = pytest.importorskip("obstore.store")
FsspecStore: Any = pytest.importorskip("obstore.fsspec").FsspecStore

MIB = 1 << 20
BIG = np.arange(2048 * 2048, dtype=np.float32).reshape(2048, 2048)  # 16 MiB
SMALL = {"w": BIG[:4], "v": BIG[4:8]}
PATH = "runs/model.safetensors"


@pytest.fixture
def server(s3_server: S3Server) -> S3Server:
    return s3_server


def options(server: S3Server) -> dict[str, Any]:
    return {
        "endpoint": server.url, "region": "us-east-1", "access_key_id": "me",
        "secret_access_key": "S3CR3T", "client_options": {"allow_http": True},
        "retry_config": {"max_retries": 0},
    }  # fmt: skip


@pytest.fixture(params=["S3Store", "FsspecStore", "MemoryStore"])
def place(request: pytest.FixtureRequest, server: S3Server) -> tuple[Any, str]:
    """A store, and what paths in it begin with."""
    if request.param == "MemoryStore":
        return STORES.MemoryStore(), ""
    if request.param == "S3Store":
        return STORES.S3Store("bucket", **options(server)), ""
    return FsspecStore("s3", skip_instance_cache=True, **options(server)), "s3://bucket/"


@pytest.fixture
def s3(server: S3Server) -> Any:
    return STORES.S3Store("bucket", **options(server))


def test_a_file_is_saved_and_loaded(place: tuple[Any, str]) -> None:
    fs, root = place
    for tree in (SMALL, {"w": BIG}, {"nothing": np.zeros((0, 3), np.int8)}):
        safejax.save(tree, root + PATH, fs=fs, checksum=True)
        assert same_bytes(safejax.load(root + PATH, fs=fs, verify=True), tree)
    assert safejax.metadata(root + PATH, fs=fs) == {}


def test_a_folder_is_saved_loaded_and_replaced(place: tuple[Any, str]) -> None:
    fs, root = place
    for tree in (SMALL, {f"w{k}": BIG[k : k + 9] for k in range(4)}):
        safejax.save(tree, root + "runs/set", fs=fs, max_shard_bytes=9 * 2048 * 4)
        loaded = safejax.load(root + "runs/set", fs=fs)
        assert same_bytes(loaded, tree)
    index = "runs/set/model.safetensors.index.json"
    assert same_bytes(safejax.load(root + index, fs=fs), tree)


def test_what_is_not_there(place: tuple[Any, str]) -> None:
    fs, root = place
    safejax.save(SMALL, root + PATH, fs=fs)
    with pytest.raises(FileNotFoundError, match=r"there is nothing; its folder has model"):
        safejax.load(root + "runs/gone.safetensors", fs=fs)
    with pytest.raises(FileNotFoundError, match="there is nothing"):
        safejax.load(root + "gone", fs=fs)


def test_an_empty_object_is_no_safetensors_file(place: tuple[Any, str]) -> None:
    fs, root = place
    if isinstance(fs, FsspecStore):
        fs.pipe_file(root + PATH, b"")
    else:
        fs.put(PATH, b"")
    with pytest.raises(safejax.InvalidFileError, match="got an empty file"):
        safejax.load(root + PATH, fs=fs)


def test_an_object_that_is_replaced_is_an_error(place: tuple[Any, str]) -> None:
    fs, root = place
    safejax.save({"w": BIG}, root + PATH, fs=fs)
    tree = safejax.load(root + PATH, fs=fs)
    safejax.save({"w": BIG + 1}, root + PATH, fs=fs)
    with pytest.raises(safejax.ReadError, match=r"model\.safetensors: .*replaced since: etag was"):
        np.asarray(tree["w"])


# ---- requests


def test_few_requests_are_made_and_as_many_as_planned(server: S3Server, s3: Any) -> None:
    safejax.save({"w": BIG}, PATH, fs=s3)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P(None, "x"))
    server.clear()
    tree = safejax.load(PATH, fs=s3, sharding=sharding)
    check_opened_and_read_by_pieces(server, tree, BIG)


def test_a_folder_of_four_files_is_opened_in_two_rounds(server: S3Server, s3: Any) -> None:
    tree = {f"w{k}": BIG[k] for k in range(4)}
    safejax.save(tree, "set", fs=s3, max_shard_bytes=BIG[0].nbytes)
    server.clear()
    server.rounds = Rounds()
    loaded = safejax.load("set", fs=s3)
    assert server.rounds.count == 2
    assert len(server.requests) == 6  # the list, the index and four files
    server.rounds = None
    assert same_bytes(loaded, tree)


def test_a_server_that_is_busy_for_the_moment(server: S3Server) -> None:
    retrying = {name: value for name, value in options(server).items() if name != "retry_config"}
    fs = STORES.S3Store("bucket", **retrying)
    safejax.save(SMALL, PATH, fs=fs)
    tree = safejax.load(PATH, fs=fs)
    server.clear()
    server.fault = lambda request: "503" if request.number == 1 else None
    assert same_bytes(tree, SMALL)


# ---- saving


@pytest.mark.parametrize("what", ["begin", "part", "end", "small"])
def test_a_save_that_fails_leaves_the_old_object(
    server: S3Server, s3: Any, outside: Any, what: str
) -> None:
    safejax.save(SMALL, PATH, fs=s3)
    old = outside.cat_file(f"bucket/{PATH}")

    def fault(request: Request) -> str | None:
        is_end = request.method == "POST" and "uploadId" in request.path
        is_begin = request.method == "POST" and "uploadId" not in request.path
        is_part = "partNumber=2" in request.path
        is_put = request.method == "PUT"
        failing = {"begin": is_begin, "part": is_part, "end": is_end, "small": is_put}
        return "403" if failing[what] else None

    server.fault_of_changes = fault
    tree = {"w": BIG + 1} if what != "small" else {"w": BIG[:2]}
    with pytest.raises(OSError, match=r"saving to S3Store failed: .*AccessDenied"):
        safejax.save(tree, PATH, fs=s3)
    assert outside.cat_file(f"bucket/{PATH}") == old


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_an_error_of_the_caller_leaves_the_old_object(
    server: S3Server, s3: Any, outside: Any, error: BaseException
) -> None:
    safejax.save(SMALL, PATH, fs=s3)
    old = outside.cat_file(f"bucket/{PATH}")

    def progress(done: int, total: int) -> None:
        assert outside.cat_file(f"bucket/{PATH}") == old
        if done > 12 * MIB:
            raise error

    with pytest.raises(type(error)) as raised:
        safejax.save({"w": BIG + 1, "v": BIG}, PATH, fs=s3, progress=progress)
    assert raised.value is error
    assert outside.cat_file(f"bucket/{PATH}") == old


def test_a_large_file_is_sent_in_parts(server: S3Server, s3: Any) -> None:
    server.clear()
    safejax.save({"w": BIG}, PATH, fs=s3)
    parts = [each.sent for each in server.changes if "partNumber" in each.path]
    assert len(parts) >= 2
    assert max(parts) <= 9 * MIB  # 8 MiB, and what the signature of its pieces takes
    server.clear()
    safejax.save(SMALL, PATH, fs=s3)
    assert [each.method for each in server.changes] == ["PUT"]


# ---- other stores


def test_local_files_are_mapped(tmp_path: Path) -> None:
    fs = STORES.LocalStore(tmp_path)
    safejax.save(SMALL, "model.safetensors", fs=fs)
    tree = safejax.load("model.safetensors", fs=fs)
    assert same_bytes(tree, SMALL)
    assert {type(source) for source in tree["w"].content.view.sources} == {MappedSource}
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_files_of_a_web_server() -> None:
    server = HttpServer()
    server.files["/a/model.safetensors"] = safejax.serialize({"w": BIG})
    fs = STORES.HTTPStore(f"{server.url}/a", client_options={"allow_http": True})
    tree = safejax.load("model.safetensors", fs=fs)
    server.clear()
    assert same_bytes(tree, {"w": BIG})
    assert len(server.requests) == 2
    with pytest.raises(FileNotFoundError, match="there is nothing"):
        safejax.load("gone.safetensors", fs=fs)
    server.close()


def test_a_url_is_not_a_path_in_a_store(s3: Any) -> None:
    with pytest.raises(ValueError, match="expected a path within the S3Store"):
        safejax.load("s3://bucket/model.safetensors", fs=s3)


def test_credentials_are_in_no_message(server: S3Server, s3: Any) -> None:
    safejax.save(SMALL, PATH, fs=s3)
    server.fault = lambda _: "503"
    with pytest.raises(safejax.ReadError) as raised:
        safejax.load(PATH, fs=s3)
    assert "S3CR3T" not in str(raised.value)
