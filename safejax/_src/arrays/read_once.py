"""Reading once: what several processes hold is read by one of them, and passed on by XLA.

Where a leaf is replicated along axes of its mesh, it is first placed with those axes split as
well, so that each byte is read for one device. A compiled gather along the same axes then gives
every device what its own sharding asks for. That is a collective: all processes have to call it,
with the same leaves.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Final, NamedTuple, Protocol, TypeAlias, cast, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from safejax._src.arrays.content import Content
from safejax._src.arrays.lazy import LazyArray
from safejax._src.arrays.parts import holders_of
from safejax._src.arrays.placing import Job, Placement, place_many
from safejax._src.arrays.switch import is_in_default_memory
from safejax._src.arrays.together import groups_of
from safejax._src.arrays.untraced import run_untraced
from safejax._src.dtypes import Dtype
from safejax._src.reading.array import ArraySource
from safejax._src.reading.concatenation import concatenation
from safejax._src.reading.view import Strided, View
from safejax._src.reading.windows import Window

GROUP_BYTES: Final = 256 << 20
"""Bytes of leaves that are read before the processes agree and pass them on."""


class Together(Protocol):
    """What processes that read together need of each other."""

    def alive(self) -> None:
        """Show the others that this process is at work."""

    def agree(self, failure: BaseException | None) -> None:
        """Wait for the others; raise in all processes if one of them has a failure."""


@final
class Split(NamedTuple):
    """An axis of the mesh along which a leaf is replicated, and the axis of the leaf it splits."""

    mesh_axis: str
    axis: int


@final
class Spread(NamedTuple):
    """How a leaf is read in parts: `content` is placed with `sharding`, then gathered.

    `content` is the leaf's, or its elements in a row, padded with zeros, if the leaf has no axis
    that can be split; `is_flat` says so.
    """

    content: Content
    sharding: NamedSharding
    splits: tuple[Split, ...]
    is_flat: bool


Spreads: TypeAlias = Sequence[tuple[LazyArray, Spread | None]]
"""Leaves, each with how to read it in parts; None if it is not to be."""


def spread_of(leaf: LazyArray) -> Spread | None:
    """How to read the leaf in parts; None if each process has to read all that it holds.

    That is so where no two processes hold the same values, for keys, for floats of less than a
    byte, for 64-bit values that are placed as 32-bit ones, and where the replicated axes of the
    mesh do not divide the leaf. The answer follows from what all processes know.
    """
    sharding, content = leaf.sharding, leaf.content
    if (
        not isinstance(sharding, NamedSharding)
        or not _is_shared(sharding, leaf.shape)
        or content.key is not None
        or content.view.dtype != leaf.dtype
        or _is_narrow_float(content.view.dtype)
        or leaf.size == 0
    ):
        return None
    mesh, spec = _automatic(sharding), _entries(sharding, len(leaf.shape))
    splits = _splits(mesh, spec, leaf.shape)
    if splits is not None:
        for split in splits:
            spec[split.axis] = (*spec[split.axis], split.mesh_axis)
        return Spread(content, NamedSharding(mesh, PartitionSpec(*spec)), splits, is_flat=False)
    flat = content.view.reshape_in_place((leaf.size,))
    if any(spec) or flat is None:
        return None
    padded = content.of(_padded(flat, mesh.size))
    splits = tuple(Split(name, 0) for name in mesh.axis_names)
    return Spread(padded, NamedSharding(mesh, PartitionSpec(mesh.axis_names)), splits, is_flat=True)


def spreads_of(leaves: Iterable[LazyArray]) -> Spreads:
    """The leaves, each with how to read it in parts, if it can be."""
    return [(leaf, None if leaf.is_placed else spread_of(leaf)) for leaf in leaves]


def digest_of(spreads: Spreads) -> str:
    """A digest of what has to be the same in all processes."""
    facts = [_facts_of(leaf, spread) for leaf, spread in spreads]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _facts_of(leaf: LazyArray, spread: Spread | None) -> tuple[object, ...]:
    boxes = tuple(holders_of(leaf.sharding, leaf.shape))
    how: tuple[object, ...] = ()
    if spread is not None:
        mesh = cast("Mesh", spread.sharding.mesh)
        devices = [device.id for device in mesh.devices.flat]
        how = str(spread.sharding.spec), spread.splits, spread.is_flat, devices
    return leaf.name, leaf.is_placed, str(leaf.aval), boxes, how


def place_reading_once(spreads: Spreads, together: Together) -> Iterator[LazyArray]:
    """Place the leaves that can be read in parts, and yield each once it is placed.

    All processes call this with the same leaves in the same order. They agree between reading and
    passing on, since a process that raised would leave the others waiting.
    """
    for group in groups_read_once(spreads):
        read: dict[int, jax.Array] = {}
        failure: BaseException | None = None
        try:
            for some in read_at_a_time(group, jax.process_index()):
                jobs = [_job(leaf, spread) for leaf, spread in some]
                placed = run_untraced(partial(place_many, jobs), jobs[0].dtype)
                for (leaf, _), parts in zip(some, placed, strict=True):
                    read[id(leaf)] = parts.array
                together.alive()
        except Exception as error:  # noqa: BLE001 - raised by `agree`
            failure = error
        together.agree(failure)
        for leaf, spread in group:
            run_untraced(partial(_gather, leaf, spread, read[id(leaf)]), leaf.dtype)
        jax.block_until_ready([leaf.placed() for leaf, _ in group])
        # Only now: if the caller raises, no other process waits for a gather of this one.
        yield from (leaf for leaf, _ in group)


def groups_read_once(spreads: Spreads) -> Iterator[list[tuple[LazyArray, Spread]]]:
    """The leaves that are read in parts, in the groups after which the processes agree."""
    group: list[tuple[LazyArray, Spread]] = []
    nbytes = 0
    for leaf, spread in spreads:
        if spread is None:
            continue
        if group and nbytes + leaf.nbytes > GROUP_BYTES:
            yield group
            group, nbytes = [], 0
        group.append((leaf, spread))
        nbytes += leaf.nbytes
    if group:
        yield group


def read_at_a_time(
    group: Iterable[tuple[LazyArray, Spread]], process: int
) -> Iterator[list[tuple[LazyArray, Spread]]]:
    """The leaves of a group: each by itself, or those whose bytes a process requests together."""
    requested: dict[int, tuple[LazyArray, Spread]] = {}
    for leaf, spread in group:
        if spread.content.view.plans_reads:
            requested[id(leaf)] = leaf, spread
        else:
            yield [(leaf, spread)]
    for leaves in groups_of((leaf for leaf, _ in requested.values()), process):
        yield [requested[id(leaf)] for leaf in leaves]


def _job(leaf: LazyArray, spread: Spread) -> Job:
    return Job(spread.content, leaf.dtype, Placement(spread.sharding, committed=True), leaf.name)


def _gather(leaf: LazyArray, spread: Spread, parts: jax.Array) -> None:
    shape = leaf.shape if spread.is_flat else None
    whole = gathering(spread.sharding, spread.splits, shape, np.dtype(leaf.dtype))(parts)
    shards = [shard.data for shard in whole.addressable_shards]
    # The leaf's own sharding, whose mesh may have explicit axes.
    make = jax.make_array_from_single_device_arrays
    # A process without a device of the leaf has no shard that has the dtype.
    leaf.adopt(make(leaf.shape, leaf.sharding, shards, dtype=leaf.dtype))


@lru_cache(maxsize=256)
def gathering(
    sharding: NamedSharding, splits: tuple[Split, ...], shape: tuple[int, ...] | None, dtype: Dtype
) -> Callable[[jax.Array], jax.Array]:
    """The compiled function that undoes `splits`; with `shape`, of a leaf that was flat."""
    mesh, inside = cast("Mesh", sharding.mesh), sharding.spec
    names = {split.mesh_axis for split in splits}
    outside = [tuple(name for name in entry or () if name not in names) for entry in inside]
    carrier = _carrier(dtype)

    def gather(part: jax.Array) -> jax.Array:
        if carrier is not None:
            part = _as_carrier(part, carrier)
        for split in reversed(splits):
            part = jax.lax.all_gather(part, split.mesh_axis, axis=split.axis, tiled=True)
        if shape is not None:
            part = part[: Window.whole(shape).size].reshape(shape)
        return part if carrier is None else _as_carrier(part, dtype)

    outside = PartitionSpec(*outside) if shape is None else PartitionSpec()
    return jax.jit(
        jax.shard_map(gather, mesh=mesh, in_specs=inside, out_specs=outside, check_vma=False)
    )


def _carrier(dtype: Dtype) -> Dtype | None:
    """The integers that carry values of the dtype; None if they are gathered as they are.

    XLA on CPU gathers some floats through wider ones, which quiets NaNs, and is wrong for
    integers of less than a byte.
    """
    if jnp.issubdtype(dtype, jnp.floating):
        return np.dtype(f"uint{jnp.finfo(dtype).bits}")
    if jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits < 8:
        return np.dtype("int8" if jnp.issubdtype(dtype, jnp.signedinteger) else "uint8")
    return None


def _is_narrow_float(dtype: Dtype) -> bool:
    """Whether values of the dtype are floats of less than a byte, which have no carrier."""
    return bool(jnp.issubdtype(dtype, jnp.floating)) and jnp.finfo(dtype).bits < 8


def _as_carrier(part: jax.Array, dtype: Dtype) -> jax.Array:
    """The same bits as `dtype`, or the same integers."""
    if jnp.issubdtype(part.dtype, jnp.integer) and jnp.issubdtype(dtype, jnp.integer):
        return part.astype(dtype)
    return jax.lax.bitcast_convert_type(part, dtype)


def _entries(sharding: NamedSharding, ndim: int) -> list[tuple[str, ...]]:
    """The mesh axes that split each axis of an array of `ndim` axes."""
    entries: list[tuple[str, ...]] = []
    for entry in (*sharding.spec, *(None,) * (ndim - len(sharding.spec))):
        names = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
        entries.append(cast("tuple[str, ...]", names))
    return entries


def _splits(
    mesh: Mesh, spec: list[tuple[str, ...]], shape: tuple[int, ...]
) -> tuple[Split, ...] | None:
    """Where each axis of the mesh that is not in `spec` splits the array; None if one cannot."""
    used = {name for entry in spec for name in entry}
    rest = [
        size // int(np.prod([mesh.shape[name] for name in entry], dtype=int))
        for size, entry in zip(shape, spec, strict=True)
    ]
    splits: list[Split] = []
    for name, count in mesh.shape.items():
        if name in used or count == 1:
            continue
        axis = next((axis for axis, size in enumerate(rest) if size % count == 0), None)
        if axis is None:
            return None
        rest[axis] //= count
        splits.append(Split(name, axis))
    return tuple(splits)


@lru_cache(maxsize=64)
def _automatic(sharding: NamedSharding) -> Mesh:
    """The mesh, with no explicit axes."""
    mesh = cast("Mesh", sharding.mesh)
    axes = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=axes)


@lru_cache(maxsize=256)
def _is_shared(sharding: NamedSharding, shape: tuple[int, ...]) -> bool:
    """Whether two processes hold the same values."""
    if not is_in_default_memory(sharding):
        return False
    return any(len(holders) > 1 for holders in holders_of(sharding, shape).values())


def _padded(flat: View, count: int) -> View:
    """The elements, and zeros after them, so that `count` devices hold equally many."""
    missing = -flat.size % count
    zeros = ArraySource(np.zeros(missing, flat.dtype))
    return concatenation((flat, Strided(zeros, 0, flat.dtype, Window.whole((missing,)))), 0)
