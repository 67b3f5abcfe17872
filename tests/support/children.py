"""Child processes that start quickly: forked by a server that has imported JAX and not started it.

There is one such server for all tests, and what it imports is set here alone. A module that
starts JAX's backend must not be among them: its threads are not in a child that is forked.
"""

import multiprocessing
from typing import Final

CHILDREN: Final = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(
    ["hypothesis", "pytest", "fsspec", "safejax.haiku", "safejax.objax", "safejax.testing"]
)
