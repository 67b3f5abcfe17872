"""Files in Google's store, by gcsfs and by obstore, and fake-gcs-server."""

import json
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax._src.reading.askers import asker_of
from safejax._src.reading.patience import Patience
from safejax._src.reading.remote import HEAD
from tests.support.files import same_bytes
from tests.support.google import GoogleServer, needs_google
from tests.support.opened import check_opened_and_read_by_pieces
from tests.support.servers import Request, Rounds

needs_google()

# How gcsfs sends parts.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")

MIB = 1 << 20
BIG = np.arange(2048 * 2048, dtype=np.float32).reshape(2048, 2048)  # 16 MiB
SMALL = {"w": BIG[:4], "v": BIG[4:8]}
PATH = "bucket/model.safetensors"


def system(server: GoogleServer, **options: Any) -> Any:
    # The class of gcsfs itself: its other one asks first by gRPC of which kind a bucket is.
    return import_module("gcsfs.core").GCSFileSystem(
        endpoint_url=server.url, token="anon", project="mine", skip_instance_cache=True, **options
    )


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[GoogleServer, Any, Any]]:
    """The server, a file system, and another one, which looks from outside."""
    server = GoogleServer()
    fs, outside = system(server), system(server, use_listings_cache=False)
    fs.mkdir("bucket")
    yield server, fs, outside
    server.close()


@pytest.fixture
def fs(running: tuple[GoogleServer, Any, Any]) -> Any:
    return running[1]


@pytest.fixture
def outside(running: tuple[GoogleServer, Any, Any]) -> Any:
    return running[2]


@pytest.fixture
def server(
    running: tuple[GoogleServer, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[GoogleServer]:
    # A private name, since what fails for good would take seconds.
    monkeypatch.setattr("safejax._src.reading.patience.PATIENCE", Patience(pause=0.01))
    server, fs, outside = running
    for path in outside.find("bucket"):
        outside.rm_file(path)
    outside.pipe(PATH, safejax.serialize({"w": BIG}))
    fs.invalidate_cache()
    server.clear()
    yield server
    server.rounds, server.conditions = None, True
    server.fault = server.fault_of_changes = lambda _: None


@pytest.fixture
def store(server: GoogleServer) -> Any:
    """The bucket, as a store of obstore."""
    stores: Any = pytest.importorskip("obstore.store")
    key = {
        "gcs_base_url": server.url, "disable_oauth": True, "client_email": "", "private_key": "",
        "private_key_id": "",
    }  # fmt: skip
    return stores.GCSStore(
        "bucket", service_account_key=json.dumps(key), client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )  # fmt: skip


def columns() -> NamedSharding:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, P(None, "x"))


@pytest.mark.parametrize("by", ["gcsfs", "obstore"])
def test_a_file_is_opened_by_one_request_and_read_by_its_pieces(
    server: GoogleServer, fs: Any, store: Any, by: str
) -> None:
    path, where = ("gs://" + PATH, fs) if by == "gcsfs" else ("model.safetensors", store)
    server.clear()
    tree = safejax.load(path, fs=where, sharding=columns())
    check_opened_and_read_by_pieces(server, tree, BIG)


def test_the_class_that_knows_buckets_of_one_zone(server: GoogleServer) -> None:
    """It asks by gRPC, once for each bucket, of which kind it is; here it has been told."""
    extended: Any = pytest.importorskip("gcsfs.extended_gcsfs")
    fs = extended.ExtendedGcsFileSystem(
        endpoint_url=server.url, token="anon", project="mine", skip_instance_cache=True
    )
    fs._storage_layout_cache["bucket"] = extended.BucketType.NON_HIERARCHICAL
    fs._storage_layout_cache["zone"] = extended.BucketType.ZONAL_HIERARCHICAL
    tree = safejax.load(PATH, fs=fs)
    assert [(each.method, each.span) for each in server.requests] == [("GET", (0, HEAD))]
    assert same_bytes(tree, {"w": BIG})
    assert not asker_of(fs, "zone/model.safetensors").tells


def test_a_folder_of_four_files_is_opened_in_two_rounds(server: GoogleServer, fs: Any) -> None:
    tree = {f"w{k}": BIG[k] for k in range(4)}
    safejax.save(tree, "bucket/set", fs=fs, max_shard_bytes=BIG[0].nbytes)
    fs.invalidate_cache()
    server.clear()
    server.rounds = Rounds()
    loaded = safejax.load("bucket/set", fs=fs)
    server.rounds, rounds = None, server.rounds.count
    assert rounds == 2, server.requests
    assert same_bytes(loaded, tree)


@pytest.mark.parametrize("conditions", [True, False])
def test_an_object_that_is_replaced_is_an_error(
    server: GoogleServer, fs: Any, outside: Any, conditions: bool
) -> None:
    """The store refuses to send another generation, or what it sends says that it is one."""
    server.conditions = conditions
    tree = safejax.load(PATH, fs=fs)
    outside.pipe(PATH, safejax.serialize({"w": BIG + 1}))
    said = r"model\.safetensors: .*replaced since: generation was \d+ and is"
    with pytest.raises(safejax.ReadError, match=said):
        np.asarray(tree["w"])


def test_an_object_that_is_replaced_is_an_error_to_obstore(
    server: GoogleServer, outside: Any, store: Any
) -> None:
    tree = safejax.load("model.safetensors", fs=store)
    outside.pipe(PATH, safejax.serialize({"w": BIG + 1}))
    with pytest.raises(safejax.ReadError, match=r"replaced since: versionid was \d+ and is"):
        np.asarray(tree["w"])


@pytest.mark.parametrize("fault", ["503", "429", "cut"])
def test_a_store_that_is_busy_for_the_moment(server: GoogleServer, fs: Any, fault: str) -> None:
    tree = safejax.load(PATH, fs=fs)
    server.clear()
    server.fault = lambda request: fault if request.number <= 2 else None
    assert np.asarray(tree["w"]).tobytes() == BIG.tobytes()
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("401", r"status 401 \(refused as told\); pass a file system that may read it"),
        ("403", r"status 403 \(refused as told\); pass a file system that may read it"),
        ("503", r"after 5 attempts: .*status 503 \(refused as told\); load it again later"),
    ],
)
def test_objects_that_cannot_be_had(server: GoogleServer, fs: Any, fault: str, said: str) -> None:
    tree = safejax.load(PATH, fs=fs)
    server.fault = lambda _: fault
    with pytest.raises(safejax.ReadError, match=rf"^bucket/model\.safetensors: .*{said}"):
        np.asarray(tree["w"])
    with pytest.raises(safejax.ReadError, match=rf"^gs://bucket/model\.safetensors: .*{said}"):
        safejax.load(f"gs://{PATH}", fs=fs)


