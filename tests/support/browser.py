"""A headless Chromium, spoken to through a pipe in the DevTools protocol.

The tests that use it are skipped where none is found; CI installs Debian's.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final, final

CHROMIUM: Final = shutil.which("chromium") or shutil.which("google-chrome")

# The browser knows the pipes by the numbers 3 and 4.
_BEGIN: Final = """if True:
    import fcntl, os, sys
    pipes = [fcntl.fcntl(int(pipe), fcntl.F_DUPFD, 10) for pipe in sys.argv[1:3]]
    for number, pipe in enumerate(pipes, 3):
        os.dup2(pipe, number)
    os.execv(sys.argv[3], sys.argv[3:])
"""


@final
class Browser:
    """One page of a browser, and what has gone wrong in it."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = commands
        self._answers = answers
        self._read = b""
        self._number = 0
        self.session: str | None = None
        self.faults: list[str] = []
        self.requests: list[str] = []

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of a command; events that come meanwhile are noted."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, page: str | Path) -> None:
        """Open a local file, and wait until its scripts have run."""
        self.faults.clear()
        self.requests.clear()
        self.call("Page.navigate", url=Path(page).absolute().as_uri())
        self.run("new Promise(f => document.readyState === 'complete' ? f() : onload = f)")

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            chunk = os.read(self._answers, 1 << 20)
            assert chunk, "the browser has ended"
            self._read += chunk
        message, _, self._read = self._read.partition(b"\0")
        event = json.loads(message)
        parameters = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.faults.append(str(parameters["exceptionDetails"]))
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                self.faults.append(parameters["entry"]["text"])
            case "Page.javascriptDialogOpening":
                self.faults.append(f"dialog: {parameters['message']}")
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case _:
                pass
        return event


@contextlib.contextmanager
def browser() -> Generator[Browser]:
    """A browser with one empty page of 1280 by 1000 pixels."""
    assert CHROMIUM is not None
    theirs, commands = os.pipe()
    answers, ours = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BEGIN, str(theirs), str(ours), CHROMIUM,
             "--headless=new",
             "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
             "--no-first-run", "--disable-extensions", "--disable-background-networking",
             f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank"],
            pass_fds=(theirs, ours), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs)
        os.close(ours)
        found = Browser(commands, answers)
        try:
            (page,) = (
                each
                for each in found.call("Target.getTargets")["targetInfos"]
                if each["type"] == "page"
            )
            attached = found.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
            found.session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                found.call(f"{domain}.enable")
            found.call(
                "Emulation.setDeviceMetricsOverride",
                width=1280, height=1000, deviceScaleFactor=1, mobile=False,
            )  # fmt: skip
            yield found
        finally:
            child.kill()
            child.wait()
            os.close(commands)
            os.close(answers)
