"""The order in which a view is read: that of the file, if NumPy would copy it by elements."""

import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import safejax
from safejax import cast, chain, correspond, stack, transpose
from safejax._src.arrays.parts import view_of_array
from safejax._src.reading.concatenation import stack as stack_views
from safejax._src.reading.log import observe_reads
from safejax._src.reading.order import PIECE_BYTES, is_worth_pieces, order_of_reading, pieces
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


# The shape as it is stored, its axes in their order, and the pieces of bfloat16.
PIECES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "transposed": ((5000, 3000), (1, 0), (2500, 500)),
    "stacked": ((3, 2048, 4096), (0, 2, 1), (1, 2048, 1024)),
    "in heads": ((2, 8, 128, 2048), (0, 2, 3, 1), (1, 8, 128, 2048)),
    "from heads": ((2, 2048, 8, 128), (0, 3, 1, 2), (1, 2048, 8, 128)),
    "a kernel of a convolution": ((4096, 300, 3, 3), (3, 2, 0, 1), (2048, 50, 3, 3)),
    "a long row": ((2, 5_000_000), (1, 0), (2, 1_000_000)),
    "a long column": ((5_000_000, 2), (1, 0), (1_000_000, 2)),
    "an axis of one element": ((1, 4000, 3000), (2, 1, 0), (1, 4000, 500)),
}


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("case", PIECES)
def test_pieces_are_small_and_together_all(case: str, itemsize: int) -> None:
    stored, order, of_two_bytes = PIECES[case]
    seen = np.zeros(stored, np.uint8)
    for piece in pieces(stored, itemsize, order):
        part = seen[piece]
        part += 1
        assert PIECE_BYTES // 8 <= part.size * itemsize <= PIECE_BYTES
        if itemsize == 2:
            np.testing.assert_allclose(part.shape, of_two_bytes, rtol=0.02)
    assert (seen == 1).all()


# The transform of two stored kernels, what NumPy does with both, and the shape that is stored.
TURNS: dict[str, tuple[safejax.Transform, Callable[[np.ndarray], np.ndarray], tuple[int, ...]]] = {
    "transposed": (
        chain(transpose("*.w"), stack("layers.{i}.w")),
        lambda both: both.transpose(0, 2, 1),
        (2100, 1300),
    ),
    "joined along what is transposed": (
        correspond([("layers.{i}.w", "layers.w", "a b -> b (i a)")], sizes={"i": 2}),
        lambda both: both.reshape(-1, both.shape[2]).T,
        (2100, 1300),
    ),
    "in heads": (
        correspond([("layers.{i}.w", "layers.w", "(h k) d -> i d h k")], sizes={"h": 4}),
        lambda both: both.reshape(2, 4, 525, 1300).transpose(0, 3, 1, 2),
        (2100, 1300),
    ),
    "a kernel of a convolution": (
        correspond([("layers.{i}.w", "layers.w", "o c h w -> i h w c o")]),
        lambda both: both.transpose(0, 3, 4, 2, 1),
        (700, 450, 3, 3),
    ),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "bool"])
@pytest.mark.parametrize("case", TURNS)
def test_what_is_large_is_placed_bit_by_bit_piece_by_piece(
    tmp_path: Path, case: str, dtype: str
) -> None:
    turn, expected, shape = TURNS[case]
    count = 2 * math.prod(shape)
    bits = np.random.default_rng(0).integers(0, 256, count * jnp.dtype(dtype).itemsize, np.uint8)
    kernels = (bits > 99 if dtype == "bool" else bits.view(dtype)).reshape(2, *shape)
    safejax.save({"layers": [{"w": kernel} for kernel in kernels]}, tmp_path / "m.safetensors")
    with observe_reads() as log:
        leaf = safejax.load(tmp_path / "m.safetensors", transform=turn)["layers"]["w"]
        assert is_worth_pieces(leaf.content.view)
        placed = leaf.placed()
    assert np.asarray(placed).tobytes() == expected(kernels).tobytes()
    assert log.nbytes == kernels.nbytes


def test_what_is_cast_is_placed_piece_by_piece() -> None:
    kernel = np.random.default_rng(0).standard_normal((2100, 1300), np.float32)
    data = safejax.serialize({"w": kernel, "v": kernel})
    turn = chain(cast("bfloat16", source="float32"), transpose("*"))
    leaves = safejax.deserialize(data, transform=turn)
    assert all(is_worth_pieces(leaf.content.view) for leaf in leaves.values())
    placed = safejax.materialize(leaves)
    expected = kernel.astype(ml_dtypes.bfloat16).T.tobytes()
    assert {np.asarray(leaf).tobytes() for leaf in placed.values()} == {expected}
