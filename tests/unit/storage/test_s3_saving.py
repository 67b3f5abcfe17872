"""Saving to S3, by s3fs and moto's server: in parts, and whole or not at all."""

import threading
from typing import Any

import fsspec
import numpy as np
import pytest

import safejax
from safejax._src.storage.parts import least_part
from tests.support.files import same_bytes
from tests.support.servers import Request, S3Server, needs_s3

needs_s3()

MIB = 1 << 20
OLD = {"w": np.arange(6, dtype=np.float32)}
BIG = {
    f"w{k}": np.arange(k * 3 * MIB, (k + 1) * 3 * MIB, dtype=np.float32).reshape(-1, 1024)
    for k in range(2)
}  # 12 MiB each
PATH = "bucket/model.safetensors"


@pytest.fixture(scope="module")
def fs(s3_running: tuple[S3Server, Any]) -> Any:
    """A file system with small parts."""
    return fsspec.filesystem("s3", default_block_size=5 * MIB, skip_instance_cache=True)


@pytest.fixture
def server(s3_server: S3Server, outside: Any) -> S3Server:
    safejax.save(OLD, PATH, fs=outside)
    s3_server.clear()
    return s3_server


@pytest.mark.parametrize("checksum", [False, True])
def test_a_file_is_sent_in_parts_and_is_there_when_it_is_whole(
    server: S3Server, fs: Any, outside: Any, checksum: bool
) -> None:
    old = outside.cat_file(PATH)
    seen: list[bool] = []

    def progress(done: int, total: int) -> None:
        seen.append(outside.cat_file(PATH) == old)

    safejax.save(BIG, PATH, fs=fs, progress=progress, checksum=checksum)
    assert len(seen) > 2
    assert all(seen)
    parts = [each for each in server.changes if "partNumber" in each.path]
    # A part is what the file system sends at a time, and one chunk more.
    assert len(parts) > 1
    assert max(part.sent for part in parts) <= (5 + 16) * MIB
    assert [each.method for each in server.changes] == ["POST", *["PUT"] * len(parts), "POST"]
    assert outside.cat_file(PATH) == safejax.serialize(BIG, checksum=checksum)
    assert same_bytes(safejax.load(PATH, fs=fs, verify=checksum), BIG)


def test_a_tree_that_is_loaded_from_a_file_replaces_it(
    server: S3Server, fs: Any, outside: Any
) -> None:
    safejax.save(BIG, PATH, fs=fs)
    tree = safejax.load(PATH, fs=fs)
    safejax.save(tree, PATH, fs=fs, transform=safejax.prefix("model"))
    assert same_bytes(safejax.load(PATH, fs=outside)["model"], BIG)


def failing(server: S3Server, what: str) -> Any:
    """A request that fails: of a part, of the end of an upload, or of its beginning."""

    def fault(request: Request) -> str | None:
        is_end = request.method == "POST" and "uploadId" in request.path
        is_begin = request.method == "POST" and "uploadId" not in request.path
        is_part = "partNumber=2" in request.path
        return "403" if {"begin": is_begin, "part": is_part, "end": is_end}[what] else None

    server.fault_of_changes = fault
    return fault


@pytest.mark.parametrize("what", ["begin", "part", "end"])
def test_a_save_that_fails_leaves_the_old_file_and_no_upload(
    server: S3Server, fs: Any, outside: Any, what: str
) -> None:
    old = outside.cat_file(PATH)
    failing(server, what)
    with pytest.raises(
        PermissionError,
        match=r"saving to S3FileSystem failed: .*AccessDenied.*may write there.*model\.safetensors",
    ):
        safejax.save(BIG, PATH, fs=fs)
    assert outside.cat_file(PATH) == old
    # Nothing of it is in the way of the next one.
    server.fault_of_changes = lambda _: None
    safejax.save(BIG, PATH, fs=fs)
    assert same_bytes(safejax.load(PATH, fs=outside), BIG)


