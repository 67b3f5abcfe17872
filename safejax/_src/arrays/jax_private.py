"""How a class of ours becomes an array to JAX: the only module that touches `jax._src`.

JAX lets a type in by private tables. Each is found by feature; where one is missing,
`import safejax` still works and `missing` says which, so that a leaf that reaches `jit` can
tell its user to call `safejax.materialize`.

1. *aval*: the abstract value that tracing sees, without reading.
2. *canonicalizer*: what a leaf becomes when JAX needs its values: the placed array. Primitives
   and arguments of Python-side dispatch pass through it, and from JAX 0.10 on the constants of
   a trace too; before, those have a table of their own.
3. *dispatch*: C++ dispatch flattens arguments by a registry of its own; as a node whose one
   child is the placed array, a leaf takes the fast path. The tree that tracing sees does not
   change: there it is still a leaf.

4. *device_put*: JAX has no table here. Its implementation asks what calls itself an array for its
   buffers, and gives them to C++, so it is wrapped: leaves become their placed arrays before it
   runs.
5. *cotangents*: the sum of two of them is looked up by the type of the first.

`LOOK_AT_REAL_TYPES` are the functions that hand whatever calls itself an array to C++, which
looks at the real type: to those a leaf must not call itself one.

Two things are found by private names too, and go by public ones where those are missing: an
array of the blocks that its devices hold, which is faster, and the layout that a device gives an
array, which then needs the placed array.

The client of the service by which processes find each other is private as well; without it,
several processes cannot save together.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import CodeType
from typing import Any, Final, Protocol, TypeVar

import jax
import numpy as np
from jax.experimental.layout import Layout
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding
from numpy.typing import NDArray

from safejax._src.arrays.content import is_key

_T = TypeVar("_T")


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


def _find_batched_device_put() -> Callable[..., jax.Array] | None:
    try:
        from jax._src.interpreters.pxla import batched_device_put

        arguments = dict.fromkeys(("aval", "sharding", "xs", "devices", "committed"))
        inspect.signature(batched_device_put).bind(**arguments)
    except (ImportError, TypeError, ValueError):  # ValueError: a native one has no signature
        return None
    return batched_device_put


_batched_device_put: Final = _find_batched_device_put()


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
    blocks: Mapping[Any, NDArray[Any]],
    *,
    committed: bool,
    weak_type: bool = False,
) -> jax.Array:
    """The array whose part on each device of this process is the block that it is given.

    Blocks are in the order of the sharding's devices. One call for all of them, and for what
    `jax.device_put` asks first: it takes a third of its time for one device, an eighth for eight.
    """
    if _batched_device_put is None or not blocks:
        array = _array_of_arrays(shape, dtype, sharding, blocks, committed=committed)
        return _weakly_typed(array) if weak_type else array
    return _batched_device_put(
        aval=abstract_value(shape, dtype, sharding, weak_type),
        sharding=sharding,
        xs=list(blocks.values()),
        devices=list(blocks),
        committed=committed,
    )


def _array_of_arrays(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    sharding: Sharding,
    blocks: Mapping[Any, NDArray[Any]],
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


def _codes_of(functions: Iterable[tuple[str, str]]) -> frozenset[CodeType]:
    """The code of functions of JAX, by module and name, and of what is defined inside them."""
    codes: set[CodeType] = set()
    for module, name in functions:
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
        pending = [getattr(inspect.unwrap(function), "__code__", None)]
        while pending:
            code = pending.pop()
            if isinstance(code, CodeType):
                codes.add(code)
                pending += [const for const in code.co_consts if isinstance(const, CodeType)]
    return frozenset(codes)


REAL_TYPE_FUNCTIONS: Final = (
    ("jax._src.api", "block_until_ready"),
    ("jax._src.api", "copy_to_host_async"),
    ("jax._src.interpreters.pxla", "batched_device_put"),
)
"""By module and name: the functions of JAX that hand what calls itself an array to C++."""

LOOK_AT_REAL_TYPES: Final = _codes_of(REAL_TYPE_FUNCTIONS)


def register(
    cls: type[_T], aval_of: Callable[[_T], Any], place: Callable[[_T], jax.Array]
) -> tuple[str, ...]:
    """Make JAX take instances of `cls` as arrays; the names of the hooks that are missing."""
    hooks: dict[str, Callable[[], None]] = {
        "abstract values": lambda: _register_aval(cls, aval_of),
        "canonicalization": lambda: _register_canonicalizer(cls, place),
        "dispatch": lambda: _register_dispatch(cls, place),
        "device_put": lambda: _register_device_put(cls, place),
        "cotangents": lambda: _register_adder(cls),
    }
    missing: list[str] = []
    for name, hook in hooks.items():
        try:
            hook()
        except (ImportError, AttributeError, TypeError):
            missing.append(name)
    return tuple(missing)


def _register_aval(cls: type[_T], aval_of: Callable[[_T], Any]) -> None:
    from jax._src import core

    core.pytype_aval_mappings[cls] = aval_of


def _register_canonicalizer(cls: type[_T], place: Callable[[_T], jax.Array]) -> None:
    from jax._src import dtypes
    from jax._src.interpreters import mlir

    if hasattr(dtypes, "register_canonicalize_value_handler"):  # JAX 0.10
        dtypes.register_canonicalize_value_handler(cls, place)
        return

    def constant(val: Any, aval: Any) -> Any:
        placed = place(val)
        return mlir.get_constant_handler(type(placed))(placed, aval)

    dtypes.canonicalize_value_handlers[cls] = place
    mlir.register_constant_handler(cls, constant)


def _register_dispatch(cls: type[_T], place: Callable[[_T], jax.Array]) -> None:
    from jax._src import tree_util

    def flatten(leaf: _T) -> tuple[tuple[jax.Array], None]:
        return (place(leaf),), None

    def unflatten(_: None, children: Any) -> Any:
        return children[0]

    tree_util.dispatch_registry.register_node(cls, flatten, unflatten)


_DEVICE_PUT: Final = "_batched_device_put_impl"


def _register_device_put(cls: type[_T], place: Callable[[_T], jax.Array]) -> None:
    from jax._src import dispatch

    put: Callable[..., Any] = getattr(dispatch, _DEVICE_PUT)

    @functools.wraps(put)
    def put_placed(*arrays: Any, **params: Any) -> Any:
        return put(*(place(x) if type(x) is cls else x for x in arrays), **params)

    setattr(dispatch, _DEVICE_PUT, put_placed)


def _register_adder(cls: type[_T]) -> None:
    from jax._src import ad_util
    from jax._src.array import ArrayImpl

    ad_util.raw_jaxval_adders[cls] = ad_util.raw_jaxval_adders[ArrayImpl]
