"""Files of which bytes are requested: what is needed at one time is planned and read together."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safejax._src.dtypes import Dtype
from safejax._src.reading.landing import Landing, Target
from safejax._src.reading.requests import FREE, Cost, Reach, Requests, byte_spans, planned
from safejax._src.reading.source import File, Part
from safejax._src.reading.windows import Window


class RequestedFile(File):
    """A file without an address in memory. Each read is a request, planned as `reach` says.

    A class of it does the requests, in `_fetch`; each of them is logged.
    """

    immutable = True
    plans_reads = True
    reach: Reach

    @abstractmethod
    def _fetch(self, requests: Requests, landing: Landing) -> None:
        """Do the requests, and put what they return where it is needed.

        Raises `ReadError` if the bytes cannot be had, or are not those of the file that was opened.
        """

    def read(self, begin: int, dtype: Dtype, window: Window) -> NDArray[Any]:
        if window.size == 0:
            return np.empty(window.shape, dtype)
        target = Target(Part(begin, dtype, window))
        self._fill([target])
        return target.array

    def read_into(self, begin: int, dtype: Dtype, window: Window, out: NDArray[Any]) -> None:
        self.read_many([(Part(begin, dtype, window), out)])

    def read_many(self, reads: Sequence[tuple[Part, NDArray[Any]]]) -> None:
        targets = [Target(part, out) for part, out in reads if part.window.size]
        if targets:
            self._fill(targets)
            for target in targets:
                target.finish()

    def cost(self, dtype: Dtype, window: Window) -> Cost:
        return self.cost_of_many([Part(0, dtype, window)])

    def cost_of_many(self, parts: Sequence[Part]) -> Cost:
        needed = [byte_spans(*part) for part in parts if part.window.size]
        return planned(needed, self.reach).cost if needed else FREE

    def _fill(self, targets: list[Target]) -> None:
        requests = planned([target.spans for target in targets], self.reach)
        self._log_all((requests.ends - requests.begins).tolist())
        self._log_excess(requests.cost.excess)
        self._fetch(requests, Landing(targets))
