"""Shardings: the argument `sharding=`, resolved to one sharding for each leaf."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
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
from safejax._src.leaves.leaf import aval_of, is_array
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.rules import ShardingRules
from safejax._src.leaves.sharding_faults import (
    by_reason,
    capped,
    fault_of,
    got,
    in_place_of,
    over_no_devices,
)
from safejax._src.pytrees.choices import Where, any_of, meant_by_each, show_where
from safejax._src.pytrees.names import join
from safejax._src.pytrees.structure import EMPTY, Kind, Segments, paths_of
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


ShardingFunction: TypeAlias = Callable[
    [str, jax.ShapeDtypeStruct], Sharding | Device | PartitionSpec | None
]
"""Gives the sharding of a leaf by its name, and its shape and dtype; None is the default."""

ShardingTree: TypeAlias = (
    Sharding
    | Device
    | PartitionSpec
    | Mesh
    | Mapping[Any, Any]
    | Sequence[Any]
    | DataclassNode
    | None
)
"""A prefix tree of shardings, devices and None. What the nodes hold is `Any`: type checkers
infer no narrower type for a dict that mixes shardings and dicts. Pytree nodes of other classes
are accepted as well, but cannot be described."""

ShardingArgument: TypeAlias = ShardingTree | ShardingFunction
"""One `Sharding` or `Device`, a prefix tree of them and None, or a sharding function.

