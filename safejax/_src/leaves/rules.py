"""Sharding rules: patterns of names and their partition specs over a mesh."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, final

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from safejax._src.public import set_module
from safejax._src.pytrees.choices import First, Where, asks_for_aval, checked, choices_of
from safejax.errors import ShardingError


@final
@dataclass(frozen=True, slots=True)
class ShardingRules:
    """Patterns with their partition specs over a mesh, as a sharding function."""

    mesh: Mesh
    rules: tuple[tuple[Where, PartitionSpec], ...]
    must_match: bool = True
    # The rules are asked for every name, and a table may have 20,000 of both.
    _first: First = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_first", First(tuple(where for where, _ in self.rules)))

    def __call__(self, name: str, aval: jax.ShapeDtypeStruct) -> Sharding:
        """The sharding of the first rule that matches `name`; replicated if none does."""
        del aval
        found = self.rule(name)
        return NamedSharding(self.mesh, PartitionSpec() if found is None else found[1])

    def rule(self, name: str) -> tuple[Where, PartitionSpec] | None:
        """The first rule that matches `name`."""
        number = self._first(name)
        return None if number is None else self.rules[number]

    def __copy__(self) -> "ShardingRules":
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> "ShardingRules":
        """Itself: it is immutable, and so is what it refers to."""
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"sharding rules over the mesh {dict(self.mesh.shape)} cannot be pickled: its devices "
            "are those of this process, which another one does not have; pass on the patterns and "
            "the specs, and call safejax.sharding_rules there"
        )


@set_module("safejax")
def sharding_rules(
    mesh: Mesh,
    rules: Iterable[tuple[Where, PartitionSpec | None]],
    *,
    must_match: bool = True,
) -> ShardingRules:
    """A sharding function that chooses by name: `sharding_rules(mesh, [(pattern, spec), ...])`.

    A pattern is matched on whole names: `*` is any run of characters, `{i}` one segment. It may
    also be a compiled regular expression, a function of the name, or several of them. The first
    one that matches wins, and a leaf that none matches is replicated over the mesh. A spec of None
    is `PartitionSpec()`. With `must_match`, `load` raises an error if a pattern matches no array,
    or only some of those that a rule before it, with another spec, matches.

    >>> import jax
    >>> from jax.sharding import PartitionSpec as P
    >>> mesh = jax.make_mesh((1,), ("x",))
    >>> rules = sharding_rules(mesh, [("*.kernel", P(None, "x")), ("*", P())])
    >>> rules("mlp.kernel", jax.ShapeDtypeStruct((4, 2), "float32")).spec == P(None, "x")
    True

    Raises `ShardingError` for anything that is not a mesh or a spec and for a spec with an axis
    that the mesh does not have, and `TransformError` for anything that is not a pattern.
    """
    if not isinstance(mesh, Mesh):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ShardingError(f"sharding_rules: expected a jax.sharding.Mesh, got {mesh!r}")
    if isinstance(rules, Mapping):
        raise ShardingError(
            "sharding_rules: expected a list of pairs (pattern, spec), of which the first that "
            "matches wins, got a dict: pass list(rules.items())"
        )
    parsed: list[tuple[Where, PartitionSpec]] = []
    for rule in rules:
        if not isinstance(rule, tuple | list) or len(rule) != 2:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ShardingError(f"sharding_rules: expected pairs (pattern, spec), got {rule!r}")
        where, spec = rule
        spec = PartitionSpec() if spec is None else spec
        if not isinstance(spec, PartitionSpec):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ShardingError(
                f"sharding_rules: {where!r}: expected a PartitionSpec or None, got {spec!r}"
            )
        if not isinstance(where, str | re.Pattern | Sequence) and not callable(where):  # pyright: ignore[reportUnnecessaryComparison]
            raise ShardingError(
                f"sharding_rules: expected a pattern or a function of the name, got {where!r}"
            )
        where = checked(where, "sharding_rules")
        if any(map(asks_for_aval, choices_of(where))):
            raise ShardingError(
                f"sharding_rules: expected a pattern or a function of the name, got {where!r}, "
                "which asks for the abstract value, too: pass sharding=function(name, aval)"
            )
        try:
            NamedSharding(mesh, spec)
        except Exception as error:  # Axes that are given twice have a class of their own.
            raise ShardingError(f"sharding_rules: {where!r}: {error}") from error
        parsed.append((where, spec))
    return ShardingRules(mesh, tuple(parsed), must_match)
