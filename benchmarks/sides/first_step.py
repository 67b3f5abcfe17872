"""The time from a file to the first output of a function that has to be compiled.

What cannot be done sooner is the longer of two: to load the file, and to compile the function and
run it, which reads every value. The run is a part of it, since it begins when both are there: it
takes half as long as the compilation. For it, the arrays are on their devices, and were touched.
"""

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.flax import load_file

import safejax
from benchmarks.job import Job, Work, touched


def _model(tree: Any) -> jax.Array:
    """Something of every value of a tree, in a program with a few operations for each leaf."""
    state = jnp.ones(64)
    for leaf in jax.tree.leaves(tree):
        rows = jnp.where(jnp.isfinite(leaf), jnp.clip(leaf, -1, 1), 0).reshape(-1, 64)
        state = jnp.tanh(state + rows.mean(0) * jnp.cos(state)) + jax.nn.softmax(state)
    return state


def first_output(job: Job) -> Work:
    """Load, compile and run, in the order that the side stands for."""
    # A function of its own for each call: nothing is compiled yet.
    model: Callable[[Any], Any] = jax.jit(lambda tree: _model(tree))

    def lazy() -> Any:
        return model(safejax.load(job.path))

    def prefetched() -> Any:
        tree = safejax.prefetch(safejax.load(job.path))
        return model.lower(tree).compile()(tree)

    def materialized() -> Any:
        return model(safejax.materialize(safejax.load(job.path)))

    def flax() -> Any:
        return model(load_file(job.path))

    placed = touched(job.arrays()) if job.side == "compile and run" else None

    def compile_and_run() -> Any:
        return model.lower(placed).compile()(placed)

    def load_only() -> Any:
        return safejax.materialize(safejax.load(job.path))

    runs: Final = {
        "safejax": prefetched,
        "safejax, lazy": lazy,
        "safejax, materialized": materialized,
        "safetensors.flax": flax,
        "compile and run": compile_and_run,
        "load only": load_only,
    }

    def check(result: Any) -> None:
        if job.side == "load only":
            return
        expected = jax.jit(_model)({name: jnp.asarray(leaf) for name, leaf in job.spec.leaves()})
        assert np.asarray(result).tobytes() == np.asarray(expected).tobytes()

    return Work(lambda: jax.block_until_ready(runs[job.side]()), check)
