"""The subjects that are not a function of each side: several processes, and files elsewhere.

They measure with the commands' own functions, at one of their sizes: `python -m benchmarks.many`
and `python -m benchmarks.far` measure at all of them.
"""

import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, final

from benchmarks.cases import ELSEWHERE
from benchmarks.far import __main__ as far
from benchmarks.many import __main__ as many
from benchmarks.processes import OutOfTimeError, SideError
from benchmarks.runner import Result
from benchmarks.sides import missing
from benchmarks.trees import MIB

_NEEDS: Final = {"many": ("orbax-checkpoint",), "far": ("obstore", "s3fs", "pytest")}
_PROCESSES: Final = 2
_PAUSE_MS: Final = 20
_TIMEOUT_SECONDS: Final = 600


@final
class Elsewhere:
    """Some cases that are measured together, some rounds at a time.

    `group` is "many" or "far", and `cases` are those of its cases that are measured. Where a
    package is missing, they have no sides.
    """

    def __init__(
        self, group: str, cases: Sequence[str], mib: int, folder: str,
        deadline: float | None = None,
    ) -> None:  # fmt: skip
        self.names = tuple(name for name in ELSEWHERE[group] if name in cases)
        self.rounds = 0
        self.seconds_of_a_round = 0.0
        self._far = group == "far"
        self._mib = mib
        self._folder = folder
        self._deadline = deadline
        self._missing = missing(_NEEDS[group])
        self._visited = False
        self._results: dict[str, dict[str, Result]] = {}

    def visit(
        self, rounds: int, wanted: set[str] | None = None, until: float = math.inf
    ) -> None:  # fmt: skip
        """Take some rounds, of these sides or of all; `OutOfTimeError` if the time ends.

        They are all taken, since most of the time is that of starting the processes.
        """
        del until
        self._visited = True
        if self._missing:
            return
        start = time.monotonic()
        left = None if self._deadline is None else max(0.0, self._deadline - start)
        timeout = min(_TIMEOUT_SECONDS, left or _TIMEOUT_SECONDS)
        try:
            found = (self._of_far if self._far else self._of_many)(rounds, wanted, timeout)
        except TimeoutError:
            if left is not None and timeout == left:
                raise OutOfTimeError from None
            self._failed(f"gave no answer in {_TIMEOUT_SECONDS} s")
            return
        except SideError as error:
            self._failed(str(error))
            return
        for name in self.names:
            results = self._results.setdefault(name, {})
            for side in {**results, **found[name]}:
                result = results.setdefault(side, Result(side))
                nothing: list[float | None] = [None]
                result.seconds += nothing * (self.rounds - len(result.seconds))
                result.seconds += found[name].get(side, nothing * rounds)
        self.rounds += rounds
        self.seconds_of_a_round = (time.monotonic() - start) / rounds

    def reports(self) -> Iterator[dict[str, Any]]:
        """The results so far, ready for JSON; none before a visit."""
        for name in self.names if self._visited else ():
            results = self._results.get(name, {})
            yield {
                "name": name,
                "title": _TITLES[name],
                "group": "far" if self._far else "many",
                "tree_bytes": self._mib * MIB,
                "tensors": 0,
                "file_bytes": self._mib * MIB,
                "copied_bytes": 0,
                "disk": name in ("many_save", "many_on_disk"),
                "left_out": {"all": self._missing} if self._missing else {},
                "sides": {side: result.reported() for side, result in results.items()},
            }

    def _of_many(
        self, rounds: int, wanted: set[str] | None, timeout: float
    ) -> dict[str, dict[str, list[float]]]:
        del wanted  # both sides are compared in all cases
        parts = {"many_save": "save", "many_load": "load"}
        only = list(dict.fromkeys(parts.get(name, "background") for name in self.names))
        report = many.measured(
            _PROCESSES, self._mib, rounds, list(many.SIDES), only, self._folder, timeout
        )
        return {f"many_{name.replace(' ', '_')}": of for name, of in report["seconds"].items()}

    def _of_far(
        self, rounds: int, wanted: set[str] | None, timeout: float
    ) -> dict[str, dict[str, list[float]]]:
        known = {"safejax" if side == far.OURS else side: side for side in far.COMPARED}
        sides = [side for name, side in known.items() if wanted is None or name in wanted]
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            path = os.path.join(folder, far.KEY)
            report = far.measured(path, self._mib, _PAUSE_MS, rounds, sides, timeout)
        ours = {side: name for name, side in known.items()}
        return {"far": {ours[side]: row["seconds"] for side, row in report["sides"].items()}}

    def _failed(self, error: str) -> None:
        for name in self.names:
            results = self._results.setdefault(name, {})
            results.setdefault("safejax", Result("safejax")).error = error


_TITLES: Final = {
    "many_save": f"{_PROCESSES} processes save together, flushed",
    "many_load": f"{_PROCESSES} processes load together, touched",
    "many_blocked": f"{_PROCESSES} processes save in the background: until they go on",
    "many_steps": f"{_PROCESSES} processes save in the background: until they made 8 steps",
    "many_on_disk": f"{_PROCESSES} processes save in the background: until it is on disk",
    "far": f"load from an object store that answers after {_PAUSE_MS} ms",
}
