"""Buffers in memory as sources; a mapped file is one, too."""

import mmap
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.log import open_logs
from safejax._src.reading.memory import address
from safejax._src.reading.source import File, read_only, strided_array
from safejax._src.reading.windows import Window

Buffer: TypeAlias = bytes | mmap.mmap | NDArray[np.uint8]


class BufferSource(File):
    """Bytes in memory that are read in place."""

    immutable = True
    in_memory = True

    def __init__(self, buffer: Buffer, name: str) -> None:
        self.name = name
        self.nbytes = len(buffer)
        if isinstance(buffer, np.ndarray):
            buffer = read_only(buffer.view())
        # The buffer is read-only, and so are the arrays that share its memory.
        self._buffer = buffer
        self._address = address(np.frombuffer(buffer, np.uint8)) if len(buffer) else 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def prefix(self, begin: int, end: int) -> bytes:
        return bytes(self._buffer[begin:end])

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        if window.size == 0:
            return np.empty(window.shape, dtype)
        self._check()
        if open_logs:
            self._log(window.distinct * dtype.itemsize)
        return strided_array(self._memory(begin, dtype, window), begin, dtype, window)

    def rows(
        self, begin: int, dtype: Dtype, window: Window
    ) -> Callable[[int], NDArray[Any]] | None:
        nbytes = window.row(0).distinct * dtype.itemsize
        row = self._row_of(begin, dtype, window)

        def logged(number: int) -> NDArray[Any]:
            self._check_often()
            self._log(nbytes)
            return row(number)

        return logged

    def in_place(
        self, begin: int, dtype: Dtype, window: Window, alignment: int
    ) -> NDArray[Any] | None:
        self._check()
        array = self._usable(begin, dtype, window, alignment)
        if array is None:
            return None
        self._log(array.nbytes)
        memory = self._memory(begin, dtype, window)
        return array if memory is self._buffer else strided_array(memory, begin, dtype, window)

    def is_in_place(self, begin: int, dtype: Dtype, window: Window, alignment: int) -> bool:
        if not self._is_aligned(begin, dtype, window, alignment):
            return False
        # For most tensors, nothing has to be made to see that.
        return window is Window.whole(window.shape) or (
            self._usable(begin, dtype, window, alignment) is not None
        )

    def _is_aligned(self, begin: int, dtype: Dtype, window: Window, alignment: int) -> bool:
        first = self._address + begin + window.offset * dtype.itemsize
        return first % alignment == 0 and window.size > 0 and self.immutable

    def _usable(
        self, begin: int, dtype: Dtype, window: Window, alignment: int
    ) -> NDArray[Any] | None:
        if not self._is_aligned(begin, dtype, window, alignment):
            return None
        array = strided_array(self._buffer, begin, dtype, window)
        return array if array.flags.c_contiguous else None

    def _memory(self, begin: int, dtype: Dtype, window: Window) -> Buffer:
        """The bytes of the source for a non-empty part that is about to be used."""
        del begin, dtype, window
        return self._buffer

    def _row_of(self, begin: int, dtype: Dtype, window: Window) -> Callable[[int], NDArray[Any]]:
        """A function that returns rows of a part by their numbers; it neither logs nor checks."""
        return strided_array(self._buffer, begin, dtype, window).__getitem__

    def _check(self) -> None:
        """Raise `ReadError` if the bytes are no longer there."""

    def _check_often(self) -> None:
        """Like `_check`, but cheap enough for each row in a loop."""
