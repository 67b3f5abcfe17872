"""What a store is asked when a file in it is opened and read."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

import safejax
from safejax._src.reading.remote import HEAD
from tests.support.servers import Counting


def check_opened_and_read_by_pieces(server: Counting, tree: Any, expected: NDArray[Any]) -> None:
    """Check that `tree`, just loaded, was opened by one request, and is read by two as planned.

    It has one leaf, `w`, which is `expected`. Each answer says which version of the file it is of,
    so that nobody has to ask.
    """
    assert [(each.method, each.span) for each in server.requests] == [("GET", (0, HEAD))]
    planned = safejax.plan(tree).reads
    server.clear()
    with safejax.observe_reads() as log:
        placed = safejax.materialize(tree)
    assert len(server.requests) == len(log.reads) == planned.requests == 2
    assert server.sent == log.nbytes == planned.nbytes == expected.nbytes
    assert np.asarray(placed["w"]).tobytes() == expected.tobytes()
