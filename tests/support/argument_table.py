"""The table of arguments: rows that are tried on every callable, and the arrays in them.

A row is what stands between the parentheses of a call. Names in capitals are arrays, made anew
for each call, plain or lazy, in one of the placements; small letters name what is the same for
both. In `first ; second` the call's result is called again, with the second part.
"""

import ast
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from safejax._src.arrays.content import Content
from safejax._src.arrays.lazy import LazyArray
from safejax._src.arrays.placing import Placement
from safejax._src.leaves.leaf import content_of
from safejax._src.reading.memory import aligned_empty

P: Final = PartitionSpec
DEVICES: Final = jax.devices()
AUTO: Final = jax.make_mesh((2,), ("x",), devices=DEVICES[:2], axis_types=(AxisType.Auto,))
EXPLICIT: Final = jax.make_mesh((2,), ("x",), devices=DEVICES[:2], axis_types=(AxisType.Explicit,))

PLACEMENTS: Final = ("default", "committed", "rows", "columns", "replicated", "explicit")
STATES: Final = ("unread", "placed", "mixed")


def _sharding(placement: str, shape: tuple[int, ...]) -> Any:
    """Where an array of the shape goes; what cannot be split is replicated."""
    if placement == "default":
        return None
    if placement == "committed":
        return SingleDeviceSharding(DEVICES[3])
    mesh = EXPLICIT if placement == "explicit" else AUTO
    axis = {"columns": 1, "replicated": 99}.get(placement, 0)
    if len(shape) <= axis or shape[axis] % 8:
        return NamedSharding(mesh, P())
    return NamedSharding(mesh, P(*(None,) * axis, "x"))


# ---- the arrays

_FLOATS: Final = (np.arange(64, dtype=np.float32).reshape(8, 8) - 20.5) / 40
_INTS: Final = np.array([3, 0, 5, 1, 7, 2, 6, 4], np.int32)

HOSTS: Final[Mapping[str, Callable[[], Any]]] = {
    "F": lambda: _FLOATS,
    "V": lambda: np.linspace(0.1, 0.9, 8, dtype=np.float32),
    "S": lambda: np.float32(0.75),
    "A": lambda: np.array([0.5], np.float32),
    "I": lambda: _INTS,
    "J": lambda: (np.arange(64, dtype=np.int32).reshape(8, 8) * 7) % 13,
    "N": lambda: np.int32(3),
    "B": lambda: _FLOATS > 0,
    "M": lambda: _INTS % 2 == 0,
    "L": lambda: np.bool_(True),
    "C": lambda: (_FLOATS + 1j * _FLOATS.T).astype(np.complex64),
    "D": lambda: (_FLOATS @ _FLOATS.T + 8 * np.eye(8, dtype=np.float32)).astype(np.float32),
    "H": lambda: _FLOATS.astype(ml_dtypes.bfloat16),
    "T": lambda: np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 2, 4),
    "W": lambda: np.linspace(-1, 1, 512, dtype=np.float32).reshape(8, 8, 2, 4),
    "U": lambda: np.arange(8, dtype=np.uint32) * 1000,
    "Y": lambda: np.arange(8, dtype=np.uint8),
    "R": lambda: np.array([0, 42], np.uint32),  # a raw key
    "Z": lambda: np.zeros((0, 8), np.float32),
    "K": lambda: jax.random.key(7),
    "Q": lambda: jax.random.split(jax.random.key(7), 8),
}  # fmt: skip


@functools.cache
def _host(name: str) -> tuple[Any, Content]:
    host = HOSTS[name]()
    if isinstance(host, np.ndarray):
        # As JAX's own arrays: what libraries round may depend on where the memory begins.
        aligned = aligned_empty(host.shape, host.dtype)
        aligned[...] = host
        host = aligned
    content = content_of(host)
    assert content is not None
    return host, content


def plain(name: str, placement: str) -> jax.Array:
    """The array of that name."""
    host, _ = _host(name)
    sharding = _sharding(placement, host.shape)
    if isinstance(host, jax.Array):  # keys: in memory of its own, since a call may delete it
        host = jax.random.wrap_key_data(np.asarray(jax.random.key_data(host)))
    return jax.device_put(host, sharding)


