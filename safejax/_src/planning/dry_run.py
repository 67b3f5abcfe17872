"""The dry run: the plan of a load, made from headers alone, and the errors that it would raise."""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Unpack, cast

from safejax._src.arrays.lazy import LazyArray
from safejax._src.arrays.placing import alignment_for
from safejax._src.checkpoint.opening import Path, open_path, shown_path
from safejax._src.checkpoint.options import LoadOptions, Options, parse_options, shows_options
from safejax._src.leaves.flatten import flatten
from safejax._src.leaves.leaf import is_weakly_typed
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import apply
from safejax._src.planning.plan import BlockPlan, Cost, LeafPlan, Plan
from safejax._src.planning.table import listed
from safejax._src.public import set_module
from safejax._src.pytrees.walk import walk
from safejax._src.reading.remote import FileSystem
from safejax._src.reading.view import View
from safejax.errors import MismatchError, ShardingError, TransformError


@set_module("safejax")
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
                    Cost(*block.cost()),
                    block.size * stored.itemsize,
                    block.dtype == stored and _is_in_place(block, devices),
                    block.has_barrier,
                )
            )
    weak_type = is_weakly_typed(leaf)
    return LeafPlan(name, leaf.shape, dtype, leaf.sharding, tuple(blocks), weak_type)


def _is_in_place(view: View, devices: list[Any]) -> bool:
    if view.size == 0:
        return True
    # Of the devices that share the block, the one that needs the most.
    alignment = max(alignment_for(device, view.dtype) for device in devices)
    return view.is_in_place(alignment)


def _precision(leaves: list[LazyArray]) -> Iterator[str]:
    """What a load would warn of, and what it might refuse once it reads the values."""
    kinds: dict[str, list[str]] = {"floats": [], "integers": []}
    for leaf in leaves:
        stored = leaf.content.view.dtype
        if leaf.content.key is None and stored != leaf.dtype:
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
