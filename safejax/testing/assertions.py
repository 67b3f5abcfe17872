"""Assertions about trees: that they are identical, survive a round trip, or read so many bytes."""

import struct
from typing import Any

import chex
import jax
import numpy as np

from safejax._src.arrays.materialize import place_all
from safejax._src.checkpoint.codec import encode
from safejax._src.leaves.flatten import flatten
from safejax._src.leaves.leaf import content_of, describe, is_array, is_weakly_typed
from safejax._src.leaves.steps import Chain, Step, chain
from safejax._src.pytrees.walk import walk
from safejax._src.reading.log import observe_reads


def assert_trees_identical(actual: Any, expected: Any) -> None:
    """Fail unless two pytrees agree in structure, types, shapes, shardings and every bit.

    The structure is the treedef: container types, keys and their order. Bits are compared as they
    are stored, so NaN payloads and -0.0 matter, and a lazy leaf is compared with all 64 bits in
    its file. The type is the dtype, and whether JAX takes the leaf for weakly typed. Shardings are
    compared where the expected leaf is committed.

    Raises `AssertionError`, which names the first leaf that differs and says how.

    >>> import jax.numpy as jnp
    >>> assert_trees_identical({"w": jnp.ones(2)}, {"w": jnp.zeros(2)})
    Traceback (most recent call last):
    ...
    AssertionError: leaf 'w': expected the bits 0000000000000000, got 0000803f0000803f
    """
    _assert_same_structure(actual, expected)
    entries = walk(actual).entries
    for name, leaf in walk(expected).entries.items():
        assert_same_bits(entries[name], leaf, name)
        _assert_same_weak_type(entries[name], leaf, name)
        _assert_same_sharding(entries[name], leaf, name)


def assert_same_bits(actual: Any, expected: Any, name: str = "") -> None:
    """Fail unless two leaves have the same type, dtype, shape and bits.

    `name` is the leaf's name in the message. Arrays of NumPy and JAX, lazy or not, are one type.

    >>> import jax.numpy as jnp, numpy as np
    >>> assert_same_bits(jnp.ones(2), np.ones(2, np.float32))
    """
    where = f"leaf {name!r}: " if name else ""
    if not is_array(expected):
        same = type(actual) is type(expected) and _scalar_bits(actual) == _scalar_bits(expected)
        if not same:
            raise AssertionError(f"{where}expected {expected!r}, got {actual!r}")
        return
    if not is_array(actual):
        raise AssertionError(f"{where}expected an array, got {actual!r}")
    found, wanted = content_of(actual), content_of(expected)
    assert found is not None
    assert wanted is not None
    if found.key != wanted.key:
        raise AssertionError(f"{where}expected keys of {wanted.key}, got {found.key}")
    if (found.view.dtype, found.shape) != (wanted.view.dtype, wanted.shape):
        raise AssertionError(
            f"{where}expected {wanted.view.dtype}{list(wanted.shape)}, got "
            f"{found.view.dtype}{list(found.shape)}"
        )
    bits, expected_bits = (_bits(content.view.read()) for content in (found, wanted))
    if bits != expected_bits:
        raise AssertionError(
            f"{where}expected the bits {expected_bits.hex():.200}, got {bits.hex():.200}"
        )


def assert_round_trip(tree: Any, pipeline: Step[Any, Any] | None = None) -> None:
    """Fail unless `pipeline.inverse(pipeline(tree))` is `tree` again, in every bit.

    By default the pipeline is that of `save` and `load`, `chain(flatten, encode)`. If the last
    step of the inverse is `unflatten`, it is given `like=tree`, since node types such as
    namedtuples and dataclasses are not rebuilt without it.

    >>> import jax.numpy as jnp
    >>> assert_round_trip({"w": jnp.ones((2, 3)), "layers": [1, None, jnp.nan]})
    """
    pipeline = chain(flatten, encode) if pipeline is None else pipeline
    inverse = pipeline.inverse
    like = _like(inverse, tree)
    assert_trees_identical(like(pipeline(tree)), tree)


def assert_reads(tree: Any, nbytes: int) -> None:
    """Fail unless placing every lazy leaf of `tree` requests exactly `nbytes` from their files.

    >>> import jax.numpy as jnp, safejax
    >>> data = safejax.serialize({"w": jnp.ones((8, 2))})
    >>> assert_reads(safejax.deserialize(data)["w"][:4], 32)
    """
    with observe_reads() as log:
        place_all(tree)
    if log.nbytes != nbytes:
        raise AssertionError(f"expected {nbytes} bytes to be read, got {log.nbytes}")


def _assert_same_structure(actual: Any, expected: Any) -> None:
    try:
        chex.assert_trees_all_equal_structs(actual, expected)
    except AssertionError:
        found, wanted = walk(actual).entries, walk(expected).entries
        differing = [
            *(f"missing {name!r}" for name in wanted if name not in found),
            *(f"unexpected {name!r}" for name in found if name not in wanted),
        ]
        some = ", ".join(differing[:5]) or "the same names in other containers"
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise AssertionError(
            f"{some}{more}: expected the structure {jax.tree.structure(expected)}, got "
            f"{jax.tree.structure(actual)}"
        ) from None


def _like(inverse: Step[Any, Any], tree: Any) -> Step[Any, Any]:
    """The inverse, with `like` if its last step is `unflatten`."""
    steps = inverse.steps if isinstance(inverse, Chain) else (inverse,)
    if steps and steps[-1] == flatten.inverse:
        return chain(*steps[:-1], flatten.inverse(like=tree))
    return inverse


def _bits(array: Any) -> bytes:
    host = np.asarray(array)
    if host.dtype.name.startswith(("int", "uint")) and host.dtype.name[-1] in "124":
        # Elements of fewer than eight bits leave the rest of their byte undefined.
        host = host.astype(np.int8)
    return host.tobytes()


def _scalar_bits(value: Any) -> Any:
    if isinstance(value, float):
        return struct.pack("<d", value)
    if isinstance(value, complex):
        return struct.pack("<dd", value.real, value.imag)
    return value


def _assert_same_weak_type(actual: Any, expected: Any, name: str) -> None:
    found, wanted = is_weakly_typed(actual), is_weakly_typed(expected)
    if found != wanted:
        kinds = {True: "a weakly typed array", False: "a strongly typed array"}
        raise AssertionError(
            f"leaf {name!r}: expected {kinds[wanted]}, {describe(expected)}, got {kinds[found]}, "
            f"{describe(actual)}"
        )


def _assert_same_sharding(actual: Any, expected: Any, name: str) -> None:
    if not isinstance(expected, jax.Array) or not getattr(expected, "committed", False):
        return
    if isinstance(actual, jax.Array) and not actual.sharding.is_equivalent_to(
        expected.sharding, expected.ndim
    ):
        raise AssertionError(
            f"leaf {name!r}: expected the sharding {expected.sharding}, got {actual.sharding}"
        )
