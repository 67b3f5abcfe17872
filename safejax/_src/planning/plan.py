"""Plans: what a load would read, place and copy, in bytes, by device and by process."""

import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, NamedTuple, final

import jax

from safejax._src.format.markup import html_lines, html_table
from safejax._src.planning.table import listed, table, with_commas
from safejax._src.public import set_module
from safejax._src.reading.requests import FREE, Cost


@final
@dataclass(frozen=True, slots=True)
class BlockPlan:
    """One block of a leaf: the devices that hold it, and what it costs to read and to place.

    `reads` is what it costs to read it by itself. `nbytes` is its size on a device. `in_place`
    says that the devices use the mapped file itself;
    `whole` says that a reshape reads all of the leaf for any part of it. A leaf that is NumPy's in
    `like` has a block that no device holds: the load itself reads it, in the processes `hosts`.
    """

    devices: tuple[Any, ...]
    reads: Cost
    nbytes: int
    in_place: bool
    whole: bool
    hosts: tuple[int, ...] = ()
    is_turned: bool = False
    """Whether it is read in the order of the file, so that XLA makes another one of it."""

    @property
    def processes(self) -> Set[int]:
        """The indices of the processes that read it."""
        return {*self.hosts, *(device.process_index for device in self.devices)}


# A named tuple: a file may hold 100,000, and frozen dataclasses take longer to make.
@final
class LeafPlan(NamedTuple):
    """A leaf: its shape and type once it is placed, its sharding, and its distinct blocks.

    `sharding` is None for a leaf that stays on the host, and `dtype` is then the stored one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    sharding: Any
    blocks: tuple[BlockPlan, ...]
    weak_type: bool = False
    is_together: bool = False
    """Whether its blocks are requested together, also with those of other leaves."""

    @property
    def in_place(self) -> bool:
        """Whether none of its bytes is copied on the host."""
        return all(block.in_place for block in self.blocks)

    @property
    def on_host(self) -> bool:
        """Whether it is NumPy's in `like`, so that the load itself reads it, and places nothing."""
        return any(block.hosts for block in self.blocks)

    def __deepcopy__(self, memo: dict[int, Any]) -> "LeafPlan":
        """Itself: it is immutable, and JAX's devices cannot be copied."""
        return self


@final
@dataclass(frozen=True, slots=True)
class DevicePlan:
    """What is needed for a device, and costs this if no other asks with it; and what it holds.

    `places` is in bytes.
    """

    reads: Cost
    places: int


@final
@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """What a process requests, the bytes that it copies, and its peak host memory, in bytes.

    The peak is what lasts, and what is there besides for one leaf while that is placed.

    Of a file whose bytes are requested, `reads` is what `materialize` requests: what all devices
    of the process need of neighbouring leaves is read together. The memory of arrays on the CPU is
    counted; that of mapped files is not.
    """

    reads: Cost
    copies: int
    peak_host_bytes: int


