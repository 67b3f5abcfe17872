"""Files elsewhere that cannot be opened: the error says where, what was answered, and a remedy."""

import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub
import pytest
from huggingface_hub import HfFileSystem

import safejax
from safejax._src.reading.patience import Patience
from tests.support.servers import HttpServer, needs_s3, within

SECRET = "S3CR3T"
FILE = "m.safetensors"


@pytest.fixture(scope="module")
def running() -> Iterator[HttpServer]:
    server = HttpServer()
    yield server
    server.close()


@pytest.fixture
def server(
    running: HttpServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[HttpServer]:
    # A private name, since what fails for good would take seconds.
    monkeypatch.setattr("safejax._src.reading.patience.PATIENCE", Patience(pause=0.001))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    running.clear()
    yield running
    running.fault = lambda _: None


def http(url: str) -> tuple[str, Any]:
    # A query with a secret, as signed URLs have it.
    return f"{url}/{FILE}?token={SECRET}", fsspec.filesystem("http", skip_instance_cache=True)


def s3(url: str) -> tuple[str, Any]:
    needs_s3()
    once = {"retries": {"total_max_attempts": 1}, "connect_timeout": 5}
    fs = fsspec.filesystem(
        "s3", endpoint_url=url, key="me", secret=SECRET, config_kwargs=once,
        skip_instance_cache=True,
    )  # fmt: skip
    return f"bucket/{FILE}", fs


def hub(url: str) -> tuple[str, Any]:
    fs = HfFileSystem(endpoint=url, token=f"hf_{SECRET}", skip_instance_cache=True)
    return f"me/model/{FILE}", fs


def of_obstore(kind: str, url: str) -> tuple[str, Any]:
    stores: Any = pytest.importorskip("obstore.store")
    common: dict[str, Any] = {
        "client_options": {"allow_http": True}, "retry_config": {"max_retries": 0},
    }  # fmt: skip
    if kind == "HTTPStore":
        return FILE, stores.HTTPStore(url, **common)
    return FILE, stores.S3Store(
        "bucket", endpoint=url, region="us-east-1", access_key_id="me", secret_access_key=SECRET,
        **common,
    )  # fmt: skip


PLACES: dict[str, Callable[[str], tuple[str, Any]]] = {
    "http": http,
    "s3": s3,
    "hf": hub,
    "obstore, S3": lambda url: of_obstore("S3Store", url),
    "obstore, HTTP": lambda url: of_obstore("HTTPStore", url),
}

ANSWERS = {
    "401": (safejax.ReadError, r"401", r"pass a file system that may read it"),
    "403": (safejax.ReadError, r"403", r"pass a file system that may read it"),
    "404": (FileNotFoundError, r"404|[Nn]ot [Ff]ound", r"there is nothing|there is no such file"),
    "416": (safejax.ReadError, r"416", r"cannot read ranges: download the file"),
    "500": (safejax.ReadError, r"500", r"load it again later"),
}  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("place", PLACES)
def test_a_refusal(server: HttpServer, place: str, answer: str) -> None:
    server.fault = lambda _: answer
    path, fs = PLACES[place](server.url)
    kind, said, remedy = ANSWERS[answer]
    with within(20), pytest.raises(kind) as raised:
        safejax.load(path, fs=fs)
    check(raised.value, said, remedy)


@pytest.mark.parametrize("url", ["http://nowhere.invalid", "http://127.0.0.1:9"])
@pytest.mark.parametrize("place", PLACES)
def test_nobody_answers(server: HttpServer, place: str, url: str) -> None:
    path, fs = PLACES[place](url)
    with within(30), pytest.raises(safejax.ReadError) as raised:
        safejax.load(path, fs=fs)
    check(raised.value, ".", r"see whether its server can be reached")


def check(error: BaseException, said: str, remedy: str) -> None:
    """An error names the file, what was said and what helps, and has no credentials."""
    text = str(error)
    assert "model" in text or FILE in text
    assert re.search(said, text), text
    assert re.search(remedy, text), text
    assert SECRET not in "".join(traceback.format_exception(error))


def test_a_scheme_that_nobody_knows() -> None:
    with pytest.raises(
        ValueError, match=r"nowhere://m\.safetensors\?token=…: expected .* https://"
    ):
        safejax.load(f"nowhere://{FILE}?token={SECRET}")


def test_a_url_that_is_not_one_of_the_file_system() -> None:
    fs = fsspec.filesystem("http", skip_instance_cache=True)
    with pytest.raises(safejax.ReadError, match=rf"s3://bucket/{FILE}: "):
        safejax.load(f"s3://bucket/{FILE}", fs=fs)
