"""Shardings: what `sharding=` says, made into one sharding a leaf."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast, final

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from safejax.errors import ShardingError
from safejax.jax_registration import current_mesh
from safejax.leaves import describe, is_scalar
from safejax.names import SEPARATOR, Template, Where, predicate
from safejax.structure import EMPTY, walk

ShardingFunction: TypeAlias = Callable[[str, jax.ShapeDtypeStruct], "Sharding | None"]

ShardingArgument: TypeAlias = Any
"""A `Sharding`, a `Device`, a function `(name, aval) -> Sharding | None`, or a prefix tree of
shardings, devices and None. Any: a tree of them has no narrower type."""

_ATOMS: Final[tuple[type[Any], ...]] = (Sharding, jax.Device)


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
            if predicate(where)(name):
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
    >>> rules("mlp.kernel", jax.ShapeDtypeStruct((4, 2), "float32")).spec
    PartitionSpec(None, 'x')

    Raises `ShardingError` for what is no mesh, no spec, or names an axis that the mesh lacks;
    `TransformError` for a pattern that is wrong.
    """
    if not isinstance(mesh, Mesh):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ShardingError(f"sharding_rules: expected a jax.sharding.Mesh, got {mesh!r}")
    checked: list[tuple[Where, PartitionSpec]] = []
    for where, spec in rules:
        spec = PartitionSpec() if spec is None else spec
        if not isinstance(spec, PartitionSpec):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ShardingError(
                f"sharding_rules: {where!r}: expected a PartitionSpec or None, got {spec!r}"
            )
        if isinstance(where, str):
            Template.parse(where)
        try:
            NamedSharding(mesh, spec)
        except ValueError as error:
            raise ShardingError(f"sharding_rules: {where!r}: {error}") from error
        checked.append((where, spec))
    return ShardingRules(mesh, tuple(checked), must_match)


def resolve(
    argument: ShardingArgument, avals: Mapping[str, jax.ShapeDtypeStruct], file: str
) -> dict[str, Sharding | None]:
    """One sharding for each array, None where JAX's default device is meant.

    Raises one `ShardingError` that names every leaf whose shape its sharding does not divide,
    or that a prefix tree leaves out.
    """
    chosen = _choose(argument, avals, file)
    faults = [
        f"leaf {name!r}: {fault}"
        for name, sharding in chosen.items()
        if sharding is not None and (fault := _fault(sharding, avals[name])) is not None
    ]
    if faults:
        raise ShardingError(
            f"{file}: the sharding does not fit {len(faults)} of {len(avals)} leaves:\n  "
            + "\n  ".join(faults)
        )
    return {
        name: None if sharding is None else on_devices(sharding)
        for name, sharding in chosen.items()
    }


def _choose(
    argument: ShardingArgument, avals: Mapping[str, jax.ShapeDtypeStruct], file: str
) -> dict[str, Sharding | None]:
    if argument is None or isinstance(argument, _ATOMS):
        return dict.fromkeys(avals, _atom(argument))
    if isinstance(argument, ShardingRules):
        _check_rules(argument, avals, file)
    if callable(argument):
        function = cast("ShardingFunction", argument)
        return {name: _given(function, name, aval) for name, aval in avals.items()}
    return _by_prefix(argument, avals, file)


def _atom(item: Any) -> Sharding | None:
    return SingleDeviceSharding(item) if isinstance(item, jax.Device) else item


def _given(function: ShardingFunction, name: str, aval: jax.ShapeDtypeStruct) -> Sharding | None:
    given = function(name, aval)
    if given is not None and not isinstance(given, _ATOMS):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ShardingError(
            f"leaf {name!r}: expected the sharding function to give a Sharding, a Device or "
            f"None, got {given!r}{_hint(given)}"
        )
    return _atom(given)


def _check_rules(
    rules: ShardingRules, avals: Mapping[str, jax.ShapeDtypeStruct], file: str
) -> None:
    if not rules.must_match:
        return
    for where, _ in rules.rules:
        if isinstance(where, str) and not any(map(predicate(where), avals)):
            some = ", ".join(map(repr, list(avals)[:5]))
            raise ShardingError(
                f"{file}: sharding_rules: expected {where!r} to match an array, it matches none "
                f"of {len(avals)} ({some}, …): correct it, or pass must_match=False"
            )


def _by_prefix(
    prefix: Any, avals: Mapping[str, jax.ShapeDtypeStruct], file: str
) -> dict[str, Sharding | None]:
    """Shardings of a prefix tree, matched by name: each speaks of all leaves below it."""
    given = walk(prefix, lambda node: node is None or isinstance(node, _ATOMS)).entries
    for name, item in given.items():
        # A tree of shardings that was mapped from one of parameters still has its scalars.
        harmless = item is None or item is EMPTY or (is_scalar(item) and name not in avals)
        if not harmless and not isinstance(item, _ATOMS):
            raise ShardingError(
                f"{file}: sharding {name!r}: expected a Sharding, a Device, None, a tree of "
                f"them, or a function (name, aval), got {item!r:.200}{_hint(item)}"
            )
    chosen: dict[str, Sharding | None] = {}
    used: set[str] = set()
    for name in avals:
        above = _nearest(name, given)
        if above is None:
            raise ShardingError(
                f"{file}: leaf {name!r}: expected the sharding tree to be a prefix of the loaded "
                f"one, got {sorted(given)[:20]}, which leave it out: add it, or None for JAX's "
                "default device"
            )
        used.add(above)
        chosen[name] = _atom(given[above])
    for name in given.keys() - used:
        if isinstance(given[name], _ATOMS):
            raise ShardingError(
                f"{file}: sharding {name!r}: expected an array of that name or below it, there "
                f"is none among {sorted(avals)[:20]}: remove it"
            )
    return chosen


def _nearest(name: str, given: Mapping[str, Any]) -> str | None:
    """The name itself, or what is above it, that a prefix tree has; the root is ''."""
    while name not in given:
        if not name:
            return None
        name = name.rpartition(SEPARATOR)[0]
    return name


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


def _fault(sharding: Sharding, aval: jax.ShapeDtypeStruct) -> str | None:
    if on_devices(sharding) is None:
        return (
            f"expected a sharding over devices, got {sharding}, whose mesh is abstract: call this "
            "within jax.set_mesh(mesh), or pass sharding="
        )
    try:
        sharding.shard_shape(aval.shape)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        return f"expected a sharding that divides {describe(aval)}, got {sharding}: {reason}"
    return None


def _hint(item: Any) -> str:
    if isinstance(item, PartitionSpec):
        return ": a PartitionSpec needs its mesh, NamedSharding(mesh, spec)"
    if isinstance(item, Mesh):
        return ": a mesh needs a spec, NamedSharding(mesh, PartitionSpec(...))"
    return ""
