"""The report of what does not match `like`: all of it, and in one line what it has in common."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, final

import jax
import numpy as np

from safejax._src.arrays.content import is_key, key_data_shape
from safejax._src.dtypes import is_floating
from safejax._src.leaves.leaf import content_at, describe, is_array, key_of_dtype
from safejax._src.leaves.on_host import host_dtype, is_numpy
from safejax._src.pytrees.names import SEPARATOR
from safejax._src.pytrees.patterns import exactly
from safejax._src.pytrees.structure import is_something
from safejax.errors import MismatchError

SHOWN: Final = 20
"""Lines of a message; the error's attributes have the rest."""

_TRIED: Final = 4
"""Prefixes that are tried, since each is tried on all leaves."""

_BOX: Final = ".value"


@final
class Renaming(NamedTuple):
    """A transform that might give matching names: an argument of `load`, and what it does.

    `rename` returns the new name, or None for a leaf that the transform leaves out.
    """

    text: str
    rename: Callable[[str], str | None]


@final
class Report:
    """What does not match, by name; `stored` has the file's leaves and `wanted` those of `like`."""

    def __init__(
        self,
        file: str,
        stored: Mapping[str, Any],
        wanted: Mapping[str, Any],
        accepts: Callable[[str, Any, Any], bool],
        renamings: Iterable[Renaming] = (),
    ) -> None:
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.mismatched: list[str] = []
        self._file = file
        self._stored = stored
        self._wanted = wanted
        self._accepts = accepts
        self._known = renamings

    def raise_if_any(self, strict: bool) -> None:
        """Raise `MismatchError` if anything was added."""
        count = len(self.missing) + len(self.unexpected) + len(self.mismatched)
        if not count:
            return
        lines = [
            *(self._mismatch(name) for name in self.mismatched),
            *(self._absence(name, strict) for name in self.missing),
            *(self._excess(name, strict) for name in self.unexpected),
        ]
        if count > SHOWN:
            lines = [*_each_kind(self, lines), f"… {count - SHOWN} more, in the error's attributes"]
        what = "leaf does" if count == 1 else "leaves do"
        common = self.in_common() if count > 1 else None  # One leaf has its own remedy.
        nothing = "" if strict or not self.unexpected else "; strict=False would load none of them"
        raise MismatchError(
            f"{self._file}: {count} {what} not match like, which has {len(self._wanted)}{nothing}"
            f"{'' if common is None else f'; {common}'}:\n  " + "\n  ".join(lines),
            missing=self.missing,
            unexpected=self.unexpected,
            mismatched=self.mismatched,
        )

    def in_common(self) -> str | None:
        """The transform that makes all of it match, or most of it; None if none is known."""
        faults = len(self.missing) + len(self.unexpected) + len(self.mismatched)
        best: tuple[int, str] | None = None
        for text, stored in self._attempts():
            left = self._faults(stored)
            if left * 2 <= faults and (best is None or left < best[0]):
                best = left, text
        if best is None:
            return None
        left, text = best
        return f"pass {text}" + (f", which leaves {left} of them" if left else "")

    def _attempts(self) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Arguments for `load` as users write them, and the leaves that they would give."""
        for renaming in self._renamings():
            names = {name: renaming.rename(name) for name in self._stored}
            if any(new != old for old, new in names.items()):  # Else it would match nothing.
                yield (
                    renaming.text,
                    {new: self._stored[old] for old, new in names.items() if new is not None},
                )
        yield from self._casts()

    def _renamings(self) -> Iterable[Renaming]:
        yield from self._known
        names = [name for name, leaf in self._stored.items() if is_something(leaf)]
        above = {
            name[: -len(SEPARATOR + wanted)]
            for wanted in self.missing[:1]
            for name in names
            if name.endswith(SEPARATOR + wanted)
        }
        for prefix in sorted(above, key=len)[:_TRIED]:
            head = prefix + SEPARATOR
            below = f"prefix({prefix!r}).inverse"
            if not all(name.startswith(head) for name in self._stored):
                below = f"chain(select({pattern_of(head, '*')}), {below})"
            yield Renaming(
                f"transform={below}",
                lambda name, head=head: name.removeprefix(head) if name.startswith(head) else None,
            )
        missing = {
            wanted[: -len(SEPARATOR + name)]
            for name in names[:1]
            for wanted in self.missing
            if wanted.endswith(SEPARATOR + name)
        }
        for prefix in sorted(missing, key=len)[:_TRIED]:
            yield Renaming(
                f"transform=prefix({prefix!r})",
                lambda name, head=prefix + SEPARATOR: head + name,
            )
        yield Renaming(
            f"transform=rename({{'*{_BOX}': '*'}})", lambda name: name.removesuffix(_BOX)
        )
        yield Renaming(f"transform=rename({{'*': '*{_BOX}'}})", lambda name: name + _BOX)

    def _casts(self) -> Iterable[tuple[str, Mapping[str, Any]]]:
        pairs = {
            (self._dtype(name), np.dtype(self._wanted[name].dtype))
            for name in self.mismatched
            if self._differs_in_dtype(name)
        }
        targets = {target for _, target in pairs}
        for target in sorted(targets, key=str):
            sources = {source for source, to in pairs if to == target}
            if is_floating(target) and all(map(is_floating, sources)):
                yield (
                    f"transform=cast({target.name!r})",
                    self._cast(lambda dtype: is_floating(dtype), target),
                )
            for source in sorted(sources, key=str):
                yield (
                    f"transform=cast({target.name!r}, source={source.name!r})",
                    self._cast(lambda dtype, source=source: dtype == source, target),
                )

    def _cast(self, chosen: Callable[[Any], bool], target: np.dtype[Any]) -> Mapping[str, Any]:
        return {
            name: jax.ShapeDtypeStruct(leaf.shape, target)
            if is_array(leaf) and not is_key(leaf.dtype) and chosen(_stored_dtype(name, leaf))
            else leaf
            for name, leaf in self._stored.items()
        }

    def _faults(self, stored: Mapping[str, Any]) -> int:
        """How many leaves would not match if these were stored."""
        count = 0
        for name, expected in self._wanted.items():
            if name in stored:
                count += not self._accepts(name, stored[name], expected)
            elif is_something(expected):
                count += 1
        return count + sum(
            is_something(stored[name]) for name in stored.keys() - self._wanted.keys()
        )

    def _differs_in_dtype(self, name: str) -> bool:
        found, expected = self._stored[name], self._wanted[name]
        return (
            is_array(found)
            and is_array(expected)
            and found.shape == expected.shape
            and not is_key(found.dtype)
            and not is_key(expected.dtype)
        )

    def _dtype(self, name: str) -> np.dtype[Any]:
        return _stored_dtype(name, self._stored[name])

    def _mismatch(self, name: str) -> str:
        found, expected = self._stored[name], self._wanted[name]
        return (
            f"mismatched {name!r}: expected {describe(expected)} from like, got "
            f"{_as_it_counts(name, found, expected)}; "
            f"{self._remedy(name)}"
        )

    def _remedy(self, name: str) -> str:
        found, expected = self._stored[name], self._wanted[name]
        keep = f"to keep that of like, pass transform=drop({pattern_of(name)}), strict=False"
        if isinstance(expected, jax.ShapeDtypeStruct):
            keep = "pass a transform that makes it so, or correct like"
        if not is_array(found) or not is_array(expected):
            return keep
        if self._differs_in_dtype(name):
            target, stored = np.dtype(expected.dtype), self._dtype(name)
            both_floating = is_floating(target) and is_floating(stored)
            source = "" if both_floating else f", source={stored.name!r}"
            return f"pass transform=cast({target.name!r}{source}, where={pattern_of(name)})"
        keys = _keys_that_help(name, found, expected)
        return keep if keys is None else f"pass transform={keys}"

    def _absence(self, name: str, strict: bool) -> str:
        expected = self._wanted[name]
        abstract = isinstance(expected, jax.ShapeDtypeStruct)
        if not strict and self.unexpected:  # As `_excess` has it.
            remedy = "pass a transform that gives a leaf this name, or correct like"
        elif abstract:
            remedy = "give an array in like" + (", and pass strict=False" if strict else "")
        else:
            remedy = "pass strict=False to keep that of like"
        # To look for near names takes as long as the names are many.
        if len(self.missing) <= SHOWN and self.unexpected:
            near = difflib.get_close_matches(name, self.unexpected[:1000], n=1)
            if near and near[0] != name:
                rename = f"rename({{{pattern_of(near[0])}: {pattern_of(name)}}})"
                remedy = f"pass transform={rename} if that is it, or {remedy.removeprefix('pass ')}"
        return f"missing {name!r}: expected {describe(expected)} from like, there is none; {remedy}"

    def _excess(self, name: str, strict: bool) -> str:
        # Without `strict`, it counts only if there is nothing in the file that like has.
        remedy = "strict=False to ignore it" if strict else "a transform that gives a name of like"
        return (
            f"unexpected {name!r}: expected none from like, got {describe(self._stored[name])}; "
            f"pass {remedy}"
        )


def _each_kind(report: Report, lines: list[str]) -> list[str]:
    """The lines that are shown: some of each kind."""
    counts = (len(report.mismatched), len(report.missing), len(report.unexpected))
    rooms = [0, 0, 0]
    while sum(rooms) < SHOWN:
        for kind, count in enumerate(counts):
            rooms[kind] += rooms[kind] < count and sum(rooms) < SHOWN
    begins = (0, counts[0], counts[0] + counts[1])
    return [
        line
        for begin, room in zip(begins, rooms, strict=True)
        for line in lines[begin : begin + room]
    ]


def pattern_of(name: str, end: str = "") -> str:
    """The pattern that matches this name, and then `end`, as Python writes it."""
    return repr(exactly(name) + end)


def _as_it_counts(name: str, found: Any, expected: Any) -> str:
    """A description of a leaf, which has for NumPy the dtype that is stored."""
    if not is_array(found) or is_key(found.dtype) or not is_numpy(expected):
        return describe(found)
    return describe(jax.ShapeDtypeStruct(found.shape, host_dtype(name, found)))


def _stored_dtype(name: str, leaf: Any) -> np.dtype[Any]:
    return content_at(name, leaf).view.dtype


def _keys_that_help(name: str, found: Any, expected: Any) -> str | None:
    """The transform that makes typed keys of their data, or the reverse, if that is all."""
    if is_key(expected.dtype) == is_key(found.dtype):
        return None
    typed, raw = (expected, found) if is_key(expected.dtype) else (found, expected)
    impl = key_of_dtype(typed.dtype)
    if raw.dtype != np.uint32 or raw.shape != (*typed.shape, *key_data_shape(impl)):
        return None
    argument = "" if impl == "threefry2x32" else f", impl={impl!r}"
    return f"keys({pattern_of(name)}{argument}){'.inverse' if typed is found else ''}"