@set_module("safejax")
@final
@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """What a load would read, place and copy, and the errors it would raise; printed as a table.

    `problems` has the messages of the errors that it would raise, and `warnings` those of what it
    would warn of, or might refuse once it reads the values.
    """

    source: str
    leaves: tuple[LeafPlan, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    together: Mapping[int, Cost] = field(default_factory=dict[int, Cost])
    """What each process requests by reads that serve several blocks, of leaves that say so."""

    @property
    def nbytes(self) -> int:
        """The bytes of all leaves, each counted once, in the dtypes in which they are placed."""
        return sum(_size(leaf) for leaf in self.leaves)

    @property
    def avals(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """The shape, dtype and sharding of each leaf, by its name.

        `safejax.inspect(plan.avals).to_html()` draws which device holds which part of each.
        """
        return {
            leaf.name: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=leaf.sharding, weak_type=leaf.weak_type
            )
            for leaf in self.leaves
        }

    @property
    def reads(self) -> Cost:
        """What all processes together request from files."""
        return sum((process.reads for process in self.processes.values()), FREE)

    @property
    def devices(self) -> Mapping[Any, DevicePlan]:
        """What is read for each device and placed on it, in the order of device ids."""
        found: dict[Any, DevicePlan] = {}
        for _, block in self._blocks():
            for device in block.devices:
                seen = found.get(device, DevicePlan(FREE, 0))
                found[device] = DevicePlan(seen.reads + block.reads, seen.places + block.nbytes)
        return dict(sorted(found.items(), key=lambda item: item[0].id))

    @property
    def processes(self) -> Mapping[int, ProcessPlan]:
        """What each process reads and copies, by its index."""
        found: dict[int, ProcessPlan] = {}
        # What is there only while a leaf is placed: of the one that needs the most of it.
        passing: dict[int, dict[str, int]] = {}
        for leaf, block in self._blocks():
            for number in block.processes:
                seen = found.get(number, ProcessPlan(self.together.get(number, FREE), 0, 0))
                copied = 0 if block.in_place else block.nbytes
                # On the CPU the copy is the array; elsewhere it is freed once it was transferred.
                lasts = number in block.hosts or any(
                    device.platform == "cpu" and device.process_index == number
                    for device in block.devices
                )
                of_leaf = passing.setdefault(number, {})
                if block.whole:
                    of_leaf[leaf.name] = max(of_leaf.get(leaf.name, 0), _size(leaf))
                if not lasts or (block.is_turned and not block.in_place):
                    of_leaf[leaf.name] = of_leaf.get(leaf.name, 0) + copied
                reads = seen.reads if leaf.is_together else seen.reads + block.reads
                held = seen.peak_host_bytes + (copied if lasts else 0)
                found[number] = ProcessPlan(reads, seen.copies + copied, held)
        for number, each in passing.items():
            most = max(each.values(), default=0)
            held = found[number]
            found[number] = replace(held, peak_host_bytes=held.peak_host_bytes + most)
        return dict(sorted(found.items()))

    def _blocks(self) -> Iterator[tuple[LeafPlan, BlockPlan]]:
        for leaf in self.leaves:
            for block in leaf.blocks:
                yield leaf, block

    def __copy__(self) -> "Plan":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Plan":
        """Itself: it is immutable, and JAX's devices cannot be copied."""
        return self

    def __getstate__(self) -> list[Any]:
        """What a pickle has; raises `TypeError` if there are devices, which no pickle can have."""
        if any(block.devices for _, block in self._blocks()):
            raise TypeError(
                f"{self!r} cannot be pickled: its leaves are on devices of this process, which "
                "another one does not have; pass on what it says, such as str(plan) or "
                "plan.nbytes, or call safejax.plan there"
            )
        return [getattr(self, each.name) for each in fields(self)]

    def __repr__(self) -> str:
        """A line; `print(plan)` shows the table."""
        counts = [
            f"{with_commas(len(self.leaves))} leaves",
            f"{with_commas(self.nbytes)} bytes",
            *_counted(len(self.problems), "problem"),
            *_counted(len(self.warnings), "warning"),
        ]
        return f"Plan({self.source!r}: {', '.join(counts)})"

    def __str__(self) -> str:
        title, *lines = self._lines()
        return "\n".join([title, *table(_COLUMNS, self._rows()), *lines])

    def _repr_html_(self) -> str:
        """What notebooks show: the table that `print` shows."""
        title, *lines = self._lines()
        rows = [
            [row, *map(with_commas, counts), *[""] * (len(_COLUMNS) - len(counts))]
            for row, counts in self._rows()
        ]
        return (
            f"{html_lines([title])}{html_table(('', *_COLUMNS), rows, _COLUMNS)}{html_lines(lines)}"
        )

    def _rows(self) -> list[tuple[str, tuple[int, ...]]]:
        """A row for each device and each process: its title, and its counts."""
        devices, processes = self.devices, self.processes
        rows: list[tuple[str, tuple[int, ...]]] = []
        for device, each in devices.items():
            rows.append((f"device {device}", (*_counts(each.reads), each.places)))
        for index, each in processes.items():
            placed = sum(
                on_device.places
                for device, on_device in devices.items()
                if device.process_index == index
            )
            counts = (*_counts(each.reads), placed, each.copies, each.peak_host_bytes)
            rows.append((f"process {index}", counts))
        return rows

    def _lines(self) -> list[str]:
        """The title, and what is said below the table."""
        in_place = sum(leaf.in_place for leaf in self.leaves)
        whole = [leaf.name for leaf in self.leaves if any(block.whole for block in leaf.blocks)]
        lines = [
            f"{self.source}: {len(self.leaves)} leaves, {with_commas(self.nbytes)} bytes",
            f"{in_place} used in place, {len(self.leaves) - in_place} copied",
        ]
        on_host = [leaf.name for leaf in self.leaves if leaf.on_host]
        if on_host:
            lines.append(f"read at once, as NumPy arrays: {listed(on_host)}")
        if whole:
            lines.append(f"read whole for any part of them: {listed(whole)}")
        lines.extend(f"problem: {problem}" for problem in self.problems)
        lines.extend(f"warning: {warning}" for warning in self.warnings)
        return lines


_COLUMNS: Final = (
    "bytes needed", "bytes read", "reads", "bytes placed", "bytes copied", "peak on host",
)  # fmt: skip


def _counts(reads: Cost) -> tuple[int, int, int]:
    return reads.needed, reads.nbytes, reads.requests


def _counted(count: int, what: str) -> list[str]:
    return [f"{with_commas(count)} {what}{'' if count == 1 else 's'}"] if count else []


def _size(leaf: LeafPlan) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize
