"""Flatten and unflatten: pytrees to Leaves and back."""

import warnings
from dataclasses import dataclass
from typing import Any, Final, final

import jax
import numpy as np
from jax.sharding import Sharding

from safejax.errors import MismatchError, PartialLoadWarning
from safejax.lazy import LazyArray
from safejax.leaves import Leaves, aval_of, check_leaf, describe, is_array, is_scalar
from safejax.placing import Placement
from safejax.shardings import ShardingArgument, resolve
from safejax.steps import Step
from safejax.structure import EMPTY, build, walk


@final
@dataclass(frozen=True, slots=True)
class Flatten(Step[Any, Leaves]):
    """A pytree to Leaves: each leaf by its name, the keys on the way to it joined by dots.

    Reads nothing and changes nothing. Raises `LeafError` for a leaf that is no array, Python
    scalar, string or None, and for dict keys that no file can hold. The inverse is
    `unflatten`.
    """

    def __call__(self, tree: Any, /) -> Leaves:
        walked = walk(tree)
        for name, leaf in walked.entries.items():
            check_leaf(name, leaf)
        return Leaves(walked.entries, walked.structure)

    @property
    def inverse(self) -> "Unflatten":
        return Unflatten()

    def __repr__(self) -> str:
        return "flatten"


@final
@dataclass(frozen=True, slots=True, eq=False)
class Unflatten(Step[Leaves, Any]):
    """Leaves to a pytree: that which they were flattened from, or the one that `like` has.

    `unflatten(leaves)` builds the tree; `unflatten(like=tree)` is a step that rebuilds the
    structure of `like` and checks shapes and dtypes against it, matching leaves by name.
    Without `like`, node types that are not built in come back as dicts of their fields, unless
    the Leaves were flattened in this process and kept their names. The inverse is `flatten`.

    Raises `MismatchError`, which reports every leaf that is missing, unexpected or of another
    shape or dtype.
    """

    like: Any = None

    def __call__(self, leaves: Leaves | None = None, /, *, like: Any = None) -> Any:
        if leaves is None:
            return Unflatten(like)
        like = self.like if like is None else like
        return assemble(leaves, like=like, file="leaves")

    @property
    def inverse(self) -> Flatten:
        return Flatten()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unflatten) and self.like is other.like

    def __hash__(self) -> int:
        return hash((Unflatten, id(self.like)))

    def __repr__(self) -> str:
        if self.like is None:
            return "unflatten"
        return f"unflatten(like={type(self.like).__qualname__} of {_count(self.like)} leaves)"


flatten: Final = Flatten()
unflatten: Final = Unflatten()


def assemble(
    leaves: Leaves,
    *,
    like: Any = None,
    sharding: ShardingArgument = None,
    strict: bool = True,
    file: str,
) -> Any:
    """The tree of `leaves`, each array bound for its devices; reads nothing.

    Matched against `like` first, then given a sharding: that of `sharding`, else that of the
    leaf of `like` if it is committed or abstract, else JAX's default device.
    """
    defaults: dict[str, Sharding] = {}
    kept: frozenset[str] = frozenset()
    if like is not None:
        leaves, defaults, kept = _match(leaves, like, strict, file)
    avals = {
        name: aval_of(leaf) for name, leaf in leaves.items() if is_array(leaf) and name not in kept
    }
    chosen = resolve(sharding, avals, file)
    undecided = {name: aval for name, aval in avals.items() if chosen[name] is None}
    chosen |= resolve(lambda name, _: defaults.get(name), undecided, file)
    entries = {
        name: leaf if chosen.get(name) is None else _bound(leaf, chosen[name])
        for name, leaf in leaves.items()
    }
    return build(entries, leaves.structure, file)


def _bound(leaf: Any, sharding: Sharding | None) -> Any:
    assert sharding is not None
    placement = Placement(sharding, committed=True)
    if isinstance(leaf, LazyArray):
        return leaf.at_placement(placement)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.device_put(leaf, sharding)


