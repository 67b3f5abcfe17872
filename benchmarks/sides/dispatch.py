"""The times of a call of a jitted function with many leaves, lazy or plain, and to place them."""

import os
from functools import reduce
from operator import add
from typing import Any

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
    """Place all leaves: lazy ones, or each array of NumPy by itself."""
    tree: Any = job.spec.tree() if job.side == "asarray of each" else safejax.load(job.path)

    def run() -> Any:
        if job.side == "asarray of each":
            return jax.block_until_ready({name: jnp.asarray(leaf) for name, leaf in tree.items()})
        return jax.block_until_ready(safejax.materialize(tree))

    return Work(run, lambda placed: check_tree(job, placed))
