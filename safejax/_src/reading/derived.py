"""Derived: sources whose values are made of those of views when they are read, part by part."""

from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.batch import Batch
from safejax._src.reading.requests import FREE, Cost
from safejax._src.reading.source import HostArray, Part, Source
from safejax._src.reading.view import View
from safejax._src.reading.windows import Window


class Derived(Source):
    """The flat values, in C order, of an array that is made of `operands`.

    A class of it says what it makes of which parts of them, in `read_many` and `cost_of_many`.
    """

    def __init__(self, operands: tuple[View, ...], name: str) -> None:
        self.name = name
        self.operands = operands
        sources = [source for operand in operands for source in operand.sources]
        self.immutable = all(source.immutable for source in sources)
        self.has_values = all(source.has_values for source in sources)
        self.elsewhere = any(source.elsewhere for source in sources)
        self.plans_reads = any(source.plans_reads for source in sources)
        self.is_barrier = any(source.is_barrier for source in sources)
        known = [set(source.holders) for source in sources if source.holders is not None]
        self.holders = tuple(sorted(set.intersection(*known))) if known else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @abstractmethod
    def _of(self, operands: tuple[View, ...]) -> "Derived":
        """The source that makes the same of other operands."""

    @abstractmethod
    def read_many(self, reads: Sequence[tuple[Part, NDArray[Any]]]) -> None: ...

    @abstractmethod
    def cost_of_many(self, parts: Sequence[Part]) -> Cost: ...

    @property
    def arrays(self) -> tuple[HostArray, ...]:
        return tuple(array for operand in self.operands for array in operand.arrays)

    def with_arrays(self, instead: Callable[[HostArray], HostArray]) -> "Derived":
        return self._of(tuple(operand.with_arrays(instead) for operand in self.operands))

    @contextmanager
    def kept(self) -> Generator[None]:
        """Inside the block, a barrier among the operands is read once."""
        with ExitStack() as stack:
            for operand in self.operands:
                stack.enter_context(operand.kept())
            yield

    def cost(self, dtype: Dtype, window: Window) -> Cost:
        return self.cost_of_many([Part(0, dtype, window)])

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        result = np.empty(window.shape, dtype)
        self.read_many([(Part(begin, dtype, window), result)])
        return result

    def read_into(self, begin: int, dtype: Dtype, window: Window, out: NDArray[Any]) -> None:
        self.read_many([(Part(begin, dtype, window), out)])

    def _cost_of(self, views: Sequence[View]) -> Cost:
        """What a read of all these views requests."""
        if self.plans_reads:
            batch = Batch(is_dry=True)
            for view in views:
                view.read_in_batch(batch.empty(view.shape, view.dtype), batch)
            return batch.cost
        total = FREE
        for view in views:
            total += view.cost()
        return total

    @contextmanager
    def _read(self, groups: Sequence[Sequence[View]]) -> Generator[Sequence[list[NDArray[Any]]]]:
        """The values of views, one group after the other; requested together where that helps."""
        if not self.plans_reads:
            yield _Each(groups)
            return
        with Batch() as batch:
            held: list[list[NDArray[Any]]] = []
            for views in groups:
                held.append([batch.empty(view.shape, view.dtype) for view in views])
                for view, values in zip(views, held[-1], strict=True):
                    view.read_in_batch(values, batch)
            batch.run()
            yield held


class _Each(Sequence[list[NDArray[Any]]]):
    """The values of each group of views, which are read when it is its turn."""

    def __init__(self, groups: Sequence[Sequence[View]]) -> None:
        self._groups = groups

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, number: Any) -> Any:
        return [view.read() for view in self._groups[number]]
