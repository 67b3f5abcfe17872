"""Sizes: those of named axes, given or inferred from the shapes of leaves."""

from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple, final

from safejax._src.transforms.correspondence.axes import Axis, show_axis, size_of


@final
class Constraint(NamedTuple):
    """An axis that has this size in `leaf`.

    A name that begins with an underscore has a size of its own in each `scope`; any other has one
    size everywhere.
    """

    axis: Axis
    size: int
    leaf: str
    scope: Hashable
    counted: bool = False
    """Whether it is the number of leaves in a group."""


@final
class Sizes:
    """The sizes of names: those given, and those that constraints imply."""

    def __init__(self, given: Mapping[str, int]) -> None:
        self._known: dict[tuple[Hashable, str], tuple[int, str]] = {
            (None, name): (size, "sizes") for name, size in given.items()
        }

    def size(self, name: str, scope: Hashable = None) -> int:
        """The size of a name; `KeyError` if it is unknown."""
        return self._known[_key(name, scope)][0]

    def knows(self, name: str, scope: Hashable = None) -> bool:
        """Whether the size of a name is known."""
        return _key(name, scope) in self._known

    def solve(self, constraints: Iterable[Constraint]) -> tuple[list[str], list[Constraint]]:
        """Infer all that follows: what contradicts it, and the constraints that say too little."""
        faults: list[str] = []
        open_ = list(constraints)
        while True:
            left: list[Constraint] = []
            for constraint in open_:
                unknown = self.unknown(constraint)
                if len(unknown) > 1 or (unknown and not self._infers(constraint, *unknown)):
                    left.append(constraint)
                elif not self._holds(constraint):
                    faults.append(self._contradiction(constraint))
            if len(left) == len(open_) or not left:
                return faults, left
            open_ = left

    def unknown(self, constraint: Constraint) -> list[str]:
        """The names of a constraint whose sizes are unknown."""
        return [name for name in _names(constraint.axis) if not self.knows(name, constraint.scope)]

    def _infers(self, constraint: Constraint, name: str) -> bool:
        """Whether the constraint implies a size for `name`, its only unknown one.

        The size of the axis is a linear function of it, since no name is twice in a product.
        """

        def at(value: int) -> int:
            return size_of(
                constraint.axis,
                lambda other: value if other == name else self.size(other, constraint.scope),
            )

        factor = at(1) - at(0)
        if factor == 0:
            return False
        # A remainder is found as a contradiction.
        size = max(0, (constraint.size - at(0)) // factor)
        origin = f"leaf {constraint.leaf!r}"
        self._known[_key(name, constraint.scope)] = (size, origin)
        return True

    def _holds(self, constraint: Constraint) -> bool:
        size = size_of(constraint.axis, lambda name: self.size(name, constraint.scope))
        return size == constraint.size

    def _contradiction(self, constraint: Constraint) -> str:
        axis, scope = constraint.axis, constraint.scope
        sizes = show_axis(axis, lambda name: str(self.size(name, scope)))
        known = {name: self._known[_key(name, scope)] for name in _names(axis)}
        if constraint.counted:
            ((size, origin),) = known.values()
            return (
                f"leaf {constraint.leaf!r} and those that it is stacked with: expected {size} for "
                f"{{{axis[0]}}} ({origin}), got {constraint.size}"
            )
        origins = ", ".join(
            f"{name} = {size} by {origin}" for name, (size, origin) in known.items()
        )
        return (
            f"leaf {constraint.leaf!r}: expected the size {sizes} for {show_axis(axis)}, got "
            f"{constraint.size} ({origins or 'by the axes'})"
        )


def _key(name: str, scope: Hashable) -> tuple[Hashable, str]:
    return (scope if name.startswith("_") else None, name)


def _names(axis: Axis) -> list[str]:
    found: dict[str, None] = {}
    for factor in axis:
        terms = ((factor,),) if isinstance(factor, str) else factor.terms
        found.update((name, None) for term in terms for name in term)
    return list(found)
