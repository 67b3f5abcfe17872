"""What many leaves cost, next to as many plain arrays: a call with them, and placing them."""

import os
from functools import reduce
from operator import add
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

import safejax
from benchmarks.job import Job, Work, check_tree


def dispatch(job: Job) -> Work:
    """One call with the whole tree, all leaves placed."""
    # A program with so many parameters takes seconds to compile, which is not what is measured.
    jax.config.update("jax_compilation_cache_dir", os.path.join(os.path.dirname(job.path), "jax"))
    total = jax.jit(lambda tree: reduce(add, jax.tree.leaves(tree)))
    if job.side == "plain arrays":
        tree: Any = job.arrays()
    else:
        tree = safejax.load(job.path)
        if job.side == "materialized":
            tree = safejax.materialize(tree)
    for _ in range(3):
        jax.block_until_ready(total(tree))

    def check(result: jax.Array) -> None:
        assert np.isfinite(np.asarray(result)).all()

    return Work(lambda: jax.block_until_ready(total(tree)), check, calls=200)


def materialize(job: Job) -> Work:
    """Place the leaves of a tree that is loaded, or make arrays of NumPy's one by one."""
    if job.side == "jnp.asarray":
        host = job.spec.tree()
        return Work(lambda: {name: jnp.asarray(leaf) for name, leaf in host.items()}, calls=_TREES)
    trees = [safejax.load(job.path) for _ in range(_TREES)]

    def check(tree: Any) -> None:
        check_tree(job, tree)

    return Work(lambda: safejax.materialize(trees.pop()), check, calls=_TREES)


_TREES: Final = 20
