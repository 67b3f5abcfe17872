"""Shardings: the argument `sharding=`, resolved to one sharding for each leaf."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Final, Protocol, TypeAlias, cast, final

import jax
from jax.sharding import (
    AbstractMesh,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from safejax.errors import ShardingError
from safejax.jax_registration import current_mesh
from safejax.leaves import Leaves, aval_of, describe, is_array
from safejax.names import Template, Where, join, predicate
from safejax.structure import EMPTY, Segments, paths_of, walk


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

_predicate: Final = lru_cache(maxsize=1024)(predicate)  # Each rule is tried on every name.


@final
@dataclass(frozen=True, slots=True)
class ShardingRules:
    """Patterns with their partition specs over a mesh, as a sharding function."""

    mesh: Mesh
    rules: tuple[tuple[Where, PartitionSpec], ...]
    must_match: bool = True

    def __call__(self, name: str, aval: jax.ShapeDtypeStruct) -> Sharding:
        """The sharding of the first rule that matches `name`; replicated if none does."""
        del aval
        for where, spec in self.rules:
            if _predicate(where)(name):
                return NamedSharding(self.mesh, spec)
        return NamedSharding(self.mesh, PartitionSpec())


def sharding_rules(
    mesh: Mesh,
    rules: Iterable[tuple[Where, PartitionSpec | None]],
    *,
    must_match: bool = True,
) -> ShardingRules:
    """A sharding function that chooses by name: `sharding_rules(mesh, [(pattern, spec), ...])`.

    A pattern is matched on whole names: `*` is any run of characters, `{i}` one segment. The
    first pattern that matches wins, and a leaf that none matches is replicated over the mesh. A
    spec of None is `PartitionSpec()`. With `must_match`, `load` raises an error if a pattern
    matches no array.

    >>> import jax
    >>> from jax.sharding import PartitionSpec as P
    >>> mesh = jax.make_mesh((1,), ("x",))
    >>> rules = sharding_rules(mesh, [("*.kernel", P(None, "x")), ("*", P())])
    >>> rules("mlp.kernel", jax.ShapeDtypeStruct((4, 2), "float32")).spec == P(None, "x")
    True

    Raises `ShardingError` for anything that is not a mesh or a spec and for a spec with an axis
    that the mesh does not have, and `TransformError` for an invalid pattern.
    """
    if not isinstance(mesh, Mesh):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ShardingError(f"sharding_rules: expected a jax.sharding.Mesh, got {mesh!r}")
    checked: list[tuple[Where, PartitionSpec]] = []
    for rule in rules:
        if not isinstance(rule, tuple | list) or len(rule) != 2:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ShardingError(f"sharding_rules: expected pairs (pattern, spec), got {rule!r}")
        where, spec = rule
        spec = PartitionSpec() if spec is None else spec
        if not isinstance(spec, PartitionSpec):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ShardingError(
                f"sharding_rules: {where!r}: expected a PartitionSpec or None, got {spec!r}"
            )
        if isinstance(where, str):
            Template.parse(where)
        elif not callable(where):  # pyright: ignore[reportUnnecessaryComparison]
            raise ShardingError(
                f"sharding_rules: expected a pattern or a function of the name, got {where!r}"
            )
        try:
            NamedSharding(mesh, spec)
        except ValueError as error:
            raise ShardingError(f"sharding_rules: {where!r}: {error}") from error
        checked.append((where, spec))
    return ShardingRules(mesh, tuple(checked), must_match)


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
