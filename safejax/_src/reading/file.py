"""Local files as sources: mapped into memory, or read by calls of the system."""

import mmap
import os
import stat
import weakref
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.requests import byte_spans, planned
from safejax._src.reading.source import BufferSource, File, strided_array
from safejax._src.reading.windows import Window
from safejax._src.system import CAN_READ
from safejax.errors import ReadError


@final
class MappedSource(BufferSource):
    """A file mapped into memory, and read in place or, unless `in_place`, copied from there.

    The mapping lives as long as a leaf, or an array placed without a copy, uses it. Each read
    first checks the file's size and raises `ReadError` if the file was truncated since it was
    opened. If it is truncated later, while an array uses it in place, touching the lost part
    ends the process with SIGBUS. `save` never truncates a file: it writes a new one.
    """

    is_mapped = True

    def __init__(self, path: str, *, in_place: bool = True) -> None:
        with open(path, "rb") as file:
            self._status = os.fstat(file.fileno())
            # An empty file cannot be mapped; the header's reader reports what is missing.
            empty = self._status.st_size == 0
            mapping = None if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        super().__init__(b"" if mapping is None else mapping, path)
        self._mapping = mapping
        # Unless `in_place`, arrays use the mapping only until they are copied.
        self.immutable = in_place

    def read_into(self, begin: int, dtype: Dtype, window: Window, out: NDArray[Any]) -> None:
        if out.nbytes < _WORTH_A_CALL or not CAN_READ or not _is_one_run(window, out):
            super().read_into(begin, dtype, window, out)
            return
        # A system call copies without faulting in the mapping page by page. No descriptor is kept
        # open for it, so the path may be that of another file by now.
        try:
            descriptor = os.open(self.name, os.O_RDONLY)
        except OSError:
            super().read_into(begin, dtype, window, out)
            return
        try:
            if not os.path.samestat(os.fstat(descriptor), self._status):
                super().read_into(begin, dtype, window, out)
                return
            self._log(out.nbytes)
            _read_run(descriptor, begin + window.offset * dtype.itemsize, out, self)
        finally:
            os.close(descriptor)

    def _check(self) -> None:
        size = 0 if self._mapping is None else self._mapping.size()
        if size < self.nbytes:
            raise _cut_short(self, size)


@final
class FileSource(File):
    """A file that is read and never mapped: if a network file is lost, a mapping raises SIGBUS."""

    immutable = True

    def __init__(self, path: str) -> None:
        self.name = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(f"{path}: expected a safetensors file, got a folder")
        self.nbytes = status.st_size

    def __repr__(self) -> str:
        return f"FileSource({self.name!r})"

    def prefix(self, begin: int, end: int) -> bytes:
        data = np.empty(end - begin, np.uint8)
        _read_run(self._descriptor, begin, data, self)
        return data.tobytes()

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        if window.size == 0:
            return np.empty(window.shape, dtype)
        requests = planned(byte_spans(begin, dtype, window))
        self._log(requests.nbytes)
        self._log_excess(requests.excess)
        memory = np.empty(requests.nbytes, np.uint8)
        for (start, _), part in zip(requests.ranges, requests.parts(memory), strict=True):
            _read_run(self._descriptor, start, part, self)
        return strided_array(requests.joined(memory), 0, dtype, window.compact())

    def read_into(self, begin: int, dtype: Dtype, window: Window, out: NDArray[Any]) -> None:
        if not _is_one_run(window, out):
            super().read_into(begin, dtype, window, out)
            return
        self._log(out.nbytes)
        _read_run(self._descriptor, begin + window.offset * dtype.itemsize, out, self)


def _is_one_run(window: Window, out: NDArray[Any]) -> bool:
    """Whether the elements are contiguous in the source, in the order of `out`."""
    return (
        out.size > 0
        and out.flags.c_contiguous
        and all(
            size == 1 or stride == whole
            for size, stride, whole in zip(
                window.shape, window.strides, Window.whole(window.shape).strides, strict=True
            )
        )
    )


_WORTH_A_CALL: Final = 1 << 16
"""Bytes from which a read is worth a system call; less is copied from the mapping."""

_MOST_AT_A_TIME: Final = 1 << 30
"""Most bytes per system call; the system accepts no more than 2 GiB."""


def _read_run(descriptor: int, begin: int, out: NDArray[Any], file: File) -> None:
    """Fill `out` with the bytes of the file that start at `begin`."""
    flat = out.reshape(-1).view(np.uint8)
    done = 0
    while done < flat.nbytes:
        part = flat[done : done + _MOST_AT_A_TIME]
        count = os.preadv(descriptor, [part.data], begin + done)
        if not count:
            raise _cut_short(file, os.fstat(descriptor).st_size)
        done += count


def _cut_short(file: File, size: int) -> ReadError:
    return ReadError(
        f"{file.name}: expected the {file.nbytes} bytes that the file had when it was "
        f"opened, got {size}: it was cut short since; load it again"
    )
