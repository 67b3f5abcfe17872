"""What safejax uses of JAX by private names, apart from the hooks of `arrays/jax_hooks.py`.

Two things go by public names where the private ones are missing: an array of the blocks that its
devices hold, which is faster, and the layout that a device gives an array, which then needs the
placed array.

The client of the service by which processes find each other is private as well; without it,
several processes cannot save together.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import jax
import numpy as np
from jax.experimental.layout import Layout
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding
from numpy.typing import NDArray

from safejax._src.arrays.content import is_key


def concrete_array_type() -> type[jax.Array]:
    """The class of placed arrays, or `jax.Array` where it cannot be found."""
    try:
        from jax._src.array import ArrayImpl
    except ImportError:
        return jax.Array
    return ArrayImpl


class Service(Protocol):
    """The client of JAX's coordination service: a store of strings that all processes share."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...
    def key_value_increment(self, key: str, increment: int) -> int: ...
    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...
    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...
    def key_value_delete(self, key: str) -> None: ...


def coordination_service() -> Service | None:
    """The client that `jax.distributed.initialize` made; None without one that can do all this."""
    try:
        from jax._src import distributed

        client: Any = distributed.global_state.client
    except (ImportError, AttributeError):
        return None
    methods = [name for name in vars(Service) if name[0] != "_"]
    return client if all(hasattr(client, name) for name in methods) else None


_ARGUMENTS: Final = ("aval", "sharding", "xs", "devices", "committed")


def _find_batched_device_put() -> Callable[..., jax.Array] | None:
    """The native function, or JAX's own in Python, which asks more of what may be its arrays."""
    try:
        from jax._src.lib import xla_client

        native: Any = xla_client.batched_device_put
        taken = re.findall(r"(\w+): ", native.__nb_signature__[0][0])
        if tuple(taken[: len(_ARGUMENTS)]) == _ARGUMENTS:
            return native
    except (ImportError, AttributeError, IndexError, TypeError):
        pass
    try:
        from jax._src.interpreters.pxla import batched_device_put

        inspect.signature(batched_device_put).bind(**dict.fromkeys(_ARGUMENTS))
    except (ImportError, TypeError, ValueError):  # ValueError: it has no signature
        return None
    return batched_device_put


_batched_device_put: Final = _find_batched_device_put()

TAKES_PLACED_BLOCKS: Final = _batched_device_put is not None
"""Whether blocks may be arrays of JAX that are on their devices already."""


def current_mesh() -> Mesh | None:
    """The mesh of devices that `jax.set_mesh` has put in context, if any."""
    try:
        mesh = jax.sharding.get_mesh()
    except AttributeError:  # JAX 0.8
        from jax._src.mesh import get_concrete_mesh

        mesh = get_concrete_mesh()
    return None if mesh.empty else mesh


def array_of_blocks(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    sharding: Sharding,
    blocks: Mapping[Any, NDArray[Any] | jax.Array],
    *,
    committed: bool,
    weak_type: bool = False,
) -> jax.Array:
    """The array whose part on each device of this process is the block that it is given.

    Blocks are in the order of the sharding's devices, and may be arrays of JAX if
    `TAKES_PLACED_BLOCKS`. One call for all of them, and for what
    `jax.device_put` asks first: it takes a third of its time for one device, an eighth for eight.
    """
    if _batched_device_put is None or not blocks:
        array = _array_of_arrays(shape, dtype, sharding, blocks, committed=committed)
        return _weakly_typed(array) if weak_type else array
    return _batched_device_put(
        aval=abstract_value(shape, dtype, sharding, weak_type),
        sharding=sharding,
        xs=[_on(device, block) for device, block in blocks.items()],
        devices=list(blocks),
        committed=committed,
    )


def _on(device: Any, block: NDArray[Any] | jax.Array) -> NDArray[Any] | jax.Array:
    """A block for a device; an array of JAX is on it already, or on one of a replica."""
    is_there = isinstance(block, np.ndarray) or block.devices() == {device}
    return block if is_there else jax.device_put(block, device)


def array_of_block(
    aval: Any, sharding: Sharding, devices: list[Any], block: NDArray[Any], committed: bool
) -> jax.Array:
    """The array of a block that is on one device, the only one in `devices`.

    `aval` is what `abstract_value` returns for it.
    """
    if _batched_device_put is not None:
        return _batched_device_put(aval, sharding, [block], devices, committed)
    return array_of_blocks(
        aval.shape,
        aval.dtype,
        sharding,
        {devices[0]: block},
        committed=committed,
        weak_type=aval.weak_type,
    )


def _array_of_arrays(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    sharding: Sharding,
    blocks: Mapping[Any, NDArray[Any] | jax.Array],
    *,
    committed: bool,
) -> jax.Array:
    """The same, by what is public."""
    if not committed:
        ((device, block),) = blocks.items()
        with jax.default_device(device):
            return jax.device_put(block)
    if isinstance(sharding, SingleDeviceSharding) and blocks:
        (block,) = blocks.values()
        return jax.device_put(block, sharding)
    kind = sharding.memory_kind
    singles = [SingleDeviceSharding(device, memory_kind=kind) for device in blocks]
    arrays = jax.device_put(list(blocks.values()), singles)
    # The dtype, since there may be no device of this process among them.
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays, dtype=dtype)


def _weakly_typed(array: jax.Array) -> jax.Array:
    """The same buffers as a weakly typed array, which is public only as a jitted function's result.

    A process that holds none of the array could not run that function.
    """
    aval = abstract_value(array.shape, array.dtype, array.sharding, True)
    parts = [shard.data for shard in array.addressable_shards]
    array_of: Any = concrete_array_type()
    return array_of(aval, array.sharding, parts, committed=array.committed)


@functools.lru_cache(maxsize=8192)
def abstract_value(
    shape: tuple[int, ...], dtype: Any, sharding: Sharding, weak_type: bool = False
) -> Any:
    """What a trace sees of an array: its aval, with the sharding where meshes are explicit.

    Of this dtype whatever the x64 mode is, and equal to that of an array that `jax.device_put`
    has put there.
    """
    with jax.enable_x64(True):
        abstract = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding, weak_type=weak_type)
        aval: Any = jax.typeof(abstract)
    # `jax.typeof` asks shardings of a mesh alone for the memory; JAX has keys on the device.
    if sharding.memory_kind == "pinned_host" and not isinstance(sharding, NamedSharding):
        return aval if is_key(dtype) else aval.update(memory_space=jax.memory.Space.Host)
    return aval


_SUB_BYTE: Final = frozenset({"int2", "int4", "uint2", "uint4", "float4_e2m1fn"})


@functools.lru_cache(maxsize=1024)
def default_layout(shape: tuple[int, ...], dtype: np.dtype[Any], sharding: Sharding) -> Any | None:
    """The layout that devices give an array that is put there; None where it is not known."""
    if dtype.name in _SUB_BYTE:  # JAX 0.8 gives another layout here than the one that it uses.
        return None
    try:
        device: Any = next(iter(sharding.addressable_devices))
        described = device.client.get_default_layout(dtype, sharding.shard_shape(shape), device)
        of_pjrt: Callable[[Any], Any] = Layout.from_pjrt_layout  # pyright: ignore
        return of_pjrt(described)
    except (AttributeError, TypeError, StopIteration):
        return None
