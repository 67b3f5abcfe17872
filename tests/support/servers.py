"""Servers on the loopback that count what is asked of them, and that can be told to fail."""

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest


@dataclass
class Request:
    """What a server was asked for, and how many bytes it sent of the content."""

    method: str
    path: str
    span: tuple[int, int] | None
    sent: int = 0
    number: int = 0
    who: str = ""
    """The header `X-Who`, by which a client may say which one it is."""


@dataclass
class Rounds:
    """Counts the rounds in which requests come: each waits until no more of them arrive."""

    quiet: float = 0.25
    count: int = 0
    _lock: threading.Condition = field(default_factory=threading.Condition)
    _arrived: int = 0
    _round: int = 0

    def wait(self) -> None:
        with self._lock:
            self._arrived += 1
            mine, this = self._arrived, self._round
            # The last one that arrives ends the round.
            while self._round == this:
                if not self._lock.wait(self.quiet) and mine == self._arrived:
                    self.count += 1
                    self._round += 1
                    self._lock.notify_all()


Fault = Callable[[Request], str | None]
"""What goes wrong with a request, by the names in the servers; None if nothing does."""


class Counting:
    """What is asked of a server for content, in the order in which it arrives."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.fault: Fault = lambda _: None
        self.rounds: Rounds | None = None
        self.lock = threading.Lock()

    def clear(self) -> None:
        self.requests.clear()

    @property
    def sent(self) -> int:
        return sum(request.sent for request in self.requests)

    def count(self, request: Request) -> str | None:
        """Count a request, which waits for its round; what is to go wrong with it."""
        with self.lock:
            self.requests.append(request)
            request.number = len(self.requests)
        if self.rounds is not None:
            self.rounds.wait()
        return self.fault(request)


class HttpServer(Counting):
    """Files by HTTP with ranges. Faults: "cut", "stall", "no ranges", "wrong range", "part",
    "part, cut", "redirect", "no etag", "refuses conditions", and any status, which comes with the
    headers in `said`. A "part" is the first `at_most` bytes of a range, and says so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.said: dict[str, str] = {}
        self.posted: dict[str, Callable[[Any], bytes]] = {}
        """The answers to what is posted, which is a form or JSON."""
        self.at_most = 0
        self.released = threading.Event()
        self.at_a_time = self.most_at_a_time = 0
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = Listening(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


@lru_cache(maxsize=32)
def _digest(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


class Listening(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Show an error, but for that of a client that has gone."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    owner: HttpServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        owner = self.owner
        with owner.lock:
            owner.at_a_time += 1
            owner.most_at_a_time = max(owner.most_at_a_time, owner.at_a_time)
        try:
            self._answer()
        finally:
            with owner.lock:
                owner.at_a_time -= 1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
        with self.owner.lock:
            self.owner.requests.append(Request("POST", self.path, None))
        answer = self.owner.posted.get(self.path)
        if answer is None:
            self._head(404, {}, 0)
            return
        is_json = "json" in self.headers.get("Content-Type", "")
        data = answer(json.loads(body) if is_json else parse_qs(body))
        self._head(200, {"Content-Type": "application/json"}, len(data))
        self.wfile.write(data)

    def _answer(self) -> None:
        owner = self.owner
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        span = None if found is None else (int(found[1]), int(found[2]) + 1)
        request = Request(self.command, self.path, span, who=self.headers.get("X-Who", ""))
        fault = owner.count(request)
        name = self.path.partition("?")[0]
        if fault == "redirect" and not name.startswith("/moved"):
            self._head(302, {"Location": f"/moved{self.path}"}, 0)
            return
        if fault is not None and fault.isdecimal():
            self._head(int(fault), owner.said, 0)
            return
        data = owner.files.get(name.removeprefix("/moved"))
        if data is None:
            self._head(404, {}, 0)
            return
        self._send(request, data, fault)

    def _send(self, request: Request, data: bytes, fault: str | None) -> None:
        etag = f'"{_digest(data)}"'
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        if fault == "no etag":
            del headers["ETag"]
        wanted = self.headers.get("If-Match")
        if wanted is not None and (wanted != etag or fault == "refuses conditions"):
            self._head(412, {}, 0)
            return
        if request.span is None or fault == "no ranges":
            status, body = 200, data
        elif request.span[0] >= len(data):
            self._head(416, {"Content-Range": f"bytes */{len(data)}"}, 0)
            return
        else:
            begin, end = request.span[0], min(request.span[1], len(data))
            if fault == "wrong range":
                begin, end = begin + 1, min(end + 1, len(data))
            if fault in ("part", "part, cut"):
                end = min(end, begin + self.owner.at_most)
            status, body = 206, data[begin:end]
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        self._head(status, headers, len(body))
        if request.method == "HEAD":
            return
        if fault in ("cut", "stall", "part, cut"):
            body = body[: len(body) // 2]
        request.sent = len(body)  # Before it is, since whoever gets it may ask what was sent.
        try:
            self.wfile.write(body)
            if fault == "stall":
                self.owner.released.wait(60)
        except OSError:
            pass  # Whoever asked has gone.
        if fault in ("cut", "stall", "part, cut"):
            self.close_connection = True

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's
        del format, args


def needs_s3(*packages: str) -> None:
    """Skip the module or test that asks, where what talks to an S3 server is not installed."""
    for package in ("s3fs", "moto", *packages):
        pytest.importorskip(package, reason="needs pip install -e '.[test-s3]', as CI has it")


class S3Server(Counting):
    """moto's S3, with what it is asked for by GET and HEAD in `requests`, and else in `changes`.

    The faults are "503", and "403" and "500" for changes.
    """

    def __init__(self) -> None:
        from moto.backends import get_backend
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        super().__init__()
        get_backend("s3").reset()  # All servers of a process have one store.
        app = DomainDispatcherApplication(create_backend_app)
        one_at_a_time = threading.Lock()
        self.changes: list[Request] = []
        self.fault_of_changes: Fault = lambda _: None

        def counted(environ: Any, start_response: Any) -> Any:
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", environ.get("HTTP_RANGE", ""))
            span = None if found is None else (int(found[1]), int(found[2]) + 1)
            request = Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], span)
            if request.method in ("GET", "HEAD"):
                if self.count(request) == "503":
                    start_response("503 Slow Down", [("Content-Length", "0")])
                    return [b""]
            else:
                request.path += f"?{environ.get('QUERY_STRING', '')}"
                request.sent = int(environ.get("CONTENT_LENGTH") or 0)
                with self.lock:
                    self.changes.append(request)
                    request.number = len(self.changes)
                fault = self.fault_of_changes(request)
                if fault is not None:
                    environ["wsgi.input"].read(request.sent)
                    return _refused(fault, start_response)
                with one_at_a_time:  # moto changes what it iterates over.
                    return list(app(environ, start_response))
            answer: list[bytes] = list(app(environ, start_response))
            request.sent = sum(map(len, answer))
            return answer

        self._server = make_server("127.0.0.1", 0, counted, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def clear(self) -> None:
        super().clear()
        self.changes.clear()

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which clients find the server."""
        return {
            "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "S3CR3T",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": self.url,
        }  # fmt: skip

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _refused(status: str, start_response: Any) -> list[bytes]:
    code, reason = {
        "403": ("AccessDenied", "Forbidden"), "500": ("InternalError", "Internal Server Error"),
    }[status]  # fmt: skip
    body = f"<Error><Code>{code}</Code><Message>{code} as told</Message></Error>".encode()
    headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
    start_response(f"{status} {reason}", headers)
    return [body]


@contextmanager
def within(seconds: float) -> Generator[None]:
    """A block that must not take longer than a stated time."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds
