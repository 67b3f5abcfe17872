"""Measures a process (private memory, page faults, bytes read), and describes the machine."""

import contextlib
import ctypes
import importlib.metadata
import mmap
import os
import platform
import resource
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, final

import numpy as np

_PAGE: Final = mmap.PAGESIZE
_STEP_SECONDS: Final = 0.001
_DISTRIBUTIONS: Final = (
    "safejax", "jax", "jaxlib", "numpy", "ml_dtypes", "safetensors", "flax",
    "orbax-checkpoint", "tensorstore", "equinox",
)  # fmt: skip


# ---- one process


@final
@dataclass(frozen=True, slots=True)
class Usage:
    """The page faults of the process so far, and the bytes that it read by system calls."""

    faults: int
    read: int

    @classmethod
    def now(cls) -> "Usage":
        """The current counts."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return cls(usage.ru_minflt + usage.ru_majflt, _field("/proc/self/io", "rchar") or 0)


def private_bytes(process: int | str = "self") -> int | None:
    """Private memory of a process, in bytes; None if the system does not report it.

    Pages of mapped files are not counted, since they belong to the page cache.
    """
    kilobytes = _field(f"/proc/{process}/status", "RssAnon")
    return None if kilobytes is None else kilobytes * 1024


@final
class MemorySampler:
    """Samples the private memory of a process from outside, without waiting for its locks."""

    def __init__(self, process: int) -> None:
        self._process = process
        self._samples: list[tuple[float, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the sampling."""
        self._over.set()
        self._thread.join()

    def peak(self, begin: float, end: float) -> int | None:
        """The maximum between two times of `time.monotonic`, in bytes; None without samples."""
        return max((used for at, used in self._samples if begin <= at <= end), default=None)

    def _run(self) -> None:
        while not self._over.wait(_STEP_SECONDS):
            used = private_bytes(self._process)
            if used is None:
                return
            self._samples.append((time.monotonic(), used))


def _field(path: str, name: str) -> int | None:
    try:
        with open(path) as file:
            for line in file:
                if line.startswith(f"{name}:"):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return None


# ---- before a measurement


def touch_and_free(nbytes: int) -> None:
    """Write to `nbytes` of fresh memory, in huge pages, and give it back.

    On a virtual machine, the first access to a page that the host took back takes ten times as
    long, and the first side would pay for all. The host is told of free blocks as large as a huge
    page, so that these are what has to be touched; smaller ones were not taken.
    """
    if nbytes <= 0:
        return
    available = _field("/proc/meminfo", "MemAvailable")
    if available is not None:
        nbytes = min(nbytes, available * 1024 // 2)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with contextlib.closing(mmap.mmap(-1, max(nbytes, _PAGE), flags)) as memory:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        view = np.frombuffer(memory, np.uint8)
        view[::_PAGE] = 1
        del view


def files_of(path: str) -> list[str]:
    """The file at `path`, or all files in that folder and its subfolders."""
    if not os.path.isdir(path):
        return [path]
    return sorted(str(found) for found in Path(path).rglob("*") if found.is_file())


def warm(path: str) -> None:
    """Bring every byte of the file or folder into the page cache."""
    buffer = memoryview(bytearray(1 << 20))
    for name in files_of(path):
        with open(name, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def chill(path: str) -> float | None:
    """Drop the file or folder from the page cache, and return the fraction that stayed.

    None if the system cannot drop it, or cannot report what stayed.
    """
    if not hasattr(os, "posix_fadvise"):
        return None
    total = stayed = 0
    for name in files_of(path):
        with open(name, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            pages = _resident_pages(file.fileno())
        if pages is None:
            return None
        stayed += pages[0]
        total += pages[1]
    return stayed / total if total else 0.0


def resident_bytes(path: str) -> int | None:
    """The bytes of the file or folder that are in memory; None if the system does not say so."""
    total = 0
    for name in files_of(path):
        with open(name, "rb") as file:
            pages = _resident_pages(file.fileno())
        if pages is None:
            return None
        total += pages[0] * _PAGE
    return total


def _resident_pages(descriptor: int) -> tuple[int, int] | None:
    """The number of a file's pages that are in memory, and the number of all its pages."""
    size = os.fstat(descriptor).st_size
    if size == 0:
        return 0, 0
    mincore = getattr(ctypes.CDLL(None), "mincore", None)
    if mincore is None:
        return None
    pages = -(-size // _PAGE)
    seen = np.zeros(pages, np.uint8)
    with contextlib.closing(mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)) as mapping:
        view = np.frombuffer(mapping, np.uint8)
        address, out = ctypes.c_void_p(view.ctypes.data), ctypes.c_void_p(seen.ctypes.data)
        failed = mincore(address, ctypes.c_size_t(size), out)
        del view
    return None if failed else (int((seen & 1).sum()), pages)


# ---- the machine


def machine(folder: str) -> dict[str, Any]:
    """A description of the machine, and of the file system of the folder with the files."""
    memory = _field("/proc/meminfo", "MemTotal")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": None if memory is None else round(memory / (1 << 20), 1),
        "system": f"{platform.system()} {platform.release()}",
        "file_system": _file_system(folder),
        "load_average": _load_average(),
    }


def versions() -> dict[str, str]:
    """The versions of Python and of every installed package that is compared."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _load_average() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _file_system(folder: str) -> str | None:
    found: list[tuple[str, str]] = []
    with contextlib.suppress(OSError), open("/proc/mounts") as file:
        found = [_mount(line) for line in file]
    real = os.path.realpath(folder)
    around = [(len(at), kind) for at, kind in found if _is_below(real, at)]
    return max(around)[1] if around else None


def _mount(line: str) -> tuple[str, str]:
    _, at, kind, *_ = line.split()
    return at, kind


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def summary(seconds: list[float | None]) -> Iterator[tuple[str, float]]:
    """The reported statistics of one side's rounds, by name; none if there were no rounds.

    None is for a round of the others, in which the side was left out.
    """
    taken = [each for each in seconds if each is not None]
    if taken:
        yield "min", min(taken)
        yield "median", median(taken)
