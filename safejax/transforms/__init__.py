"""Transforms: steps from Leaves to Leaves, one a file."""

from safejax.transforms.cast import Cast, cast
from safejax.transforms.rename import Rename, rename
from safejax.transforms.transpose import Transpose, transpose

__all__ = ["Cast", "Rename", "Transpose", "cast", "rename", "transpose"]
