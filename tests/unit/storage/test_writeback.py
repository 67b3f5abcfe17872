"""Data goes to the disk while the rest of its file is still written."""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from safejax._src import system
from safejax._src.storage import writeback
from safejax._src.storage.files import write_atomically

LONG_RUN = 32 << 20
LONG_CHUNK = 5 << 20
"""In saves as users have them."""

RUN = 1 << 20
CHUNK = 160 << 10
"""In the cases where a file has many of them; they are as long as `short_runs` says."""

SIZES = [RUN - 1, RUN, RUN + 1, 2 * RUN, 3 * RUN + 5]

linux = pytest.mark.skipif(sys.platform != "linux", reason="what Linux has for it")


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    # Files of many runs of the real length would take minutes to write.
    assert writeback._AT_A_TIME == LONG_RUN
    monkeypatch.setattr(writeback, "_AT_A_TIME", RUN)


class Pages(ctypes.Structure):
    """What cachestat(2) tells: counts of pages."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in ("cached", "dirty", "on_their_way", "evicted", "recently_evicted")
    ]


def pages(descriptor: int, begin: int, nbytes: int) -> Pages:
    """The pages of a part of a file; skips where Linux is older than 6.5."""
    told = Pages()
    part = (ctypes.c_uint64 * 2)(begin, nbytes)
    call = ctypes.CDLL(None, use_errno=True).syscall
    if call(451, descriptor, ctypes.byref(part), ctypes.byref(told), 0):
        pytest.skip(f"no cachestat(2): {os.strerror(ctypes.get_errno())}")
    return told


@linux
def test_a_run_is_on_its_way_while_the_rest_is_written(tmp_path: Path) -> None:
    seen: list[int] = []

    def chunks() -> Iterator[memoryview]:
        for _ in range(2 * LONG_RUN // LONG_CHUNK):
            yield memoryview(bytes(LONG_CHUNK))
        (name,) = (entry for entry in os.listdir(tmp_path) if entry.startswith(".m"))
        with open(tmp_path / name, "rb") as file:
            seen.append(pages(file.fileno(), 0, LONG_RUN).dirty)
            rest = (LONG_RUN + LONG_CHUNK, LONG_RUN - 2 * LONG_CHUNK)
            seen.append(pages(file.fileno(), *rest).dirty)

    write_atomically(str(tmp_path / "m"), chunks(), lambda nbytes: None)
    sent, not_yet = seen
    if not not_yet:
        pytest.skip("a file system that has no dirty pages")
    assert not sent


@linux
@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("size", SIZES)
def test_runs_follow_each_other(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = system.sync_file_range()
    assert real is not None
    sent: list[tuple[int, int]] = []

    def send(descriptor: int, begin: int, nbytes: int, flags: int) -> int:
        result = real(descriptor, begin, nbytes, flags)
        assert not result
        sent.append((begin, nbytes))
        return result

    # The calls go on to the system, and are seen here.
    monkeypatch.setattr(writeback, "sync_file_range", lambda: send)
    write(tmp_path / "m", size)
    reached = 0
    for begin, nbytes in sent:
        assert begin == reached
        assert RUN <= nbytes < RUN + CHUNK
        reached += nbytes
    assert reached <= size < reached + RUN


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("size", SIZES)
def test_a_system_without_it_writes_the_same(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "with", size)
    # The system that runs the tests may have it.
    monkeypatch.setattr(writeback, "sync_file_range", lambda: None)
    write(tmp_path / "without", size)
    assert (tmp_path / "with").read_bytes() == (tmp_path / "without").read_bytes()


def test_a_file_system_that_refuses_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Those that refuse, such as FUSE's, need root or a server.
    monkeypatch.setattr(writeback, "sync_file_range", lambda: lambda *arguments: -1)
    write(tmp_path / "m", LONG_RUN + 1, LONG_CHUNK)
    assert (tmp_path / "m").read_bytes() == data_of(LONG_RUN + 1)


def data_of(size: int) -> bytes:
    """Bytes that tell where they stand, but for a multiple of 251."""
    block = bytes(range(251))
    return (block * (size // 251 + 1))[:size]


def write(path: Path, size: int, chunk: int = CHUNK) -> None:
    """Save so many bytes, in chunks that do not end where runs do."""
    data = memoryview(data_of(size))
    chunks = (data[at : at + chunk] for at in range(0, size, chunk))
    write_atomically(str(path), chunks, lambda nbytes: None)
