"""Servers that say what is not so: safejax takes what is requested, and not what they say."""

import contextlib
import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

import safejax
from safejax import InvalidFileError, ReadError, SafejaxError
from safejax._src.reading.patience import StatusError, wait_of
from safejax._src.reading.remote import HEAD

FILE = safejax.serialize({"w": np.ones(3, np.float32)})
BOMB = gzip.compress(bytes(50_000_000))


class Answers(ThreadingHTTPServer):
    """A server that answers every request with one status, headers and body."""

    daemon_threads = True
    answer: tuple[int, dict[str, str], bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Answers

    def do_GET(self) -> None:
        status, headers, body = self.server.answer
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # Whoever asked may not want more of it.
            self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's
        del format, args


@pytest.fixture
def server() -> Iterator[Answers]:
    found = Answers(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, args=(0.05,), daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def ranged(body: bytes, total: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    return 206, {"Content-Range": f"bytes 0-{len(body) - 1}/{total}", **headers}, body


CASES: dict[str, tuple[str, Any, type[SafejaxError], str]] = {
    "a bomb as a file": ("m.safetensors", (200, {"Content-Encoding": "gzip"}, BOMB), ReadError,
        "expected the bytes of the file, got them encoded: 'gzip'"),
    "a bomb as a range": ("m.safetensors",
        ranged(BOMB, str(len(BOMB)), **{"Content-Encoding": "br"}), ReadError, "encoded: 'br'"),
    "a bomb as an index": ("model.safetensors.index.json",
        (200, {"Content-Encoding": "gzip"}, BOMB), ReadError, "encoded: 'gzip'"),
    "a size of 5,000 digits": ("m.safetensors", ranged(FILE, "9" * 5000), ReadError,
        "got the range"),
    "an index of an exabyte": ("model.safetensors.index.json",
        ranged(FILE.ljust(HEAD), str(10**18)), InvalidFileError,
        "at most 100000000 bytes, got 1000000000000000000"),
    "a header of 100 MB that is not there": ("m.safetensors",
        ranged((10**8).to_bytes(8, "little").ljust(HEAD, b"{"), str(10**18)), ReadError,
        "expected the bytes from 262144 on, got the range"),
    "a long reason": ("m.safetensors", (403, {"X": "y" * 60_000}, b"z" * 10**6), ReadError, "40"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_a_server_says_is_not_taken(case: str, server: Answers) -> None:
    name, server.answer, kind, message = CASES[case]
    with pytest.raises(SafejaxError) as caught:
        safejax.load(server.url + name)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(server.url + name)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [
        ("3", 3, 3),
        ("9" * 5000, float("inf"), float("inf")),
        ("-1", 0, 0),
        ("²", 0, 0),
        ("Mon, 01 Jan 2020 00:00:00 +" + "9" * 12, 0, 0),
        ("Mon, 01 Jan 0001 00:00:00 -0000", 0, 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 1e9, float("inf")),
        ("(" * 10_000, 0, 0),
    ],
)
def test_what_a_server_asks_for_is_a_number_of_seconds(
    said: str, least: float, most: float
) -> None:
    assert least <= wait_of(StatusError(503, None, {"Retry-After": said})) <= most
