"""Child processes that start quickly, forked by a server that has imported JAX but not started it.

There is one such server for all tests, and its imports are listed only here. A module that starts
JAX's backend must not be among them, because a forked child does not have its threads.
"""

import multiprocessing
from typing import Final

CHILDREN: Final = multiprocessing.get_context("forkserver")
_FRAMEWORKS: Final = ["safejax.haiku", "safejax.objax", "safejax.orbax"]
CHILDREN.set_forkserver_preload(["hypothesis", "pytest", "fsspec", *_FRAMEWORKS, "safejax.testing"])