def _match(
    leaves: Leaves, like: Any, strict: bool, file: str
) -> tuple[Leaves, dict[str, Sharding], frozenset[str]]:
    """The leaves that `like` has, under its structure; its shardings; and what was kept of it."""
    wanted = walk(like)
    report = _Report(file)
    entries: dict[str, Any] = {}
    shardings: dict[str, Sharding] = {}
    kept: set[str] = set()
    for name, expected in wanted.entries.items():
        check_leaf(name, expected)
        if name not in leaves:
            if expected is None or expected is EMPTY:
                entries[name] = expected
            elif strict or isinstance(expected, jax.ShapeDtypeStruct):
                report.missing(name, expected, strict)
            else:
                kept.add(name)
                entries[name] = expected
            continue
        found = leaves[name]
        entries[name] = _accepted(found, expected)
        if entries[name] is _REFUSED:
            report.mismatched(name, expected, found)
        sharding = _sharding_of(expected)
        if sharding is not None:
            shardings[name] = sharding
    unexpected = [name for name in leaves if name not in wanted.entries]
    if strict:
        for name in unexpected:
            report.unexpected(name, leaves[name])
    report.raise_if_any(len(wanted.entries))
    if not strict and (kept or unexpected):
        _warn_of_partial_load(file, sorted(kept), unexpected)
    return (
        Leaves(entries, wanted.structure, leaves.metadata),
        shardings,
        frozenset(kept),
    )


_REFUSED: Final = object()


def _accepted(found: Any, expected: Any) -> Any:
    """What stands in the tree for `expected`, or `_REFUSED`."""
    if expected is None or expected is EMPTY:
        return found if found is expected else _REFUSED
    if is_scalar(expected):
        if is_array(found):
            return found if aval_of(found).shape == () else _REFUSED
        return found if type(found) is type(expected) else _REFUSED
    if is_array(found):
        return found if _same_aval(aval_of(found), aval_of(expected)) else _REFUSED
    if is_scalar(found) and not isinstance(found, str):
        return _as_array(found, aval_of(expected))
    return _REFUSED


def _same_aval(found: jax.ShapeDtypeStruct, expected: jax.ShapeDtypeStruct) -> bool:
    return found.shape == expected.shape and _canonical(found) == _canonical(expected)


def _canonical(aval: jax.ShapeDtypeStruct) -> Any:
    extended = jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended)
    return aval.dtype if extended else jax.dtypes.canonicalize_dtype(aval.dtype)


def _as_array(value: complex, expected: jax.ShapeDtypeStruct) -> Any:
    """A stored scalar as the 0-d array that `like` has, if that changes no value."""
    if expected.shape != () or jax.dtypes.issubdtype(expected.dtype, jax.dtypes.extended):
        return _REFUSED
    try:
        with np.errstate(all="ignore"):
            array = np.asarray(value).astype(expected.dtype)
            same = array.item() == value or (value != value and array.item() != array.item())
    except (TypeError, ValueError, OverflowError):
        return _REFUSED
    return array if same else _REFUSED


def _sharding_of(expected: Any) -> Sharding | None:
    if isinstance(expected, jax.ShapeDtypeStruct):
        return expected.sharding
    if isinstance(expected, jax.Array) and getattr(expected, "committed", False):
        return expected.sharding
    return None


@final
class _Report:
    """All that does not match, to be told at once."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._lines: list[str] = []

    def missing(self, name: str, expected: Any, strict: bool) -> None:
        remedy = "pass strict=False to keep like's" if strict else "give an array in like"
        self._add("missing", name, expected, f"there is none; {remedy}")

    def unexpected(self, name: str, found: Any) -> None:
        self._lines.append(
            f"unexpected {name!r}: expected none from like, got {describe(found)}; pass "
            "strict=False to ignore it"
        )

    def mismatched(self, name: str, expected: Any, found: Any) -> None:
        remedy = ""
        if is_array(found) and is_array(expected) and found.shape == expected.shape:
            dtype = getattr(expected.dtype, "name", str(expected.dtype))
            remedy = f"; pass transform=cast({dtype!r}, where={name!r})"
        elif is_array(found) and is_array(expected):
            remedy = "; pass a transform that gives this shape, or correct like"
        self._add("mismatched", name, expected, f"got {describe(found)}{remedy}")

    def raise_if_any(self, count: int) -> None:
        if self._lines:
            raise MismatchError(
                f"{self._file}: {len(self._lines)} leaves do not match like, which has {count}:\n  "
                + "\n  ".join(self._lines)
            )

    def _add(self, what: str, name: str, expected: Any, got: str) -> None:
        self._lines.append(f"{what} {name!r}: expected {describe(expected)} from like, {got}")


def _warn_of_partial_load(file: str, kept: list[str], unexpected: list[str]) -> None:
    said = [
        f"{len(names)} {what}: {', '.join(map(repr, names))}"
        for names, what in (
            (kept, "missing, taken from like"),
            (unexpected, "unexpected, not loaded"),
        )
        if names
    ]
    warnings.warn(f"{file}: {'; '.join(said)}", PartialLoadWarning, stacklevel=5)


def _count(tree: Any) -> int:
    return len(jax.tree_util.tree_leaves(tree))
