"""`select` and `drop`: some of the leaves."""

from dataclasses import dataclass
from typing import final

from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import Transform
from safejax._src.public import set_module
from safejax._src.pytrees.patterns import Where, predicate
from safejax._src.transforms.selection import checked_where, nothing_matched, show_where
from safejax.errors import TransformError


@final
@dataclass(frozen=True, slots=True)
class Select(Transform):
    """The leaves that a pattern matches, or all others; see `select` and `drop`."""

    wheres: tuple[Where, ...]
    keep: bool = True
    must_match: bool = True

    def __call__(self, leaves: Leaves, /) -> Leaves:
        matched: set[str] = set()
        for where in self.wheres:
            names = set(filter(predicate(where), leaves))
            if self.must_match and not names:
                raise nothing_matched(self, where, leaves)
            matched |= names
        return leaves.replace(
            {name: leaf for name, leaf in leaves.items() if (name in matched) == self.keep}
        )

    def __repr__(self) -> str:
        wheres = ", ".join(map(show_where, self.wheres))
        must_match = "" if self.must_match else ", must_match=False"
        return f"{'select' if self.keep else 'drop'}({wheres}{must_match})"


@set_module("safejax")
def select(*where: Where, must_match: bool = True) -> Select:
    """A transform that keeps the leaves that any of the patterns, or functions, matches.

    The others are never read. A pattern that matches no leaf is an error, unless `must_match` is
    false. There is no inverse, since the other leaves are lost.

    >>> from safejax import Leaves, select
    >>> list(select("params.*")(Leaves({"params.w": 1, "opt_state.0": 2})))
    ['params.w']

    Raises `TransformError` without a pattern, and for anything that is not one.
    """
    return Select(_checked("select", where), keep=True, must_match=must_match)


@set_module("safejax")
def drop(*where: Where, must_match: bool = True) -> Select:
    """A transform that removes the leaves that any of the patterns, or functions, matches.

    The counterpart of `select`: the leaves that it removes are never read, a pattern that matches
    no leaf is an error unless `must_match` is false, and there is no inverse.

    >>> from safejax import Leaves, drop
    >>> list(drop("opt_state.*")(Leaves({"params.w": 1, "opt_state.0": 2})))
    ['params.w']

    Raises `TransformError` without a pattern, and for anything that is not one.
    """
    return Select(_checked("drop", where), keep=False, must_match=must_match)


def _checked(step: str, wheres: tuple[Where, ...]) -> tuple[Where, ...]:
    if not wheres or None in wheres:
        raise TransformError(f"{step}: expected a pattern or a function of the name, got none")
    for where in wheres:
        checked_where(where)
    return wheres