def lazy(name: str, placement: str, *, placed: bool) -> LazyArray:
    """The lazy leaf that holds the same, in the same place."""
    host, content = _host(name)
    sharding = _sharding(placement, host.shape)
    leaf = LazyArray(content, name, sharding and Placement(sharding, committed=True))
    if placed:
        leaf.placed()
    return leaf


# ---- what is the same for both


def _double(x: Any) -> Any:
    return x * 2


def _pair(x: Any, y: Any) -> Any:
    return x + y


def _total(x: Any, *_: Any) -> Any:
    return (x**2).sum()


def _carry(c: Any, x: Any) -> Any:
    return c, x


def _small(x: Any) -> Any:
    return jnp.max(x) < 100.0


def _identity(x: Any) -> Any:
    return x


CONSTANTS: Final[dict[str, Any]] = {
    "np": np, "jnp": jnp, "jax": jax, "lax": lax, "P": P,
    "double": _double, "pair": _pair, "total": _total, "carry": _carry, "small": _small,
    "identity": _identity,
    "device": DEVICES[5], "here": DEVICES[0],
    "rows": NamedSharding(AUTO, P("x")), "whole": NamedSharding(AUTO, P()),
    "erows": NamedSharding(EXPLICIT, P("x")), "ewhole": NamedSharding(EXPLICIT, P()),
    "single": SingleDeviceSharding(DEVICES[5]), "mesh": AUTO,
    "conv": ("NHWC", "HWIO", "NHWC"),
    "struct": jax.ShapeDtypeStruct((8, 8), np.float32),
}  # fmt: skip

# ---- the rows, in groups: of each the first that a callable takes is compared.

GROUPS: Final[tuple[tuple[str, ...], ...]] = (
    ("F", "I", "V", "S", "N", "K", "D", "T", "W", "A", "B", "C", "Q", "R",
     "Y", "U", "M", "L", "H"),
    ("F, F", "V, V", "S, S", "I, I", "N, N", "D, V", "F, V", "F, S", "V, I", "F, I", "V, N",
     "K, N", "B, B", "M, M", "F, N", "J, J", "C, C", "T, T", "I, V", "N, S", "N, V", "R, N",
     "H, F", "U, U", "F, B", "B, F", "Q, I"),
    ("[F, F]", "(F, F)", "[V, V]", "[S, S]", "{'a': F, 'b': [V, S]}", "(F, V)", "[I, I]"),
    ("F, F, F", "V, V, V", "S, S, S", "B, F, F", "M, V, V", "F, S, S", "S, F, S", "N, N, N",
     "N, V, V", "I, V, V", "V, I, V, inplace=False", "I, V, S", "V, S, S", "V, V, S",
     "I, N, S", "F, D, V", "F, V, V",
     "F, I, S", "V, I, V", "F, N, 0", "F, F, 0", "F, V, 0", "V, V, 2", "V, 2, V", "D, D, D",
     "F, I, 0", "V, V, 8"),
    ("K, (3,)", "K, V", "K, F", "K, S, (3,)", "K, V, (8,)", "K, S, S, (3,)", "K, V, V",
     "K, 8", "K, (8, 8)", "K, S", "K, V, D", "K, N, V", "K, S, (3,), 'float32'", "K, 2, (3,)",
     "K, 0, 5, (3,)", "K, (3,), 0, 5", "K, (3,), 'float32'", "K, S, S", "K, 5, S",
     "K, I, N, N"),
    ("F, 2", "F, 0", "F, (8, 8)", "F, (64,)", "F, (1, 0)", "F, 'float16'", "V, 2", "I, 2",
     "2, F", "2, V", "N, 2", "8, V", "S, 2", "F, 1.5", "1.5, F", "V, (8,)", "F, (0,)",
     "F, (2, 8, 8)", "S, (8,)", "(8, 8), S", "(8,), V", "F, device", "F, rows", "F, struct",
     "I, 8", "F, 0, 1", "F, 0, 2", "F, 2, 0", "V, 0, 8", "F, 3, 4", "F, (1, 2), (4, 4)"),
    ("double, F", "pair, F, F", "total, F", "carry, F, F", "small, double, F", "0, 2, pair, F",
     "L, double, identity, F", "N, [double, identity], F", "pair, [F, F]", "pair, F",
     "double, F, rows", "pair, S, V", "double, struct"),
    ("double ; F", "total ; F", "pair ; F, F", "pair, F ; F", "double, F ; F", "F ; F", "8 ; F",
     "F ; device", "F ; V", "F ; K, (8,)", "V ; V", "V, V ; V", "F, 0 ; F"),
    ("'ij,jk->ik', F, F", "'ij,j', F, V", "'i j -> j i', F"),
    ("S, S, S, S", "V, V, V, V", "F, F, F, F", "V, V, V, S", "I, N, N, N", "N, N, N, N",
     "N, S, S, S", "V, V, S, S", "I, V, V, S", "S, S, 8", "S, S, 8, 'float32'", "V, S, S, S, S"),
    ("F, F, (((1,), (0,)), ((), ()))", "W, (1, 1), 'SAME'", "F, lax.add, (0,)",
     "F, S, lax.add, (0,)", "F, (1, 2), 'VALID'"),
)  # fmt: skip
MOST_ROWS: Final = 3

EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    "device": ("device", "rows"),
    "out_sharding": ("erows", "ewhole"),
    "out_shardings": ("rows",),
    "sharding": ("rows", "whole"),
    "where": ("B", "M", "L"),
    "initial": ("S", "N"),
    "weights": ("V", "F"),
    "mask": ("B", "M"),
    "bias": ("F", "V"),
    "fill_value": ("S", "N"),
    "cval": ("S",),
    "constant_values": ("S",),
    "prepend": ("S",),
    "to_end": ("S",),
    "minval": ("S",),
    "loc": ("S",),
    "bins": ("V",),
    "out": ("F",),
    "like": ("F",),
    "sorter": ("I",),
    "ddof": ("S",),
    "src": ("rows",),
    "donate": ("True",),
    "may_alias": ("False",),
    "copy": ("True",),
    "size": ("8",),
    "axis": ("N",),
    "dtype": ("'bfloat16'",),
}
"""For a parameter of one of these names the first row that works is tried with it as well."""

SPECIAL: Final[Mapping[str, tuple[str, ...]]] = {
    "Array.__setitem__": ("F, 0, S",),
    "Array.at[].apply": ("F, 0, double",),
    "Array.__getitem__": (
        "F, ...", "F, ()", "F, None", "F, (1, 2)", "F, slice(1, 3)", "F, slice(None, None, -1)",
        "F, (slice(None), 2)", "F, (..., 2)", "F, N", "F, I", "F, M", "F, (I, I)", "F, (N, None)",
        "F, slice(N, 5)", "F, [1, 2]", "F, -1", "F, 99", "K, ...", "Q, 2", "Q, slice(1, 3)",
        "W, (0, slice(2, 4), ..., 1)", "Z, slice(None)", "S, ...", "F, True", "F, 'name'",
    ),
    "builtins.isinstance": ("F, jax.Array",),
    "builtins.issubclass": ("type(F), jax.Array",),
    "builtins.next": ("iter(F)",),
    "operator.attrgetter": ("'T' ; F", "'sharding' ; F", "'format' ; F", "'at' ; F"),
    "operator.delitem": ("F, 0",),
    "operator.getitem": ("F, ...", "F, slice(1, 3)", "F, N", "F, I", "Q, 2"),
    "operator.methodcaller": ("'sum' ; F", "'astype', 'int8' ; F", "'dot', V ; F"),
    "operator.setitem": ("F, 0, S",),
    "pickle.dumps": ("F", "[F, K]"),
    "jax.device_put": (
        "F, device", "F, here", "F, rows", "F, erows", "F, single", "[F, V], rows", "K, device",
        "{'a': F, 'b': [V, 2]}, device", "F, None", "Q, rows",
    ),
    "jax.block_until_ready": ("[F, V, 1]", "K", "[Q, F, K]"),
    "jax.copy_to_host_async": ("[F, V, 1]", "[Q, F, K]"),
    "jax.device_get": ("[F, V, 1]", "{'a': F, 'b': [V]}"),
    "jax.eval_shape": ("double, F", "identity, {'a': F}"),
    "jax.fwd_and_bwd": ("= call(total, (0,))[0](F)[0]",),
    "jax.grad": ("total, argnums=1 ; F, F", "lambda x: x * 2.0 ; S"),
    "jax.jit": ("double ; F", "pair ; F, F", "identity, donate_argnums=0 ; F", "identity ; K",
                "double, out_shardings=rows ; F", "double, in_shardings=rows ; F",
                "identity ; {'a': F, 'b': [V, S]}", "lambda: F * 2 ; "),
    "jax.jvp": ("double, (F,), (F,)",),
    "jax.make_array_from_callback": ("(8, 8), rows, lambda index: F[index]",),
    "jax.numpy.histogramdd": ("T[:, :, 0], 2", "T[:, :, 1], 3", "T[:, :, 2], bins=(2, 3)"),
    "numpy.histogramdd": ("T[:, :, 0], 2", "T[:, :, 1], 3", "[V, V], 2"),
    "jax.make_array_from_process_local_data": ("rows, F",),
    "jax.make_jaxpr": ("double ; F", "lambda: F * 2 ; "),
    "jax.named_call": ("double ; F",),
    "jax.new_ref": ("F",),
    "jax.pure_callback": ("np.negative, struct, F",),
    "jax.reshard": ("F, erows", "F, ewhole"),
    "jax.shard_map": (
        "double, mesh=mesh, in_specs=P('x'), out_specs=P('x') ; F",
        "double, mesh=mesh, in_specs=P(), out_specs=P() ; F",
    ),
    "jax.value_and_grad": ("total ; F",),
    "jax.vjp": ("double, F",),
    "jax.vmap": ("double ; F", "pair, in_axes=(0, None) ; F, V", "identity ; Q"),
    "jax.tree.map_with_path": ("lambda path, x: x * 2, {'a': F}",),
    "jax.tree.transpose": (
        "jax.tree.structure([0, 0]), jax.tree.structure({'a': 0}), [{'a': F}, {'a': V}]",
    ),
    "jax.tree.unflatten": ("jax.tree.structure({'a': [0, 0]}), [F, V]",),
    "jax.tree_util.tree_map_with_path": ("lambda path, x: x * 2, {'a': F}",),
    **{
        f"jax.lax.{name}": tuple(
            f"= jax.vmap(lambda x: call({operand}, 'i'{rest}), axis_name='i')(F)"
            for operand in ("x", "V")
        )
        for name, rest in {
            "all_gather": "", "pmean": "", "psum": "", "pmax": "", "pmin": "",
            "all_to_all": ", 0, 0", "pswapaxes": ", 0",
            "ppermute": ", [(i, 7 - i) for i in range(8)]",
            "pshuffle": ", [1, 0, 2, 3, 4, 5, 6, 7]",
            "psum_scatter": "",
        }.items()
    },
    **{
        f"jax.tree_util.tree_{name}": (row,)
        for name, row in {
            "transpose": "jax.tree.structure([0, 0]), jax.tree.structure({'a': 0}),"
            " [{'a': F}, {'a': V}]",
            "unflatten": "jax.tree.structure({'a': [0, 0]}), [F, V]",
        }.items()
    },
    "jax.make_array_from_single_device_arrays": ("(8, 8), F.sharding, [F]",),
    "jax.lax.axis_size": ("= jax.vmap(lambda x: x * call('i'), axis_name='i')(F)",),
    "jax.lax.pcast": (
        "= jax.shard_map(lambda x: call(x, 'x', to='varying'), mesh=mesh, in_specs=P(),"
        " out_specs=P('x'))(F)",
    ),
    "jax.lax.linalg.ormqr": ("D, V, D",),
    "jax.lax.linalg.tridiagonal_solve": ("V, V, V, F",),
    "jax.image.resize": ("F, (4, 4), 'linear'",),
    "jax.image.scale_and_translate": ("F, (4, 4), (0, 1), V[:2], V[:2], 'linear'",),
    "jax.experimental.multihost_utils.global_array_to_host_local_array": ("F, mesh, P('x')",),
    "jax.experimental.multihost_utils.host_local_array_to_global_array": ("F, mesh, P('x')",),
    "jax.numpy.apply_along_axis": ("total, 0, F",),
    "jax.numpy.cross": ("F[:, :3], F[:, :3]",), "jax.numpy.linalg.cross": ("F[:, :3], F[:, :3]",),
    "jax.numpy.dsplit": ("T, 2",),
    "jax.numpy.fill_diagonal": ("F, S, inplace=False",),
    "jax.numpy.place": ("F, B, V, inplace=False",),
    "jax.numpy.put": ("F, I, V, inplace=False",),
    "jax.numpy.put_along_axis": ("F, I[:, None], S, 1, inplace=False",),
    "jax.numpy.ravel_multi_index": ("(I, I), (8, 8)",),
    "jax.lax.axis_index": ("= jax.vmap(lambda x: x * call('i'), axis_name='i')(F)",),
    "jax.lax.argmax": ("F, 0, np.int32",), "jax.lax.argmin": ("F, 1, np.int32",),
    "jax.lax.broadcast_in_dim": ("V, (3, 8), (1,)",),
    "jax.lax.conv": ("W, W, (1, 1), 'SAME'",),
    "jax.lax.conv_general_dilated": ("W, W, (1, 1), 'SAME'",),
    "jax.lax.conv_general_dilated_local": (
        "W, jnp.ones((8, 8, 2, 4)), (1, 1), [(0, 0), (0, 0)], (1, 1)",
    ),
    "jax.lax.conv_general_dilated_patches": ("W, (1, 1), (1, 1), 'SAME'",),
    "jax.lax.conv_transpose": ("W, jnp.ones((2, 2, 4, 8)), (1, 1), 'SAME'",),
    "jax.lax.conv_with_general_padding": ("W, W, (1, 1), [(0, 0), (1, 1)], None, None",),
    "jax.lax.cond": ("L, double, identity, F", "True, lambda: F, lambda: F"),
    "jax.lax.custom_linear_solve": (
        "lambda x: D @ x, V, lambda f, b: jnp.linalg.solve(D, b)",
    ),
    "jax.lax.custom_root": (
        "lambda x: x - S, S, lambda f, x: x, lambda g, y: y",
    ),
    "jax.lax.dynamic_index_in_dim": ("F, N", "F, 2, keepdims=False"),
    "jax.lax.dynamic_slice": ("F, (N, N), (2, 2)", "F, (1, 2), (2, 2)", "F, I[:2], (2, 2)"),
    "jax.lax.dynamic_update_index_in_dim": ("F, V, N, 0",),
    "jax.lax.dynamic_update_slice": ("F, F, (0, 0)", "F, T[0], (N, N)"),
    "jax.lax.dynamic_update_slice_in_dim": ("F, F, N, 0",),
    "jax.lax.dot_general": ("F, F, (((1,), (0,)), ((), ()))", "T, T, (((2,), (2,)), ((0,), (0,)))"),
    "jax.lax.fft": ("C, 'FFT', (8,)", "F, 'RFFT', (8,)"),
    "jax.lax.fori_loop": ("0, N, lambda i, x: x * 2, F",),
    "jax.lax.full": ("(8, 8), S", "(8, 8), S, sharding=rows", "(8, 8), S, 'int8', sharding=erows",
                     "(8, 8), K"),
    "jax.lax.full_like": ("F, S", "F, S, sharding=rows", "F, 2", "K, K", "F, S, 'int8', (3,)"),
    "jax.numpy.full": ("(8, 8), S, device=rows", "(8, 8), S, device=device", "(8, 8), S",
                       "8, V", "(8,), N, 'float32', device=erows"),
    "jax.numpy.full_like": ("F, S, device=rows", "F, S, device=device", "F, V", "F, 2"),
    "jax.numpy.zeros_like": ("F, device=rows", "F, device=device", "K", "F, 'int8', (3,)"),
    "jax.numpy.ones_like": ("F, device=erows", "F, device=device"),
    "jax.numpy.empty_like": ("F, device=rows",),
    "jax.lax.gather": (
        "F, I[:, None], lax.GatherDimensionNumbers((1,), (0,), (0,)), (1, 8)",
    ),
    "jax.lax.index_take": ("F, (I, I), (0, 1)",),
    "jax.lax.map": ("double, F", "double, F, batch_size=4"),
    "jax.lax.pad": ("F, S, [(1, 1, 0), (0, 0, 0)]",),
    "jax.lax.platform_dependent": ("F, cpu=double, default=identity",),
    "jax.lax.ragged_dot": ("F, jnp.ones((2, 8, 3)), I[:2]",),
    "jax.lax.reduce": ("F, S, lax.add, (0,)",),
    "jax.lax.reduce_and": ("B, (0,)",), "jax.lax.reduce_or": ("B, (0,)",),
    "jax.lax.reduce_xor": ("J, (0,)",),
    "jax.lax.reduce_window": ("F, S, lax.add, (2, 2), (1, 1), 'VALID'",),
    "jax.lax.rng_bit_generator": ("U[:4], (3,)",),
    "jax.lax.rng_uniform": ("S, S, (3,)",),
    "jax.lax.scan": ("carry, S, F", "carry, F, None, 3", "lambda c, x: (c + x @ V, x), S, F"),
    **{
        f"jax.lax.scatter{kind}": (
            f"F, I[:, None], {update}, lax.ScatterDimensionNumbers((1,), (0,), (0,))",
        )
        for kind, update in {
            "": "F", "_add": "F", "_sub": "F", "_max": "F", "_min": "F", "_mul": "F",
        }.items()
    },
    "jax.lax.scatter_apply": (
        "F, I[:, None], double, lax.ScatterDimensionNumbers((1,), (0,), (0,)),"
        " update_shape=(8, 8)",
    ),
    "jax.lax.squeeze": ("F[None], (0,)",),
    "jax.lax.switch": ("N, [double, identity], F", "1, [lambda: F, lambda: F * 2]"),
    "jax.lax.while_loop": (
        "small, double, F", "lambda c: c[0] < N, lambda c: (c[0] + 1, c[1]), (0, F)",
    ),
    "jax.lax.with_sharding_constraint": ("F, rows", "F, whole"),
    "jax.nn.dot_product_attention": ("W, W, W",),
}  # fmt: skip
"""Rows for what no row that is tried on everything would find, by the callable's whole name."""


