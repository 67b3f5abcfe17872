"""The order in which a view is read: that of the file, if NumPy would copy it by elements."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import safejax
from safejax import chain, stack, transpose
from safejax._src.arrays.parts import view_of_array
from safejax._src.reading.concatenation import stack as stack_views
from safejax._src.reading.order import order_of_reading
from safejax._src.reading.pointwise import cast_view
from safejax._src.reading.view import View

ARRAY = np.arange(8 * 64 * 256, dtype=np.float32).reshape(8, 64, 256)
WHOLE = view_of_array(ARRAY)
HALF = np.dtype(ml_dtypes.bfloat16)

ORDERS: dict[str, tuple[Callable[[], View], tuple[int, ...] | None]] = {
    "as it lies": (lambda: WHOLE, None),
    "the first axes exchanged": (lambda: WHOLE.transpose((1, 0, 2)), None),
    "transposed": (lambda: WHOLE.transpose((0, 2, 1)), (0, 2, 1)),
    "turned": (lambda: WHOLE.transpose((2, 0, 1)), (1, 2, 0)),
    "a part": (lambda: WHOLE.transpose((0, 2, 1)).index((..., slice(0, 32))), (0, 2, 1)),
    "heads": (lambda: WHOLE.row(0).transpose((1, 0)).reshape((256, 8, 8)), (1, 2, 0)),
    "cast": (lambda: cast_view(WHOLE.transpose((2, 1, 0)), HALF), (2, 1, 0)),
    "stacked": (
        lambda: stack_views(tuple(WHOLE.row(n).transpose((1, 0)) for n in range(8)), 0),
        (0, 2, 1),
    ),
    "of several orders": (
        lambda: stack_views((WHOLE.row(0).transpose((1, 0)), WHOLE.row(0).reshape((256, 64))), 0),
        None,
    ),
    "with a new axis": (lambda: WHOLE.row(0).transpose((1, 0)).expand(0), (0, 2, 1)),
    "backward": (lambda: WHOLE.transpose((0, 2, 1)).index((..., slice(None, None, -1))), None),
    "small": (lambda: WHOLE.row(0).index((slice(0, 8),)).transpose((1, 0)), None),
    "below a byte": (
        lambda: view_of_array(ARRAY.astype(ml_dtypes.int4)).transpose((2, 1, 0)),
        None,
    ),
}


@pytest.mark.parametrize("case", ORDERS)
def test_the_order_of_the_file(case: str) -> None:
    make, expected = ORDERS[case]
    view = make()
    assert order_of_reading(view) == expected
    if expected is not None:
        runs = view.transpose(expected).read()
        np.testing.assert_array_equal(runs, view.read().transpose(expected))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool", "complex64", "int8"])
@pytest.mark.parametrize("spec", [PartitionSpec(None, "x", "y"), PartitionSpec("x"), None], ids=str)
def test_what_is_read_in_that_order_is_placed_bit_by_bit(
    dtype: str, spec: PartitionSpec | None
) -> None:
    """(issue 18, 5)"""
    bits = np.random.default_rng(0).integers(0, 256, (2, 512 * 1024 * jnp.dtype(dtype).itemsize))
    kernels = bits.astype(np.uint8).view(dtype).reshape(2, 512, 1024)
    if dtype == "bool":
        kernels = bits.reshape(kernels.shape) > 99
    data = safejax.serialize({"layers": [{"w": kernel} for kernel in kernels]})
    turn = chain(transpose("*.w"), stack("layers.{i}.w"))
    mesh = jax.make_mesh((2, 4), ("x", "y"))
    sharding = None if spec is None else NamedSharding(mesh, spec)
    placed = safejax.deserialize(data, transform=turn, sharding=sharding)["layers"]["w"]
    found = np.asarray(safejax.materialize(placed))
    assert order_of_reading(placed.content.view) == (0, 2, 1)
    assert found.tobytes() == kernels.transpose(0, 2, 1).tobytes()
