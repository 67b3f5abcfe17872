"""Examining leaves by a table of correspondences: what each row takes, and all that is at fault."""

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Final, final

from safejax._src.arrays.content import Content
from safejax._src.arrays.lazy import LazyArray
from safejax._src.leaves.leaf import content_at, describe, is_array
from safejax._src.leaves.leaves import Leaves
from safejax._src.transforms.correspondence.accounts import Report, hint_of_prefix, why_idle
from safejax._src.transforms.correspondence.axes import Tensor, show_axis, size_of
from safejax._src.transforms.correspondence.matching import (
    Group,
    Index,
    Place,
    groups_of,
    scope_of,
    tensors_of,
)
from safejax._src.transforms.correspondence.rows import Row
from safejax._src.transforms.correspondence.sizes import Constraint, Sizes

_HINTS: Final = 5
"""How many rows are looked at for what is wrong with them: so many are shown."""


@final
class Examination:
    """What the rows of a table take of leaves, and what they make of it.

    `groups` are those that become leaves, `names` and `tensors` their new names and their axes
    before and after, and `contents` those of the leaves that get other axes.

    Raises `TransformError` with all that is at fault.
    """

    def __init__(
        self, rows: tuple[Row, ...], sizes: Mapping[str, int], is_inverse: bool, leaves: Leaves
    ) -> None:
        self.rows, self._given, self.is_inverse = rows, sizes, is_inverse
        self.leaves = leaves
        self._report = Report()
        self.sizes = Sizes(sizes)
        self.contents: dict[str, Content] = {}
        self.tensors: dict[int, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {}

        groups = self._taken()
        complete = [group for group in groups if self._is_complete(group)]
        kept = [group for group in complete if group.target is not None]
        self.groups = [group for group in kept if group.is_plain or self._fits(group)]
        self._solve([*self.groups, *(group for group in complete if group.target is None)])
        if not (self._report.count("sizes") or self._report.count("unknown")):
            self._solve_inverse(self.groups)
            self.names = self._made(self.groups)
        self._report.check()

    def _taken(self) -> list[Group]:
        index = Index(self.rows, self.is_inverse)
        hits = [(name, index.hits(name)) for name in self.leaves]
        untaken = [name for name, taken in hits if not taken]
        for name, taken in hits:
            if not taken:
                self._report.add("untaken", repr(name))
            elif len(taken) > 1 and len({self._text(row, place) for row, place, _ in taken}) > 1:
                rows = " and ".join(str(self.rows[row]) for row, _, _ in taken)
                self._report.add("overlapping", f"{name!r} by {rows}")
        sources = [row.sides(self.is_inverse)[0] for row in self.rows]
        self._report.remedy = hint_of_prefix(
            untaken,
            [side.names[0].text for side in sources if side is not None],
            lambda name: bool(index.hits(name)),
        )
        groups = groups_of(self.rows, self.is_inverse, hits)
        used = {group.row for group in groups}
        for number, (row, source) in enumerate(zip(self.rows, sources, strict=True)):
            if number not in used and source is not None and not row.is_optional:
                idle = self._report.count("idle") < _HINTS
                hint = why_idle(source.names[0].template, untaken) if idle else ""
                self._report.add("idle", f"{row}{hint}")
        return groups

    def _text(self, row: int, place: int, *, after: bool = False) -> str:
        side = self.rows[row].sides(self.is_inverse)[after]
        assert side is not None
        return side.names[place].text

    def _is_complete(self, group: Group) -> bool:
        expected = len(group.source.names) * prod(group.counts())
        if len(group.names) == expected:
            return True
        missing = group.missing()
        some = [repr(next(missing)) for _ in range(min(3, expected - len(group.names)))]
        more = expected - len(group.names) - len(some)
        self._report.add(
            "missing",
            f"{', '.join(some)}{f' and {more} more' if more else ''} next to {group.first!r}",
        )
        return False

    def _fits(self, group: Group) -> bool:
        """Whether the leaves of a group are arrays of one kind, with the axes of the row."""
        if len(group.names) == 1 and self._fits_alone(group):
            return True
        first: Content | None = None
        shapes: dict[int, tuple[int, ...]] = {}
        of_views: dict[int, tuple[int, ...]] = {}
        for (place, _), name in group.names.items():
            leaf = self.leaves[name]
            if type(leaf) is not LazyArray and not is_array(leaf):
                self._report.add(
                    "unlike", f"{name!r}: expected an array with axes, got {describe(leaf)}"
                )
                return False
            content = self.contents.get(name)
            if content is None:
                # The class of a leaf over several devices says that it is another.
                is_lazy = type(leaf) is LazyArray
                content = self.contents[name] = leaf.content if is_lazy else content_at(name, leaf)
            first = first or content
            if place not in shapes:
                shapes[place], of_views[place] = content.shape, content.view.shape
            kind = (content.view.dtype, content.key, content.view.shape)
            if kind != (first.view.dtype, first.key, of_views[place]):
                self._report.add(
                    "unlike",
                    f"{_show(first)} for {group.first!r} and {_show(content)} for {name!r}",
                )
                return False
        rank = len(shapes[0])
        for place, tensor in enumerate(group.source.tensors or ()):
            if len(tensor) != len(shapes[place]):
                name = next(name for (at, _), name in group.names.items() if at == place)
                axes = " ".join(map(show_axis, tensor)) or "none"
                self._report.add(
                    "sizes",
                    f"leaf {name!r}: expected the axes {axes}, got the shape {list(shapes[place])}",
                )
                return False
        if rank < len(group.source.lead):
            self._report.add(
                "sizes",
                f"leaf {group.first!r}: expected an axis for each of {group.source.lead}, got the "
                f"shape {list(shapes[0])}",
            )
            return False
        assert group.target is not None
        rank -= len(group.source.lead)
        self.tensors[id(group)] = (tensors_of(group.source, rank), tensors_of(group.target, rank))
        return True

    def _fits_alone(self, group: Group) -> bool:
        """What `_fits` finds of a lazy leaf that becomes another one, if its axes are written."""
        assert group.target is not None
        (name,) = group.names.values()
        leaf, source, target = self.leaves[name], group.source, group.target
        if type(leaf) is not LazyArray or source.tensors is None or target.tensors is None:
            return False
        content = self.contents.get(name)
        if content is None:
            content = self.contents[name] = leaf.content
        if len(source.tensors[0]) != len(content.shape):
            return False
        self.tensors[id(group)] = source.tensors, target.tensors
        return True

    def _solve(self, groups: list[Group]) -> None:
        # Most rows have the axes and the shapes of another one, which has the same faults.
        faults, left = self.sizes.solve(self._constraints(groups, each_row=False))
        if faults:
            self.sizes = Sizes(self._given)
            faults, left = self.sizes.solve(self._constraints(groups, each_row=True))
        for fault in faults:
            self._report.add("sizes", fault)
        seen: set[str] = set()
        for constraint in left if not faults else ():
            names = self.sizes.unknown(constraint)
            if names[0] not in seen:
                seen.update(names)
                self._report.add(
                    "unknown",
                    f"leaf {constraint.leaf!r} has {constraint.size} for "
                    f"{show_axis(constraint.axis)}, which leaves {' and '.join(names)} open",
                )

    def _constraints(self, groups: list[Group], *, each_row: bool) -> list[Constraint]:
        """What the numbers and the shapes of the leaves say of sizes, once or in each row."""
        constraints: dict[tuple[object, ...], list[Constraint]] = {}
        for group in groups:
            row = group.row if each_row else None
            for name, count in zip(group.stacked, group.counts(), strict=True):
                key = (row, name, count, group.scope if name.startswith("_") else None)
                constraints.setdefault(
                    key, [Constraint((name,), count, group.first, group.scope, counted=True)]
                )
            if group.is_plain or group.target is None:
                continue
            source, _ = self.tensors[id(group)]
            scope = scope_of(group, source)
            for place, name in {place: name for (place, _), name in group.names.items()}.items():
                shape = self.contents[name].shape  # The others of this place have the same.
                key = (row, source[place], shape, scope)
                if key not in constraints:
                    constraints[key] = [
                        Constraint(axis, size, name, scope)
                        for axis, size in zip(source[place], shape, strict=True)
                    ]
        # The largest numbers first: a group is shorter than others, and not longer.
        counts, axes = (
            [each for row in constraints.values() for each in row if each.counted == counted]
            for counted in (True, False)
        )
        counts.sort(key=lambda constraint: -constraint.size)
        return [*counts, *axes]

    def _solve_inverse(self, groups: list[Group]) -> None:
        """Check that the shapes of the result imply all sizes again, so that it can be undone."""
        constraints: dict[tuple[object, ...], list[Constraint]] = {}
        for group in groups:
            if group.is_plain:
                continue
            source, target = self.tensors[id(group)]
            scope = scope_of(group, source)
            assert group.target is not None
            for count, name in zip(self._counts(group), group.source.lead, strict=True):
                constraints.setdefault(
                    (name, count, scope),
                    [Constraint((name,), count, group.first, group.scope, counted=True)],
                )
            for place, tensor in enumerate(target):
                if (tensor, scope) not in constraints:  # Which implies the sizes.
                    name, size = group.target.names[place].text, self.size(group)
                    constraints[tensor, scope] = [
                        Constraint(axis, size_of(axis, size), name, group.scope) for axis in tensor
                    ]
        inverse = Sizes(self._given)
        _, left = inverse.solve(each for row in constraints.values() for each in row)
        seen: set[str] = set()
        for constraint in left:
            names = inverse.unknown(constraint)
            if names[0] in seen:
                continue
            seen.update(names)
            sizes = {
                name: self.sizes.size(name, constraint.scope)
                for name in names
                if not name.startswith("_")
            }
            self._report.add(
                "unknown",
                f"{constraint.leaf!r} has {constraint.size} for {show_axis(constraint.axis)}, from "
                f"which the inverse could not tell {' and '.join(names)}"
                + (f": sizes={sizes}" if sizes else ""),
            )
        self._check_restored(inverse)

    def _check_restored(self, sizes: Sizes) -> None:
        """Check that it is known how many leaves the inverse, or this one, is to restore."""
        for row in self.rows:
            for name in row.theirs.placeholders if row.restored is not None else ():
                if not (self.sizes if self.is_inverse else sizes).knows(name):
                    self._report.add(
                        "unknown",
                        f"{row}: {{{name}}}: how many there are to restore: sizes={{{name!r}: n}}",
                    )

    def size(self, group: Group) -> Callable[[str], int]:
        """The function from the names of axes to their sizes in a group."""
        return partial(self.sizes.size, scope=group.scope)

    def _counts(self, group: Group) -> tuple[int, ...]:
        return tuple(self.sizes.size(name, group.scope) for name in group.source.lead)

    def _made(self, groups: list[Group]) -> dict[int, dict[Place, str]]:
        """The new names of each group."""
        back = Index(self.rows, not self.is_inverse)
        made: dict[str, tuple[int, int]] = {}
        found: dict[int, dict[Place, str]] = {}
        for group in groups:
            names = found[id(group)] = {}
            for (place, numbers), name, values in group.made(self._counts(group)):
                names[place, numbers] = name
                text = self._text(group.row, place, after=True)
                row, at = made.setdefault(name, (group.row, place))
                if (row, at) != (group.row, place) and self._text(row, at, after=True) != text:
                    self._report.add("twice", f"{name!r} by {self.rows[group.row]}")
                for hit in back.hits(name):
                    own = hit.row == group.row and hit.place == place
                    tied = self._text(hit.row, hit.place, after=True) == text
                    if (own and hit.values != values) or not (own or tied):
                        self._report.add("twice", f"{name!r} for {group.first!r}")
        return found


def _show(content: Content) -> str:
    """The shape and the dtype that is stored."""
    dtype = content.view.dtype.name if content.key is None else f"key<{content.key}>"
    return f"{dtype}[{','.join(map(str, content.shape))}]"
