"""The dry run: what a load would read, place and copy, and which errors it would raise."""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Unpack, cast, final

from safejax.errors import MismatchError, ShardingError, TransformError
from safejax.lazy import LazyArray
from safejax.leaves import Leaves
from safejax.opening import Path, open_path, shown_path
from safejax.options import LoadOptions, Options, parse_options, shows_options
from safejax.placing import alignment_for
from safejax.remote import FileSystem
from safejax.sources import ComputedSource
from safejax.steps import apply
from safejax.structure import walk
from safejax.tree import flatten
from safejax.views import Concatenation, Pointwise, Strided, View


@final
@dataclass(frozen=True, slots=True)
class Cost:
    """What is requested from sources: bytes, and the contiguous spans that they form."""

    nbytes: int
    spans: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.nbytes + other.nbytes, self.spans + other.spans)


@final
@dataclass(frozen=True, slots=True)
class BlockPlan:
    """One block of a leaf: the devices that hold it, and what it costs to read and to place.

    `nbytes` is its size on a device. `in_place` says that the devices use the mapped file itself;
    `whole` says that a reshape reads all of the leaf for any part of it.
    """

    devices: tuple[Any, ...]
    reads: Cost
    nbytes: int
    in_place: bool
    whole: bool


@final
@dataclass(frozen=True, slots=True)
class LeafPlan:
    """A leaf: its shape and dtype once it is placed, its sharding, and its distinct blocks."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    sharding: Any
    blocks: tuple[BlockPlan, ...]

    @property
    def in_place(self) -> bool:
        """Whether none of its bytes is copied on the host."""
        return all(block.in_place for block in self.blocks)


@final
@dataclass(frozen=True, slots=True)
class DevicePlan:
    """The bytes read for a device (replicas share a read), and the bytes placed on it."""

    reads: Cost
    places: int


@final
@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """The bytes that a process reads, each once, those that it copies, and its peak host memory.

    The memory of arrays on the CPU is counted; that of mapped files is not.
    """

    reads: Cost
    copies: int
    peak_host_bytes: int


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """What a load would read, place and copy, and the errors it would raise; printed as a table.

    `problems` has the messages of the errors that it would raise, and of its warnings.
    """

    source: str
    leaves: tuple[LeafPlan, ...]
    problems: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of all leaves, each counted once, in the dtypes in which they are placed."""
        return sum(_size(leaf) for leaf in self.leaves)

    @property
    def reads(self) -> Cost:
        """What all processes together request from files."""
        return sum((process.reads for process in self.processes.values()), Cost(0, 0))

    @property
    def devices(self) -> Mapping[Any, DevicePlan]:
        """What is read for each device and placed on it, in the order of device ids."""
        found: dict[Any, DevicePlan] = {}
        for _, block in self._blocks():
            for device in block.devices:
                seen = found.get(device, DevicePlan(Cost(0, 0), 0))
                found[device] = DevicePlan(seen.reads + block.reads, seen.places + block.nbytes)
        return dict(sorted(found.items(), key=lambda item: item[0].id))

    @property
    def processes(self) -> Mapping[int, ProcessPlan]:
        """What each process reads and copies, by its index."""
        found: dict[int, ProcessPlan] = {}
        for leaf, block in self._blocks():
            for number in {device.process_index for device in block.devices}:
                seen = found.get(number, ProcessPlan(Cost(0, 0), 0, 0))
                copied = 0 if block.in_place else block.nbytes
                # On the CPU the copy is the array; elsewhere it is freed once it was transferred.
                lasts = any(
                    device.platform == "cpu" and device.process_index == number
                    for device in block.devices
                )
                peak = seen.peak_host_bytes + copied if lasts else max(seen.peak_host_bytes, copied)
                if block.whole:
                    peak = max(peak, seen.peak_host_bytes + copied + _size(leaf))
                found[number] = ProcessPlan(seen.reads + block.reads, seen.copies + copied, peak)
        return dict(sorted(found.items()))

    def _blocks(self) -> Iterator[tuple[LeafPlan, BlockPlan]]:
        for leaf in self.leaves:
            for block in leaf.blocks:
                yield leaf, block

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("", "bytes read", "spans", "bytes placed", "bytes copied", "peak on host")
        ]
        devices = self.devices
        for device, each in devices.items():
            counts = (each.reads.nbytes, each.reads.spans, each.places)
            rows.append((f"device {device}", *map(_n, counts), "", ""))
        for number, each in self.processes.items():
            placed = sum(
                device_plan.places
                for device, device_plan in devices.items()
                if device.process_index == number
            )
            rows.append(
                (f"process {number}", _n(each.reads.nbytes), _n(each.reads.spans), _n(placed),
                 _n(each.copies), _n(each.peak_host_bytes))
            )  # fmt: skip
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        table = [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        in_place = sum(leaf.in_place for leaf in self.leaves)
        whole = [leaf.name for leaf in self.leaves if any(block.whole for block in leaf.blocks)]
        notes = [
            f"{self.source}: {len(self.leaves)} leaves, {_n(self.nbytes)} bytes",
            f"{in_place} used in place, {len(self.leaves) - in_place} copied",
        ]
        if whole:
            notes.append(f"read whole for any part of them: {_some(whole)}")
        notes.extend(f"problem: {problem}" for problem in self.problems)
        return "\n".join([notes[0], *table, *notes[1:]])


@shows_options
def plan(
    tree_or_path: Any, *, like: Any = None, fs: FileSystem = None, **options: Unpack[LoadOptions]
) -> Plan:
    """What `load` with the same arguments would read, place and copy; only headers are read.

    `tree_or_path` is a path, as `load` takes it, or a tree of lazy leaves that `materialize`
    would place. Errors that a load would raise after opening the file, for example a mismatch
    with `like` or a sharding that does not divide a leaf, are reported in `problems`; the plan
    then leaves out what they concern.

    >>> import jax.numpy as jnp, safejax, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "params.safetensors")
    >>> safejax.save({"w": jnp.ones((4, 2))}, path)
    >>> planned = safejax.plan(path)
    >>> planned.reads.nbytes, planned.leaves[0].in_place, planned.problems
    (32, True, ())

    Raises what `load` raises for a file that cannot be opened.
    """
    parsed = parse_options(plan, options)
    if _is_path(tree_or_path):
        source = shown_path(cast("Path", tree_or_path))
        path = cast("Path", tree_or_path)
        leaves = open_path(path, fs, verify=parsed.verify, access=parsed.access)
    else:
        source, leaves = "tree", flatten(tree_or_path)
    problems: list[str] = []
    tree = _planned_tree(leaves, like, parsed, source, problems)
    lazy = {name: leaf for name, leaf in walk(tree).entries.items() if isinstance(leaf, LazyArray)}
    problems.extend(_precision(list(lazy.values())))
    planned = tuple(_leaf_plan(name, leaf) for name, leaf in lazy.items())
    return Plan(source, planned, tuple(problems))


def _planned_tree(
    leaves: Leaves, like: Any, options: Options, source: str, problems: list[str]
) -> Any:
    """The tree, without what cannot be made of it, which is added to `problems`."""
    try:
        leaves = apply(options.transform, leaves)
    except TransformError as error:
        problems.append(str(error))
        return {}
    options = replace(options, transform=None)
    while True:
        try:
            return options.tree(leaves, source, like)
        except MismatchError as error:
            problems.append(str(error))
            like = None
        except ShardingError as error:
            problems.append(str(error))
            if options.sharding is None:
                return {}
            options = replace(options, sharding=None)
        except TransformError as error:  # The names do not form a tree.
            problems.append(str(error))
            return {}


def _leaf_plan(name: str, leaf: LazyArray) -> LeafPlan:
    view, dtype = leaf.content.view, leaf.dtype
    stored = view.dtype if leaf.content.key is not None else dtype
    own = leaf.content.key_axes
    blocks: list[BlockPlan] = []
    if not leaf.is_placed:
        held: dict[tuple[Any, ...], list[Any]] = {}
        indices = cast("dict[Any, Any]", leaf.sharding.devices_indices_map(leaf.shape))
        for device, index in indices.items():
            bounds = tuple((part.start, part.stop, part.step) for part in index)
            held.setdefault(bounds, []).append(device)
        for bounds, devices in held.items():
            index = (*(slice(*part) for part in bounds), *[slice(None)] * own)
            block = view.index(index)
            blocks.append(
                BlockPlan(
                    tuple(devices),
                    _cost(block),
                    block.size * stored.itemsize,
                    block.dtype == stored and _is_in_place(block, devices),
                    _is_whole(block),
                )
            )
    return LeafPlan(name, leaf.shape, dtype, leaf.sharding, tuple(blocks))


def _cost(view: View) -> Cost:
    """What reading the view requests from files."""
    if isinstance(view, Pointwise):
        return _cost(view.operand)
    if isinstance(view, Concatenation):
        return sum((_cost(part) for part in view.parts), Cost(0, 0))
    assert isinstance(view, Strided)
    if isinstance(view.source, ComputedSource):
        return _cost(cast("View", view.source.operand)) if view.size else Cost(0, 0)
    return Cost(*view.source.cost(view.dtype, view.window))


def _is_in_place(view: View, devices: list[Any]) -> bool:
    if view.size == 0:
        return True
    if not isinstance(view, Strided):
        return False
    # Of the devices that share the block, the one that needs the most.
    alignment = max(alignment_for(device, view.dtype) for device in devices)
    return view.peek(alignment) is not None


def _is_whole(view: View) -> bool:
    return any(isinstance(source, ComputedSource) for source in view.sources)


def _precision(leaves: list[LazyArray]) -> Iterator[str]:
    """What a load would warn of, and what it might refuse once it reads the values."""
    kinds: dict[str, list[str]] = {"floats": [], "integers": []}
    for leaf in leaves:
        stored = leaf.content.view.dtype
        if leaf.content.key is None and stored != leaf.dtype:
            kinds["integers" if stored.kind in "iu" else "floats"].append(leaf.name)
    if kinds["floats"]:
        yield f"placed with half the bits, since JAX's x64 mode is off: {_some(kinds['floats'])}"
    if kinds["integers"]:
        yield (
            "an error if a value needs more than 32 bits, since JAX's x64 mode is off: "
            f"{_some(kinds['integers'])}"
        )


def _is_path(value: object) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(part, str | os.PathLike) for part in value)
    return isinstance(value, str | os.PathLike)


def _size(leaf: LeafPlan) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize


_SHOWN: Final = 5


def _some(names: list[str]) -> str:
    more = f", … {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def _n(count: int) -> str:
    return f"{count:,}"
