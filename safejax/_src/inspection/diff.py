"""Diff: how the contents of two files, or trees, differ, as a value that prints as a table."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.format.markup import html_lines, html_table
from safejax._src.inspection import text
from safejax._src.inspection.contents import Contents, Item, contents, described_value, value_text
from safejax._src.inspection.statistics import WINDOW_ELEMENTS, reals
from safejax._src.progress import ProgressArgument, shown_progress
from safejax._src.public import set_module
from safejax._src.reading.filesystems import FileSystem
from safejax._src.reading.view import View

_SHOWN: Final = 40
_COLUMNS: Final = ("name", "a", "b", "differ", "largest absolute", "largest relative", "NaN in one")
_RIGHT: Final = _COLUMNS[3:]


@final
@dataclass(frozen=True, slots=True)
class TensorDifference:
    """How a tensor that both have differs; `a` and `b` are its types, such as `float32[4,3]`.

    If the shapes are the same, `differing` counts the elements of which `|a - b|` is more than
    `atol + rtol * |b|`, or of which one is NaN; `max_absolute` is the largest `|a - b|`, and
    `max_relative` the largest `|a - b| / |b|`, of all elements. `nans` counts those that are NaN in
    one of the two only. Where values cannot be compared, all of these are None.
    """

    name: str
    a: str
    b: str
    differing: int | None = None
    max_absolute: float | None = None
    max_relative: float | None = None
    nans: int | None = None

    @property
    def is_same(self) -> bool:
        """Whether type and values are the same, up to the tolerance."""
        return self.a == self.b and self.differing == 0


@set_module("safejax")
@final
@dataclass(frozen=True, slots=True, repr=False)
class Difference:
    """How two files or trees differ; printed as a table, and in notebooks.

    `tensors` has a value for each tensor that both have and that differs, in type or in values,
    with its `name`, `a`, `b`, `differing`, `max_absolute`, `max_relative` and `nans`. `only_a` and
    `only_b` map names to the types of what only one of the two has. `values`, `structure` and
    `metadata` map names to pairs of what the two have, where they differ; None stands for nothing.
    `same` is the number of tensors that are the same.
    """

    a: str
    b: str
    tensors: tuple[TensorDifference, ...]
    only_a: Mapping[str, str]
    only_b: Mapping[str, str]
    values: Mapping[str, tuple[str | None, str | None]]
    structure: Mapping[str, tuple[str | None, str | None]]
    metadata: Mapping[str, tuple[str | None, str | None]]
    same: int

    @property
    def is_same(self) -> bool:
        """Whether nothing differs."""
        return not (
            self.tensors or self.only_a or self.only_b or self.values or self.structure
            or self.metadata
        )  # fmt: skip

    def to_json(self) -> str:
        """Everything as JSON text; numbers that are not finite are strings."""
        return text.to_json(
            {
                "a": self.a,
                "b": self.b,
                "is_same": self.is_same,
                "same": self.same,
                "tensors": [asdict(tensor) for tensor in self.tensors],
                "only_a": self.only_a,
                "only_b": self.only_b,
                "values": self.values,
                "structure": self.structure,
                "metadata": self.metadata,
            }
        )

    def __repr__(self) -> str:
        """A line; `print(difference)` shows the table."""
        return f"Difference({self.title()!r})"

    def title(self) -> str:
        """What is said above the table."""
        alone = len(self.only_a) + len(self.only_b)
        return (
            f"{self.a} and {self.b}: {text.counted(self.same, 'tensor')} the same, "
            f"{len(self.tensors):,} different, {alone:,} in one only"
        )

    def __str__(self) -> str:
        rows = self._rows()
        lines = text.table(_COLUMNS, rows, _RIGHT) if rows else []
        return text.joined([self.title(), *lines, *self._lines()])

    def _repr_html_(self) -> str:
        """What notebooks show: the table that `print` shows."""
        rows = self._rows()
        table = html_table(_COLUMNS, rows, _RIGHT) if rows else ""
        return f"{html_lines([self.title()])}{table}{html_lines(self._lines())}"

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                each.name, each.a, each.b,
                "" if each.differing is None else f"{each.differing:,}",
                text.number(each.max_absolute), text.number(each.max_relative),
                "" if each.nans is None else f"{each.nans:,}",
            )
            for each in self.tensors[:_SHOWN]
        ]  # fmt: skip

    def _lines(self) -> list[str]:
        lines = [f"only in a: {name} {kind}" for name, kind in self.only_a.items()]
        lines += [f"only in b: {name} {kind}" for name, kind in self.only_b.items()]
        for what, table in (
            ("value", self.values), ("structure", self.structure), ("metadata", self.metadata),
        ):  # fmt: skip
            for name, (a, b) in table.items():
                pair = ("none" if each is None else each for each in text.apart(a, b, 200))
                lines.append(f"{what} {name!r}: {' and '.join(pair)}")
        more = len(self.tensors) - _SHOWN
        first = [f"… {more:,} more tensors"] if more > 0 else []
        rest = [f"… {len(lines) - _SHOWN:,} more"] if len(lines) > _SHOWN else []
        return [*first, *lines[:_SHOWN], *rest]


@set_module("safejax")
def diff(
    a: Any,
    b: Any,
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
    progress: ProgressArgument = None,
    fs: FileSystem = None,
) -> Difference:
    """How the contents of `a` and `b` differ: names, shapes, dtypes, values, structure, metadata.

    Each is a path as `load` takes it, the bytes of a file, a tree, or a checkpoint of Orbax, for
    which the extra `orbax` is needed. Values are read in a window
    of a few MiB, also where the dtypes differ, and JAX is not imported for files. Two elements are
    the same if `|a - b| <= atol + rtol * |b|`, or if both are NaN; integers are compared exactly.
    `progress` is called with bytes of `a`, or shown if it is True.

    >>> import jax.numpy as jnp, safejax
    >>> difference = safejax.diff({"w": jnp.ones(3)}, {"w": jnp.array([1.0, 1.0, 1.5])})
    >>> difference.is_same, difference.tensors[0].differing, difference.tensors[0].max_absolute
    (False, 1, 0.5)

    Raises what `load` raises for a file that cannot be opened, and what reading raises.
    """
    for what, tolerance in (("rtol", rtol), ("atol", atol)):
        if not 0 <= tolerance < float("inf"):
            raise ValueError(f"diff: {what}: expected a number, 0 or more, got {tolerance!r}")
    first, second = contents(a, fs), contents(b, fs)
    common = {
        name: (item, second.items[name])
        for name, item in first.items.items()
        if name in second.items
    }
    differences: list[TensorDifference] = []
    with shown_progress(progress, "diff", sum(item.nbytes for item, _ in common.values())) as read:
        for name, (one, other) in common.items():
            differences.append(_compared(name, one, other, (rtol, atol), read))
    different = tuple(each for each in differences if not each.is_same)
    return Difference(
        first.source, second.source, different,
        _only_in(first, second), _only_in(second, first),
        _value_pairs(first, second),
        _structure_pairs(first, second),
        _pairs(first.metadata, second.metadata),
        len(common) - len(different),
    )  # fmt: skip


def _compared(
    name: str, a: Item, b: Item, tolerance: tuple[float, float], read: Callable[[int], None]
) -> TensorDifference:
    types = a.description, b.description
    if a.view is None or b.view is None or a.shape != b.shape:
        read(a.nbytes)
        return TensorDifference(name, *types)
    found = _Found()
    for one, other in _block_pairs(a.view, b.view):
        found.add(one.read().reshape(-1), other.read().reshape(-1), *tolerance)
        read(one.nbytes)
    return TensorDifference(
        name, *types, found.differing, found.max_absolute, found.max_relative, found.nans
    )


def _block_pairs(a: View, b: View) -> "zip[tuple[View, View]]":
    """The same parts of two views of one shape."""
    # Blocks are cut by bytes: of the same number of elements if the dtypes have other widths.
    return zip(
        a.blocks(WINDOW_ELEMENTS * a.dtype.itemsize),
        b.blocks(WINDOW_ELEMENTS * b.dtype.itemsize),
        strict=True,
    )


@final
class _Found:
    """What differs in the blocks of a tensor that were compared so far."""

    def __init__(self) -> None:
        self.differing = self.nans = 0
        self.max_absolute = self.max_relative = 0.0

    def add(self, a: NDArray[Any], b: NDArray[Any], rtol: float, atol: float) -> None:
        if not a.size:
            return
        with np.errstate(all="ignore"):
            if _are_exact(a, b):
                unequal = a != b
                distance = np.where(unequal, np.abs(_number(a) - _number(b)), 0.0)
                # Two large integers may be one float64.
                distance = np.where(unequal & (distance == 0), 1.0, distance)
            else:
                one, other = _number(a), _number(b)
                nan_a, nan_b = np.isnan(one), np.isnan(other)
                self.nans += int((nan_a != nan_b).sum())
                distance = np.abs(one - other)
                distance = np.where((one == other) | (nan_a & nan_b), 0.0, distance)
            scale = np.abs(reals(b))
            relative = np.where(distance == 0, 0.0, distance / scale)
            # Written so that a distance of NaN is one that differs.
            same = distance <= (atol + rtol * scale if rtol else atol)
            self.differing += int((~same | (distance == np.inf)).sum())
            self.max_absolute = max(self.max_absolute, _largest(distance))
            self.max_relative = max(self.max_relative, _largest(relative))


def _are_exact(a: NDArray[Any], b: NDArray[Any]) -> bool:
    # NumPy compares integers of any two dtypes exactly.
    return a.dtype.kind in "biu" and b.dtype.kind in "biu"


def _number(array: NDArray[Any]) -> NDArray[Any]:
    """The values as 64-bit numbers, or as 128-bit complex ones."""
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _largest(values: NDArray[Any]) -> float:
    known = values[~np.isnan(values)]
    return float(known.max()) if known.size else 0.0


def _only_in(this: Contents, other: Contents) -> dict[str, str]:
    alone = {name: item.description for name, item in this.items.items() if name not in other.items}
    return alone | {
        name: described_value(value)
        for name, value in this.values.items()
        if name not in other.values
    }


def _pairs(a: Mapping[str, str], b: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    keys = dict.fromkeys((*a, *b))
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}


def _value_pairs(a: Contents, b: Contents) -> dict[str, tuple[str | None, str | None]]:
    shown = [
        {name: value_text(value) for name, value in one.values.items() if name in other.values}
        for one, other in ((a, b), (b, a))
    ]
    return {name: text.apart(*pair, 80) for name, pair in _pairs(*shown).items()}


def _structure_pairs(a: Contents, b: Contents) -> dict[str, tuple[str | None, str | None]]:
    found: dict[str, tuple[str | None, str | None]] = {}
    for key in dict.fromkeys((*a.kinds, *b.kinds)):
        one, other = a.kinds.get(key), b.kinds.get(key)
        if one != other:
            types = one and one.type, other and other.type
            # Containers of one class differ in their keys, the order of these, or what is shared.
            pair = types if types[0] != types[1] else text.apart(repr(one), repr(other), 80)
            found[key.rstrip(".")] = pair
    return found
