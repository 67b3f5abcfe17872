"""safejax itself."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

import safejax
from benchmarks.job import Facts, Job, Work, check_tree, loading, saving
from benchmarks.trees import same_bits, truncated

# ---- files


def write(job: Job) -> None:
    """Write the tree as safejax saves it."""
    safejax.save(job.spec.tree(), job.path)


def write_bfloat16(job: Job) -> None:
    """Write the tree truncated to bfloat16, so that casting it back is exact."""
    tree = {name: truncated(leaf) for name, leaf in job.spec.leaves()}
    safejax.save(tree, job.path, transform=safejax.cast("bfloat16"))


def write_layers(job: Job) -> None:
    """Write the tree as a list of layers, whose structure the file has to record."""
    safejax.save(layers(job), job.path)


def layers(job: Job) -> dict[str, Any]:
    """The leaves as a list of layers of ten leaves each."""
    leaves = list(job.spec.tree().values())
    groups = [leaves[begin : begin + 10] for begin in range(0, len(leaves), 10)]
    return {"layers": [{f"weight_{k}": leaf for k, leaf in enumerate(g)} for g in groups]}


# ---- saving


def save(job: Job) -> Work:
    """Save, flushed to disk."""
    tree = job.arrays()
    return saving(job, lambda path: safejax.save(tree, path), _load_host)


def save_cast(job: Job) -> Work:
    """Save as bfloat16, flushed to disk."""
    tree, cast = job.arrays(), safejax.cast("bfloat16")
    return saving(job, lambda path: safejax.save(tree, path, transform=cast), _load_host)


def _load_host(path: str) -> dict[str, Any]:
    return jax.tree.map(np.asarray, safejax.load(path))


# ---- loading


def load(job: Job) -> Work:
    """Load until ready, and touch every value."""
    return loading(job, _load(job))


def load_cast(job: Job) -> Work:
    """Load bfloat16 as float32."""
    cast = safejax.cast("float32")
    return loading(
        job,
        lambda: safejax.materialize(safejax.load(job.path, transform=cast)),
        exact=False,
    )


def place(job: Job) -> Work:
    """Load until ready, without touching values."""
    read = _load(job)
    return Work(lambda: jax.block_until_ready(read()), lambda tree: check_tree(job, tree))


def _load(job: Job) -> Callable[[], Any]:
    sharding = None
    if job.layout:
        # Made in advance, like the shardings of the other sides, and looked up for each leaf.
        of_rank = {len(shape): job.sharding(shape) for shape in job.spec.shapes().values()}

        def sharding(name: str, aval: jax.ShapeDtypeStruct) -> Any:
            del name
            return of_rank[aval.ndim]

    return lambda: safejax.materialize(safejax.load(job.path, sharding=sharding))


def convert(job: Job) -> Work:
    """Convert a float32 file to a bfloat16 file."""
    cast = safejax.cast("bfloat16")

    def run(target: str) -> None:
        safejax.save(safejax.load(job.path), target, transform=cast)

    return saving(job, run, _load_host)


# ---- parts


def row(job: Job) -> Work:
    """A row of a leaf as NumPy, from an open file."""
    name, shape = list(job.spec.shapes().items())[-1]
    leaf = safejax.load(job.path)[name]
    row = shape[0] // 2 + 1

    def check(result: NDArray[Any]) -> None:
        assert same_bits(result, np.asarray(leaf)[row])

    def facts() -> Facts:
        return {"needed": 4.0 * shape[1]}

    return Work(lambda: np.array(leaf[row]), check, facts, calls=20_000)


def plan_file(job: Job) -> Work:
    """Open a file, and plan how each of its leaves is read."""

    def check(plan: safejax.Plan) -> None:
        assert len(plan.leaves) == len(job.spec.shapes())

    return Work(lambda: safejax.plan(job.path), check)


def open_file(job: Job) -> Work:
    """Open a file, as the tree of its leaves."""

    def check(tree: Any) -> None:
        assert len(jax.tree.leaves(tree)) == len(job.spec.shapes())

    def facts() -> Facts:
        named = safejax.flatten(safejax.load(job.path))
        bare = safejax.serialize({name: np.asarray(leaf) for name, leaf in named.items()})
        with open(job.path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        return {
            "needed": 0.0,
            "header": header,
            "header_without_record": int.from_bytes(bare[:8], "little"),
        }

    return Work(lambda: safejax.load(job.path), check, facts)
