"""Recording: the system calls of running processes, by `strace -f -p`.

It is outside of the processes, so what Python, C++ or a thread of JAX calls is recorded alike; a
preloaded library would not see calls that are made without the C library, and Python's audit hooks
do not see writes. That nothing is missing is not assumed: what `history` replays from a record has
to be what the folder has in the end.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support.crashes.calls import Call, parse

_TRACED: Final = (
    "%file", "%desc", "clone", "clone3", "fork", "vfork", "sync", "io_uring_enter", "io_submit",
)  # fmt: skip


def can_record() -> bool:
    """Whether there is a strace that may look at other processes."""
    strace = shutil.which("strace")
    if strace is None:
        return False
    asked = subprocess.run([strace, "-o", os.devnull, "true"], capture_output=True, check=False)
    return asked.returncode == 0


@dataclass
class Record:
    """The calls of processes and, once it has ended, of which process each thread is.

    `umask_of` are the umasks of the processes.
    """

    calls: list[Call] = field(default_factory=list)
    process_of: dict[int, int] = field(default_factory=dict)
    umask_of: dict[int, int] = field(default_factory=dict)


@contextlib.contextmanager
def recorded(processes: Sequence[int], refused: str | None = None) -> Generator[Record]:
    """Record what running processes call, all of their threads.

    With `refused`, an injection of strace, such as `renameat2:error=EINVAL`, some calls fail.
    """
    record = Record()
    for process in processes:
        for thread in os.listdir(f"/proc/{process}/task"):
            record.process_of[int(thread)] = process
        status = Path(f"/proc/{process}/status").read_text()
        record.umask_of[process] = int(status.split("Umask:")[1].split()[0], 8)
    traced = ",".join(_TRACED)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        command = ["strace", "-f", "-xx", "-s", str(1 << 26), "-o", str(log)]
        command += ["-e", f"trace={traced}"]
        if refused is not None:
            command += ["-e", f"inject={refused}"]
        for process in processes:
            command += ["-p", str(process)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            assert strace.stderr is not None
            try:
                waiting = set(processes)  # It says so once for all threads of each.
                for line in strace.stderr:
                    if " attached" in line:
                        waiting -= {int(word) for word in line.split() if word.isdigit()}
                    if not waiting:
                        break
                assert not waiting, f"strace did not attach: {strace.poll()}"
                yield record
            finally:
                strace.send_signal(signal.SIGINT)
                strace.communicate()
        with log.open() as lines:
            record.calls.extend(parse(lines))
    _add_new_threads(record)


def _add_new_threads(record: Record) -> None:
    made = [
        call
        for call in record.calls
        if call.name in ("clone", "clone3", "fork", "vfork") and call.result > 0
    ]
    while made:
        known = [call for call in made if call.thread in record.process_of]
        assert known, "threads of unknown processes"
        for call in known:
            shares = "CLONE_FILES" in ",".join(call.arguments)
            process = record.process_of[call.thread] if shares else call.result
            record.process_of[call.result] = process
        made = [call for call in made if call.thread not in record.process_of]
