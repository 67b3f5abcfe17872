"""Leaves that stay on the host: what `like` has as NumPy's comes back as NumPy's.

NumPy holds 64 bits whatever JAX's x64 mode is, so that a counter in a training state survives a
load. Such a leaf is read when the tree is built, and never placed.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeGuard, final

import jax
import numpy as np
from jax.core import Tracer
from numpy.typing import NDArray

from safejax._src.arrays.content import is_key
from safejax._src.dtypes import Dtype
from safejax._src.leaves.leaf import content_at
from safejax._src.reading.view import View

_WORTH_A_THREAD: Final = 1 << 20
"""Bytes of a leaf in memory that take longer to copy than a thread takes to start."""


@final
@dataclass(frozen=True, slots=True)
class OnHost:
    """A leaf that is to be an array of NumPy's, or a scalar of NumPy's; unread so far."""

    name: str
    view: View
    is_scalar: bool

    def read(self) -> "NDArray[Any] | np.generic[Any]":
        """The values as stored, in an array of its own that may be written to, or as a scalar."""
        array = np.empty(self.view.shape, self.view.dtype)
        try:
            self.view.read_into(array)
        except Exception as error:
            error.add_note(f"while reading leaf {self.name!r}")
            raise
        return array[()] if self.is_scalar else array


def is_numpy(leaf: object) -> TypeGuard["NDArray[Any] | np.generic[Any]"]:
    """Whether a leaf is an array or a scalar of NumPy's."""
    return isinstance(leaf, np.ndarray | np.generic)


def can_be_on_host(leaf: object) -> bool:
    """Whether an array leaf has values that NumPy can have: it is neither abstract nor traced."""
    return not isinstance(leaf, jax.ShapeDtypeStruct | Tracer)


def on_host(name: str, leaf: Any, expected: "NDArray[Any] | np.generic[Any]") -> OnHost:
    """The array leaf, unread, bound for the host as `expected` of `like` is."""
    return OnHost(name, content_at(name, leaf).view, isinstance(expected, np.generic))


def host_dtype(name: str, leaf: Any) -> Dtype:
    """The dtype that an array leaf, and not one of keys, has on the host: as it is stored."""
    dtype = leaf.dtype if isinstance(leaf, Tracer) else content_at(name, leaf).view.dtype
    return np.dtype(dtype)


def has_host_dtype(name: str, leaf: Any, expected: "NDArray[Any] | np.generic[Any]") -> bool:
    """Whether an array leaf has exactly the dtype of `expected`, whatever JAX's x64 mode is."""
    own = expected.dtype.newbyteorder("=")
    return not is_key(leaf.dtype) and host_dtype(name, leaf) == own


def read_all(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves, of which those for the host have been read, large ones in parallel."""
    found = dict(leaves)
    large: list[OnHost] = []
    for name, leaf in leaves.items():
        # isinstance would ask each lazy leaf for its class, which takes longer than this.
        if type(leaf) is OnHost:
            if leaf.view.in_memory and leaf.view.nbytes < _WORTH_A_THREAD:
                found[name] = leaf.read()
            else:
                large.append(leaf)
    if large:
        workers = min(8, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers, thread_name_prefix="safejax-read") as pool:
            found |= zip((leaf.name for leaf in large), pool.map(OnHost.read, large), strict=True)
    return found
