"""Axes: the notation in which a table of correspondences says how tensors lie in each other.

As in einops, `(h k) d -> d h k`: a name is an axis, a parenthesis is one axis that is the product
of several, the last of which varies fastest, and 1 is an axis of size 1. As in einx,
`(q + k) d -> q d, k d`: a sum is an axis along which parts lie one after the other, and a comma is
between tensors. A sum may stand within a product: in `(h (k + k))` the parts take turns.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias, final

from safejax.errors import TransformError


@final
class Sum(NamedTuple):
    """Parts that lie one after the other along an axis: the product of each."""

    terms: tuple[tuple[str, ...], ...]


Factor: TypeAlias = str | Sum
Axis: TypeAlias = tuple[Factor, ...]
"""One axis of a tensor, the product of its factors: none of them for an axis of size 1."""
Tensor: TypeAlias = tuple[Axis, ...]

_TOKEN: Final = re.compile(r"\s*(->|[(),+]|1(?!\w)|[^\W\d]\w*)")


def parse_axes(text: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The tensors on both sides of the arrow; without one, both sides are the same.

    Raises `TransformError` for anything else.
    """
    reader = _Reader(text)
    left = reader.side()
    right = left
    if reader.takes("->"):
        right = reader.side()
    reader.ends()
    for side in (left, right):
        summed = [tensor for tensor in side if _sum_in(tensor) is not None]
        if summed and len(side) > 1:
            raise TransformError(
                f"axes {text!r}: expected a sum on a side with one tensor, got {len(side)} there: "
                "divide it into rows"
            )
        for tensor in side:
            for names in part_names(tensor):
                twice = {name for name in names if names.count(name) > 1}
                if twice:
                    raise TransformError(
                        f"axes {text!r}: expected each axis once in a tensor, got "
                        f"{sorted(twice)[0]!r} twice: give one of them another name"
                    )
    return left, right


@final
class _Reader:
    """The tokens of a text, read from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, int]] = []
        reached = 0
        while text[reached:].strip():
            found = _TOKEN.match(text, reached)
            if found is None:
                at = len(text) - len(text[reached:].lstrip())
                digits = text[at].isdigit()
                raise TransformError(
                    f"axes {text!r}: expected names of axes, 1, parentheses, + and one ->, got "
                    f"{text[at]!r} at character {at}"
                    + (": give the size a name, and the name to sizes=" if digits else "")
                )
            self._tokens.append((found[1], found.start(1)))
            reached = found.end()
        self._tokens.append(("", len(text)))
        self._at = 0

    @property
    def _next(self) -> str:
        return self._tokens[self._at][0]

    def takes(self, token: str) -> bool:
        """Whether `token` is next; if so, it is read."""
        is_next = self._next == token
        self._at += is_next
        return is_next

    def ends(self) -> None:
        if self._next:
            self._refuse("the end")

    def side(self) -> tuple[Tensor, ...]:
        tensors = [self._tensor()]
        while self.takes(","):
            tensors.append(self._tensor())
        return tuple(tensors)

    def _tensor(self) -> Tensor:
        axes: list[Axis] = []
        while self._begins_factor():
            axes.append(self._factor())
        tensor = tuple(axes)
        if sum(isinstance(factor, Sum) for factor in atoms(tensor)) > 1:
            raise TransformError(
                f"axes {self._text!r}: expected at most one sum in a tensor, got several: the "
                "parts of a tensor lie along one axis"
            )
        return tensor

    def _begins_factor(self) -> bool:
        return self._next not in ("", "->", ")", ",", "+")

    def _factor(self) -> Axis:
        """A name, 1, or what is in a parenthesis, as factors."""
        if not self.takes("("):
            self._at += 1
            token = self._tokens[self._at - 1][0]
            return () if token == "1" else (token,)
        terms = [self._product()]
        while self.takes("+"):
            terms.append(self._product())
        if not self.takes(")"):
            self._refuse("a closing parenthesis")
        if len(terms) == 1:
            return terms[0]
        if any(isinstance(factor, Sum) for term in terms for factor in term):
            raise TransformError(f"axes {self._text!r}: expected no sum within a sum")
        return (Sum(tuple(tuple(map(str, term)) for term in terms)),)

    def _product(self) -> Axis:
        factors: list[Factor] = []
        begin = self._at
        while self._begins_factor():
            factors += self._factor()
        if self._at == begin and (self._next == "+" or self._tokens[begin - 1][0] == "+"):
            self._refuse("an axis")
        return tuple(factors)

    def _refuse(self, expected: str) -> None:
        token, at = self._tokens[self._at]
        raise TransformError(
            f"axes {self._text!r}: expected {expected} at character {at}, got "
            f"{repr(token) if token else 'the end'}"
        )


@lru_cache(maxsize=1024)
def atoms(tensor: Tensor) -> tuple[Factor, ...]:
    """The factors of all axes, in C order."""
    return tuple(factor for axis in tensor for factor in axis)


def _sum_in(tensor: Tensor) -> Sum | None:
    return next((factor for factor in atoms(tensor) if isinstance(factor, Sum)), None)


@lru_cache(maxsize=1024)
def part_names(tensor: Tensor) -> tuple[tuple[str, ...], ...]:
    """The names of the axes of each part of a tensor: of one, or of each term of its sum."""
    found = _sum_in(tensor)
    terms = ((),) if found is None else found.terms
    return tuple(
        tuple(
            name
            for factor in atoms(tensor)
            for name in ((factor,) if isinstance(factor, str) else term)
        )
        for term in terms
    )


def names_of(tensors: Iterable[Tensor]) -> frozenset[str]:
    """The names of all axes of the tensors."""
    return frozenset(name for tensor in tensors for names in part_names(tensor) for name in names)


def size_of(axis: Axis, size: Callable[[str], int]) -> int:
    """The size of an axis, from those of its names."""
    total = 1
    for factor in axis:
        if isinstance(factor, str):
            total *= size(factor)
        else:
            total *= sum(size_of(term, size) for term in factor.terms)
    return total


def show_axis(axis: Axis, show: Callable[[str], str] = str) -> str:
    """The axis as it is written, with `show` of each name."""

    def shown(factor: Factor) -> str:
        if isinstance(factor, str):
            return show(factor)
        return f"({' + '.join(' '.join(map(show, term)) or '1' for term in factor.terms)})"

    if len(axis) == 1:
        return shown(axis[0])
    return f"({' '.join(map(shown, axis))})" if axis else "1"
