"""All to all: bytes that every process sends to every other one, through XLA.

One compiled operation moves arrays of one shape, whatever is sent, so that its memory is bounded
by that shape: `[processes, bytes]` for what a process sends, and the same for what it gets. Only
the first device of each process takes part. It is a collective: all processes call it equally
often, in the same order as their other ones.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Final

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from safejax._src.arrays.untraced import run_untraced

BUFFER_BYTES: Final = 16 << 20
"""The most bytes that a process sends in one call; with XLA's copies it holds eight times that."""

_LEAST: Final = 1024
_AXIS: Final = "process"


def rounds(longest: int, processes: int) -> list[int]:
    """How many bytes each process sends to each in every call, if `longest` are the most in all.

    All are powers of two, so that few shapes are compiled.
    """
    most = 1 << (BUFFER_BYTES // processes).bit_length() - 1
    full, rest = divmod(longest, max(_LEAST, most))
    last = [max(_LEAST, 1 << (rest - 1).bit_length())] if rest else []
    return [max(_LEAST, most)] * full + last


def all_to_all(sent: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What all processes have sent to this one; row `p` of `sent` is for process `p`.

    Both are `uint8[processes, bytes]`, with as many bytes in all processes. The array that is
    returned is read-only.
    """
    return run_untraced(partial(_all_to_all, sent))


def exchanging(devices: tuple[Any, ...]) -> tuple[Callable[[jax.Array], jax.Array], NamedSharding]:
    """The compiled operation over these devices, and the sharding of what it takes and returns."""
    mesh = Mesh(np.array(devices), (_AXIS,), axis_types=(AxisType.Auto,))
    spec = PartitionSpec(_AXIS)

    def exchange(rows: jax.Array) -> jax.Array:
        return jax.lax.all_to_all(rows, _AXIS, split_axis=0, concat_axis=0, tiled=True)

    compiled = jax.jit(jax.shard_map(exchange, mesh=mesh, in_specs=spec, out_specs=spec))
    return compiled, NamedSharding(mesh, spec)


_exchanging = lru_cache(maxsize=4)(exchanging)


def first_devices() -> tuple[Any, ...]:
    """The first device of each process."""
    count = jax.process_count()
    return tuple(jax.local_devices(process_index=process)[0] for process in range(count))


def _all_to_all(sent: NDArray[np.uint8]) -> NDArray[np.uint8]:
    devices = first_devices()
    exchange, sharding = _exchanging(devices)
    processes, nbytes = sent.shape
    shard = jax.device_put(sent, devices[jax.process_index()])
    shape = (processes * processes, nbytes)
    rows = jax.make_array_from_single_device_arrays(shape, sharding, [shard])
    return np.asarray(exchange(rows).addressable_data(0))
