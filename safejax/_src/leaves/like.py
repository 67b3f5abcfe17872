"""Leaves matched by name against the tree `like`: shapes, dtypes, and one report of all faults."""

from typing import Any, Final, final

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Sharding

from safejax._src.arrays.content import is_key
from safejax._src.arrays.lazy import LazyArray
from safejax._src.collector import collector_paused
from safejax._src.dtypes import is_floating
from safejax._src.leaves.leaf import (
    aval_of,
    check_leaf,
    content_at,
    describe,
    is_array,
    is_scalar,
    is_weakly_typed,
    with_weak_type,
)
from safejax._src.leaves.leaves import Leaves
from safejax._src.pytrees.structure import EMPTY
from safejax._src.pytrees.walk import walk
from safejax._src.warn import warn_caller
from safejax.errors import MismatchError, PartialLoadWarning


def matched(
    leaves: Leaves, like: Any, strict: bool, file: str
) -> tuple[Leaves, dict[str, Sharding]]:
    """The leaves that `like` has, with its structure, and the shardings of its leaves by name."""
    wanted = walk(like)
    report = _Report(file)
    entries: dict[str, Any] = {}
    shardings: dict[str, Sharding] = {}
    kept: list[str] = []
    with collector_paused():
        for name, expected in wanted.entries.items():
            check_leaf(name, expected)
            if name not in leaves:
                entries[name] = expected
                if expected is None or expected is EMPTY:
                    continue
                if strict or isinstance(expected, jax.ShapeDtypeStruct):
                    report.missing(name, expected, strict)
                kept.append(name)
                continue
            found = leaves[name]
            entries[name] = _accepted(name, found, expected)
            if entries[name] is _REFUSED:
                report.mismatched(name, expected, found)
            sharding = committed_sharding(expected)
            if sharding is not None:
                shardings[name] = sharding
    unexpected = [name for name in leaves if name not in wanted.entries]
    if strict:
        for name in unexpected:
            report.unexpected(name, leaves[name])
    report.raise_if_any(len(wanted.entries))
    if kept or unexpected:
        _warn_of_partial_load(file, kept, unexpected)
    return Leaves(entries, wanted.structure, leaves.metadata), shardings


_REFUSED: Final = object()


def _accepted(name: str, found: Any, expected: Any) -> Any:
    """The leaf that takes the place of `expected`, or `_REFUSED` if `found` does not match it."""
    if is_array(expected):
        weak_type = is_weakly_typed(expected)
        if is_array(found):
            same = _same_aval(aval_of(found), aval_of(expected))
            return with_weak_type(found, weak_type, name) if same else _REFUSED
        accepted = _as_array(name, found, aval_of(expected)) if is_scalar(found) else _REFUSED
        return accepted if accepted is _REFUSED else with_weak_type(accepted, weak_type, name)
    if is_array(found):
        is_number = is_scalar(expected) and not isinstance(expected, str)
        if not is_number or found.shape != () or is_key(found.dtype):
            return _REFUSED
        # JAX takes a Python number for a weakly typed scalar, but a bool for a strong one.
        own = jax.dtypes.canonicalize_dtype(type(expected))
        is_own = type(expected) is not bool and _canonical(aval_of(found)) == own
        return with_weak_type(found, True, name) if is_own else found
    same = found is expected if expected is EMPTY else type(found) is type(expected)
    return found if same else _REFUSED


def _same_aval(found: jax.ShapeDtypeStruct, expected: jax.ShapeDtypeStruct) -> bool:
    return found.shape == expected.shape and _canonical(found) == _canonical(expected)


def _canonical(aval: jax.ShapeDtypeStruct) -> Any:
    return aval.dtype if is_key(aval.dtype) else jax.dtypes.canonicalize_dtype(aval.dtype)


_NUMBERS: Final[dict[type, tuple[type[np.generic], ...]]] = {
    bool: (np.bool_,),
    int: (np.integer, np.floating, np.complexfloating),
    float: (np.floating, np.complexfloating),
    complex: (np.complexfloating,),
}


def _as_array(name: str, value: Any, expected: jax.ShapeDtypeStruct) -> Any:
    """A stored scalar as the 0-d array in `like`, if exact or rounded as JAX rounds scalars."""
    numbers = _NUMBERS.get(type(value), ())
    if expected.shape != () or not any(jax.dtypes.issubdtype(expected.dtype, n) for n in numbers):
        return _REFUSED
    host = np.asarray(value)
    try:
        with np.errstate(all="ignore"):
            array = host.astype(expected.dtype)
            exact = array.astype(host.dtype) == host or (value != value and array != array)
            rounded = type(value) in (float, complex) and np.isfinite(array) == np.isfinite(host)
    except (TypeError, ValueError, OverflowError):
        return _REFUSED
    if exact or (rounded and expected.dtype == jax.dtypes.canonicalize_dtype(type(value))):
        return LazyArray(content_at(name, array), name)
    return _REFUSED


def committed_sharding(leaf: Any) -> Sharding | None:
    """The sharding of a committed or an abstract array; None for any other leaf."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.sharding
    if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.committed:
        return leaf.sharding
    return None


@final
class _Report:
    """Every leaf that does not match, for one error."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._lines: list[str] = []

    def missing(self, name: str, expected: Any, strict: bool) -> None:
        remedy = "pass strict=False to keep that of like" if strict else "give an array in like"
        self._add("missing", name, expected, f"there is none; {remedy}")

    def unexpected(self, name: str, found: Any) -> None:
        self._lines.append(
            f"unexpected {name!r}: expected none from like, got {describe(found)}; pass "
            "strict=False to ignore it"
        )

    def mismatched(self, name: str, expected: Any, found: Any) -> None:
        remedy = "pass a transform that makes it so, or correct like"
        if is_array(found) and is_array(expected) and found.shape == expected.shape:
            remedy = _cast_that_helps(name, expected, found) or remedy
        self._add("mismatched", name, expected, f"got {describe(found)}; {remedy}")

    def raise_if_any(self, count: int) -> None:
        if self._lines:
            raise MismatchError(
                f"{self._file}: {len(self._lines)} leaves do not match like, which has {count}:\n  "
                + "\n  ".join(self._lines)
            )

    def _add(self, what: str, name: str, expected: Any, got: str) -> None:
        self._lines.append(f"{what} {name!r}: expected {describe(expected)} from like, {got}")


def _cast_that_helps(name: str, expected: Any, found: Any) -> str | None:
    if is_key(expected.dtype) or is_key(found.dtype):
        return None
    target, stored = np.dtype(expected.dtype), content_at(name, found).view.dtype
    both_floating = is_floating(target) and is_floating(stored)
    source = "" if both_floating else f", source={stored.name!r}"
    where = name.replace("{", "{{").replace("}", "}}")
    return f"pass transform=cast({target.name!r}{source}, where={where!r})"


def _warn_of_partial_load(file: str, kept: list[str], unexpected: list[str]) -> None:
    parts = [
        f"{len(names)} {what}: {', '.join(map(repr, names))}"
        for names, what in (
            (kept, "missing, taken from like"),
            (unexpected, "unexpected, not loaded"),
        )
        if names
    ]
    warn_caller(f"{file}: {'; '.join(parts)}", PartialLoadWarning)
