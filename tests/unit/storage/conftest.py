"""Fixtures that the tests of several kinds of stores take."""

from collections.abc import Iterator
from typing import Any

import fsspec
import pytest

from safejax._src.reading.patience import Patience
from tests.support.servers import S3Server


@pytest.fixture(scope="module")
def s3_running() -> Iterator[tuple[S3Server, Any]]:
    """A server of S3 with the bucket `bucket`, which clients find, and a file system for it."""
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        outside = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
        outside.mkdir("bucket")
        yield server, outside
    server.close()


@pytest.fixture
def outside(s3_running: tuple[S3Server, Any]) -> Any:
    """A file system that looks from outside at what another one does, and keeps nothing."""
    return s3_running[1]


@pytest.fixture
def s3_server(
    s3_running: tuple[S3Server, Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[S3Server]:
    """The server with an empty bucket and no faults; when a test ends, no upload is left."""
    # A private name, since what fails for good would take seconds.
    monkeypatch.setattr("safejax._src.reading.patience.PATIENCE", Patience(pause=0.01))
    server, outside = s3_running
    for path in outside.find("bucket"):
        outside.rm_file(path)
    server.clear()
    yield server
    server.rounds = None
    server.fault = server.fault_of_changes = lambda _: None
    assert uploads(outside) == []


def uploads(fs: Any) -> list[Any]:
    return fs.call_s3("list_multipart_uploads", Bucket="bucket").get("Uploads", [])
