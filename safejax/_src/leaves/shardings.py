"""Shardings: the argument `sharding=`, resolved to one sharding for each leaf."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, Protocol, TypeAlias, cast

import jax
from jax.sharding import (
    AbstractMesh,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from safejax._src.arrays.jax_private import current_mesh
from safejax._src.leaves.leaf import aval_of, describe, is_array
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.rules import ShardingRules
from safejax._src.pytrees.names import join
from safejax._src.pytrees.patterns import predicate
from safejax._src.pytrees.structure import EMPTY, Segments, paths_of
from safejax._src.pytrees.walk import walk
from safejax.errors import ShardingError


class Device(Protocol):
    """A `jax.Device`, for type checkers: JAX's own class has no types."""

    @property
    def id(self) -> int: ...
    @property
    def platform(self) -> str: ...
    @property
    def process_index(self) -> int: ...


class DataclassNode(Protocol):
    """A pytree node that is a dataclass, as Equinox's modules and Flax's structs are."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


ShardingFunction: TypeAlias = Callable[[str, jax.ShapeDtypeStruct], Sharding | Device | None]
"""Gives the sharding of a leaf by its name, and its shape and dtype; None is the default."""

ShardingTree: TypeAlias = (
    Sharding | Device | Mapping[Any, Any] | Sequence[Any] | DataclassNode | None
)
"""A prefix tree of shardings, devices and None. What the nodes hold is `Any`: type checkers
infer no narrower type for a dict that mixes shardings and dicts. Pytree nodes of other classes
are accepted as well, but cannot be described."""

ShardingArgument: TypeAlias = ShardingTree | ShardingFunction
"""One `Sharding` or `Device`, a prefix tree of them and None, or a sharding function."""

_ATOMS: Final[tuple[type[Any], ...]] = (Sharding, jax.Device)


def resolve(
    argument: ShardingArgument, defaults: Mapping[str, Sharding], leaves: Leaves, file: str
) -> dict[str, Sharding]:
    """The sharding of each array that has one; the others go to JAX's default device.

    It is the one that `argument` gives, otherwise the one in `defaults`, by name. Raises one
    `ShardingError` that names every leaf whose shape is not divided by its sharding, or for
    which a prefix tree has no sharding.
    """
    arrays = {name: leaf for name, leaf in leaves.items() if is_array(leaf)}
    given = _choose(argument, leaves, arrays, file)
    chosen = {name: sharding for name in arrays if (sharding := defaults.get(name)) is not None}
    chosen |= {name: sharding for name, sharding in given.items() if sharding is not None}
    placeable: dict[str, Sharding] = {}
    faults: list[str] = []
    for name, sharding in chosen.items():
        placed, fault = _checked(sharding, arrays[name])
        if placed is None:
            faults.append(f"leaf {name!r}: {fault}")
        else:
            placeable[name] = placed
    if faults:
        raise ShardingError(
            f"{file}: the sharding does not fit {len(faults)} of {len(arrays)} leaves:\n  "
            + "\n  ".join(faults)
        )
    return placeable


def _choose(
    argument: ShardingArgument, leaves: Leaves, arrays: Mapping[str, Any], file: str
) -> dict[str, Sharding | None]:
    if argument is None or isinstance(argument, _ATOMS):
        return dict.fromkeys(arrays, _atom(argument))
    if isinstance(argument, ShardingRules):
        _check_rules(argument, arrays, file)
    # A mesh can be called, as a decorator, but is no sharding function. Trees of Equinox or NNX
    # modules can be called as well.
    is_leaf = jax.tree_util.all_leaves([argument])
    if callable(argument) and is_leaf and not isinstance(cast("Any", argument), Mesh):
        return {name: _given(argument, name, leaf, file) for name, leaf in arrays.items()}
    return _by_prefix(argument, leaves, file)


def _atom(item: Any) -> Sharding | None:
    return SingleDeviceSharding(item) if isinstance(item, jax.Device) else item


def _given(function: ShardingFunction, name: str, leaf: Any, file: str) -> Sharding | None:
    given = function(name, aval_of(leaf))
    if given is not None and not isinstance(given, _ATOMS):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ShardingError(
            f"{file}: leaf {name!r}: expected the sharding function to return a Sharding, a "
            f"Device or None, got {given!r}{_hint(given)}"
        )
    return _atom(given)


def _check_rules(rules: ShardingRules, names: Iterable[str], file: str) -> None:
    if not rules.must_match:
        return
    for where, _ in rules.rules:
        if isinstance(where, str) and not any(map(predicate(where), names)):
            raise ShardingError(
                f"{file}: sharding_rules: expected {where!r} to match an array, it matches none "
                f"of {_some(names)}: correct it, or pass must_match=False"
            )


def _by_prefix(prefix: Any, leaves: Leaves, file: str) -> dict[str, Sharding | None]:
    """Shardings of a prefix tree: each is that of the leaf of its name, or of all below it."""
    walked = walk(prefix, lambda node: node is None or isinstance(node, _ATOMS))
    of_path = paths_of(walked.entries, walked.structure, "sharding")
    given = {
        path: walked.entries[name]
        for name, path in of_path.items()
        if walked.entries[name] is not EMPTY
    }
    chosen: dict[str, Sharding | None] = {}
    used: set[Segments] = set()
    faults: list[str] = []
    for name, path in paths_of(leaves, leaves.structure, file).items():
        above = _nearest(path, given)
        if above is None and name in of_path:
            above = of_path[name]
        if above is not None:
            used.add(above)
        if not is_array(leaves[name]):
            continue
        item = EMPTY if above is None else given.get(above, EMPTY)
        if item is EMPTY:
            faults.append(
                f"leaf {name!r}: expected the sharding tree to be a prefix of the loaded tree, "
                "got no sharding for it: add one, or None for JAX's default device"
            )
        elif item is not None and not isinstance(item, _ATOMS):
            faults.append(
                f"leaf {name!r}: expected a Sharding, a Device, None, a tree of them, or a "
                f"function (name, aval), got {item!r:.200}{_hint(item)}"
            )
        else:
            chosen[name] = _atom(item)
    faults += [
        f"sharding {join(path)!r}: expected a leaf of that name or below it, got none among "
        f"{_some(leaves)}: remove it"
        for path, item in given.items()
        if path not in used and item is not None
    ]
    if faults:
        raise ShardingError(f"{file}: the sharding tree does not fit:\n  " + "\n  ".join(faults))
    return chosen


def _nearest(path: Segments, given: Mapping[Segments, Any]) -> Segments | None:
    """The nearest path in `given`: this one, or one above it."""
    for depth in range(len(path), -1, -1):
        if path[:depth] in given:
            return path[:depth]
    return None


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    more = ", …" if len(shown) > 5 else ""
    return f"{len(shown)} ({', '.join(map(repr, shown[:5]))}{more})"


def on_devices(sharding: Sharding) -> Sharding | None:
    """The sharding; if its mesh is abstract, the same one over the mesh of the context.

    Tracing and `jax.eval_shape` give abstract meshes. None if the context has no mesh with the
    same axes.
    """
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, AbstractMesh):
        return sharding
    mesh = current_mesh()
    if mesh is None or mesh.shape != sharding.mesh.shape:
        return None
    return NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)


def _checked(sharding: Sharding, leaf: Any) -> tuple[Sharding | None, str]:
    """The sharding on its devices; or None, and the reason why the leaf cannot have it."""
    placed = on_devices(sharding)
    if placed is None:
        return None, (
            f"expected a sharding over devices, got {sharding}, whose mesh is abstract: call this "
            "within jax.set_mesh(mesh), or pass sharding="
        )
    reason = None
    if isinstance(placed, NamedSharding) and len(placed.spec) > len(leaf.shape):
        reason = f"its spec is for {len(placed.spec)} axes"
    else:
        try:
            placed.shard_shape(leaf.shape)
        except ValueError as error:
            reason = str(error).splitlines()[0]
    if reason is not None:
        return None, f"expected a sharding that divides {describe(leaf)}, got {sharding}: {reason}"
    return placed, ""


def _hint(item: Any) -> str:
    if isinstance(item, PartitionSpec):
        return ": a PartitionSpec needs its mesh, NamedSharding(mesh, spec)"
    if isinstance(item, Mesh):
        return ": a mesh needs a spec, NamedSharding(mesh, PartitionSpec(...))"
    return ""
