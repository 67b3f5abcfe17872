"""Files by HTTP: few requests, as the server counts them; right values or one clear error."""

import json
import time
import traceback
from collections.abc import Iterator
from typing import Any

import fsspec
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import safejax
from safejax._src.reading.flight import MOST_REQUESTS
from safejax._src.reading.patience import Patience
from safejax._src.reading.remote import HEAD
from tests.support.leaves import by
from tests.support.servers import HttpServer, Request, Rounds, within

SIDE = 2048
BIG = np.arange(SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)  # 16 MiB
COLUMNS = P(None, "x")
PATIENCE = Patience(pause=0.01, stall=0.5, period=20)


@pytest.fixture(scope="module")
def running() -> Iterator[HttpServer]:
    server = HttpServer()
    server.files["/big.safetensors"] = safejax.serialize({"w": BIG})
    server.files["/small.safetensors"] = safejax.serialize({"w": BIG[:4], "v": BIG[4:8]})
    yield server
    server.close()


@pytest.fixture
def server(running: HttpServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpServer]:
    # A private name, since what fails for good would take seconds.
    monkeypatch.setattr("safejax._src.reading.patience.PATIENCE", PATIENCE)
    files = dict(running.files)
    running.fault, running.rounds, running.said = (lambda _: None), None, {}
    running.clear()
    yield running
    running.files = files


def counted(server: HttpServer, log: safejax.ReadLog) -> tuple[int, float]:
    """The requests for the data of the big leaf, and their bytes for each of its bytes."""
    assert len(log.reads) == len(server.requests)
    assert log.nbytes == server.sent
    assert all(request.method == "GET" for request in server.requests)
    return len(server.requests), server.sent / BIG.nbytes


# ---- requests and bytes


def test_a_file_is_opened_by_one_request(server: HttpServer) -> None:
    tree = safejax.load(f"{server.url}/big.safetensors")
    assert tree["w"].shape == BIG.shape
    assert [(each.method, each.span) for each in server.requests] == [("GET", (0, HEAD))]
    # What is more than the server has is not there.
    server.clear()
    assert safejax.load(f"{server.url}/small.safetensors")["w"].shape == (4, SIDE)
    assert len(server.requests) == 1


def test_a_header_that_is_longer_is_two(server: HttpServer) -> None:
    tree = {f"a leaf with a long name, number {k}": np.float32(k) for k in range(5000)}
    server.files["/many.safetensors"] = safejax.serialize(tree)
    loaded = safejax.load(f"{server.url}/many.safetensors")
    assert len(server.requests) == 2
    server.clear()
    placed = safejax.materialize(loaded)
    assert len(server.requests) == 1
    assert all(float(placed[name]) == float(value) for name, value in tree.items())


@pytest.mark.parametrize("spec", [COLUMNS, P("x"), P()])
def test_a_leaf_over_eight_devices_is_read_once(server: HttpServer, spec: P) -> None:
    tree = safejax.load(f"{server.url}/big.safetensors", sharding=by(spec))
    planned = safejax.plan(tree)
    server.clear()
    with safejax.observe_reads() as log:
        placed = tree["w"].placed()
    requests, share = counted(server, log)
    assert requests == planned.reads.requests == 2
    assert share == 1
    assert server.sent == planned.reads.nbytes
    assert placed.sharding == by(spec)
    assert np.asarray(placed).tobytes() == BIG.tobytes()


def test_an_eighth_of_the_columns_is_no_more_than_the_leaf(server: HttpServer) -> None:
    leaf = safejax.load(f"{server.url}/big.safetensors")["w"]
    server.clear()
    with safejax.observe_reads() as log:
        part = np.asarray(leaf[:, 256:512])
    requests, share = counted(server, log)
    assert requests == 2
    assert share <= 1
    assert log.needed == BIG.nbytes // 8
    assert part.tobytes() == BIG[:, 256:512].tobytes()


