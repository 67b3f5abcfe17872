"""A hypothesis strategy for trees in which the patterns of a transform match."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from hypothesis import strategies as st

from safejax._src.leaves.flatten import unflatten
from safejax._src.leaves.leaves import Leaves
from safejax._src.pytrees.names import METADATA_NAME
from safejax._src.pytrees.patterns import Template
from safejax._src.pytrees.placeholders import Among
from safejax.testing.strategies import arrays, keys, scalars, shapes

_TEXTS: Final = ("mlp", "Dense_0", "w", "a-b", "0", "encoder.layers.0", "a.b.c", "~", "")
_TEXTS_OF_STARS: Final = st.lists(st.sampled_from(_TEXTS), min_size=1, max_size=2, unique=True)
_NUMBERS: Final = st.integers(1, 3).map(lambda count: [str(number) for number in range(count)])


def pytrees_matching(
    patterns: str | Iterable[str] | Mapping[str, st.SearchStrategy[Any]],
    *,
    others: st.SearchStrategy[Any] | None = None,
    near_misses: bool = True,
) -> st.SearchStrategy[Any]:
    """Trees of dicts, lists and tuples in which each pattern matches one leaf or more.

    `patterns` are those of a transform, or its templates: one, several, or a dict that says for
    each from which strategy its leaves are drawn. By default, these are arrays of every dtype
    with two to four axes. A leaf that several patterns match is drawn for the first of them. A
    placeholder `{i}` stands for the numbers 0 to n - 1, and `*` for texts with and without dots.
    Where a pattern has several, all their combinations are there, and a placeholder stands for
    the same in every pattern, so that leaves can be stacked and concatenated.

    The other leaves have names that no pattern matches. With `near_misses`, some of these names
    differ by little from those that match, for example `mlp.kernels` and `mlp` from `mlp.kernel`.
    Their leaves are drawn from `others`: arrays, keys and scalars by default.

    >>> from hypothesis import given
    >>> from safejax import chain, encode, flatten, rename
    >>> from safejax.testing import assert_round_trip, pytrees_matching
    >>> to_torch = rename({"*.kernel": "*.weight of torch"})
    >>> @given(tree=pytrees_matching("*.kernel"))
    ... def test_names(tree):
    ...     assert_round_trip(tree, pipeline=chain(flatten, to_torch, encode))
    >>> test_names()

    Raises `TransformError` for a pattern that is not valid.
    """
    if isinstance(patterns, str):
        patterns = (patterns,)
    if not isinstance(patterns, Mapping):
        patterns = dict.fromkeys(patterns, _matrices())
    templates = {Template.parse(text): leaves for text, leaves in patterns.items()}
    rest = st.one_of(arrays(), keys(), scalars()) if others is None else others
    matchers = [(template.matcher(), leaves) for template, leaves in templates.items()]

    def matching(name: str) -> list[st.SearchStrategy[Any]]:
        return [leaves for match, leaves in matchers if match(name) is not None]

    @st.composite
    def drawn(draw: st.DrawFn) -> Any:
        names = draw(_names(templates))
        outside = ["step", "other.w"]
        if near_misses:
            outside += [edited for name in names[:8] for edited in _edits(name)]
        outside = [name for name in dict.fromkeys(outside) if not matching(name)]
        if outside:
            names += draw(st.lists(st.sampled_from(outside), max_size=5))
        unique = [name for name in dict.fromkeys(names) if name != METADATA_NAME]
        entries = {
            name: draw(next(iter(matching(name)), rest)) for name in draw(st.permutations(unique))
        }
        tree: Any = unflatten(Leaves(entries))
        return _with_sequences(draw, tree)

    return drawn()


def _matrices() -> st.SearchStrategy[Any]:
    return shapes(min_axes=2, max_axes=4).flatmap(lambda shape: arrays(shape=shape))


@st.composite
def _names(draw: st.DrawFn, templates: Iterable[Template]) -> list[str]:
    """Names that the templates match: all combinations of some values of their placeholders.

    A placeholder has the same values in every template, so that leaves can be concatenated.
    """
    values: dict[str, Sequence[str]] = {}
    names: list[str] = []
    for template in templates:
        among = dict(zip(template.placeholders, template.among, strict=True))
        placeholders = dict.fromkeys(template.placeholders)
        for placeholder in placeholders:
            if placeholder not in values:
                values[placeholder] = draw(_texts(placeholder, among[placeholder]))
        combinations = itertools.product(*(values[placeholder] for placeholder in placeholders))
        names += [
            template.fill(dict(zip(placeholders, chosen, strict=True))) for chosen in combinations
        ]
    return names


def _texts(placeholder: str, among: Among) -> st.SearchStrategy[Sequence[str]]:
    """Some texts that a placeholder matches."""
    if isinstance(among, tuple):
        return st.just(list(among))
    return _TEXTS_OF_STARS if placeholder.startswith("*") else _NUMBERS


def _edits(name: str) -> Iterator[str]:
    """Names that differ from `name` by little."""
    first, _, rest = name.partition(".")
    before, _, last = name.rpartition(".")
    yield from (f"{name}s", name[:-1], name.swapcase(), f"{name}.x", f"x{name}", f"x.{name}")
    yield from (rest, before, f"{before}_{last}", f"{before}.x.{last}", f"{first}.{first}.{rest}")


def _with_sequences(draw: st.DrawFn, tree: Any) -> Any:
    """The tree, some of whose dicts with the keys 0 to n - 1 have become lists or tuples."""
    if not isinstance(tree, dict):
        return tree
    children = {key: _with_sequences(draw, child) for key, child in tree.items()}
    numbers = [str(number) for number in range(len(children))]
    if not children or children.keys() != set(numbers):
        return children
    in_order = [children[number] for number in numbers]
    return draw(st.sampled_from((children, in_order, tuple(in_order))))
