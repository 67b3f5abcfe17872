"""The trees that are saved and loaded: their leaves, and every bit of them.

All sides use the same flat dict from names to float32 arrays. Each process makes it again from
one block of normally distributed random values, so that it can check what it loaded.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

MIB: Final = 1 << 20

_KERNEL_BYTES: Final = 16 * MIB
_COLUMNS: Final = 2048
_MANTISSA: Final = 0x007F_FFFF
_DTYPES: Final = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}


@final
@dataclass(frozen=True, slots=True)
class Spec:
    """A description of a tree: about `nbytes` of float32, in `count` equal leaves.

    Without `count`, it is a stack of layers, each with a kernel of at most 16 MiB and a bias.
    """

    nbytes: int
    count: int | None = None

    @property
    def key(self) -> str:
        """The name of a folder for files that hold this tree."""
        return f"{self.nbytes}-{self.count or 'layers'}"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each leaf by name; all sizes are multiples of 8."""
        if self.count is not None:
            columns = max(8, self.nbytes // self.count // 32 // 8 * 8)
            return {f"tensor.{number:06}": (8, columns) for number in range(self.count)}
        kernel = min(_KERNEL_BYTES, self.nbytes // 8)
        columns = _COLUMNS if kernel >= MIB else _COLUMNS // 8
        rows = max(8, kernel // (4 * columns) // 8 * 8)
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(max(1, round(self.nbytes / (4 * rows * columns)))):
            shapes[f"layers.{layer:03}.bias"] = (columns,)
            shapes[f"layers.{layer:03}.kernel"] = (rows, columns)
        return shapes

    @property
    def exact_nbytes(self) -> int:
        """Bytes of all leaves together."""
        return _totals(self)[0]

    @property
    def tensors(self) -> int:
        """The number of leaves."""
        return _totals(self)[1]

    def leaves(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Each leaf with its name, made one at a time."""
        for number, (name, shape) in enumerate(self.shapes().items()):
            size = int(np.prod(shape))
            # The values of each leaf are different, so that mixed-up leaves are detected.
            mask = np.uint32(number * 2_654_435_761 & _MANTISSA)
            yield name, (_block(size).view(np.uint32) ^ mask).view(np.float32).reshape(shape)

    def tree(self) -> dict[str, NDArray[np.float32]]:
        """All leaves by name."""
        return dict(self.leaves())


@lru_cache
def _totals(spec: Spec) -> tuple[int, int]:
    """The bytes of all leaves, and their number, which may be 100,000."""
    shapes = spec.shapes().values()
    return sum(4 * math.prod(shape) for shape in shapes), len(shapes)


@lru_cache(maxsize=4)
def _block(size: int) -> NDArray[np.float32]:
    return np.random.default_rng(size).standard_normal(size, np.float32)


def truncated(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """The array with the bits cleared that bfloat16 cannot hold, so that it is exact there."""
    return (array.view(np.uint32) & np.uint32(0xFFFF_0000)).view(np.float32)


def same_bits(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two arrays have the same dtype, shape and bits."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    flat = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (one, other)]
    return np.array_equal(*flat)


def tensors_of(path: str) -> dict[str, tuple[int, Any, tuple[int, ...]]]:
    """The first byte, dtype and shape of each tensor in a safetensors file, in file order."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    begin = 8 + length
    ordered = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    return {
        name: (begin + entry["data_offsets"][0], _DTYPES[entry["dtype"]], tuple(entry["shape"]))
        for name, entry in ordered
    }
