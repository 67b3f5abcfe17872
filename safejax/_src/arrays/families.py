"""Families of contents: those of many leaves that differ in one number only."""

from abc import ABC, abstractmethod
from typing import Any, Self, final

from numpy.typing import NDArray

from safejax._src.arrays.content import Content
from safejax._src.dtypes import Dtype
from safejax._src.reading.source import Source
from safejax._src.reading.view import Strided, View
from safejax._src.reading.windows import Window


class Family(ABC):
    """A family of contents that differ in one number, each made when it is needed.

    A file may have 100,000 tensors, and a loop may read every row of one. None of the contents
    is a key array.
    """

    __slots__ = ()

    @abstractmethod
    def content(self, number: int) -> Content:
        """The content of the leaf with this number."""

    def read(self, number: int) -> NDArray[Any]:
        """The values of that leaf, as `content(number).view.read()` returns them."""
        return self.content(number).view.read()


@final
class Tensors(Family):
    """Tensors of the same type and window in one source; the number is that of the first byte."""

    __slots__ = ("_dtype", "_source", "_weak_type", "_window")

    def __init__(
        self, source: Source, dtype: Dtype, window: Window, *, weak_type: bool = False
    ) -> None:
        self._source = source
        self._dtype = dtype
        self._window = window
        self._weak_type = weak_type

    def in_source(self, source: Source) -> Self:
        """The same tensors of another source."""
        if source is self._source:
            return self
        return type(self)(source, self._dtype, self._window, weak_type=self._weak_type)

    def content(self, number: int) -> Content:
        view = Strided(self._source, number, self._dtype, self._window)
        return Content(view, None, self._weak_type)


@final
class Rows(Family):
    """The rows of a leaf; the number is the index of the row."""

    __slots__ = ("_shown", "_view", "_weak_type", "size")

    def __init__(self, view: View, *, weak_type: bool = False) -> None:
        self._view = view
        self._weak_type = weak_type
        self.size = view.shape[0]
        # In memory or in a mapped file, a row is an index into one array. The last entry is the
        # number of bytes in a row.
        self._shown: tuple[Source, NDArray[Any], int] | None = None
        # NumPy returns scalars for the rows of one axis.
        values = view.strided_array() if len(view.shape) > 1 else None
        if values is not None:
            (source,) = view.sources
            nbytes = view.row(0).cost().nbytes
            self._shown = source, values, nbytes

    @classmethod
    def of(cls, content: Content) -> Self | None:
        """The rows of a content; None if it has none, or if they are not this simple."""
        view = content.view
        if content.key is not None or not view.is_window:
            return None
        if not view.shape or not view.size:
            return None
        return cls(view, weak_type=content.weak_type)

    def content(self, number: int) -> Content:
        return Content(self._view.row(number), None, self._weak_type)

    def read(self, number: int) -> NDArray[Any]:
        if self._shown is None:
            return super().read(number)
        source, values, nbytes = self._shown
        source.log_read(nbytes)
        return values[number]