_ARRAY: Final = re.compile(f"[{''.join(HOSTS)}]")


ALWAYS: Final[Mapping[str, tuple[str, ...]]] = {
    # Keys, scalars and dtypes of ml_dtypes are arrays of other kinds to Python itself.
    r"(Array|builtins|copy|math|operator|pickle)\..*": ("K", "Q", "K, K", "S", "N", "N, N", "H"),
}
"""By regular expressions for whole names: rows that are compared whether or not they are taken."""


class _Row(NamedTuple):
    """A row, ready to be called: its expressions, and the arrays in them."""

    expressions: tuple[CodeType, ...]
    arrays: tuple[str, ...]


@functools.cache
def _row(row: str) -> _Row:
    if row.startswith("="):
        sources = [row[1:].strip()]
    else:
        sources = [f"call({part.strip()})" for part in row.split(";")]
    arrays: list[str] = []
    expressions: list[CodeType] = []
    for source in sources:
        tree = ast.parse(source, mode="eval")
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and _ARRAY.fullmatch(node.id):
                arrays.append(node.id)
                # Each place in the row has an array of its own.
                node.id = f"array_{len(arrays) - 1}"
        expressions.append(compile(tree, f"<{row}>", "eval"))
    return _Row(tuple(expressions), tuple(arrays))


