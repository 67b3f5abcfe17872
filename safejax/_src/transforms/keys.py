"""`keys`: raw key data as typed PRNG keys, and back."""

from dataclasses import dataclass
from typing import final

import numpy as np

from safejax._src.arrays.content import KEY_IMPLEMENTATIONS, Content, key_data_shape
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import Transform
from safejax._src.public import set_module
from safejax._src.pytrees.choices import Where, show_where
from safejax._src.transforms.selection import fault, map_contents, required_where
from safejax.errors import TransformError


@final
@dataclass(frozen=True, slots=True)
class Keys(Transform):
    """Key data wrapped as typed keys, or typed keys as their data; see `keys`."""

    where: Where
    impl: str = "threefry2x32"
    wraps: bool = True
    must_match: bool = True

    def __call__(self, leaves: Leaves, /) -> Leaves:
        function = self._wrapped if self.wraps else self._data
        return map_contents(self, leaves, self.where, self.must_match, function)

    def _wrapped(self, name: str, content: Content) -> Content:
        own = key_data_shape(self.impl)
        shape, dtype = content.view.shape, content.view.dtype
        if content.key is not None or dtype != np.uint32 or shape[-len(own) :] != own:
            found = f"typed keys of {content.key}" if content.key else f"{dtype}{list(shape)}"
            raise fault(
                self,
                f"leaf {name!r}: expected key data, uint32 of a shape that ends in "
                f"{list(own)}, got {found}: narrow the pattern, or correct impl",
            )
        return Content(content.view, self.impl)

    def _data(self, name: str, content: Content) -> Content:
        if content.key != self.impl:
            found = "an array without keys" if content.key is None else f"keys of {content.key}"
            raise fault(
                self,
                f"leaf {name!r}: expected typed keys of {self.impl}, got {found}: narrow "
                "the pattern, or correct impl",
            )
        return Content(content.view)

    @property
    def inverse(self) -> "Keys":
        return Keys(self.where, self.impl, not self.wraps, self.must_match)

    def __repr__(self) -> str:
        impl = "" if self.impl == "threefry2x32" else f", impl={self.impl!r}"
        must_match = "" if self.must_match else ", must_match=False"
        inverse = "" if self.wraps else ".inverse"
        return f"keys({show_where(self.where)}{impl}{must_match}){inverse}"


@set_module("safejax")
def keys(where: Where, *, impl: str = "threefry2x32", must_match: bool = True) -> Keys:
    """A transform that makes typed PRNG keys of raw key data; its inverse gives the data back.

    The leaves that `where` matches are uint32 arrays, as `jax.random.PRNGKey` and
    `jax.random.key_data` return them. Their trailing axes are the data of one key of the
    implementation `impl` (`'threefry2x32'`, `'rbg'` or `'unsafe_rbg'`): an array of shape
    `(..., 2)` gives threefry keys of shape `(...)`, as `jax.random.wrap_key_data` does. Nothing is
    read. A pattern that matches no leaf is an error, unless `must_match` is false.

    >>> import jax
    >>> from safejax import flatten, keys
    >>> leaves = keys("rng")(flatten({"rng": jax.random.PRNGKey(0)}))
    >>> leaves["rng"].dtype, leaves["rng"].shape
    (key<fry>, ())
    >>> keys("rng").inverse(leaves)["rng"].shape
    (2,)

    Raises `TransformError` for an implementation that JAX does not ship, and when it is applied
    to a leaf that is not such data or, for the inverse, not such keys.
    """
    where = required_where("keys", where)
    if impl not in KEY_IMPLEMENTATIONS:
        raise TransformError(
            f"keys: expected impl to be one of {', '.join(map(repr, KEY_IMPLEMENTATIONS))}, got "
            f"{impl!r}"
        )
    return Keys(where, impl, must_match=must_match)
