"""Rearranging views by named axes: apart into parts, and parts together into tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, final

from safejax._src.reading.concatenation import Concatenation, concatenation
from safejax._src.reading.view import Strided, View
from safejax._src.reading.windows import Window
from safejax._src.transforms.correspondence.axes import (
    Axis,
    Factor,
    Sum,
    Tensor,
    atoms,
    part_names,
    size_of,
)

Size = Callable[[str], int]


@final
class Part(NamedTuple):
    """A view whose axes have names. Axes without a name, those of single keys, come last."""

    names: tuple[str, ...]
    view: View


def apart(view: View, tensor: Tensor, size: Size) -> list[View]:
    """The parts of a view with the axes of `tensor`: one, or one for each term of its sum.

    Their axes are those of `part_names`.
    """
    factors = atoms(tensor)
    view = _reshaped(view, len(tensor), [size_of((factor,), size) for factor in factors])
    at = next((at for at, factor in enumerate(factors) if isinstance(factor, Sum)), None)
    if at is None:
        return [view]
    summed = factors[at]
    assert isinstance(summed, Sum)
    before, after = tuple(map(str, factors[:at])), tuple(map(str, factors[at + 1 :]))
    parts: list[View] = []
    begin = 0
    for term in summed.terms:
        end = begin + size_of(term, size)
        names = (*before, *term, *after)
        part = view.index((*[slice(None)] * at, slice(begin, end)))
        parts.append(_reshaped(part, len(factors), list(map(size, names))))
        begin = end
    return parts


@final
class Arranger:
    """The parts of views with the axes of `tensor`, each with its axes in the order of `orders`.

    Names of `orders` that the tensor does not have are axes of size 1, for `stacked`. What is done
    to a window is done once for all views that show the same one, each at another place.
    """

    def __init__(self, tensor: Tensor, size: Size, orders: Sequence[tuple[str, ...]]) -> None:
        self._tensor, self._size, self._orders = tensor, size, orders
        self._windows: dict[Window, list[Window]] = {}

    def parts(self, view: View) -> list[View]:
        """The parts of a view."""
        if not isinstance(view, Strided):
            return self._arranged(view)
        windows = self._windows.get(view.window)
        if windows is not None:
            return [Strided(view.source, view.begin, view.dtype, window) for window in windows]
        parts = self._arranged(view)
        # A reshape that needs a copy gives a window on another source.
        strided = [part for part in parts if isinstance(part, Strided)]
        if all(part.source is view.source and part.begin == view.begin for part in strided):
            self._windows[view.window] = [part.window for part in strided]
        return parts

    def _arranged(self, view: View) -> list[View]:
        arranged: list[View] = []
        for names, part in zip(
            part_names(self._tensor), apart(view, self._tensor, self._size), strict=True
        ):
            order = self._orders[len(arranged)]
            new = tuple(name for name in order if name not in names)
            for _ in new:
                part = part.expand(0)
            arranged.append(_ordered(Part((*new, *names), part), order))
        return arranged


def stacked(
    names: Sequence[str], order: tuple[str, ...], parts: Mapping[tuple[int, ...], View]
) -> View:
    """The parts with these numbers as one, along the axes of these names, where each has size 1."""
    if not names:
        return parts[()]
    rows: dict[int, dict[tuple[int, ...], View]] = {}
    for numbers, part in parts.items():
        rows.setdefault(numbers[0], {})[numbers[1:]] = part
    inner = tuple(stacked(names[1:], order, rows[number]) for number in range(len(rows)))
    return concatenation(inner, order.index(names[0]))


def numbered(
    parts: Sequence[Part], lead: Sequence[str], tensor: Tensor, size: Size
) -> dict[tuple[int, ...], View]:
    """The views with the axes of `tensor`, by their numbers along those of `lead`, the first."""
    whole = together(parts, (*((name,) for name in lead), *tensor), size)
    if not whole.has_barrier or any(part.view.has_barrier for part in parts):
        return _by_number(whole, len(lead))
    # All of a barrier is read for each part of it: there is one for each number.
    names = [part.names[len(lead) :] for part in parts]
    rows = [_by_number(part.view, len(lead)) for part in parts]
    return {
        numbers: together(
            [Part(own, row[numbers]) for own, row in zip(names, rows, strict=True)], tensor, size
        )
        for numbers in rows[0]
    }


def _by_number(view: View, count: int) -> dict[tuple[int, ...], View]:
    """The views at all indices of the first `count` axes."""
    if not count:
        return {(): view}
    return {
        (number, *rest): inner
        for number, row in enumerate(_rows(view))
        for rest, inner in _by_number(row, count - 1).items()
    }


def _rows(view: View) -> list[View]:
    if isinstance(view, Concatenation) and view.axis == 0:  # An index would go through all parts.
        return [row for part in view.parts for row in _rows(part)]
    return [view.row(number) for number in range(view.shape[0])]


def together(parts: Sequence[Part], tensor: Tensor, size: Size) -> View:
    """The view whose axes are those of `tensor`, of its one part or of all terms of its sum."""
    factors = atoms(tensor)
    at = next((at for at, factor in enumerate(factors) if isinstance(factor, Sum)), None)
    if at is None:
        view = _ordered(parts[0], tuple(map(str, factors)))
    else:
        summed = factors[at]
        assert isinstance(summed, Sum)
        joined = [
            _one_term(part, factors, at, term, size)
            for part, term in zip(parts, summed.terms, strict=True)
        ]
        view = concatenation(tuple(joined), at)
    return _reshaped(view, len(factors), [size_of(axis, size) for axis in tensor])


def _one_term(
    part: Part, factors: tuple[Factor, ...], at: int, term: tuple[str, ...], size: Size
) -> View:
    """The part with the axes of its term as one axis, in the place of the sum."""
    before, after = tuple(map(str, factors[:at])), tuple(map(str, factors[at + 1 :]))
    names = (*before, *term, *after)
    axes: list[Axis] = [*((name,) for name in before), term, *((name,) for name in after)]
    return _reshaped(_ordered(part, names), len(names), [size_of(axis, size) for axis in axes])


def _ordered(part: Part, names: tuple[str, ...]) -> View:
    if part.names == names:
        return part.view
    own = range(len(names), len(part.view.shape))
    return part.view.transpose((*map(part.names.index, names), *own))


def _reshaped(view: View, count: int, sizes: list[int]) -> View:
    """The view with its first `count` axes in another shape."""
    shape = (*sizes, *view.shape[count:])
    return view if shape == view.shape else view.reshape(shape)