def test_a_thousand_small_leaves_are_few_requests(server: HttpServer) -> None:
    tree = {f"layer.{k}": BIG[k, :].repeat(2) for k in range(1000)}  # 16 KiB each
    server.files["/many.safetensors"] = safejax.serialize(tree)
    loaded = safejax.load(f"{server.url}/many.safetensors")
    server.clear()
    placed = safejax.materialize(loaded)
    assert len(server.requests) <= 4
    assert server.sent <= 1.1 * 1000 * (16 << 10)
    assert all(np.asarray(placed[name]).tobytes() == tree[name].tobytes() for name in tree)


def test_requests_are_side_by_side_and_bounded(server: HttpServer) -> None:
    """Rows that are far apart are requests of their own, of which so many are under way."""
    array = np.arange(64 << 16, dtype=np.float32).reshape(64, -1)
    server.files["/wide.safetensors"] = safejax.serialize({"w": array})
    leaf = safejax.load(f"{server.url}/wide.safetensors")["w"]
    server.clear()
    server.rounds, server.most_at_a_time = Rounds(quiet=0.05), 0
    assert np.asarray(leaf[:, :8]).tobytes() == array[:, :8].tobytes()
    assert len(server.requests) == 64
    assert 2 <= server.most_at_a_time <= MOST_REQUESTS


def shards(server: HttpServer, count: int = 4, query: str = "") -> str:
    """An index of files, and the URL of it."""
    names = {f"w{k}": f"model-{k}.safetensors" for k in range(count)}
    for k, (name, file) in enumerate(names.items()):
        server.files[f"/set/{file}"] = safejax.serialize({name: BIG[k]})
    index = {"metadata": {}, "weight_map": names}
    server.files["/set/model.safetensors.index.json"] = json.dumps(index).encode()
    return f"{server.url}/set/model.safetensors.index.json{query}"


@pytest.mark.parametrize("query", ["", "?download=true"])
def test_the_files_of_an_index_are_opened_side_by_side(server: HttpServer, query: str) -> None:
    url = shards(server, query=query)
    server.rounds = Rounds()
    tree = safejax.load(url)
    assert server.rounds.count == 2
    assert len(server.requests) == 5
    assert all(request.path.endswith(query) for request in server.requests)
    server.rounds = None
    assert all(np.array_equal(tree[f"w{k}"], BIG[k]) for k in range(4))


def test_files_that_an_index_names_and_that_are_not_there(server: HttpServer) -> None:
    url = shards(server)
    for k in (1, 3):
        del server.files[f"/set/model-{k}.safetensors"]
    with pytest.raises(
        FileNotFoundError, match=r"4 files of the index, 2 are not there: .*model-1"
    ):
        safejax.load(url)


# ---- what fails


def first(count: int, what: str) -> Any:
    """The first requests fail."""
    return lambda request: what if request.number <= count else None


@pytest.mark.parametrize("what", ["503", "cut", "stall"])
@pytest.mark.parametrize("opening", [True, False])
def test_what_fails_for_the_moment_is_asked_again(
    server: HttpServer, what: str, opening: bool
) -> None:
    url = f"{server.url}/big.safetensors"
    if opening:
        server.fault = first(2, what)
    tree = safejax.load(url, sharding=by(COLUMNS))
    server.clear()
    server.fault = (lambda _: None) if opening else first(3, what)
    assert np.asarray(safejax.materialize(tree)["w"]).tobytes() == BIG.tobytes()
    assert len(server.requests) == (2 if opening else 5)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("503", r"failed after 5 attempts: .*status 503.*; load it again later"),
        ("cut", r"failed after 5 attempts: "),
        ("stall", r"failed after 5 attempts: TimeoutError: no byte in 0\.5 s"),
        ("no ranges", r"failed: .*cannot read ranges: download the file"),
        ("wrong range", r"failed: .*expected the bytes from"),
        ("403", r"failed: .*status 403.*; pass a file system that may read it"),
    ],
)
@pytest.mark.parametrize("opening", [True, False])
def test_what_fails_for_good_is_one_error_in_bounded_time(
    server: HttpServer, what: str, said: str, opening: bool
) -> None:
    url = f"{server.url}/big.safetensors"
    tree = None if opening else safejax.load(url)
    server.fault = lambda _: what
    with (
        within(20),
        pytest.raises(safejax.ReadError, match=rf"big\.safetensors: reading bytes .*{said}"),
    ):
        safejax.load(url) if tree is None else safejax.materialize(tree)
    server.fault = lambda _: None
    again = safejax.load(url) if tree is None else tree
    assert np.asarray(again["w"]).tobytes() == BIG.tobytes()


