"""Placing: a view's values onto the devices of a sharding, always concrete.

One block is read for each *distinct* index that this process's devices hold; replicas share
it, and what no device here holds is never read. Blocks that look at a mapped file are handed
to the device as they are, and XLA's CPU client uses them in place where they are aligned.
"""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast, final

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from numpy.typing import NDArray

from safejax.dtypes import Dtype
from safejax.errors import PlacementError, PrecisionError
from safejax.memory import ALIGNMENT, Arena, aligned_empty
from safejax.views import CastTo, View


@final
@dataclass(frozen=True, slots=True)
class Placement:
    """Where a leaf goes; not committed means: JAX may move it to meet other arrays."""

    sharding: Sharding
    committed: bool


def default_placement() -> Placement:
    """JAX's default device as it is now, uncommitted."""
    device = cast("Any", jax.config).jax_default_device
    if device is None:
        device = jax.local_devices()[0]
    elif isinstance(device, str):
        device = jax.local_devices(backend=device)[0]
    return Placement(SingleDeviceSharding(device), committed=False)


@final
@dataclass(frozen=True, slots=True)
class Request:
    """A leaf to place: its view, as `dtype`, where `placement` says.

    With `key` the view is a key's data, uint32 with the key's own axes last, and a typed key
    array comes back. `name` is what errors call it.
    """

    view: View
    dtype: Dtype
    key: str | None
    placement: Placement
    name: str


def place(view: View, dtype: Dtype, key: str | None, placement: Placement, name: str) -> jax.Array:
    """The array of one `Request`."""
    (array,) = place_all([Request(view, dtype, key, placement, name)])
    return array


def place_all(requests: Sequence[Request]) -> list[jax.Array]:
    """The arrays of all requests, whose blocks go to their devices together.

    Raises `PrecisionError` where a narrower integer `dtype` cannot hold a value; whatever is
    raised says for which leaf.
    """
    prepared: list[_Prepared] = []
    for request in requests:
        with _telling(request.name):
            prepared.append(_prepared(request))
    try:
        put = _put([part for parts, _ in prepared for part in parts])
    except Exception:
        for request, (parts, _) in zip(requests, prepared, strict=True):
            with _telling(request.name):
                _put(parts)
        raise
    arrays = iter(put)
    return [assemble([next(arrays) for _ in parts]) for parts, assemble in prepared]


_Part: TypeAlias = tuple[NDArray[Any], Any]
"""A block, and the sharding that it is committed to, or the device that it is put on without."""

_Prepared: TypeAlias = tuple[list[_Part], Callable[[list[jax.Array]], jax.Array]]
"""The blocks of a leaf, and what makes it of them when they are on their devices."""


def _prepared(request: Request) -> _Prepared:
    view, key = request.view, request.key
    sharding, committed = request.placement.sharding, request.placement.committed
    if key is not None:
        of_data = Placement(_of_key_data(sharding, _key_axes(key)), committed)
        parts, assemble = _prepared(replace(request, key=None, placement=of_data))
        return parts, lambda arrays: jax.random.wrap_key_data(assemble(arrays), impl=key)
    devices = sharding.device_set
    if not committed or (len(devices) == 1 and sharding.is_fully_addressable):
        (device,) = devices
        block = _block(view, request, device, aligned_empty)
        return [(block, sharding if committed else device)], lambda arrays: arrays[0]
    blocks: dict[tuple[Any, ...], NDArray[Any]] = {}
    parts: list[_Part] = []
    indices = cast(
        "dict[Any, tuple[slice, ...]]",
        sharding.addressable_devices_indices_map(view.shape),
    )
    bounds = {
        device: tuple((part.start, part.stop) for part in index)
        for device, index in indices.items()
    }
    # The shards of an array are let go together.
    size = math.prod(sharding.shard_shape(view.shape)) * request.dtype.itemsize
    arena = Arena(len(set(bounds.values())), size)
    # Behind a barrier every block needs the whole operand, which is made once for all.
    with view.kept():
        for device, index in indices.items():
            distinct = bounds[device]
            if distinct not in blocks:
                blocks[distinct] = _block(view.index(index), request, device, arena.empty)
            single = SingleDeviceSharding(device, memory_kind=sharding.memory_kind)
            parts.append((blocks[distinct], single))
    # The dtype, since there may be no device of this process among them.
    return parts, lambda arrays: jax.make_array_from_single_device_arrays(
        view.shape, sharding, arrays, dtype=request.dtype
    )


def _put(parts: Sequence[_Part]) -> list[jax.Array]:
    """The blocks on their devices, by as few calls as can be."""
    groups: dict[Any, list[int]] = {}
    for number, (_, target) in enumerate(parts):
        groups.setdefault(None if isinstance(target, Sharding) else target, []).append(number)
    put: dict[int, jax.Array] = {}
    for device, numbers in groups.items():
        blocks = [parts[number][0] for number in numbers]
        if device is None:
            arrays = jax.device_put(blocks, [parts[number][1] for number in numbers])
        else:
            with jax.default_device(device):
                arrays = jax.device_put(blocks)
        put.update(zip(numbers, arrays, strict=True))
    return [put[number] for number in range(len(parts))]


@contextmanager
def _telling(name: str) -> Generator[None]:
    """Have what is raised inside the block say for which leaf."""
    try:
        yield
    except AttributeError as error:
        # hasattr() would take it for a missing attribute of the array.
        raise PlacementError(f"leaf {name!r}: placing it failed: {error}") from error
    except Exception as error:
        error.add_note(f"while placing leaf {name!r}")
        raise


def _of_key_data(sharding: Sharding, key_axes: int) -> Sharding:
    """The sharding of the data of keys, whose own axes, the last ones, are not split."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    spec = PartitionSpec(*sharding.spec, *(None,) * key_axes)
    return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)


def _key_axes(key_impl: str) -> int:
    key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=key_impl)))
    return len(key.shape)


_Empty: TypeAlias = Callable[[tuple[int, ...], Dtype], NDArray[Any]]


def _block(view: View, request: Request, device: Any, empty: _Empty) -> NDArray[Any]:
    """What a device is given: of the dtype, aligned for it, and changed by nobody."""
    if view.dtype != request.dtype:
        return _narrowed(view.read(), request.dtype, request.name, empty)
    block = view.look(alignment_for(device, view.dtype))
    if block is None:
        block = empty(view.shape, view.dtype)
        view.read_into(block)
    return block


def alignment_for(device: Any, dtype: Dtype) -> int:
    """Bytes that a block must begin on for a device to take it as it lies."""
    # Others than the CPU copy it to memory of their own.
    return ALIGNMENT if device.platform == "cpu" else dtype.alignment


def _narrowed(block: NDArray[Any], dtype: Dtype, name: str, empty: _Empty) -> NDArray[Any]:
    """The block in the narrower dtype that JAX uses while x64 is off."""
    if dtype.kind in "iu" and block.size:
        limits = np.iinfo(dtype)
        low, high = int(block.min()), int(block.max())
        if low < limits.min or high > limits.max:
            outside = low if low < limits.min else high
            raise PrecisionError(
                f"leaf {name!r}: expected values that {dtype} holds, since JAX's x64 mode is "
                f"off, got {outside} in a leaf of {block.dtype}: turn it on with "
                "jax.config.update('jax_enable_x64', True), or take numpy.asarray(leaf), which "
                "has all bits"
            )
    out = empty(block.shape, dtype)
    CastTo(dtype).into(block, out)
    return out
