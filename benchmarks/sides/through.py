"""Kernels of bfloat16 through a cast, a transpose, a stack and all of them, onto 8 devices.

The limit copies each device's part once, from the mapping to new private memory, as NumPy copies
what is strided; both sides touch all values when all are there.
"""

import itertools
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding
from numpy.typing import NDArray

import safejax
from benchmarks.job import Job, Work, named, touch, touched
from benchmarks.sides.limit import fresh, mapped
from benchmarks.trees import same_bits, truncated

_KERNELS: Final = "layers.*.kernel"
_STACKED: Final = "kernels"

_Views: TypeAlias = dict[str, list[NDArray[Any]]]
"""The kernels of each leaf of the result: one, or those that are stacked, each as it is there."""


def _kernels(tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: each for name, each in tensors.items() if each.ndim == 2}


def _names(job: Job) -> list[str]:
    return [name for name, shape in job.spec.shapes().items() if len(shape) == 2]


def cast(job: Job) -> Work:
    """Cast to float32, by columns."""
    return _work(job, safejax.cast("float32"), lambda name, kernel: (name, kernel))


def transpose(job: Job) -> Work:
    """Transpose, by columns of the result, which are rows of the file."""
    step = safejax.transpose(where=_KERNELS)
    return _work(job, step, lambda name, kernel: (name, kernel.T), dtype=None)


def stack(job: Job) -> Work:
    """Stack the layers, by columns."""
    step = safejax.stack(_names(job), _STACKED)
    return _work(job, step, lambda _, kernel: (_STACKED, kernel), dtype=None)


def chain(job: Job) -> Work:
    """Cast, transpose and stack, on a mesh of 2 × 4."""
    step = safejax.chain(
        safejax.cast("float32"),
        safejax.transpose(where=_KERNELS),
        safejax.stack(_names(job), _STACKED),
    )
    return _work(job, step, lambda _, kernel: (_STACKED, kernel.T))


def _work(
    job: Job,
    step: safejax.Transform,
    seen: Callable[[str, NDArray[Any]], tuple[str, NDArray[Any]]],
    dtype: Any = np.float32,
) -> Work:
    """The work of a side; `seen` is the leaf that a kernel is in, and the kernel as it is there."""
    transform = safejax.chain(safejax.select(_KERNELS), step)

    def expected(tensors: dict[str, NDArray[Any]]) -> _Views:
        found: _Views = {}
        for name, kernel in _kernels(tensors).items():
            leaf, view = seen(name, kernel)
            found.setdefault(leaf, []).append(view)
        return found

    def sharding(shape: tuple[int, ...]) -> Sharding:
        of_kernel = job.sharding(shape[-2:])
        if len(shape) == 2 or not isinstance(of_kernel, NamedSharding):
            return of_kernel
        return NamedSharding(of_kernel.mesh, jax.sharding.PartitionSpec(None, *of_kernel.spec))

    def ours() -> Any:
        tree = safejax.load(
            job.path, transform=transform, sharding=lambda _, aval: sharding(aval.shape)
        )
        return touched(safejax.materialize(tree))

    def limit() -> dict[str, list[NDArray[Any]]]:
        views = expected(mapped(job.path))
        all_of = [kernel for kernels in views.values() for kernel in kernels]
        itemsize = np.dtype(dtype or all_of[0].dtype).itemsize
        memory = fresh(sum(kernel.size * itemsize for kernel in all_of))
        reached = 0
        parts: dict[str, list[NDArray[Any]]] = {}
        for leaf, kernels in views.items():
            stacked = leaf == _STACKED
            shape = (len(kernels), *kernels[0].shape) if stacked else kernels[0].shape
            for index in sharding(shape).devices_indices_map(shape).values():
                found = [kernel[index[-2:]] for kernel in kernels]
                of_part = (len(found), *found[0].shape) if stacked else found[0].shape
                block = np.ndarray(of_part, dtype or found[0].dtype, memory.data, reached)
                for number, part in enumerate(found):
                    np.copyto(block[number] if stacked else block, part)
                reached += block.nbytes
                parts.setdefault(leaf, []).append(block)
        for block in itertools.chain(*parts.values()):
            touch(block)
        return parts

    def check(result: Any) -> None:
        arrays = {} if job.side == "limit" else named(result)
        host = {name: truncated(leaf) for name, leaf in job.spec.leaves()}
        for leaf, kernels in expected(host).items():
            whole = np.stack(kernels) if leaf == _STACKED else kernels[0]
            whole = whole if dtype else whole.astype(jax.numpy.bfloat16)
            shards = sharding(whole.shape).devices_indices_map(whole.shape)
            if job.side == "limit":
                found = result[leaf]
            else:
                array = arrays[leaf]
                assert array.sharding.is_equivalent_to(sharding(whole.shape), whole.ndim), leaf
                held = {shard.device: shard.data for shard in array.addressable_shards}
                found = [np.asarray(held[device]) for device in shards]
            for part, index in zip(found, shards.values(), strict=True):
                assert same_bits(part, np.ascontiguousarray(whole[index])), leaf

    return Work(limit if job.side == "limit" else ours, check)
