"""Hypothesis strategies for leaves, trees, indices, shardings and transforms."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from numpy.typing import NDArray

from safejax._src.arrays.content import KEY_IMPLEMENTATIONS
from safejax._src.arrays.lazy import LazyArray
from safejax._src.dtypes import is_floating
from safejax._src.leaves.leaf import aval_of, content_of, is_array
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import chain
from safejax._src.pytrees.patterns import exactly
from safejax._src.transforms.cast import cast
from safejax._src.transforms.prefix import prefix
from safejax._src.transforms.rename import rename
from safejax._src.transforms.reshape import reshape
from safejax._src.transforms.split import split
from safejax._src.transforms.stack import unstack
from safejax._src.transforms.transpose import transpose

_NAMES: Final = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "complex64", "complex128",
    "bfloat16", "int1", "int2", "int4", "uint1", "uint2", "uint4", "float4_e2m1fn",
    "float6_e2m3fn", "float6_e3m2fn", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz",
    "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
)  # fmt: skip


def _dtype(name: str) -> Any:
    scalar = getattr(ml_dtypes, name, None)
    if scalar is None and not hasattr(np, name):
        return None
    return np.dtype(name if scalar is None else scalar)


# Older versions of JAX lack the newest dtypes.
ALL_DTYPES: Final[tuple[np.dtype[Any], ...]] = tuple(
    _dtype(name) for name in _NAMES if hasattr(jnp, name) or (name == "bool" and _dtype(name))
)
"""Every dtype that JAX has, as `numpy.dtype`."""

_BITS_OF_NARROW: Final = {"int1": 1, "int2": 2, "int4": 4, "uint1": 1, "uint2": 2, "uint4": 4}


def shapes(
    min_axes: int = 0, max_axes: int = 5, max_size: int = 64
) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes with `min_axes` to `max_axes` axes and 0 to `max_size` elements."""
    sides = st.lists(st.sampled_from((1, 2, 3, 4, 8, 0)), min_size=min_axes, max_size=max_axes)
    return sides.map(tuple).filter(lambda shape: math.prod(shape) <= max_size)


@st.composite
def arrays(
    draw: st.DrawFn,
    dtype: Any = None,
    shape: tuple[int, ...] | None = None,
) -> NDArray[Any] | jax.Array:
    """NumPy and JAX arrays, of every dtype that JAX has unless `dtype` is given.

    Elements are drawn as raw bits, so that NaN payloads, infinities, subnormals and -0.0 occur.
    While JAX's x64 mode is off, 64-bit arrays are NumPy arrays. NumPy arrays may be
    Fortran-ordered or read-only. JAX arrays of the dtypes of Python's numbers may be weakly typed.
    """
    chosen = draw(st.sampled_from(ALL_DTYPES)) if dtype is None else np.dtype(dtype)
    sides = draw(shapes()) if shape is None else shape
    array = _from_bits(draw, chosen, sides)
    if _is_placeable(chosen) and draw(st.booleans()):
        weak = chosen in _weak_dtypes() and draw(st.booleans())
        return _weakly_typed(array) if weak else jax.device_put(array)
    if draw(st.booleans()):
        array = np.asfortranarray(array)
    array.flags.writeable = draw(st.booleans())
    return array


def _is_placeable(dtype: np.dtype[Any]) -> bool:
    """Whether JAX can make arrays of the dtype on the CPU without changing it."""
    unfinished = dtype.name.startswith("float6") or dtype.name in ("int1", "uint1")
    return jax.dtypes.canonicalize_dtype(dtype) == dtype and not unfinished


def _weak_dtypes() -> set[Any]:
    """The dtypes of the arrays that JAX makes of Python's numbers."""
    return {jax.dtypes.canonicalize_dtype(number) for number in (int, float, complex)}


def _weakly_typed(array: NDArray[Any]) -> jax.Array:
    """The array on JAX's default device, weakly typed, with the same bits."""
    content = content_of(array)
    assert content is not None
    return LazyArray(content._replace(weak_type=True), "weak").placed()


