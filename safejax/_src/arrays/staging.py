"""Staging: bytes of a file are read straight into page-locked memory, and copied from there.

While a device copies one piece, the threads that place leaves read others. A piece is the whole of
a leaf, or of the part of it that a device holds; larger ones have pieces of several rows, which
are put in their places on the device.
"""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, Final, NamedTuple, final

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from numpy.typing import NDArray

from safejax._src.arrays.device_casts import cast_on_device
from safejax._src.arrays.pinned import RING, RING_BYTES, Buffer, RingFullError, can_stage
from safejax._src.arrays.switch import SWITCH
from safejax._src.dtypes import is_below_a_byte
from safejax._src.reading.order import order_of_reading
from safejax._src.reading.view import View


@final
class Sizes(NamedTuple):
    """In bytes: blocks of `least` or more are staged, in pieces of at most `piece`.

    Two threads or more read a piece if there is `part` for each. All buffers together have `ring`.
    """

    least: int = 1 << 20
    piece: int = 64 << 20
    part: int = 8 << 20
    ring: int = RING_BYTES


_MOST_ROWS: Final = 2**31 - 1
"""Rows of a leaf that is put together of pieces: without x64, what is jitted counts in int32."""

_READERS: Final = 4
"""Most threads that read one piece. Other leaves are read by others at the same time."""


@contextmanager
def session() -> Generator[None]:
    """A block in which several leaves are placed, and buffers are kept from one to the other."""
    # Looked at once, for there may be 100,000 leaves.
    _now.is_possible = SWITCH.is_possible()
    with RING.open():
        yield


def is_on(sharding: Sharding) -> bool:
    """Whether leaves of this sharding are staged now: in a session, if the switch is on."""
    return _now.is_possible and RING.is_open and SWITCH.is_on(sharding)


def may_take(view: View, sharding: Sharding) -> bool:
    """Whether `stage` may take a view that is to be placed whole, where this sharding says."""
    return is_on(sharding) and view.nbytes >= _now.sizes.least


def may_be_on(sharding: Sharding) -> bool:
    """Whether leaves of this sharding are copied to devices, staged or not, and not used in place.

    Copies take time, in which other threads get on.
    """
    return SWITCH.concerns(sharding)


@contextmanager
def forced(way: bool | None, sizes: Sizes | None = None) -> Generator[None]:
    """A block in which all leaves are staged in these sizes, or none, in all threads.

    None leaves the way to what is measured. For tests and measurements.
    """
    before = _now.sizes
    _now.set(sizes or before)
    try:
        with SWITCH.force(way):
            yield
    finally:
        _now.set(before)


def stage(view: View, device: Any) -> jax.Array | None:
    """The values of a view on a device; None if they must be placed plainly.

    They may still be on their way when this returns. To be called outside of any trace. Raises what
    reading raises.
    """
    if view.nbytes < _now.sizes.least or view.size < 2 or not can_stage(device):
        return None
    source, finish = cast_on_device(view, device) or (view, _as_it_is)
    if not _is_stageable(source):
        return None
    try:
        bounds = _bounds(source, min(_now.sizes.piece, RING.most))
        if len(bounds) == 1:
            return finish(_copied(source, device))
        return _in_pieces(view, source, bounds, finish, device)
    except (jax.errors.JaxRuntimeError, RingFullError):
        # There is no room for buffers. If there is none on the device, the plain way says so.
        return None


@final
class _Now:
    """The sizes of the process, and whether there is anything to stage."""

    def __init__(self) -> None:
        self.sizes = Sizes()
        self.is_possible = False

    def set(self, sizes: Sizes) -> None:
        self.sizes = sizes
        RING.most = sizes.ring


_now: Final = _Now()


def _as_it_is(array: jax.Array) -> jax.Array:
    return array


def _is_stageable(view: View) -> bool:
    rows = view.shape[_rows_axis(view)]
    # Behind a barrier each piece needs the whole operand. XLA restores another order of axes.
    return (
        not (view.plans_reads or view.has_barrier or is_below_a_byte(view.dtype))
        and rows <= _MOST_ROWS
        and view.nbytes // rows <= RING.most
        and order_of_reading(view) is None
    )


def _copied(view: View, device: Any) -> jax.Array:
    """The values of a view of at most one piece, on their way to the device."""
    buffer = RING.take(view.shape, view.dtype, device)
    copy: jax.Array | None = None
    try:
        _read(view, buffer, _now.sizes.part)
        copy = buffer.begin_copy()
        return copy
    finally:
        RING.give(buffer, copy)


def _in_pieces(
    view: View,
    source: View,
    bounds: list[int],
    finish: Callable[[jax.Array], jax.Array],
    device: Any,
) -> jax.Array:
    whole = jnp.zeros(view.shape, view.dtype, device=device)
    axis = _rows_axis(source)
    for begin, part in zip(bounds, _parts(source, bounds), strict=False):
        piece = finish(_copied(part, device))
        whole = _put(whole, piece, begin, axis)
    return whole


@partial(jax.jit, donate_argnums=0, static_argnums=3)
def _put(whole: jax.Array, piece: jax.Array, begin: int, axis: int) -> jax.Array:
    # As integers, since XLA does not keep the payload of each NaN of a bfloat16 on all devices.
    put = jax.lax.dynamic_update_slice_in_dim(_bits(whole), _bits(piece), begin, axis)
    return put if put.dtype == whole.dtype else jax.lax.bitcast_convert_type(put, whole.dtype)


def _bits(array: jax.Array) -> jax.Array:
    if array.dtype.kind in "biuc":
        return array
    return jax.lax.bitcast_convert_type(array, f"uint{array.dtype.itemsize * 8}")


def _read(view: View, buffer: Buffer, part: int) -> None:
    """Fill a buffer, by as many threads as are worth it."""
    bounds = _bounds(view, max(part, -(-view.nbytes // _READERS)))
    if len(bounds) == 1:
        view.read_into(buffer.memory)
        return
    axis = _rows_axis(view)
    places = [buffer.memory[_rows(axis, *each)] for each in pairwise([*bounds, view.shape[axis]])]

    def read(part: View, place: NDArray[Any]) -> None:
        part.read_into(place)

    with ThreadPoolExecutor(len(places), "safejax-stage") as pool:
        for done in [*map(partial(pool.submit, read), _parts(view, bounds), places)]:
            done.result()


def _bounds(view: View, nbytes: int) -> list[int]:
    """The first rows of parts of at most so many bytes each, or of one row."""
    if view.nbytes <= nbytes:
        return [0]
    rows = view.shape[_rows_axis(view)]
    return [*range(0, rows, max(1, nbytes * rows // view.nbytes))]


def _parts(view: View, bounds: list[int]) -> Iterator[View]:
    axis = _rows_axis(view)
    for each in pairwise([*bounds, view.shape[axis]]):
        yield view.index(_rows(axis, *each))


def _rows(axis: int, begin: int, end: int) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, slice(begin, end))


def _rows_axis(view: View) -> int:
    return next(axis for axis, size in enumerate(view.shape) if size > 1)
