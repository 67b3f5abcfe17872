"""Shardings: what `sharding=` says, made into one sharding a leaf."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias, cast, final

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

ShardingFunction: TypeAlias = Callable[[str, jax.ShapeDtypeStruct], "Sharding | None"]

ShardingArgument: TypeAlias = Any
"""A `Sharding`, a `Device`, a function `(name, aval) -> Sharding | None`, or a prefix tree of
shardings, devices and None. Any: a tree of them has no narrower type."""

_ATOMS: Final[tuple[type[Any], ...]] = (Sharding, jax.Device)

_predicate: Final = lru_cache(maxsize=1024)(predicate)  # A rule is asked of every name.


@final
@dataclass(frozen=True, slots=True)
class ShardingRules:
    """Patterns and their partition specs over a mesh, as a sharding function."""

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
    """A function for `sharding=` that chooses by name: `sharding_rules(mesh, [(pattern, spec)])`.

    A pattern is matched on whole names (`*` any run of characters, `{i}` one segment); the
    first that matches wins, and a leaf that none matches is replicated over the mesh. `None`
    stands for `PartitionSpec()`. `load` makes it an error if a pattern matches no array, unless
    `must_match` is false.

    >>> import jax
    >>> from jax.sharding import PartitionSpec as P
    >>> mesh = jax.make_mesh((1,), ("x",))
    >>> rules = sharding_rules(mesh, [("*.kernel", P(None, "x")), ("*", P())])
    >>> rules("mlp.kernel", jax.ShapeDtypeStruct((4, 2), "float32")).spec == P(None, "x")
    True

    Raises `ShardingError` for what is no mesh, no spec, or names an axis that the mesh lacks;
    `TransformError` for a pattern that is wrong.
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

    It is what `argument` says, else that of `defaults`, by name. Raises one `ShardingError`
    that names every leaf whose shape its sharding does not divide, or that a prefix tree leaves
    out.
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
    # A mesh can be called, as a decorator: it is told apart as a tree that holds no sharding.
    # A tree of Equinox or NNX modules can be called too, and is a tree nevertheless.
    is_leaf = jax.tree_util.all_leaves([argument])
    if callable(argument) and is_leaf and not isinstance(argument, Mesh):
        function = cast("ShardingFunction", argument)
        return {name: _given(function, name, leaf, file) for name, leaf in arrays.items()}
    return _by_prefix(argument, leaves, file)


def _atom(item: Any) -> Sharding | None:
    return SingleDeviceSharding(item) if isinstance(item, jax.Device) else item


def _given(function: ShardingFunction, name: str, leaf: Any, file: str) -> Sharding | None:
    given = function(name, aval_of(leaf))
    if given is not None and not isinstance(given, _ATOMS):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ShardingError(
            f"{file}: leaf {name!r}: expected the sharding function to give a Sharding, a Device "
            f"or None, got {given!r}{_hint(given)}"
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
    """Shardings of a prefix tree: each speaks of all leaves below its place, or of its name."""
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
                f"leaf {name!r}: expected the sharding tree to be a prefix of the loaded one, "
                "got none for it: add one, or None for JAX's default device"
            )
        elif item is not None and not isinstance(item, _ATOMS):
            faults.append(
                f"leaf {name!r}: expected a Sharding, a Device, None, a tree of them, or a "
                f"function (name, aval), got {item!r:.200}{_hint(item)}"
            )
        else:
            chosen[name] = _atom(item)
    faults += [
        f"sharding {join(path)!r}: expected a leaf of that name or below it, there is none among "
        f"{_some(leaves)}: remove it"
        for path, item in given.items()
        if path not in used and item is not None
    ]
    if faults:
        raise ShardingError(f"{file}: the sharding tree does not fit:\n  " + "\n  ".join(faults))
    return chosen


def _nearest(path: Segments, given: Mapping[Segments, Any]) -> Segments | None:
    """The path itself, or the nearest one above it, that is given."""
    for depth in range(len(path), -1, -1):
        if path[:depth] in given:
            return path[:depth]
    return None


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    more = ", …" if len(shown) > 5 else ""
    return f"{len(shown)} ({', '.join(map(repr, shown[:5]))}{more})"


def on_devices(sharding: Sharding) -> Sharding | None:
    """The sharding, over the mesh of the context if it has only an abstract one.

    Tracing and `jax.eval_shape` give abstract meshes. None where the context has no mesh of the
    same axes.
    """
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, AbstractMesh):
        return sharding
    mesh = current_mesh()
    if mesh is None or mesh.shape != sharding.mesh.shape:
        return None
    return NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)


def _checked(sharding: Sharding, leaf: Any) -> tuple[Sharding | None, str]:
    """The sharding on its devices, or None and why the leaf cannot have it."""
    placed = on_devices(sharding)
    if placed is None:
        return None, (
            f"expected a sharding over devices, got {sharding}, whose mesh is abstract: call this "
            "within jax.set_mesh(mesh), or pass sharding="
        )
    reason = None
    if isinstance(placed, NamedSharding) and len(placed.spec) > len(leaf.shape):
        reason = f"it speaks of {len(placed.spec)} axes"
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
