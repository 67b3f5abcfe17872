"""`select` and `drop`: some of the leaves."""

from dataclasses import dataclass
from typing import final

from safejax.errors import TransformError
from safejax.leaves import Leaves
from safejax.names import Where, predicate
from safejax.steps import Transform
from safejax.transforms.selection import checked_where, nothing_matched, show_where


@final
@dataclass(frozen=True, slots=True)
class Select(Transform):
    """The leaves that are meant, or all others; see `select` and `drop`."""

    wheres: tuple[Where, ...]
    keep: bool = True
    must_match: bool = True

    def __call__(self, leaves: Leaves, /) -> Leaves:
        meant: set[str] = set()
        for where in self.wheres:
            names = set(filter(predicate(where), leaves))
            if self.must_match and not names:
                raise nothing_matched(self, show_where(where), leaves)
            meant |= names
        return leaves.replace(
            {name: leaf for name, leaf in leaves.items() if (name in meant) == self.keep}
        )

    def __repr__(self) -> str:
        wheres = ", ".join(map(show_where, self.wheres))
        must_match = "" if self.must_match else ", must_match=False"
        return f"{'select' if self.keep else 'drop'}({wheres}{must_match})"


def select(*where: Where, must_match: bool = True) -> Select:
    """A transform that keeps the leaves that any of the patterns (or functions) means.

    The rest is never read. A pattern that matches none is an error, unless `must_match` is
    false. There is no inverse: what is left out is gone.

    >>> from safejax import Leaves, select
    >>> list(select("params.*")(Leaves({"params.w": 1, "opt_state.0": 2})))
    ['params.w']

    Raises `TransformError` for no pattern, and for what is none.
    """
    return Select(_checked("select", where), keep=True, must_match=must_match)


def drop(*where: Where, must_match: bool = True) -> Select:
    """A transform that leaves out the leaves that any of the patterns (or functions) means.

    The counterpart of `select`; without an inverse, too.

    >>> from safejax import Leaves, drop
    >>> list(drop("opt_state.*")(Leaves({"params.w": 1, "opt_state.0": 2})))
    ['params.w']

    Raises `TransformError` for no pattern, and for what is none.
    """
    return Select(_checked("drop", where), keep=False, must_match=must_match)


def _checked(step: str, wheres: tuple[Where, ...]) -> tuple[Where, ...]:
    if not wheres or None in wheres:
        raise TransformError(f"{step}: expected a pattern or a function of the name, got none")
    for where in wheres:
        checked_where(where)
    return wheres