def test_values_that_cannot_be_read_leave_the_old_file(
    server: S3Server, fs: Any, outside: Any
) -> None:
    safejax.save(BIG, "bucket/source.safetensors", fs=outside)
    tree = safejax.load("bucket/source.safetensors", fs=fs)
    old = outside.cat_file(PATH)

    def progress(done: int, total: int) -> None:
        if done > 12 * MIB:  # The second leaf is another one from now on.
            changed = {**BIG, "w1": BIG["w1"] + 1}
            outside.pipe("bucket/source.safetensors", safejax.serialize(changed))

    server.clear()
    with pytest.raises(safejax.ReadError, match=r"source\.safetensors: .*replaced since"):
        safejax.save(tree, PATH, fs=fs, progress=progress)
    assert outside.cat_file(PATH) == old
    # What is not wanted is not sent.
    sent = [each for each in server.changes if PATH in each.path]
    assert [each.method for each in sent][-1] == "DELETE"


def test_an_interrupt_leaves_the_old_file(server: S3Server, fs: Any, outside: Any) -> None:
    old = outside.cat_file(PATH)

    def progress(done: int, total: int) -> None:
        if done > 12 * MIB:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        safejax.save(BIG, PATH, fs=fs, progress=progress)
    assert outside.cat_file(PATH) == old


def test_a_bucket_that_is_not_there(server: S3Server, fs: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"bucket.*has to be there.*nowhere/model"):
        safejax.save(OLD, "s3://nowhere/model.safetensors", fs=fs)


# ---- folders


def names(fs: Any) -> set[str]:
    return {path.rpartition("/")[2] for path in fs.find("bucket/set")}


def test_the_index_of_a_folder_is_last(server: S3Server, fs: Any, outside: Any) -> None:
    safejax.save(OLD, "bucket/set", fs=fs, max_shard_bytes=8)
    old = names(outside)
    server.clear()
    safejax.save(BIG, "bucket/set", fs=fs, max_shard_bytes=12 * MIB)
    new = names(outside)
    assert len(new) == 3
    assert old & new == {"model.safetensors.index.json"}
    order = [each.path.partition("?")[0].rpartition("/")[2] for each in server.changes]
    index = order.index("model.safetensors.index.json")
    assert set(order[:index]) == new - {"model.safetensors.index.json"}
    assert {each.method for each in server.changes[:index]} == {"POST", "PUT"}
    # Whoever has the old index finds its files until the new one is there.
    removed = [each.path for each in server.changes if each.method == "DELETE"]
    assert len(removed) == len(old) - 1
    assert same_bytes(safejax.load("bucket/set", fs=outside), BIG)


@pytest.mark.parametrize("what", ["model-00002", "index.json"])
def test_a_folder_that_fails_is_the_old_one(
    server: S3Server, fs: Any, outside: Any, what: str
) -> None:
    safejax.save(OLD, "bucket/set", fs=fs, max_shard_bytes=8)
    old = names(outside)

    def fault(request: Request) -> str | None:
        name = request.path.partition("?")[0].rpartition("/")[2]
        is_it = ("-00002-of" in name) if what != "index.json" else name.endswith(what)
        return "403" if is_it and request.method in ("PUT", "POST") else None

    server.fault_of_changes = fault
    with pytest.raises(PermissionError, match="AccessDenied"):
        safejax.save(BIG, "bucket/set", fs=fs, max_shard_bytes=12 * MIB)
    assert names(outside) == old
    assert same_bytes(safejax.load("bucket/set", fs=outside), OLD)


def test_two_threads_save_to_one_file_system(server: S3Server, fs: Any, outside: Any) -> None:
    """One of them fails, and the other one's file is there."""
    failures: list[BaseException] = []

    def save(name: str) -> None:
        def progress(done: int, total: int) -> None:
            if name == "bad":
                raise ValueError(name)

        try:
            safejax.save(OLD, f"bucket/{name}.safetensors", fs=fs, progress=progress)
        except ValueError as error:
            failures.append(error)

    threads = [threading.Thread(target=save, args=(name,)) for name in ("good", "bad")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(error) for error in failures] == ["bad"]
    assert outside.exists("bucket/good.safetensors")
    assert not outside.exists("bucket/bad.safetensors")


@pytest.mark.parametrize("nbytes", [1, 10**9, 10**12, 5 * 10**12])
def test_the_parts_of_a_large_file_are_no_more_than_s3_takes(fs: Any, nbytes: int) -> None:
    part = max(least_part(nbytes), 5 * MIB)
    assert nbytes / part <= 10_000
    # S3 takes parts of up to 5 GiB, and the memory of a save is about that of one part.
    assert part <= max(5 * MIB, nbytes / 8_000)
