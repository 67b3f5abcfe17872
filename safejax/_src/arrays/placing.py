"""Placing: a view's values onto the devices of a sharding, always concrete.

One block is read for each *distinct* index that this process's devices hold; replicas share
it, and what no device here holds is never read. Blocks that look at a mapped file are handed
to the device as they are, and XLA's CPU client uses them in place where they are aligned. Of a
file whose bytes are requested, all blocks are requested together, also those of several leaves.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast, final

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from numpy.typing import NDArray

from safejax._src.arrays import jax_private, staging
from safejax._src.arrays.content import Content, key_data_shape
from safejax._src.arrays.devices import (
    alignment_for,
    array_in_place,
    only_device,
    parts_of,
)
from safejax._src.arrays.precision import narrowed
from safejax._src.arrays.turned import read_for
from safejax._src.dtypes import Dtype
from safejax._src.reading.batch import Batch
from safejax._src.reading.memory import Allocator, Arena, aligned_empty
from safejax._src.reading.view import View
from safejax.errors import PlacementError


@final
class Placement(NamedTuple):
    """Where a leaf goes; not committed means: JAX may move it to meet other arrays."""

    sharding: Sharding
    committed: bool


@final
class Placed(NamedTuple):
    """An array on its devices.

    `in_place` are the blocks of it that were not copied, but are used where they lie in a mapped
    file.
    """

    array: jax.Array
    in_place: list[NDArray[Any]]


_CONFIG: Final[Any] = jax.config

WORTH_A_THREAD: Final = 256 << 10
"""Bytes from which on two threads copy faster than one."""


def default_placement() -> Placement:
    """JAX's default device as it is now, uncommitted."""
    device = _CONFIG.jax_default_device
    if device is None:
        device = jax.local_devices()[0]
    elif isinstance(device, str):
        device = jax.local_devices(backend=device)[0]
    return _uncommitted_on(device)


@lru_cache(maxsize=64)
def _uncommitted_on(device: Any) -> Placement:
    return Placement(SingleDeviceSharding(device), committed=False)


@final
class Job(NamedTuple):
    """A leaf to place: what it holds, as which dtype, and where; `name` is what errors call it.

    For keys, `dtype` is that of the key data.
    """

    content: Content
    dtype: Dtype
    placement: Placement
    name: str


_NO_BATCH: Final = Batch()
"""For what is not read together with anything."""


def place(
    content: Content, dtype: Dtype, placement: Placement, name: str, aval: Any = None
) -> Placed:
    """The array of a content, as `dtype`, where `placement` says.

    For keys, `dtype` is that of the key data, and a typed key array comes back. `name` is what
    errors call the leaf. `aval`, where it is known, is what tracing sees of the array.

    Raises `PrecisionError` where a narrower integer `dtype` cannot hold a value; whatever is
    raised says for which leaf.
    """
    job = Job(content, dtype, placement, name)
    if content.view.plans_reads:
        (placed,) = place_many([job])
        return placed
    with _ErrorsName(name):
        is_known = aval is not None and content.key is None
        # What is staged does not go as it lies.
        if is_known and not staging.may_take(content.view, placement.sharding):
            found = array_in_place(
                content.view, aval, placement.sharding, committed=placement.committed
            )
            if found is not None:
                return Placed(*found)
        return _begun(job, _NO_BATCH)()


def place_many(jobs: Sequence[Job]) -> list[Placed]:
    """What `place` returns for each job; what they need of a file is requested together."""
    if not jobs:  # All of a group may have been placed meanwhile.
        return []
    with Batch() as batch:
        begun: list[Callable[[], Placed]] = []
        for job in jobs:
            with _ErrorsName(job.name):
                begun.append(_begun(job, batch))
        with _ErrorsName(*(job.name for job in jobs)):
            batch.run()
        placed: list[Placed] = []
        for job, finish in zip(jobs, begun, strict=True):
            with _ErrorsName(job.name):
                placed.append(finish())
    return placed


