"""Contents: what a leaf holds on the host: a view, and the part of its type that a view lacks."""

from functools import lru_cache, partial
from typing import Any, Final, NamedTuple, final

import jax
import numpy as np

from safejax._src.arrays.untraced import run_untraced
from safejax._src.reading.view import View

KEY_IMPLEMENTATIONS: Final = ("threefry2x32", "rbg", "unsafe_rbg")
"""The names of the implementations of typed keys that JAX ships."""


def is_key(dtype: Any) -> bool:
    """Whether `dtype` is that of typed key arrays."""
    # JAX looks for its own dtypes last, and NumPy has none of keys.
    return not isinstance(dtype, np.dtype) and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


@lru_cache(maxsize=64)
def key_dtype(key: str) -> Any:
    """The dtype of key arrays of the implementation named `key`."""
    return jax.eval_shape(lambda: jax.random.key(0, impl=key)).dtype


@lru_cache(maxsize=64)
def key_data_shape(key: str) -> tuple[int, ...]:
    """The shape of the uint32 data of one key of the implementation named `key`."""
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=key))).shape


@lru_cache(maxsize=1)
def key_array_type() -> type[Any]:
    """The class of key arrays. JAX does not export it, so it is that of a key made here."""
    return type(run_untraced(partial(jax.random.key, 0)))


@final
class Content(NamedTuple):
    """The content of a leaf.

    For a typed key array, `view` is its key data, uint32 with the axes of a single key last, and
    `key` is the name of the implementation. For any other leaf, `key` is None. `weak_type` is
    that of JAX's arrays: a weakly typed leaf takes the dtype of what it is combined with. Arrays
    of NumPy and keys are never weakly typed.
    """

    view: View
    key: str | None = None
    weak_type: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the leaf, without the axes of a single key."""
        shape = self.view.shape
        return shape if self.key is None else shape[: len(shape) - self.key_axes]

    @property
    def key_axes(self) -> int:
        """The number of trailing axes of `view` that belong to a single key."""
        return 0 if self.key is None else len(key_data_shape(self.key))

    def of(self, view: View) -> "Content":
        """The content of the same type that has the values of `view`, whose dtype is the same."""
        return Content(view, self.key, self.weak_type)
