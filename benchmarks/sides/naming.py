"""Transforms of many names: each step by itself, a chain of eight, and its plan.

A layer has eight kernels of one shape and two biases. All leaves are unread, in a file of another
writer: what takes time is what is done for each name.
"""

from typing import Any, Final

import numpy as np
from safetensors.numpy import save_file

import safejax
from benchmarks.job import Job, Work, flush

_KERNELS: Final = ("q", "k", "v", "o", "gate", "up", "down", "router")
_OF_LAYER: Final = (*(f"{part}.kernel" for part in _KERNELS), "q.bias", "k.bias")
_CHAIN: Final = safejax.chain(
    safejax.cast("bfloat16", source="float32"),
    safejax.transpose("*.kernel"),
    safejax.reshape("*.kernel", (3, 2, 4), source=(6, 4)),
    safejax.permute("*.bias", 0, [0, 2, 1, 3]),
    safejax.offset("*.bias", 1),
    safejax.prefix("params"),
    safejax.rename({"params.model.layers.{i}.{part}.{kind}": "{part}.{i}.{kind}"}),
    safejax.stack("{part}.{i}.{kind}", "{part}.{kind}"),
)


def write(job: Job) -> None:
    """Write the layers as safetensors does."""
    shapes = {name: (4, 6) if name.endswith("kernel") else (4,) for name in _names(job)}
    tree = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file(tree, job.path, {"format": "pt"})
    flush(job.path)


def _names(job: Job) -> list[str]:
    count = job.spec.count or len(_OF_LAYER)
    layers = range(count // len(_OF_LAYER))
    return [f"model.layers.{layer}.{part}" for layer in layers for part in _OF_LAYER]


def prefix(job: Job) -> Work:
    return _applied(job, safejax.prefix("params"))


def rename(job: Job) -> Work:
    kinds = ("kernel", "bias")
    return _applied(
        job,
        safejax.rename({f"model.layers.{{i}}.{{part}}.{k}": f"{{part}}.{{i}}.{k}" for k in kinds}),
    )


def cast(job: Job) -> Work:
    return _applied(job, safejax.cast("bfloat16", source="float32"))


def transpose(job: Job) -> Work:
    return _applied(job, safejax.transpose("*.kernel"))


def reshape(job: Job) -> Work:
    return _applied(job, safejax.reshape("*.kernel", (2, 2, 6), source=(4, 6)))


def permute(job: Job) -> Work:
    return _applied(job, safejax.permute("*", 0, [0, 2, 1, 3]))


def offset(job: Job) -> Work:
    return _applied(job, safejax.offset("*", 1))


def stack(job: Job) -> Work:
    step = safejax.stack("model.layers.{i}.{part}.{kind}", "{part}.{kind}")
    return _applied(job, step, len(_OF_LAYER))


def where(job: Job) -> Work:
    """A step with a pattern for each kernel."""
    patterns = [f"{name.removesuffix('kernel')}*l" for name in _names(job) if name[-1] == "l"]
    return _applied(job, safejax.transpose(patterns))


def exact(job: Job) -> Work:
    """A table with a row for each name."""
    rows = [
        (name, f"ours.{name}", "d f -> f d" if name.endswith("kernel") else "d")
        for name in _names(job)
    ]
    return _applied(job, safejax.correspond(rows))


def chain(job: Job) -> Work:
    return _applied(job, _CHAIN, len(_OF_LAYER))


def _applied(job: Job, step: safejax.Transform, count: int | None = None) -> Work:
    """The work of a step that makes `count` leaves, or one of each."""
    with open(job.path, "rb") as file:
        leaves = safejax.decode(file.read())

    def check(result: safejax.Leaves) -> None:
        assert len(result) == (count or len(leaves))

    return Work(lambda: step(leaves), check)


def plan(job: Job) -> Work:
    """The plan of a load with the chain."""

    def check(planned: Any) -> None:
        assert len(planned.leaves) == len(_OF_LAYER)
        assert not planned.problems

    return Work(lambda: safejax.plan(job.path, transform=_CHAIN), check)
