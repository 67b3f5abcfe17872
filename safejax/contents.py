"""What a leaf holds, on the host's side, and what many leaves hold that are alike."""

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any, NamedTuple, Self, final

import jax
from numpy.typing import NDArray

from safejax.dtypes import Dtype
from safejax.sources import BufferSource, Source
from safejax.views import Strided, View
from safejax.windows import Window


@lru_cache(maxsize=64)
def key_dtype(key: str) -> Any:
    """The dtype of key arrays of the implementation `key`."""
    return jax.eval_shape(lambda: jax.random.key(0, impl=key)).dtype


@lru_cache(maxsize=64)
def key_data_shape(key: str) -> tuple[int, ...]:
    """The shape of the uint32 data of one key of the implementation `key`."""
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=key))).shape


@final
class Content(NamedTuple):
    """What a leaf holds.

    For a typed key array `view` is the key data, uint32 with the key's own axes last, and
    `key` names the implementation; for any other leaf `key` is None.
    """

    view: View
    key: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The leaf's shape, without the key's own axes."""
        return self.view.shape[: len(self.view.shape) - self.key_axes]

    @property
    def key_axes(self) -> int:
        """How many trailing axes of `view` belong to a single key."""
        return 0 if self.key is None else len(key_data_shape(self.key))


class Alike(ABC):
    """What leaves hold that differ in one number: made when it is asked for.

    A file may have 100,000 tensors, and a loop asks for every row of one. None of them is a
    key array.
    """

    __slots__ = ()

    @abstractmethod
    def content(self, number: int) -> Content:
        """What the leaf with this number holds."""

    def read(self, number: int) -> NDArray[Any]:
        """The leaf's values, as `content(number).view.read()` gives them."""
        return self.content(number).view.read()


@final
class Tensors(Alike):
    """Tensors of one dtype and window in one source; the number is the byte where one begins."""

    __slots__ = ("_dtype", "_source", "_window")

    def __init__(self, source: Source, dtype: Dtype, window: Window) -> None:
        self._source = source
        self._dtype = dtype
        self._window = window

    def of(self, source: Source) -> Self:
        """The same of another source."""
        return self if source is self._source else type(self)(source, self._dtype, self._window)

    def content(self, number: int) -> Content:
        return Content(Strided(self._source, number, self._dtype, self._window))


@final
class Rows(Alike):
    """The rows of a leaf; the number is that of the row."""

    __slots__ = ("_shown", "_view", "size")

    def __init__(self, view: Strided) -> None:
        self._view = view
        self.size = view.shape[0]
        # Where they lie in memory or in a mapped file, a row of so many bytes is an index away.
        self._shown: tuple[BufferSource, NDArray[Any], int] | None = None
        source = view.source
        # A row of one axis is a scalar to NumPy, and bytes of bools may have to be mended.
        simple = len(view.shape) > 1 and view.dtype.kind != "b"
        if isinstance(source, BufferSource) and simple:
            nbytes = view.row(0).window.distinct * view.dtype.itemsize
            self._shown = source, source.show(view.begin, view.dtype, view.window), nbytes

    @classmethod
    def of(cls, content: Content) -> Self | None:
        """The rows of what a leaf holds; None where they are not that simple, or none."""
        view = content.view
        if content.key is not None or not isinstance(view, Strided):
            return None
        return cls(view) if view.shape and view.size else None

    def content(self, number: int) -> Content:
        return Content(self._view.row(number))

    def read(self, number: int) -> NDArray[Any]:
        if self._shown is None:
            return super().read(number)
        source, values, nbytes = self._shown
        source.asked(nbytes)
        return values[number]