@final
class _ErrorsName:
    """Whatever is raised inside says which leaf, or which leaves, are concerned."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception):
            return
        first, *more = self._names
        some = f"leaf {first!r}" + (f" and {len(more)} more" if more else "")
        if isinstance(error, AttributeError):
            # hasattr() would take it for a missing attribute of the array.
            raise PlacementError(f"{some}: placing failed: {error}") from error
        error.add_note(f"while placing {some}")


def _begun(job: Job, batch: Batch) -> Callable[[], Placed]:
    """A function that makes the array of a leaf, once the batch has read what it needs."""
    content, placement = job.content, job.placement
    key = content.key
    stages = staging.is_on(placement.sharding) and jax_private.TAKES_PLACED_BLOCKS
    task = _Task(content.view, job.dtype, content.weak_type, job.name, batch, stages)
    if key is None:
        return _placing(task, placement)
    of_data = _of_key_data(placement.sharding, len(key_data_shape(key)))
    finish = _placing(task, Placement(of_data, placement.committed))

    def finish_keys() -> Placed:
        data, in_place = finish()
        return Placed(jax.random.wrap_key_data(data, impl=key), in_place)

    return finish_keys


def is_worth_a_thread(view: View, dtype: Dtype, placement: Placement) -> bool:
    """Whether placing a view takes time outside of Python, so that threads of their own help.

    Not so where it is used in place, or little is copied out of memory: threads then do no more
    than wait for each other. The first of many blocks decides.
    """
    if not view.in_memory:
        return True
    if view.nbytes < WORTH_A_THREAD:
        return False
    if view.dtype != dtype or staging.may_be_on(placement.sharding):
        return True
    device = only_device(placement.sharding)
    if device is None:
        parts, _ = parts_of(placement.sharding, view.shape)
        if not parts:
            return False
        device, index = parts[0]
        view = view.index(index)
    return not view.is_in_place(alignment_for(device, dtype))


class _Task(NamedTuple):
    """What the blocks of a leaf are made of."""

    view: View
    dtype: Dtype
    weak_type: bool
    name: str
    batch: Batch
    stages: bool


class _Block(NamedTuple):
    """What a device is given, and whether it lies in a mapped file; an array of JAX is there."""

    values: "NDArray[Any] | jax.Array"
    is_mapped: bool


def _placing(task: _Task, placement: Placement) -> Callable[[], Placed]:
    view, sharding = task.view, placement.sharding
    device = only_device(sharding)
    if device is None:
        blocks = _blocks(task, sharding)
    else:
        blocks = {device: _block(task, view, device, aligned_empty)}

    def finish() -> Placed:
        array = jax_private.array_of_blocks(
            view.shape,
            task.dtype,
            sharding,
            {device: block.values for device, block in blocks.items()},
            committed=placement.committed,
            weak_type=task.weak_type,
        )
        # Replicas share a block.
        mapped = {id(block): block.values for block in blocks.values() if block.is_mapped}
        return Placed(array, cast("list[NDArray[Any]]", list(mapped.values())))

    return finish


def _blocks(task: _Task, sharding: Sharding) -> dict[Any, _Block]:
    """What each device of this process is given."""
    view = task.view
    parts, part_of = parts_of(sharding, view.shape)
    # The shards of an array are let go together.
    arena = Arena(len(parts), math.prod(sharding.shard_shape(view.shape)) * task.dtype.itemsize)
    # Behind a barrier every block needs the whole operand, which is made once for all.
    with ExitStack() as kept:
        if view.plans_reads:
            task.batch.keep(view.kept())
        elif view.has_barrier:
            kept.enter_context(view.kept())
        blocks = [_block(task, view.index(index), first, arena.empty) for first, index in parts]
    return {device: blocks[number] for device, number in part_of.items()}


def _of_key_data(sharding: Sharding, key_axes: int) -> Sharding:
    """The sharding of the data of keys, whose own axes, the last ones, are not split."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    spec = PartitionSpec(*sharding.spec, *(None,) * key_axes)
    return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)


def _block(task: _Task, view: View, device: Any, empty: Allocator) -> _Block:
    """What a device is given: of the dtype, aligned for it, and changed by nobody."""
    if view.plans_reads:
        return _Block(_read_later(task, view, empty), is_mapped=False)
    if view.dtype != task.dtype:
        return _Block(narrowed(view.read(), task.dtype, task.name, empty), is_mapped=False)
    staged = staging.stage(view, device) if task.stages else None
    if staged is not None:
        return _Block(staged, is_mapped=False)
    values = view.in_place(alignment_for(device, view.dtype))
    if values is not None:
        return _Block(values, is_mapped=device.platform == "cpu" and view.is_mapped)
    return _Block(read_for(device, view, empty), is_mapped=False)


def _read_later(task: _Task, view: View, empty: Allocator) -> NDArray[Any]:
    """The array that the batch reads the view into."""
    values = empty(view.shape, task.dtype)
    if view.dtype == task.dtype:
        view.read_in_batch(values, task.batch)
        return values
    stored = task.batch.empty(view.shape, view.dtype)

    def narrow() -> None:
        narrowed(stored, task.dtype, task.name, lambda *_: values)

    task.batch.then(narrow)
    view.read_in_batch(stored, task.batch)
    return values