def arrays_in(row: str) -> int:
    """How many arrays are in the row."""
    return len(_row(row).arrays)


def calling(call: Callable[..., Any], row: str, placement: str, state: str) -> Callable[[], Any]:
    """The call with a row's arguments, of which every run makes its own."""

    def run() -> Any:
        expressions, arrays = _row(row)
        names = {**CONSTANTS, "call": call}
        for number, name in enumerate(arrays):
            if state == "plain" or (state == "mixed" and number % 2 == 0):
                array: Any = plain(name, placement)
            else:
                array = lazy(name, placement, placed=state == "placed")
            names[f"array_{number}"] = array
        for expression in expressions:
            names["call"] = eval(expression, names)
        return names["call"]

    return run


def with_parameters(call: Callable[..., Any], row: str) -> dict[str, tuple[str, ...]]:
    """Rows that give one parameter more, by that parameter."""
    try:
        parameters = inspect.signature(call).parameters
    except (TypeError, ValueError):
        return {}
    first, then, second = row.partition(" ; ")
    return {
        name: tuple(f"{first}, {name}={value}{then}{second}" for value in EXTRAS[name])
        for name, parameter in parameters.items()
        if name in EXTRAS
        # What a ufunc of NumPy's leaves out is what was in memory before.
        and not (name == "where" and isinstance(call, np.ufunc))
        and f"{name}=" not in row
        and not row.startswith("=")
        and parameter.kind in {parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD}
    }
