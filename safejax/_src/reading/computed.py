"""The source behind a barrier: the values of a function that reads the whole of its operand."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.source import Source, read_only, strided_array
from safejax._src.reading.windows import Window


class Operand(Protocol):
    """What is behind a barrier: a view."""

    @property
    def has_values(self) -> bool: ...

    @property
    def elsewhere(self) -> bool: ...

    def cost(self) -> tuple[int, int]: ...


@final
class ComputedSource(Source):
    """The flat result of a function that is called when it is read: the far side of a barrier.

    Any read computes the whole result, unless an earlier one is `kept`. `operand` is the view that
    the function reads, if it is one.
    """

    is_barrier = True

    def __init__(
        self,
        compute: Callable[[], NDArray[Any]],
        name: str,
        immutable: bool,
        operand: Operand | None = None,
    ) -> None:
        self.name = name
        self.operand = operand
        self._operand_cost = None if operand is None else operand.cost
        self.has_values = operand is None or operand.has_values
        self.elsewhere = operand is not None and operand.elsewhere
        self.immutable = immutable
        self._compute = compute
        self._lock = threading.Lock()
        self._keepers = 0
        self._made: NDArray[np.uint8] | None = None

    def __repr__(self) -> str:
        return f"ComputedSource({self.name!r})"

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        assert begin == 0
        if window.size == 0:
            return np.empty(window.shape, dtype)
        return strided_array(self._flat(), 0, dtype, window)

    def cost(self, dtype: Dtype, window: Window) -> tuple[int, int]:
        del dtype
        return self._operand_cost() if self._operand_cost is not None and window.size else (0, 0)

    @contextmanager
    def kept(self) -> Generator[None]:
        """Inside the block, the function's first result is kept for the reads that follow."""
        with self._lock:
            self._keepers += 1
        try:
            yield
        finally:
            with self._lock:
                self._keepers -= 1
                if not self._keepers:
                    self._made = None

    def _flat(self) -> NDArray[np.uint8]:
        if not self._keepers:
            return self._make()
        with self._lock:
            if self._made is None:
                self._made = read_only(self._make())
            return self._made

    def _make(self) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self._compute()).reshape(-1).view(np.uint8)
