"""The source behind a barrier: the values of a function that reads the whole of its operand."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.requests import FREE, Cost
from safejax._src.reading.source import HostArray, Source, read_only, strided_array
from safejax._src.reading.windows import Window
from safejax._src.system import AtWork


class Operand(Protocol):
    """What is in front of a barrier: a view."""

    @property
    def has_values(self) -> bool: ...

    @property
    def elsewhere(self) -> bool: ...

    @property
    def immutable(self) -> bool: ...

    @property
    def arrays(self) -> tuple[HostArray, ...]: ...

    def with_arrays(self, instead: Callable[[HostArray], HostArray]) -> "Operand": ...

    def read(self) -> NDArray[Any]: ...

    def cost(self) -> Cost: ...


@final
class ComputedSource(Source):
    """The flat result of a function that is called when it is read: the far side of a barrier.

    Any read computes the whole result, unless an earlier one is `kept`. `operand` is the view that
    the function reads, if it is one; `barrier` makes the source of a view.
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
        self.operand = self._operand = operand
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

    def cost(self, dtype: Dtype, window: Window) -> Cost:
        del dtype
        return self._operand.cost() if self._operand is not None and window.size else FREE

    @property
    def arrays(self) -> tuple[HostArray, ...]:
        return () if self._operand is None else self._operand.arrays

    def with_arrays(self, instead: Callable[[HostArray], HostArray]) -> "ComputedSource":
        if self._operand is None:
            return self
        return barrier(self._operand.with_arrays(instead), self.name)

    @contextmanager
    def kept(self) -> Generator[None]:
        """Inside the block, the function's first result is kept for the reads that follow."""
        with AtWork(self), self._lock:
            self._keepers += 1
        try:
            yield
        finally:
            with AtWork(self), self._lock:
                self._keepers -= 1
                if not self._keepers:
                    self._made = None

    def _flat(self) -> NDArray[np.uint8]:
        if not self._keepers:
            return self._make()
        with AtWork(self), self._lock:
            if self._made is None:
                self._made = read_only(self._make())
            return self._made

    def forget_threads(self) -> None:
        self._lock = threading.Lock()

    def _make(self) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self._compute()).reshape(-1).view(np.uint8)


def barrier(operand: Operand, name: str) -> ComputedSource:
    """The source of the flat values of a view, the whole of which is read for any part."""
    return ComputedSource(operand.read, name, operand.immutable, operand)