def test_objects_that_are_not_there(server: GoogleServer, fs: Any) -> None:
    fs.pipe("bucket/empty.safetensors", b"")
    with pytest.raises(safejax.InvalidFileError, match="got an empty file"):
        safejax.load("gs://bucket/empty.safetensors", fs=fs)
    with pytest.raises(FileNotFoundError, match=r"there is nothing; its folder has .*model\.safe"):
        safejax.load("gs://bucket/gone.safetensors", fs=fs)
    with pytest.raises(FileNotFoundError, match="there is nothing"):
        safejax.load("gs://nowhere/gone.safetensors", fs=fs)


def test_tokens_are_in_no_message(server: GoogleServer, fs: Any) -> None:
    """That of a signed URL, which any client of HTTP may have."""
    server.fault = lambda _: "403"
    url = f"{server.url}/{PATH}?X-Goog-Signature=S3CR3T&X-Goog-Credential=WH0"
    with pytest.raises(safejax.ReadError) as raised:
        safejax.load(url)
    assert "…" in str(raised.value)
    assert not any(secret in str(raised.value) for secret in ("S3CR3T", "WH0"))


# ---- saving


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("tree", [{"w": BIG + 1, "v": BIG}, SMALL], ids=["big", "small"])
def test_a_file_is_sent_in_parts_and_is_there_when_it_is_whole(
    server: GoogleServer, fs: Any, outside: Any, checksum: bool, tree: Any
) -> None:
    old = outside.cat_file(PATH)
    seen: list[bool] = []

    def progress(done: int, total: int) -> None:
        seen.append(outside.cat_file(PATH) == old)

    safejax.save(tree, PATH, fs=fs, progress=progress, checksum=checksum)
    assert seen
    assert all(seen)
    assert outside.cat_file(PATH) == safejax.serialize(tree, checksum=checksum)
    assert same_bytes(safejax.load(PATH, fs=fs, verify=checksum), tree)
    if tree is not SMALL:
        parts = [each for each in server.changes if "upload_id" in each.path]
        assert len(parts) > 1
        assert max(part.sent for part in parts) <= (5 + 16) * MIB


def test_a_tree_that_is_loaded_from_a_file_replaces_it(
    server: GoogleServer, fs: Any, outside: Any
) -> None:
    tree = safejax.load(PATH, fs=fs)
    safejax.save(tree, PATH, fs=fs, transform=safejax.prefix("model"))
    assert same_bytes(safejax.load(PATH, fs=outside)["model"], {"w": BIG})


@pytest.mark.parametrize("what", ["begin", "part", "end"])
def test_a_save_that_fails_leaves_the_old_file(
    server: GoogleServer, fs: Any, outside: Any, what: str
) -> None:
    old = outside.cat_file(PATH)

    def fault(request: Request) -> str | None:
        is_part = "upload_id" in request.path and request.method == "POST"
        sent = sum("upload_id" in each.path for each in server.changes)
        is_it = {"begin": not is_part, "part": is_part and sent == 2, "end": is_part and sent > 2}
        return "403" if is_it[what] and request.method == "POST" else None

    server.fault_of_changes = fault
    with pytest.raises(
        PermissionError,
        match=r"(?s)saving to GCSFileSystem failed: .*upload.*refused as told.*may write there",
    ):
        safejax.save({"w": BIG + 1, "v": BIG}, PATH, fs=fs)
    assert outside.cat_file(PATH) == old
    server.fault_of_changes = lambda _: None
    safejax.save(SMALL, PATH, fs=fs)
    assert same_bytes(safejax.load(PATH, fs=outside), SMALL)


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_an_error_of_the_caller_leaves_the_old_file(
    server: GoogleServer, fs: Any, outside: Any, error: BaseException
) -> None:
    old = outside.cat_file(PATH)

    def progress(done: int, total: int) -> None:
        if done > 12 * MIB:
            raise error

    with pytest.raises(type(error)) as raised:
        safejax.save({"w": BIG + 1, "v": BIG}, PATH, fs=fs, progress=progress)
    assert raised.value is error
    assert outside.cat_file(PATH) == old
    # The upload is cancelled.
    assert server.changes[-1].method == "DELETE"
