"""Page-locked memory: a bounded ring of buffers that devices copy from at the rate of their link.

JAX has such memory as arrays of the memory kind `pinned_host`. NumPy's array of one is that memory
itself, and not a copy (openxla/xla#14088; JAX's own `array_serialization` relies on that), and a
copy to the memory that the device computes in is made by the device's own engine
(openxla/xla#14268), after which the buffer is free for other values. JAX does not promise that
such memory may be written to, so `can_stage` tries it once on each device, and where it does not
work nothing of it is used.

The memory belongs to the process only while leaves are placed: when nobody uses the ring any more,
it goes back to XLA, which keeps it for transfers of its own.
"""

import contextlib
import ctypes
import threading
from collections import deque
from collections.abc import Generator
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias, final

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.memory import address, aligned_empty
from safejax._src.system import in_forked_process

PINNED: Final = "pinned_host"
"""JAX's name of page-locked memory of the host."""

_Key: TypeAlias = tuple[tuple[int, ...], Dtype, Any]


@final
class Buffer(NamedTuple):
    """Page-locked memory: as an array of JAX, from which a device copies, and as one to write to.

    Both have the same shape and dtype; `device` is the one that copies fastest.
    """

    array: jax.Array
    memory: NDArray[Any]
    device: Any

    @property
    def key(self) -> _Key:
        """What another use of the buffer must have in common with this one."""
        return self.memory.shape, self.memory.dtype, self.device

    def begin_copy(self) -> jax.Array:
        """The values in the memory of the device; they are there when the array is ready."""
        there = SingleDeviceSharding(self.device)
        return jax.device_put(self.array, there, may_alias=False)


def has_pinned_memory(device: Any) -> bool:
    """Whether JAX offers page-locked memory of the host for a device."""
    return any(memory.kind == PINNED for memory in device.addressable_memories())


def allocate(shape: tuple[int, ...], dtype: Dtype, device: Any) -> Buffer:
    """A new buffer, of undefined values. Raises what JAX raises if there is no room for it."""
    there = SingleDeviceSharding(device, memory_kind=PINNED)
    array = jax.device_put(aligned_empty(shape, dtype), there, may_alias=False)
    array.block_until_ready()
    # NumPy's array of it may not be written to, but is where the memory is.
    begin = address(np.asarray(array))
    if begin != array.unsafe_buffer_pointer():
        raise NotImplementedError(f"{device}: NumPy has a copy of page-locked memory")
    raw = (ctypes.c_ubyte * array.nbytes).from_address(begin)
    return Buffer(array, np.frombuffer(raw, dtype).reshape(shape), device)


@lru_cache(maxsize=64)
def can_stage(device: Any) -> bool:
    """Whether a device copies what was written to page-locked memory, and keeps it.

    To be called outside of any trace.
    """
    if not has_pinned_memory(device):
        return False
    values = np.arange(1 << 18, dtype=np.uint32)
    others = values[::-1].copy()
    try:
        buffer = allocate(values.shape, values.dtype, device)
        copies: list[jax.Array] = []
        for written in (values, others):  # The second must not be seen in the first copy.
            np.copyto(buffer.memory, written)
            copies.append(buffer.begin_copy().block_until_ready())
        first, second = map(np.asarray, copies)
    except Exception:  # noqa: BLE001 - whatever a plugin raises, it cannot be used
        return False
    return np.array_equal(first, values) and np.array_equal(second, others)


class RingFullError(Exception):
    """No buffer has come back to the ring for a while."""


_PATIENCE: Final = 0.5
"""Seconds without a change in which one waits for buffers that others fill."""


@final
class Ring:
    """Buffers of at most `nbytes` together, which many threads take and give back.

    A buffer that is given back with the copy that was begun of it is taken again when that copy
    has been made. Free buffers are kept for others of their shape, dtype and device, as long as
    somebody has the ring open.
    """

    def __init__(self, nbytes: int) -> None:
        self.most = nbytes
        self._changed = threading.Condition()
        self._users = 0
        self._held = 0
        self._free: list[Buffer] = []
        self._copied: deque[tuple[Buffer, jax.Array]] = deque()
        self._of_parent: list[object] = []

    @property
    def is_open(self) -> bool:
        """Whether somebody has the ring open."""
        return self._users > 0

    @property
    def held(self) -> int:
        """The bytes of all buffers: free, being filled, and being copied."""
        return self._held

    @contextlib.contextmanager
    def open(self) -> Generator[None]:
        """A block in which buffers are kept for further use; the last one to end lets them go."""
        changed = self._changed
        with changed:
            self._users += 1
        try:
            yield
        finally:
            # A forked process has another lock, and the users of its parent are not there.
            if changed is self._changed:
                with changed:
                    self._users -= 1
                    if not self._users:
                        self._let_go()

    def take(self, shape: tuple[int, ...], dtype: Dtype, device: Any) -> Buffer:
        """A buffer whose values may be overwritten; waits until there is room.

        Raises `RingFullError` if there is none for a while: whoever has a buffer may wait for this
        one, since what fills it is a function of the user's that places another leaf.
        """
        key: _Key = (shape, dtype, device)
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        while True:
            with self._changed:
                found = self._taken(key, nbytes)
            if isinstance(found, Buffer):
                return found
            if found is None:
                break
            self._wait_for(*found)
        try:
            return allocate(shape, dtype, device)
        except BaseException:
            self._forget(nbytes)
            raise

    def give(self, buffer: Buffer, copy: jax.Array | None) -> None:
        """Give a buffer back, with the copy that was begun of it, if one was."""
        with self._changed:
            if not self._users:
                # XLA frees the memory when the copy is made.
                self._held -= buffer.array.nbytes
            elif copy is None:
                self._free.append(buffer)
            else:
                self._copied.append((buffer, copy))
            self._changed.notify_all()

    def leave_to_parent(self) -> None:
        """Begin anew, in a forked process, whose parent goes on using the buffers."""
        # Never freed here: they are those of a client of XLA that has no threads here.
        self._of_parent += [*self._free, *self._copied]
        self._changed = threading.Condition()
        self._users = self._held = 0
        self._free, self._copied = [], deque()

    def _taken(self, key: _Key, nbytes: int) -> tuple[Buffer, jax.Array] | Buffer | None:
        """A free buffer, or one that is being copied; None if there is room for a new one."""
        while True:
            for number, buffer in enumerate(self._free):
                if buffer.key == key:
                    return self._free.pop(number)
            if self._held + nbytes <= self.most or not self._held:
                self._held += nbytes
                return None
            if self._free:
                self._held -= self._free.pop(0).array.nbytes
            elif self._copied:
                return self._copied.popleft()
            elif not self._changed.wait(_PATIENCE):
                raise RingFullError

    def _wait_for(self, buffer: Buffer, copy: jax.Array) -> None:
        try:
            copy.block_until_ready()
        except Exception:  # noqa: BLE001 - whoever has the copy has the error
            # It may have been deleted before it was made.
            self._forget(buffer.array.nbytes)
        else:
            self.give(buffer, None)

    def _forget(self, nbytes: int) -> None:
        with self._changed:
            self._held -= nbytes
            self._changed.notify_all()

    def _let_go(self) -> None:
        buffers = [*self._free, *(buffer for buffer, _ in self._copied)]
        self._held -= sum(buffer.array.nbytes for buffer in buffers)
        self._free.clear()
        self._copied.clear()


RING_BYTES: Final = 512 << 20
"""Bytes of page-locked memory that a process takes: a few milliseconds of what a link carries."""

RING: Final = Ring(RING_BYTES)
"""The ring of the process."""

in_forked_process(RING.leave_to_parent)