def _from_bits(draw: st.DrawFn, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    count = math.prod(shape)
    size = count * dtype.itemsize
    raw = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8).copy()
    if count and (is_floating(dtype) or dtype.kind == "c"):
        # Bits that are rarely drawn: -0.0, the smallest subnormal, a NaN with all bits set.
        width = dtype.itemsize // (2 if dtype.kind == "c" else 1)
        special = [bytes(width - 1) + b"\x80", b"\x01" + bytes(width - 1), b"\xff" * width]
        for _ in range(draw(st.integers(0, 2))):
            at = width * draw(st.integers(0, size // width - 1))
            raw[at : at + width] = np.frombuffer(draw(st.sampled_from(special)), np.uint8)
    if dtype == np.bool_:
        return (raw & 1).astype(np.bool_).reshape(shape)
    if dtype.name in _BITS_OF_NARROW:
        bits = _BITS_OF_NARROW[dtype.name]
        offset = 1 << (bits - 1) if dtype.name.startswith("i") else 0
        return ((raw & ((1 << bits) - 1)).astype(np.int8) - offset).astype(dtype).reshape(shape)
    if dtype.name.startswith(("float4", "float6")):
        raw = raw & (0x0F if dtype.name.startswith("float4") else 0x3F)
    return raw.view(dtype).reshape(shape)


@st.composite
def keys(draw: st.DrawFn, shape: tuple[int, ...] | None = None) -> jax.Array:
    """Typed PRNG key arrays of every implementation that JAX ships."""
    implementation = draw(st.sampled_from(KEY_IMPLEMENTATIONS))
    sides = draw(shapes(0, 2, 8)) if shape is None else shape
    width = 2 if implementation == "threefry2x32" else 4
    data = _from_bits(draw, np.dtype(np.uint32), (*sides, width))
    return jax.random.wrap_key_data(jnp.asarray(data), impl=implementation)


def scalars() -> st.SearchStrategy[Any]:
    """Python scalars and strings, including huge ints, NaN, infinities, -0.0 and any text."""
    return st.one_of(
        st.booleans(),
        st.integers(),
        st.integers(min_value=2**62, max_value=2**80),
        st.floats(),
        st.complex_numbers(allow_nan=True),
        st.text(max_size=5),
    )


_AWKWARD: Final = (
    "", ".", "..", "a.b", "a", "b", "a~1", "~", "~1", "/", "a/b", "__metadata__", "0", "1", "01",
    "-1", "\x00", "é", "🦎", "\ud800", "[", "]", '["a"]', "safejax", "dtype", "{i}", "*", "w",
)  # fmt: skip


def dict_keys() -> st.SearchStrategy[str]:
    """Dict keys that are hard to turn into names, and any other text."""
    return st.one_of(st.sampled_from(_AWKWARD), st.text(max_size=4))


class Pair(NamedTuple):
    """A node type that is rebuilt only with `like`."""

    first: Any
    second: Any


def pytrees(leaves: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[Any]:
    """Pytrees of every container, deep or wide, with difficult keys; some have no leaves.

    `leaves` are arrays, keys, scalars and strings by default. A tree may be a single leaf.
    """
    leaf = st.one_of(arrays(), keys(), scalars()) if leaves is None else leaves
    chain_of_dicts = st.tuples(st.lists(dict_keys(), min_size=5, max_size=30), leaf).map(_nested)

    def containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.one_of(
            st.dictionaries(dict_keys(), children, max_size=5),
            st.dictionaries(st.integers(), children, max_size=3),
            st.dictionaries(st.tuples(st.integers(), dict_keys()), children, max_size=3),
            st.dictionaries(dict_keys(), children, max_size=4).map(OrderedDict),
            st.lists(children, max_size=5),
            st.lists(children, max_size=4).map(tuple),
            st.builds(Pair, children, children),
        )

    return st.recursive(st.one_of(leaf, st.none()), containers, max_leaves=12) | chain_of_dicts


def _nested(parts: tuple[list[str], Any]) -> Any:
    path, tree = parts
    for key in path:
        tree = {key: tree}
    return tree


@st.composite
def indices(draw: st.DrawFn, shape: Sequence[int]) -> tuple[Any, ...]:
    """Basic indices for an array of `shape`: ints, slices with any step, and `...`."""
    count = draw(st.integers(0, len(shape)))
    entries: list[Any] = []
    # Some axes at the front and, after an Ellipsis, some at the back.
    front = draw(st.integers(0, count))
    axes = [*range(front), *range(len(shape) - (count - front), len(shape))]
    for axis in axes:
        size = shape[axis]
        if size and draw(st.booleans()):
            entries.append(draw(st.integers(-size, size - 1)))
        else:
            entries.append(draw(_slices(size)))
    if count - front or draw(st.booleans()):
        entries.insert(front, ...)
    return tuple(entries)


def _slices(size: int) -> st.SearchStrategy[slice]:
    bound = st.none() | st.integers(-size - 2, size + 2)
    step = st.none() | st.sampled_from((1, 2, 3, -1, -2, -3))
    return st.builds(slice, bound, bound, step)


@st.composite
def shardings(
    draw: st.DrawFn, shape: Sequence[int], devices: Sequence[Any] | None = None
) -> jax.sharding.Sharding:
    """Shardings that divide `shape`: on one device, or on a mesh with explicit or auto axes."""
    available = list(jax.devices() if devices is None else devices)
    if draw(st.booleans()):
        return SingleDeviceSharding(draw(st.sampled_from(available)))
    sizes = [n for n in range(1, len(available) + 1) if len(available) % n == 0]
    rows = draw(st.sampled_from(sizes))
    axis_type = draw(st.sampled_from((AxisType.Auto, AxisType.Explicit)))
    grid = np.asarray(available).reshape(rows, -1)
    mesh = Mesh(grid, ("x", "y"), axis_types=(axis_type, axis_type))
    free = ["x", "y"]
    spec: list[Any] = []
    for size in shape:
        fitting = [axis for axis in free if size % mesh.shape[axis] == 0]
        axis = draw(st.sampled_from([None, *fitting]))
        if axis is not None:
            free.remove(axis)
        spec.append(axis)
    return NamedSharding(mesh, PartitionSpec(*spec))


@st.composite
def transforms(draw: st.DrawFn, leaves: Leaves) -> Callable[[Leaves], Leaves]:
    """Chains of safejax's transforms that have an inverse and can be applied to `leaves`."""
    steps: list[Callable[[Leaves], Leaves]] = []
    for _ in range(draw(st.integers(0, 3))):
        candidates = _applicable(leaves)
        if not candidates:
            break
        chosen = draw(st.sampled_from(candidates))
        leaves = chosen(leaves)
        steps.append(chosen)
    return chain(*steps)


def _applicable(leaves: Leaves) -> list[Callable[[Leaves], Leaves]]:
    avals = {name: aval_of(leaf) for name, leaf in leaves.items() if is_array(leaf)}
    found: list[Callable[[Leaves], Leaves]] = []
    dtypes = {aval.dtype for aval in avals.values() if _is_plain(aval)}
    for source in sorted((dtype for dtype in dtypes if is_floating(dtype)), key=str):
        found.extend(
            cast(target, source=source)
            for target in ("float32", "bfloat16", "float16", "float8_e5m2")
            if target not in {dtype.name for dtype in dtypes}
        )
    for name, aval in avals.items():
        if "*" in name:
            continue  # No pattern matches only this name.
        pattern = exactly(name)
        if aval.ndim == 2:
            found.append(transpose(pattern))
        if aval.ndim >= 2:
            found.append(transpose(pattern, axes=tuple(reversed(range(aval.ndim)))))
        if aval.size:
            found.append(reshape(pattern, (aval.size, 1), source=tuple(aval.shape)))
        if aval.size and not any(other.startswith(f"{name}/") for other in leaves):
            for axis, size in enumerate(aval.shape):
                found.append(unstack(pattern, f"{pattern}/{{i}}", axis=axis))
                if size > 1:
                    parts = [f"{pattern}/head", f"{pattern}/tail"]
                    found.append(split(pattern, parts, axis=axis, sizes=(1, size - 1)))
    if leaves:
        found.extend((rename({"*": "renamed/*"}), prefix("model")))
    return found


def _is_plain(aval: Any) -> bool:
    return not jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended)
