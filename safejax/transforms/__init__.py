"""Transforms: steps from Leaves to Leaves, one a file."""

from safejax.transforms.cast import Cast, cast
from safejax.transforms.elementwise import Elementwise, elementwise
from safejax.transforms.prefix import Prefix, prefix
from safejax.transforms.rename import Rename, rename
from safejax.transforms.reshape import Reshape, reshape
from safejax.transforms.select import Select, drop, select
from safejax.transforms.split import Concat, Split, concat, split
from safejax.transforms.stack import Stack, Unstack, stack, unstack
from safejax.transforms.transpose import Transpose, transpose

__all__ = [
    "Cast",
    "Concat",
    "Elementwise",
    "Prefix",
    "Rename",
    "Reshape",
    "Select",
    "Split",
    "Stack",
    "Transpose",
    "Unstack",
    "cast",
    "concat",
    "drop",
    "elementwise",
    "prefix",
    "rename",
    "reshape",
    "select",
    "split",
    "stack",
    "transpose",
    "unstack",
]
