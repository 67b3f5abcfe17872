"""`correspond`: a table of their names, our names and axes, which is a transform."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias, cast, final

from jax.sharding import Mesh, PartitionSpec

from safejax._src.collector import collector_paused
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.rules import ShardingRules, sharding_rules
from safejax._src.leaves.steps import Transform
from safejax._src.public import set_module
from safejax._src.transforms.correspondence.applying import made_of
from safejax._src.transforms.correspondence.axes import Axis, part_names
from safejax._src.transforms.correspondence.examining import Examination
from safejax._src.transforms.correspondence.rows import Row, parse_row
from safejax.errors import ShardingError, TransformError

NameArgument: TypeAlias = str | tuple[str, ...] | list[str]
RowArgument: TypeAlias = (
    tuple[NameArgument, NameArgument | None] | tuple[NameArgument, NameArgument | None, Any]
)
"""Their name, our name, and the axes or, without our name, what is to be restored."""
MeshAxes: TypeAlias = str | tuple[str, ...] | None


@final
@dataclass(frozen=True, slots=True)
class Correspondence(Transform):
    """A table of correspondences; see `correspond`."""

    rows: tuple[Row, ...]
    sizes: tuple[tuple[str, int], ...] = ()
    is_inverse: bool = False

    @collector_paused()
    def __call__(self, leaves: Leaves, /) -> Leaves:
        return made_of(Examination(self.rows, dict(self.sizes), self.is_inverse, leaves))

    @property
    def inverse(self) -> "Correspondence":
        return Correspondence(self.rows, self.sizes, not self.is_inverse)

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of all axes, and of numbers that are stacked, in the order of the rows."""
        return tuple(dict.fromkeys(name for row in self.rows for name in _axes_of(row)))

    def sharding_rules(self, mesh: Mesh, axes: Mapping[str, MeshAxes]) -> ShardingRules:
        """The sharding rules for what the table makes, by the names of its axes.

        `axes` maps names of axes, or of numbers that are stacked, to axes of `mesh`. All others
        are replicated, as are those that are not the first of a product: `(h k)` is partitioned
        as `h` is.

        Raises `ShardingError` for a name that is not in the table, and for an axis of the mesh
        that a leaf would have twice.
        """
        known = {name for row in self.rows for name in _axes_of(row)}
        for name in axes:
            if name not in known:
                raise ShardingError(
                    f"sharding_rules: expected the name of an axis of the table, got {name!r}: it "
                    f"has {', '.join(sorted(known)) or 'none'}"
                )
        rules: list[tuple[str, PartitionSpec]] = []
        for row in self.rows:
            _, target = row.sides(self.is_inverse)
            for place, name in enumerate(target.names if target is not None else ()):
                lead = tuple((each,) for each in target.lead) if target is not None else ()
                tensors = None if target is None else target.tensors
                tensor = lead if tensors is None else tensors[place]
                spec = PartitionSpec(*(_partition(axis, axes) for axis in tensor))
                rules.append((name.template.text, spec))
        unique = list(dict(rules).items())
        optional = any(row.is_optional for row in self.rows)
        return sharding_rules(mesh, unique, must_match=not optional)

    def __repr__(self) -> str:
        rows = ", ".join(repr(row.written) for row in self.rows)
        sizes = f", sizes={dict(self.sizes)}" if self.sizes else ""
        return f"correspond([{rows}]{sizes}){'.inverse' if self.is_inverse else ''}"


