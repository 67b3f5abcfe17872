"""Leaves as the tests make and compare them: lazy ones, stored ones, and their bits."""

import struct
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax._src.arrays.lazy import LazyArray
from safejax._src.arrays.placing import Placement
from safejax._src.checkpoint.codec import decode, encode
from safejax._src.leaves.flatten import flatten
from safejax._src.leaves.leaf import content_of
from safejax._src.leaves.leaves import Leaves
from safejax.testing import assert_same_bits

NUMBERS = (bool, int, float, complex, np.generic, np.ndarray, jax.Array)


def by(spec: P) -> NamedSharding:
    """The sharding by a spec over all eight devices, along the axis "x"."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, spec)


def is_key(array: Any) -> bool:
    """Whether the array is a typed key array."""
    return jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)


def lazy(array: Any, name: str = "w", placement: Placement | None = None) -> LazyArray:
    """A lazy leaf with the values of `array`; a committed array's leaf goes to its devices."""
    content = content_of(array)
    assert content is not None
    if placement is None and isinstance(array, jax.Array) and array.committed:
        placement = Placement(array.sharding, True)
    return LazyArray(content, name, placement)


def arrays_of(tree: Any) -> list[jax.Array]:
    """The JAX arrays among a tree's leaves, lazy or not."""
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]


def is_unread(leaf: Any) -> bool:
    """Whether the leaf is a lazy one whose values are not on their devices yet."""
    return isinstance(leaf, LazyArray) and not leaf.is_placed


def stored(tree: Any) -> Leaves:
    """The Leaves of a tree, or the Leaves given, as they come out of a file."""
    return decode(encode(tree if isinstance(tree, Leaves) else flatten(tree)))


def same(actual: Leaves, expected: dict[str, Any]) -> None:
    """Assert that the leaves have these names and, bit by bit, these values."""
    assert actual.keys() == expected.keys()
    for name, leaf in expected.items():
        assert_same_bits(actual[name], leaf, name)


def host_bytes(array: Any) -> bytes:
    """The bytes of an array's values; for a typed key array, those of its key data."""
    is_array = isinstance(array, jax.Array)
    return np.asarray(jax.random.key_data(array) if is_array and is_key(array) else array).tobytes()


def bits(tree: Any) -> list[tuple[str, bytes]]:
    """The dtype and the bytes of each array and each number in a tree."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, NUMBERS)]
    return [(str(getattr(leaf, "dtype", type(leaf))), host_bytes(leaf)) for leaf in leaves]


def float_of_bits(bits: int) -> float:
    """The float with these 64 bits."""
    return struct.unpack(">d", struct.pack(">Q", bits))[0]


def through_file(tree: Any, transform: Any) -> Any:
    """What a file of `tree` gives when it is loaded with `transform`."""
    return safejax.deserialize(safejax.serialize(tree), transform=transform)


def weakly_typed(array: jax.Array) -> jax.Array:
    """The array, weakly typed: the result of a program that was compiled for such an array."""
    aval = jax.ShapeDtypeStruct(array.shape, array.dtype, weak_type=True)
    result = jax.jit(jnp.copy).lower(aval).compile()(array)
    assert result.weak_type
    return result
