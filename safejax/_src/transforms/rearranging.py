"""Rearranging views by named axes: apart into parts, and parts together into tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, final

from safejax._src.reading.concatenation import concatenation, stack
from safejax._src.reading.view import View
from safejax._src.transforms.axes import Axis, Factor, Sum, Tensor, atoms, size_of

Size = Callable[[str], int]


@final
class Part(NamedTuple):
    """A view whose axes have names. Axes without a name, those of single keys, come last."""

    names: tuple[str, ...]
    view: View


def apart(view: View, tensor: Tensor, size: Size) -> list[Part]:
    """The parts of a view with the axes of `tensor`: one, or one for each term of its sum."""
    factors = atoms(tensor)
    view = _reshaped(view, len(tensor), [size_of((factor,), size) for factor in factors])
    at = next((at for at, factor in enumerate(factors) if isinstance(factor, Sum)), None)
    if at is None:
        return [Part(tuple(map(str, factors)), view)]
    summed = factors[at]
    assert isinstance(summed, Sum)
    before, after = tuple(map(str, factors[:at])), tuple(map(str, factors[at + 1 :]))
    parts: list[Part] = []
    begin = 0
    for term in summed.terms:
        end = begin + size_of(term, size)
        names = (*before, *term, *after)
        part = view.index((*[slice(None)] * at, slice(begin, end)))
        parts.append(Part(names, _reshaped(part, len(factors), list(map(size, names)))))
        begin = end
    return parts


def stacked(names: Sequence[str], parts: Mapping[tuple[int, ...], Part]) -> Part:
    """The parts with these numbers as one, with an axis for each name in front."""
    if not names:
        return parts[()]
    rows: dict[int, dict[tuple[int, ...], Part]] = {}
    for (first, *rest), part in parts.items():
        rows.setdefault(first, {})[tuple(rest)] = part
    inner = [stacked(names[1:], rows[number]) for number in range(len(rows))]
    view = stack(tuple(part.view for part in inner), 0)
    return Part((names[0], *inner[0].names), view)


def numbered(part: Part, names: Sequence[str], numbers: Sequence[int]) -> Part:
    """The part at these numbers along the axes of these names."""
    if not names:
        return part
    at = dict(zip(names, numbers, strict=True))
    index = tuple(at.get(name, slice(None)) for name in part.names)
    return Part(tuple(name for name in part.names if name not in at), part.view.index(index))


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