Within `jax.set_mesh(mesh)`, a `PartitionSpec` is a sharding over that mesh. A mesh alone is for
`like` with shardings over an abstract one.
"""

_ATOMS: Final[tuple[type[Any], ...]] = (Sharding, jax.Device, PartitionSpec)


def resolve(
    argument: ShardingArgument,
    defaults: Mapping[str, Sharding],
    leaves: Leaves,
    file: str,
    host: Set[str] = frozenset(),
) -> dict[str, Sharding]:
    """The sharding of each array that has one; the others go to JAX's default device.

    It is the one that `argument` gives, otherwise the one in `defaults`, by name; the leaves named
    in `host` need none. Raises one
    `ShardingError` that names every leaf whose shape is not divided by its sharding, or for
    which a prefix tree has no sharding.
    """
    arrays = {name: leaf for name, leaf in leaves.items() if is_array(leaf)}
    mesh = current_mesh()
    for_all = defaults.keys() | host >= arrays.keys() and (defaults or not host)
    if isinstance(argument, Mesh) and for_all:
        # The specs are those of like, whose mesh may be abstract.
        mesh, argument = argument, None
    given = _choose(argument, leaves, arrays, file)
    chosen = {name: sharding for name in arrays if (sharding := defaults.get(name)) is not None}
    chosen |= {name: sharding for name, sharding in given.items() if sharding is not None}
    placeable: dict[str, Sharding] = {}
    faults: dict[str, str] = {}
    for name, sharding in chosen.items():
        placed = on_devices(sharding, mesh)
        fault = (
            over_no_devices(sharding) if placed is None else fault_of(name, placed, arrays[name])
        )
        if placed is None or fault is not None:
            faults[name] = f"{_rule(argument, name)}{fault}"
        else:
            placeable[name] = placed
    if faults:
        raise ShardingError(
            f"{file}: the sharding does not fit {len(faults)} of {len(arrays)} leaves:\n  "
            + "\n  ".join(capped(by_reason(faults)))
        )
    return placeable


def _rule(argument: object, name: str) -> str:
    """The sharding rule that chose for the leaf, for messages."""
    if not isinstance(argument, ShardingRules):
        return ""
    found = argument.rule(name)
    return "" if found is None else f"by the rule {found[0]!r}: "


def _choose(
    argument: ShardingArgument, leaves: Leaves, arrays: Mapping[str, Any], file: str
) -> dict[str, Sharding | None]:
    if argument is None or isinstance(argument, _ATOMS):
        atom = _atom(argument)
        if argument is not None and atom is None:
            raise ShardingError(f"{file}: sharding: expected a Sharding{got(argument)}")
        return dict.fromkeys(arrays, atom)
    if isinstance(argument, list | tuple) and len(argument) > 1:
        items = cast("list[Any]", argument)
        of_devices = all(isinstance(item, jax.Device) for item in items)
        if of_devices and not isinstance(leaves.structure.kinds.get(""), Kind):
            raise ShardingError(
                f"{file}: sharding: expected a Sharding, got {len(items)} devices: make a mesh of "
                f"them, jax.make_mesh(({len(items)},), ('x',)), and pass NamedSharding(mesh, "
                "PartitionSpec('x')), or PartitionSpec() to replicate"
            )
    if isinstance(argument, ShardingRules):
        _check_rules(argument, arrays, file)
    # A mesh can be called, as a decorator, but is no sharding function. Trees of Equinox or NNX
    # modules can be called as well.
    is_leaf = jax.tree_util.all_leaves([argument])
    if callable(argument) and is_leaf and not isinstance(argument, Mesh):
        return {name: _given(argument, name, leaf, file) for name, leaf in arrays.items()}
    return _by_prefix(argument, leaves, file)


def _atom(item: Any) -> Sharding | None:
    """The sharding that `item` says; None for a spec without a mesh in the context."""
    if isinstance(item, PartitionSpec):
        mesh = current_mesh()
        return None if mesh is None else NamedSharding(mesh, item)
    return SingleDeviceSharding(item) if isinstance(item, jax.Device) else item


def _given(function: ShardingFunction, name: str, leaf: Any, file: str) -> Sharding | None:
    given = function(name, aval_of(leaf))
    known = given is None or isinstance(given, _ATOMS)  # pyright: ignore[reportUnnecessaryIsInstance]
    atom = _atom(given) if known else None
    if not known or (given is not None and atom is None):
        raise ShardingError(
            f"{file}: leaf {name!r}: expected the sharding function to return a Sharding, a "
            f"Device or None{got(given)}"
        )
    return atom


def _check_rules(rules: ShardingRules, names: Iterable[str], file: str) -> None:
    if not rules.must_match:
        return
    names = list(names)
    patterns = list({where: None for where, _ in rules.rules if isinstance(where, str)})
    meant = dict(zip(patterns, meant_by_each(patterns, names), strict=True))
    first = {name: rules.rule(name) for name in names}
    used = {id(rule) for rule in first.values()}
    missing: list[str] = []
    faults: list[str] = []

    def matched(where: Where) -> set[str]:
        return meant[where] if isinstance(where, str) else set(filter(any_of(where), names))

    for rule in rules.rules:
        where, spec = rule
        if callable(where) or id(rule) in used:
            continue
        taken = matched(where)
        if not taken:
            missing.append(repr(where))
            continue
        found = [name for name in names if name in taken]
        # A last rule for all that the others leave, as `*` is, may have nothing left.
        earlier = {id(each): each for name in found if (each := first[name])}
        for other, other_spec in earlier.values():
            if other_spec != spec and matched(other) > taken:
                faults.append(
                    f"expected {where!r} to match an array of its own, but {show_where(other)}, "
                    f"before it, matches {_some(found)} and others: put {where!r} first"
                )
                break
    if missing:
        faults.insert(
            0,
            f"expected {missing[0]} to match an array, it matches none of {_some(names)}"
            + (f", nor does {', '.join(capped(missing[1:]))}" if missing[1:] else "")
            + ": correct it, or pass must_match=False",
        )
    if faults:
        raise ShardingError(f"{file}: sharding_rules: {'; '.join(faults[:8])}")


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
    missing: dict[str, str] = {}
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
            missing[name] = (
                "expected the sharding tree to be a prefix of the loaded tree, got no sharding "
                "for it: add one, or None for JAX's default device"
            )
            continue
        atom = _atom(item) if isinstance(item, _ATOMS) else None
        if item is not None and atom is None:
            missing[name] = (
                "expected a Sharding, a Device, None, a tree of them, or a function (name, aval)"
                f"{got(item)}"
            )
        else:
            chosen[name] = atom
    faults = by_reason(missing) + [
        f"sharding {join(path)!r}: expected a leaf of that name or below it, got none among "
        f"{_some(leaves)}: {in_place_of(join(path), item)}"
        for path, item in given.items()
        if path not in used and item is not None
    ]
    if faults:
        raise ShardingError(
            f"{file}: the sharding tree does not fit:\n  " + "\n  ".join(capped(faults))
        )
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


def on_devices(sharding: Sharding, mesh: Mesh | None) -> Sharding | None:
    """The sharding; if its mesh is abstract, the same one over `mesh`.

    Tracing and `jax.eval_shape` give abstract meshes. None if `mesh` has not the same axes.
    """
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, AbstractMesh):
        return sharding
    if mesh is None or mesh.shape != sharding.mesh.shape:
        return None
    return NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)
