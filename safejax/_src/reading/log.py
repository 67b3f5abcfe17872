"""The log of reads: which bytes were requested of which source while a log was open.

"Bytes read" always means bytes requested of a source: of a mapped file, the operating system
faults in whole pages when the values are first touched. A source may request more than is needed,
for example the rest of a block that is checked as a whole; that excess is counted apart.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple, final

from safejax._src.public import set_module
from safejax._src.system import hold_at_forks


@final
class Read(NamedTuple):
    """One request: the name of a source, and the number of bytes requested from it."""

    source: str
    nbytes: int


@set_module("safejax")
@final
@dataclass(slots=True)
class ReadLog:
    """The requests made while the log was open, in order."""

    reads: list[Read] = field(default_factory=list[Read])
    excess: int = field(default=0, init=False, repr=False, compare=False)
    """Bytes that were requested without being needed."""

    @property
    def nbytes(self) -> int:
        """Total bytes requested so far."""
        return sum(read.nbytes for read in self.reads)

    @property
    def needed(self) -> int:
        """Total bytes needed so far: those requested, without the excess."""
        return self.nbytes - self.excess

    def clear(self) -> None:
        """Discard the requests recorded so far."""
        self.reads.clear()
        self.excess = 0


open_logs: Final[list[ReadLog]] = []
open_logs_lock: Final = threading.RLock()
hold_at_forks(open_logs_lock)


@set_module("safejax")
@contextmanager
def observe_reads() -> Generator[ReadLog]:
    """Log every request for leaf data that any thread of this process makes inside the block.

    >>> import safejax, jax.numpy as jnp
    >>> tree = safejax.deserialize(safejax.serialize({"w": jnp.ones((4, 2))}))
    >>> with safejax.observe_reads() as log:
    ...     shape, before = tree["w"].shape, log.nbytes
    ...     row = tree["w"][0] + 1
    >>> before, log.nbytes
    (0, 8)
    """
    log = ReadLog()
    with open_logs_lock:
        open_logs.append(log)
    try:
        yield log
    finally:
        with open_logs_lock:
            # Compare by identity: two open logs may be equal.
            open_logs[:] = [other for other in open_logs if other is not log]