@set_module("safejax")
def correspond(
    rows: Iterable[RowArgument], *, sizes: Mapping[str, int] | None = None
) -> Correspondence:
    """A transform that is a table: *their name, our name, axes*, one row for each tensor.

    Names are templates: `{i}` is one segment, `*` any text. A placeholder of their name that is
    not in ours is a number, 0 to n-1, over which the leaves are stacked; with several, in the
    order in which the name has them. One that is only in our name unstacks. `{i+3}` is a number
    that begins at 3, and `{6*i+5}` is 5, 11, 17 …

    Axes are written as in einops: `(h k) d -> d h k`. A parenthesis is one axis, the product of
    several, and 1 is an axis of size 1. Stacked numbers are axes of the same names, in front
    unless they are written. Without an arrow axes only get names, and without axes a leaf keeps
    its shape. A name has one size in the whole table, from `sizes` or from the leaves, which are
    checked against each other; a name that begins with an underscore has one in each leaf. For a
    fused leaf, our side is a tuple of names, and its axis a sum, as in einx:
    `("qkv", ("q", "k", "v"), "(h k + g k + g k) d -> d h k, d g k, d g k")`; the other way round,
    several leaves become one.

    A row whose other name is None leaves its leaves out; they do not come back. Two rows with the
    same name of theirs are tied: the inverse stores one, if both are equal bit by bit. A row whose
    name of theirs ends in `?` may take no leaf. Otherwise every leaf needs a row and every row a
    leaf: all that is left over, that is missing or that does not fit is in one error.

    Nothing is read, and a part of the result reads only its own bytes, except where a product or
    a sum could not be made without a copy, as for `reshape`. The inverse is the table from right
    to left.

    >>> import jax.numpy as jnp
    >>> from safejax import correspond, flatten
    >>> table = correspond([
    ...     ("layers.{i}.q.weight", "q.kernel", "(h k) d -> d h k"),
    ...     ("norm.weight", "norm.scale", "d"),
    ... ], sizes={"h": 2})
    >>> layer = {"q": {"weight": jnp.ones((8, 6))}}
    >>> theirs = flatten({"layers": [layer, layer, layer], "norm": {"weight": jnp.ones(6)}})
    >>> {name: leaf.shape for name, leaf in table(theirs).items()}
    {'q.kernel': (3, 6, 2, 4), 'norm.scale': (6,)}
    >>> list(table.inverse(table(theirs))) == list(theirs)
    True

    `table.sharding_rules(mesh, {"h": "model"})` shards by the names of axes.

    Raises `TransformError` when it is built with rows that are at fault in themselves, and when
    it is applied to leaves that they do not fit.
    """
    if isinstance(rows, Mapping | str) or not isinstance(rows, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TransformError(
            f"correspond: expected a list of rows (their name, our name, axes), got {rows!r:.200}"
        )
    parsed = tuple(parse_row(number, row) for number, row in enumerate(rows))
    if not parsed:
        raise TransformError("correspond: expected at least one row, got none")
    _check_ours(parsed)
    return Correspondence(parsed, _checked_sizes(sizes, parsed))


def _check_ours(rows: Sequence[Row]) -> None:
    seen: dict[str, Row] = {}
    for row in rows:
        for name in row.ours.names if row.ours is not None else ():
            if name.text in seen:
                raise TransformError(
                    f"correspond: expected one row for each of our names, got {name.text!r} in "
                    f"{seen[name.text]} and in {row}: give one of them another name"
                )
            seen[name.text] = row


def _checked_sizes(
    sizes: Mapping[str, int] | None, rows: Sequence[Row]
) -> tuple[tuple[str, int], ...]:
    if sizes is None:
        return ()
    if not isinstance(sizes, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TransformError(f"correspond: expected sizes to be a mapping, got {sizes!r}")
    known = {name for row in rows for name in _axes_of(row)}
    checked: dict[str, int] = {}
    for name, size in cast("Mapping[Any, Any]", sizes).items():
        if name not in known or name.startswith("_"):
            raise TransformError(
                f"correspond: sizes: expected names of axes that a row has and that do not begin "
                f"with an underscore, got {name!r}: the rows have "
                f"{', '.join(sorted(known)) or 'none'}"
            )
        try:
            checked[name] = operator.index(size)
        except TypeError:
            checked[name] = -1
        if checked[name] < 1:
            raise TransformError(
                f"correspond: sizes: expected {name!r} to be 1 or more, got {size!r}"
            )
    return tuple(checked.items())


def _axes_of(row: Row) -> list[str]:
    """The names of all axes of a row, stacked numbers included, beginning with ours."""
    found: list[str] = []
    for side in (row.ours, row.theirs):
        if side is not None:
            found += side.lead
            found += [name for tensor in side.tensors or () for name in chain(*part_names(tensor))]
    return found if row.restored is None else [*found, *row.theirs.placeholders]


def _partition(axis: Axis, axes: Mapping[str, MeshAxes]) -> MeshAxes:
    first = axis[0] if axis else None
    return axes.get(first) if isinstance(first, str) else None