@pytest.mark.parametrize("at_most", [100_001, 1 << 20])
def test_a_server_that_sends_only_the_beginning_is_asked_for_the_rest(
    server: HttpServer, at_most: int
) -> None:
    server.fault, server.at_most = lambda _: "part", at_most
    tree = safejax.load(f"{server.url}/big.safetensors", sharding=by(COLUMNS))
    opened = len(server.requests)
    assert opened == -(-HEAD // at_most)
    assert np.asarray(safejax.materialize(tree)["w"]).tobytes() == BIG.tobytes()
    assert len(server.requests) >= opened + BIG.nbytes // at_most
    assert server.sent < BIG.nbytes + HEAD + (1 << 20)  # No byte is sent twice.


def test_the_parts_of_an_answer_are_of_one_version(server: HttpServer) -> None:
    server.at_most = 100_000
    url = f"{server.url}/big.safetensors"

    def replace(request: Request) -> str:
        if request.number == 2:
            server.files["/big.safetensors"] = safejax.serialize({"w": BIG + 1})
        return "part"

    server.fault = replace
    tree = safejax.load(url)  # Its first bytes are requested again.
    assert len(server.requests) == 2 + 3
    assert np.asarray(tree["w"][:3]).tobytes() == (BIG + 1)[:3].tobytes()


@pytest.mark.parametrize(
    ("what", "at_most", "said"),
    [
        ("part", 1, "expected 8192 bytes from [0-9]+ on, got the first 100 of them"),
        ("part", 0, "expected the bytes from|expected 8192 bytes from [0-9]+ on, got the first 0"),
        ("part, cut", 4096, "failed after 5 attempts: "),
    ],
)
def test_a_server_that_sends_next_to_nothing_is_an_error(
    server: HttpServer, what: str, at_most: int, said: str
) -> None:
    tree = safejax.load(f"{server.url}/big.safetensors")
    server.fault, server.at_most = lambda _: what, at_most
    with within(120), pytest.raises(safejax.ReadError, match=rf"reading bytes .*{said}"):
        np.asarray(tree["w"][100:101])


def test_a_redirect_is_followed(server: HttpServer) -> None:
    server.fault = lambda _: "redirect"
    tree = safejax.load(f"{server.url}/big.safetensors")
    assert np.asarray(tree["w"]).tobytes() == BIG.tobytes()


@pytest.mark.parametrize("when", ["before", "between"])
def test_a_file_that_is_replaced_is_refused_by_its_server(server: HttpServer, when: str) -> None:
    tree = safejax.load(f"{server.url}/big.safetensors")
    server.clear()
    other = safejax.serialize({"w": BIG + 1})

    def replace(request: Request) -> None:
        if when == "before" or request.number == 2:
            server.files["/big.safetensors"] = other

    server.fault = replace
    with pytest.raises(safejax.ReadError, match=r"big\.safetensors: .*replaced since: etag was"):
        safejax.materialize(tree)
    # Nothing of the other file is sent but the byte that comes with what it is.
    asked = [request for request in server.requests if request.span != (0, 1)]
    assert len(asked) == 2
    assert [request.sent for request in asked].count(0) >= (2 if when == "before" else 1)
    assert len(server.requests) == 3
    server.fault = lambda _: None
    again = safejax.load(f"{server.url}/big.safetensors")
    assert np.asarray(again["w"]).tobytes() == (BIG + 1).tobytes()


def test_a_server_that_refuses_what_it_has_is_asked_without_conditions(
    server: HttpServer,
) -> None:
    server.fault = lambda _: "refuses conditions"
    tree = safejax.load(f"{server.url}/big.safetensors")
    assert np.asarray(tree["w"]).tobytes() == BIG.tobytes()
    server.clear()
    assert np.asarray(tree["w"][3]).tobytes() == BIG[3].tobytes()
    assert len(server.requests) == 1
    server.files["/big.safetensors"] = safejax.serialize({"w": BIG + 1})
    with pytest.raises(safejax.ReadError, match="replaced since: etag was"):
        np.asarray(tree["w"])


def test_a_server_says_when_to_come_back(server: HttpServer) -> None:
    tree = safejax.load(f"{server.url}/small.safetensors")
    server.clear()
    server.said = {"Retry-After": "1"}
    times: list[float] = []

    def busy(request: Request) -> str | None:
        times.append(time.monotonic())
        return "429" if request.number == 1 else None

    server.fault = busy
    assert np.asarray(tree["w"]).tobytes() == BIG[:4].tobytes()
    assert len(times) == 2
    assert times[1] - times[0] >= 1
    # Longer than a request is tried.
    server.said = {"Retry-After": "3600"}
    server.fault = lambda _: "503"
    server.clear()
    # NumPy, from Python 3.12 on, would ask for the buffer, and then for the array.
    with pytest.raises(safejax.ReadError, match=r"status 503.*; load it again in 3600 s, as its"):
        tree["v"].placed()
    assert len(server.requests) == 1


def test_a_file_of_another_size_is_an_error_without_an_etag(server: HttpServer) -> None:
    server.fault = lambda _: "no etag"
    tree = safejax.load(f"{server.url}/small.safetensors")
    server.files["/small.safetensors"] += b"more"
    with pytest.raises(safejax.ReadError, match="replaced since: size was"):
        np.asarray(tree["w"])


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 100])
def test_anything_but_a_safetensors_file(server: HttpServer, content: bytes) -> None:
    server.files["/w.safetensors"] = content
    with pytest.raises(safejax.InvalidFileError, match=r"w\.safetensors"):
        safejax.load(f"{server.url}/w.safetensors")


