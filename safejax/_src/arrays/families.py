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

    __slots__ = ("_read", "_view", "_weak_type", "size")

    def __init__(self, view: View, *, weak_type: bool = False) -> None:
        self._view = view
        self._weak_type = weak_type
        self.size = view.shape[0]
        # In memory or in a mapped file, a row is an index into one array.
        self._read = view.rows()

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
        return super().read(number) if self._read is None else self._read(number)
