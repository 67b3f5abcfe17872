"""`select` and `drop`: some of the leaves; those that were dropped may be restored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast, final

import jax

from safejax._src.leaves.leaf import aval_of, check_leaf, is_array
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import Transform
from safejax._src.public import set_module
from safejax._src.pytrees.choices import Choice, Where, any_of, checked, choices_of, show_where
from safejax._src.pytrees.moving import left_of
from safejax._src.transforms.selection import chosen, fault, quoted
from safejax.errors import TransformError

Restored: TypeAlias = Mapping[str, Any] | Callable[[Leaves], Mapping[str, Any]]
"""Leaves by their names, or a function that makes them for the others."""


@final
class Again:
    """What is restored, compared by identity: arrays have no equality of their own."""

    __slots__ = ("value",)

    def __init__(self, value: Restored) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Again) and (
            self.value is other.value or (not self.value and not other.value)
        )

    def __hash__(self) -> int:
        return hash(id(self.value)) if self.value else 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Again, (self.value,)

    def __repr__(self) -> str:
        if callable(self.value):
            return getattr(self.value, "__qualname__", repr(self.value))
        return f"{{{', '.join(f'{name!r}: …' for name in self.value)}}}"


@final
@dataclass(frozen=True, slots=True)
class Select(Transform):
    """The leaves that a pattern matches, or all others; see `select` and `drop`."""

    where: Where
    keep: bool = True
    again: Again | None = None
    must_match: bool = True

    def __call__(self, leaves: Leaves, /) -> Leaves:
        names = chosen(self, self.where, leaves, self.must_match)
        kept = {name: leaf for name, leaf in leaves.items() if (name in names) == self.keep}
        if self.again is not None or len(kept) == len(leaves):
            return leaves.replace(kept)
        lost = leaves.keys() - kept.keys()
        return Leaves(kept, left_of(leaves.structure, kept.keys(), lost), leaves.metadata)

    @property
    def inverse(self) -> "Restore":
        if self.again is None:
            made = "the other leaves are lost" if self.keep else "what it drops is lost"
            raise self._not_invertible(
                f"expected a step with an inverse, but {made}: "
                "drop(..., inverse={}) for one that restores nothing, or give what it restores"
            )
        return Restore(self)

    def __repr__(self) -> str:
        wheres = ", ".join(map(show_where, choices_of(self.where)))
        again = "" if self.again is None else f", inverse={self.again!r}"
        must_match = "" if self.must_match else ", must_match=False"
        return f"{'select' if self.keep else 'drop'}({wheres}{again}{must_match})"


@final
@dataclass(frozen=True, slots=True)
class Restore(Transform):
    """The inverse of `drop`: leaves that were left out, made again."""

    drop: Select

    def __call__(self, leaves: Leaves, /) -> Leaves:
        assert self.drop.again is not None
        value = self.drop.again.value
        restored = value(leaves) if callable(value) else value
        if not isinstance(restored, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise fault(
                self,
                f"inverse: expected a mapping from names to leaves, got {type(restored).__name__}",
            )
        for name, leaf in restored.items():
            check_leaf(name, leaf)
        self._check_names(leaves, restored)
        is_abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves.values())
        entries = dict(leaves)
        for name, leaf in restored.items():
            entries[name] = aval_of(leaf) if is_abstract and is_array(leaf) else leaf
        return leaves.replace(entries)

    def _check_names(self, leaves: Leaves, restored: Mapping[str, Any]) -> None:
        taken = [name for name in restored if name in leaves]
        if taken:
            raise fault(
                self,
                f"inverse: expected names that are free, got {quoted(taken)}, which are "
                "leaves already: do not restore them",
            )
        others = _not_meant(self.drop.where, restored)
        if others:
            raise fault(
                self,
                f"inverse: expected names that it drops, got {quoted(others)}: correct them, "
                "or the patterns",
            )

    @property
    def inverse(self) -> Select:
        return self.drop

    def __repr__(self) -> str:
        return f"{self.drop!r}.inverse"


@set_module("safejax")
def select(*where: Where, must_match: bool = True) -> Select:
    """A transform that keeps the leaves that any of the patterns, or functions, matches.

    The others are never read. `"!pattern"` leaves out what it matches of what the others keep; on
    its own, it keeps all others. A pattern that matches no leaf is an error, unless `must_match` is
    false. There is no inverse, since the other leaves are lost.

    >>> from safejax import Leaves, select
    >>> list(select("params.*", "!*.bias")(Leaves({"params.w": 1, "params.bias": 2, "step": 3})))
    ['params.w']

    Raises `TransformError` without a pattern, and for anything that is not one.
    """
    return Select(_checked("select", where), keep=True, must_match=must_match)


@set_module("safejax")
def drop(*where: Where, inverse: Restored | None = None, must_match: bool = True) -> Select:
    """A transform that removes the leaves that any of the patterns, or functions, matches.

    The counterpart of `select`: the leaves that it removes are never read, and a pattern that
    matches no leaf is an error unless `must_match` is false. `inverse` says what its inverse
    restores: a mapping from names to leaves, which is `{}` where nothing has to come back, or a
    function that returns one for the other leaves. Without it there is no inverse.

    >>> import jax.numpy as jnp
    >>> from safejax import Leaves, drop
    >>> t = drop("opt_state.*", "*.position_ids", inverse={"a.position_ids": jnp.arange(4)})
    >>> kept = t(Leaves({"a.w": 1, "opt_state.0": 2, "a.position_ids": jnp.arange(4)}))
    >>> list(kept), list(t.inverse(kept))
    (['a.w'], ['a.w', 'a.position_ids'])

    Raises `TransformError` without a pattern, and for anything that is not one. The inverse raises
    it for a name that is taken, or that the patterns do not match.
    """
    if inverse is not None and not isinstance(inverse, Mapping) and not callable(inverse):
        raise TransformError(
            "drop: expected inverse to be a mapping from names to leaves, or a function of the "
            f"other leaves, got {type(inverse).__name__}: give for example {{name: leaf}}"
        )
    again = None if inverse is None else Again(inverse)
    wheres = _checked("drop", where)
    if again is not None and not callable(inverse):
        restored = cast("Mapping[str, Any]", inverse)
        for name, leaf in restored.items():
            check_leaf(name, leaf)
        others = _not_meant(wheres, restored)
        if others:
            raise TransformError(
                f"drop: inverse: expected names that it drops, got {quoted(others)}: correct them, "
                "or the patterns"
            )
    return Select(wheres, keep=False, again=again, must_match=must_match)


def _not_meant(where: Where, restored: Mapping[str, Any]) -> list[str]:
    """The names of leaves that the patterns, or functions, do not match."""

    def aval(name: str) -> jax.ShapeDtypeStruct | None:
        leaf = restored[name]
        return aval_of(leaf) if is_array(leaf) else None

    means = any_of(where, aval)
    return [name for name in restored if not means(name)]


def _checked(step: str, wheres: tuple[Where, ...]) -> Where:
    if not wheres or None in wheres:
        raise TransformError(f"{step}: expected a pattern or a function of the name, got none")
    flat: list[Choice] = []
    for where in wheres:
        if isinstance(where, Sequence) and not isinstance(where, str):
            flat.extend(where)
        else:
            flat.append(where)
    return checked(flat, step)
