"""Leaves matched by name against the tree `like`: shapes, dtypes, and one report of all faults."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, final

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Sharding

from safejax._src.arrays.content import is_key
from safejax._src.arrays.lazy import LazyArray
from safejax._src.collector import collector_paused
from safejax._src.leaves.classes import Classes
from safejax._src.leaves.leaf import (
    aval_of,
    check_leaf,
    content_at,
    is_array,
    is_scalar,
    is_weakly_typed,
    with_weak_type,
)
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.on_host import (
    OnHost,
    can_be_on_host,
    has_host_dtype,
    is_numpy,
    on_host,
)
from safejax._src.leaves.report import SHOWN, Report
from safejax._src.pytrees.structure import EMPTY, is_something
from safejax._src.pytrees.walk import walk
from safejax._src.warn import warn_caller
from safejax.errors import PartialLoadWarning, ShardingError


@final
class Matched(NamedTuple):
    """The leaves that `like` has, with its structure, and what its leaves say by name.

    `shardings` are those of its leaves. `host` has the leaves of the file that are NumPy's in
    `like`, bound for the host.
    """

    leaves: Leaves
    shardings: dict[str, Sharding]
    host: dict[str, OnHost]


def matched(leaves: Leaves, like: Any, strict: bool, file: str) -> Matched:
    """The leaves that `like` has, all of which match; reads nothing.

    Raises `MismatchError` for those that do not.
    """
    wanted = walk(like)
    classes = Classes.of(leaves.structure, wanted.structure)
    report = Report(file, leaves, wanted.entries, _is_accepted, classes.renamings())
    # Where the classes differ, a name and a shape that agree may be chance, as in the states of
    # two optimizers. If every leaf has to match, they do not.
    apart = set[str]() if strict else classes.apart([*leaves, *wanted.entries], file)
    entries: dict[str, Any] = {}
    shardings: dict[str, Sharding] = {}
    host: dict[str, OnHost] = {}
    kept: list[str] = []
    with collector_paused():
        for name, expected in wanted.entries.items():
            check_leaf(name, expected)
            if name not in leaves or name in apart:
                entries[name] = expected
                if not is_something(expected):
                    continue
                if strict or isinstance(expected, jax.ShapeDtypeStruct):
                    report.missing.append(name)
                kept.append(name)
                continue
            found = leaves[name]
            entries[name] = accepted = _accepted(name, found, expected)
            if accepted is _REFUSED:
                report.mismatched.append(name)
            elif is_numpy(expected) and can_be_on_host(accepted):
                host[name] = on_host(name, accepted, expected)
            sharding = committed_sharding(expected)
            if sharding is not None:
                shardings[name] = sharding
                _check_layout(name, expected, file)
    # An empty container, or None, is nothing that could be lost.
    unexpected = [
        name
        for name, leaf in leaves.items()
        if (name not in wanted.entries or name in apart) and is_something(leaf)
    ]
    if strict:
        report.unexpected += unexpected
    elif unexpected and kept and not _have_something(entries, kept):
        report.missing, report.unexpected = kept, unexpected
    report.raise_if_any(strict)
    if kept or unexpected:
        _warn_of_partial_load(file, kept, unexpected, report)
    return Matched(Leaves(entries, wanted.structure, leaves.metadata), shardings, host)


def _have_something(entries: Mapping[str, Any], kept: list[str]) -> bool:
    """Whether a leaf was loaded: if none was, `strict=False` would hide that nothing fits."""
    absent = set(kept)
    return any(name not in absent and is_something(leaf) for name, leaf in entries.items())


_REFUSED: Final = object()


def _accepted(name: str, found: Any, expected: Any) -> Any:
    """The leaf that takes the place of `expected`, or `_REFUSED` if `found` does not match it."""
    if is_array(expected):
        weak_type = is_weakly_typed(expected)
        if is_array(found):
            same = (
                found.shape == expected.shape and has_host_dtype(name, found, expected)
                if is_numpy(expected)
                else _same_aval(aval_of(found), aval_of(expected))
            )
            return with_weak_type(found, weak_type, name) if same else _REFUSED
        accepted = _as_array(name, found, expected) if is_scalar(found) else _REFUSED
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


def _is_accepted(name: str, found: Any, expected: Any) -> bool:
    return _accepted(name, found, expected) is not _REFUSED


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


def _as_array(name: str, value: Any, expected: Any) -> Any:
    """A stored scalar as the 0-d array in `like`, if exact or rounded as JAX rounds scalars.

    For an array of NumPy it has to be exact.
    """
    dtype = expected.dtype if is_numpy(expected) else aval_of(expected).dtype
    numbers = _NUMBERS.get(type(value), ())
    if expected.shape != () or not any(jax.dtypes.issubdtype(dtype, n) for n in numbers):
        return _REFUSED
    host = np.asarray(value)
    try:
        with np.errstate(all="ignore"):
            array = host.astype(dtype)
            exact = array.astype(host.dtype) == host or (value != value and array != array)
            rounded = type(value) in (float, complex) and np.isfinite(array) == np.isfinite(host)
    except (TypeError, ValueError, OverflowError):
        return _REFUSED
    of_jax = not is_numpy(expected) and dtype == jax.dtypes.canonicalize_dtype(type(value))
    if exact or (rounded and of_jax):
        return LazyArray(content_at(name, array), name)
    return _REFUSED


def _check_layout(name: str, expected: Any, file: str) -> None:
    if not isinstance(expected, jax.ShapeDtypeStruct):
        return
    given = getattr(expected, "format", None)
    if given is not None and given.layout is not None:
        raise ShardingError(
            f"{file}: leaf {name!r}: expected a sharding in like, got the layout {given.layout}, "
            "which safejax does not choose: give the sharding alone, and call "
            "jax.device_put(leaf, format) on what is loaded"
        )


def committed_sharding(leaf: Any) -> Sharding | None:
    """The sharding of a committed or an abstract array; None for any other leaf."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.sharding
    if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.committed:
        return leaf.sharding
    return None


def _warn_of_partial_load(
    file: str, kept: list[str], unexpected: list[str], report: Report
) -> None:
    parts = [
        f"{len(names)} {what}: {', '.join(map(repr, names[:SHOWN]))}"
        + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        for names, what in (
            (kept, "missing, taken from like"),
            (unexpected, "unexpected, not loaded"),
        )
        if names
    ]
    report.missing, report.unexpected = kept, unexpected
    common = report.in_common() if kept and unexpected else None
    if common is not None:
        parts.append(f"to load them, {common}")
    warn_caller(f"{file}: {'; '.join(parts)}", PartialLoadWarning)
