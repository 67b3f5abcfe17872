"""The dry run: the plan of a load, made from headers alone, and the errors that it would raise."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple, Unpack, cast, final

import jax
from jax.sharding import Sharding

from safejax._src.arrays.devices import alignment_for
from safejax._src.arrays.lazy import LazyArray
from safejax._src.arrays.read_once import spreads_of
from safejax._src.checkpoint.finding import Path, shown_path
from safejax._src.checkpoint.opening import open_path
from safejax._src.checkpoint.options import LoadOptions, Options, parse_options, shows_options
from safejax._src.collector import collector_paused
from safejax._src.dtypes import Dtype
from safejax._src.leaves.flatten import flatten
from safejax._src.leaves.leaf import Unsupported
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.on_host import OnHost
from safejax._src.leaves.steps import apply
from safejax._src.planning.plan import BlockPlan, LeafPlan, Plan
from safejax._src.planning.requested import passed_on, read_for, requested
from safejax._src.planning.table import listed
from safejax._src.public import set_module
from safejax._src.pytrees.building import build
from safejax._src.reading.filesystems import FileSystem
from safejax._src.reading.order import is_worth_pieces, order_of_reading
from safejax._src.reading.requests import Cost
from safejax._src.reading.view import Strided, View
from safejax._src.warn import warnings_collected
from safejax.errors import InvalidFileError, MismatchError, ShardingError, TransformError


@set_module("safejax")
@shows_options
def plan(
    tree_or_path: Any,
    *,
    like: Any = None,
    fs: FileSystem = None,
    read_once: bool = False,
    **options: Unpack[LoadOptions],
) -> Plan:
    """What `load` with the same arguments would read, place and copy; only headers are read.

    `tree_or_path` is a path, as `load` takes it, or a tree of lazy leaves that `materialize` would
    place. A leaf that is NumPy's in `like`, which the load itself reads, has a block that no device
    holds. Errors that a load would raise after opening the file, for example a mismatch with `like`
    or a sharding that does not divide a leaf, are reported in `problems`; the plan then leaves out
    what they concern. What it would only warn of is in `warnings`. With `read_once`, what several
    processes need is read by one of them, as `materialize` does with that argument; the parts that
    it passes on are not in the peak of host memory.

    >>> import jax.numpy as jnp, safejax, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "params.safetensors")
    >>> safejax.save({"w": jnp.ones((4, 2))}, path)
    >>> planned = safejax.plan(path)
    >>> planned.reads.nbytes, planned.leaves[0].in_place, planned.problems
    (32, True, ())

    Raises what `load` raises for a file that cannot be opened.
    """
    parsed = parse_options(plan, options)
    problems: list[str] = []
    with warnings_collected() as warned:
        if _is_path(tree_or_path):
            path = cast("Path", tree_or_path)
            source = shown_path(path)
            leaves = open_path(path, fs, verify=parsed.verify, access=parsed.access)
        else:
            source, leaves = "tree", flatten(tree_or_path)
        found = _planned(leaves, like, parsed, source, problems)
    # isinstance would ask each lazy leaf for its class, which takes longer than this.
    lazy = [leaf for leaf in found.values() if type(leaf) is LazyArray]
    warned.extend(_precision(lazy))
    spreads = {
        id(leaf): spread
        for leaf, spread in (spreads_of(lazy) if read_once else ())
        if spread is not None
    }
    with collector_paused():
        planner = _Planner()
        # They stay alive, since the planner knows what leaves share by its address.
        parts = {
            id(leaf): read_for(leaf, spreads[id(leaf)]) for leaf in lazy if id(leaf) in spreads
        }
        planned = tuple(
            planner.host_leaf(leaf)
            if type(leaf) is not LazyArray
            else passed_on(planner.leaf(name, leaf), planner.leaf(name, parts[id(leaf)]))
            if id(leaf) in parts
            else planner.leaf(name, leaf)
            for name, leaf in found.items()
        )
        together = requested(lazy, spreads)
    return Plan(source, planned, tuple(problems), tuple(warned), together)


def _planned(
    leaves: Leaves, like: Any, options: Options, source: str, problems: list[str]
) -> dict[str, LazyArray | OnHost]:
    """The leaves of the tree that are read, by name, in the tree's order.

    Those that a problem concerns are left out, and the problem is added to `problems`.
    """
    try:
        leaves = apply(options.transform, leaves)
    except (TransformError, InvalidFileError) as error:
        problems.append(str(error))
        return {}
    bound = _without_problems(leaves, like, replace(options, transform=None), source, problems)
    try:
        tree = build(bound, bound.structure, source)
    except TransformError as error:  # The names do not form a tree.
        problems.append(str(error))
        return {}
    names: dict[int, str] = {}
    for name, leaf in bound.items():
        if isinstance(leaf, LazyArray | OnHost):
            names.setdefault(id(leaf), name)
    # A container may hold a leaf twice; it is planned once, as it is placed once.
    inside = {id(leaf): leaf for leaf in jax.tree_util.tree_leaves(tree)}
    return {names[key]: leaf for key, leaf in inside.items() if key in names}


def _without_problems(
    leaves: Leaves, like: Any, options: Options, source: str, problems: list[str]
) -> Leaves:
    """The leaves as a load would match and place them, without the options that are problems."""
    while True:
        try:
            return options.bound(leaves, source, like)
        except MismatchError as error:
            problems.append(str(error))
            like = None
        except InvalidFileError as error:  # A leaf of a dtype that JAX lacks is used.
            problems.append(str(error))
            held = {k: leaf for k, leaf in leaves.items() if not isinstance(leaf, Unsupported)}
            if len(held) == len(leaves):
                return Leaves({})
            leaves = leaves.replace(held)
        except ShardingError as error:
            problems.append(str(error))
            if options.sharding is None:
                return Leaves({})
            options = replace(options, sharding=None)


@final
class _Part(NamedTuple):
    """A part of an array that some devices hold; `slices` is None if it is all of the array."""

    devices: tuple[Any, ...]
    slices: tuple[slice, ...] | None


# Most leaves of a file have the sharding and the shape of another one.
@lru_cache(maxsize=256)
def _parts(sharding: Sharding, shape: tuple[int, ...]) -> tuple[_Part, ...]:
    held: dict[tuple[Any, ...], list[Any]] = {}
    indices = cast("dict[Any, Any]", sharding.devices_indices_map(shape))
    for device, index in indices.items():
        bounds = tuple(part.indices(size) for part, size in zip(index, shape, strict=True))
        held.setdefault(bounds, []).append(device)
    whole = tuple((0, size, 1) for size in shape)
    return tuple(
        _Part(tuple(devices), None if bounds == whole else tuple(slice(*each) for each in bounds))
        for bounds, devices in held.items()
    )


@final
class _Alike(NamedTuple):
    """The blocks of leaves that differ in nothing but where they begin, and in their names.

    They are `in_place` where the view can be used at `alignment`, which is None if they never are
    or always are, and otherwise `copied`.
    """

    in_place: tuple[BlockPlan, ...]
    copied: tuple[BlockPlan, ...]
    alignment: int | None
    is_together: bool


@final
class _Planner:
    """Makes the plans of leaves; what is the same for the tensors of a file is computed once."""

    def __init__(self) -> None:
        # By source, dtype and window: what a read costs does not depend on where a tensor begins.
        self._costs: dict[tuple[Any, ...], tuple[Cost, int, bool]] = {}
        # By what most leaves share with other ones, which keep it alive.
        self._alike: dict[tuple[int, ...], _Alike | None] = {}

    def leaf(self, name: str, leaf: LazyArray) -> LeafPlan:
        content, aval, sharding = leaf.content, leaf.aval, leaf.sharding
        view = content.view
        if type(view) is Strided and content.key is None and not leaf.is_placed:
            shared = (view.source, view.window, view.dtype, aval, sharding)
            key = tuple(map(id, shared))
            if key not in self._alike:
                self._alike[key] = self._alike_with(view, leaf)
            alike = self._alike[key]
            if alike is not None:
                in_place = alike.alignment is not None and view.is_in_place(alike.alignment)
                blocks = alike.in_place if in_place else alike.copied
                of_aval = (aval.shape, aval.dtype, sharding, blocks, content.weak_type)
                return LeafPlan(name, *of_aval, alike.is_together)
        blocks = tuple(self._blocks(leaf))
        together = view.plans_reads
        weak_type = content.weak_type
        return LeafPlan(name, leaf.shape, leaf.dtype, sharding, blocks, weak_type, together)

    def _blocks(self, leaf: LazyArray) -> Iterator[BlockPlan]:
        content = leaf.content
        view = content.view
        stored = leaf.dtype if content.key is None else view.dtype
        own = (slice(None),) * content.key_axes
        for devices, slices in () if leaf.is_placed else _parts(leaf.sharding, leaf.shape):
            block = view if slices is None else view.index((*slices, *own))
            reads, size, whole = self._cost(block)
            in_place = block.dtype == stored and (size == 0 or _is_in_place(block, devices))
            turned = (
                not block.plans_reads
                and block.dtype == stored
                and devices[0].platform == "cpu"
                and order_of_reading(block) is not None
                and not is_worth_pieces(block)
            )
            nbytes = size * stored.itemsize
            yield BlockPlan(devices, reads, nbytes, in_place, whole, is_turned=turned)

    def _alike_with(self, view: Strided, leaf: LazyArray) -> "_Alike | None":
        """The plans of leaves that have one block, like this one; None if it has several."""
        parts = _parts(leaf.sharding, leaf.shape)
        if len(parts) != 1 or parts[0].slices is not None:
            return None
        (block,) = self._blocks(leaf)
        both = (replace(block, in_place=True),), (replace(block, in_place=False),)
        if view.size == 0 or view.dtype != leaf.dtype:
            return _Alike((block,), (block,), None, view.plans_reads)
        return _Alike(*both, _alignment_for(parts[0].devices, view.dtype), view.plans_reads)

    def host_leaf(self, leaf: OnHost) -> LeafPlan:
        view = leaf.view
        reads, _, whole = self._cost(view)
        hosts = tuple(range(jax.process_count()))
        block = BlockPlan((), reads, view.nbytes, in_place=False, whole=whole, hosts=hosts)
        return LeafPlan(leaf.name, view.shape, view.dtype, None, (block,))

    def _cost(self, block: View) -> tuple[Cost, int, bool]:
        """What reading a block costs, the number of its elements, and whether it is a barrier's."""
        if not isinstance(block, Strided):
            return block.cost(), block.size, block.has_barrier
        key = block.source, block.dtype, block.window
        cost = self._costs.get(key)
        if cost is None:
            cost = self._costs[key] = block.cost(), block.size, block.has_barrier
        return cost


def _is_in_place(view: View, devices: tuple[Any, ...]) -> bool:
    return view.is_in_place(_alignment_for(devices, view.dtype))


@lru_cache(maxsize=256)
def _alignment_for(devices: tuple[Any, ...], dtype: Dtype) -> int:
    """What the one of the devices needs that needs the most, since they share the block."""
    return max(alignment_for(device, dtype) for device in devices)


def _precision(leaves: Iterable[LazyArray]) -> Iterator[str]:
    """What a load would warn of, and what it might refuse once it reads the values."""
    kinds: dict[str, list[str]] = {"floats": [], "integers": []}
    for leaf in leaves:
        content = leaf.content
        stored = content.view.dtype
        if stored != leaf.dtype and content.key is None:
            kinds["integers" if stored.kind in "iu" else "floats"].append(leaf.name)
    if kinds["floats"]:
        yield f"placed with half the bits, since JAX's x64 mode is off: {listed(kinds['floats'])}"
    if kinds["integers"]:
        yield (
            "an error if a value needs more than 32 bits, since JAX's x64 mode is off: "
            f"{listed(kinds['integers'])}"
        )


def _is_path(value: object) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(part, str | os.PathLike) for part in value)
    return isinstance(value, str | os.PathLike)