def test_nothing_is_there(server: HttpServer) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is nothing.*404.*gone\.safetensors"):
        safejax.load(f"{server.url}/gone.safetensors")


def test_nobody_answers() -> None:
    server = HttpServer()
    server.close()
    with within(30), pytest.raises(safejax.ReadError, match="failed after 5 attempts"):
        safejax.load(f"{server.url}/w.safetensors")


# ---- credentials

SECRETS = (
    "X-Amz-Signature=S3CR3T&X-Amz-Credential=S3CR3T&X-Amz-Security-Token=S3CR3T", "sig=S3CR3T",
    "token=S3CR3T&v=1", "X-Goog-Signature=S3CR3T", "a=1&access_token=S3CR3T",
)  # fmt: skip


@pytest.mark.parametrize("query", SECRETS)
@pytest.mark.parametrize("what", ["404", "403", "503", "replaced", "other", "like", "index"])
def test_credentials_are_in_no_message(server: HttpServer, what: str, query: str) -> None:
    host = server.url.removeprefix("http://")
    url = f"http://me:S3CR3T@{host}/small.safetensors?{query}"
    tree = safejax.load(url)
    said = [repr(tree["w"]), repr(tree["w"].content.view.sources[0]), repr(safejax.plan(url))]

    def failing() -> Any:
        if what == "404":
            del server.files["/small.safetensors"]
            return safejax.load(url)
        if what == "index":
            return safejax.load(url.replace("small.safetensors", "m.safetensors.index.json"))
        if what == "like":
            return safejax.load(url, like={"other": BIG})
        if what == "other":
            server.files["/small.safetensors"] = b"no such thing"
            return safejax.load(url)
        if what == "replaced":
            server.files["/small.safetensors"] = safejax.serialize({"w": BIG[1:5], "v": BIG[4:8]})
        else:
            server.fault = lambda _: what
        return np.asarray(tree["w"].__array__())

    with pytest.raises((safejax.SafejaxError, OSError)) as raised:
        failing()
    said.append("".join(traceback.format_exception(raised.value)))
    assert "small.safetensors" in said[-1] or what == "index"
    assert "S3CR3T" not in "".join(said)


def test_a_file_system_with_settings_is_asked_with_them(server: HttpServer) -> None:
    fs = fsspec.filesystem("http", headers={"X-Who": "me"}, skip_instance_cache=True)
    tree = safejax.load(f"{server.url}/big.safetensors", fs=fs)
    assert np.asarray(tree["w"][3]).tobytes() == BIG[3].tobytes()
