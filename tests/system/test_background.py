"""Saves in the background of a real process: Ctrl-C, a fork, and its exit."""

import subprocess
import sys
from pathlib import Path

import numpy as np

import safejax

# All in one process, since it takes longer to start one than to run this.
PROGRAM = """
import atexit, os, signal, sys, threading, time, warnings
from pathlib import Path
import numpy as np
import safejax

folder = Path(sys.argv[1])
tree = {"w": np.arange(1000.0)}
# Whoever started the tests may have had it ignored, as a shell does in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)

def send_until(heard, number):
    # Again: Python does not hear one that comes just before the main thread begins to wait.
    for _ in range(20):
        signal.pthread_kill(threading.main_thread().ident, number)
        if heard.wait(3):
            return
    raise AssertionError("not heard")

# ---- Ctrl-C, while the main thread waits

ready, interrupted = threading.Event(), threading.Event()

def interrupt(done, total):
    if not interrupted.is_set():
        assert ready.wait(60)
        send_until(interrupted, signal.SIGINT)

handle = safejax.save_async(tree, folder / "interrupted", progress=interrupt)
try:
    ready.set()
    handle.result()
except KeyboardInterrupt:
    assert not handle.done()
    interrupted.set()
else:
    raise AssertionError("not interrupted")
handle.result(300)

# ---- a handler of a signal saves, while the main thread waits

ready, on_signal = threading.Event(), threading.Event()

def save_now(number, frame):
    safejax.save_async(tree, folder / "signal").result(300)
    on_signal.set()

def send(done, total):
    if not on_signal.is_set():
        assert ready.wait(60)
        send_until(on_signal, signal.SIGUSR1)

signal.signal(signal.SIGUSR1, save_now)
handle = safejax.save_async(tree, folder / "handled", progress=send)
ready.set()
handle.result(300)

# ---- a process that is forked while a save goes on

forked = threading.Event()
handle = safejax.save_async(tree, folder / "forked", progress=lambda *_: forked.wait(60))
warnings.simplefilter("ignore")
child = os.fork()
if not child:
    status = 1
    try:
        error = handle.exception(60)
        assert isinstance(error, RuntimeError) and "ask the handle there" in str(error), error
        safejax.save_async({"w": np.ones(3)}, folder / "forked", max_host_bytes=24).result(300)
        status = 0
    finally:
        os._exit(status)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert safejax.load(folder / "forked")["w"].shape == (3,)
forked.set()
handle.result(300)
assert safejax.load(folder / "forked")["w"].shape == (1000,)

# ---- errors: one that was asked for, and two that were not

assert safejax.save_async(tree, folder / "asked" / "m").exception(60) is not None
failed = safejax.save_async(tree, folder / "unasked" / "m")
while not failed.done():
    time.sleep(0.001)

def late(done, total):
    # The main thread has ended, and the interpreter is about to exit.
    threading.main_thread().join()
    if done == total and "fails" in threading.current_thread().name:
        raise ZeroDivisionError("late")

fails = safejax.save_async(tree, folder / "fails", progress=late)

# ---- a save that ends after the main thread, and one that begins only then

late_one = safejax.save_async(tree, folder / "late", progress=late)

def at_exit():
    assert late_one.done()
    safejax.save_async(tree, folder / "at exit")
    assert (folder / "at exit").exists()
    print("at exit")

atexit.register(at_exit)
print("end of the program", flush=True)
"""


def test_saves_outlive_ctrl_c_forks_and_the_main_thread(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["end of the program", "at exit"], done.stderr
    expected = safejax.serialize({"w": np.arange(1000.0)})
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    names = ["interrupted", "signal", "handled", "forked", "late", "at exit"]
    assert found == dict.fromkeys(names, expected)
    reports = done.stderr.split("Exception in thread ")[1:]
    assert len(reports) == 2, done.stderr
    for report, name, error in [
        (reports[0], "fails", "ZeroDivisionError: late"),
        (reports[1], "unasked", "FileNotFoundError: "),
    ]:
        assert report.startswith(f"safejax-save {tmp_path / name}")
        assert "Traceback" in report
        assert error in report
        assert f"The save to '{tmp_path / name}" in report
        assert "call handle.result()" in report
