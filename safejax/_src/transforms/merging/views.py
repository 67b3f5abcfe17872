"""The views of what the function of a merge makes of leaves."""

from collections.abc import Iterator, Sequence
from typing import Any

from safejax._src.arrays.content import Content, is_key
from safejax._src.dtypes import Dtype
from safejax._src.leaves.leaf import content_at, describe, is_array
from safejax._src.reading.computed import barrier
from safejax._src.reading.merged import AxisMap, MergedSource
from safejax._src.reading.view import Strided, View
from safejax._src.reading.windows import Window
from safejax._src.transforms.merging.axes import WHOLE, MergeAxes
from safejax._src.transforms.merging.calling import Calling, Function, expected_shape, tried
from safejax._src.transforms.selection import fault


def numbers_of(name: str, leaf: Any) -> Content:
    """The content of an array of numbers; `TransformError` for anything else."""
    if not is_array(leaf) or is_key(leaf.dtype):
        raise fault(
            "merge",
            f"leaf {name!r}: expected an array of numbers, got {describe(leaf)}: narrow the "
            "template",
        )
    return content_at(name, leaf)


def results_of(
    axes: MergeAxes,
    function: Function,
    views: tuple[View, ...],
    names: Sequence[str],
    many: bool,
    tries: dict[Any, Calling],
    name: str,
) -> Iterator[View]:
    """The views of what the function returns for these ones; `tries` are those made before."""
    shapes = [view.shape for view in views]
    found = axes.of(shapes)
    if isinstance(found, str):
        shown = " and ".join(map(repr, names))
        raise fault("merge", f"leaf {shown}: {found}: narrow the templates, or correct axes")
    dtypes = tuple(view.dtype for view in views)
    key = (dtypes, tuple(found.sizes.items()), tuple(shapes))
    known = tries.get(key)
    calling = (
        tried(Calling(function, name, many), dtypes, shapes, found) if known is None else known
    )
    tries[key] = calling
    calling = Calling(function, name, many, calling.avals)
    assert calling.avals is not None
    for number, (dtype, whole) in enumerate(calling.avals):
        shape = expected_shape(found.results[number], found, whole)
        source = MergedSource(views, found, calling, number, shape, title_of(views))
        yield Strided(source, 0, dtype, Window.whole(shape))


def whole_of(
    function: Function, views: tuple[View, ...], shape: tuple[int, ...], dtype: Dtype, name: str
) -> View:
    """The view of what the function returns for whole leaves, which are read for any part of it."""
    operands = tuple((WHOLE,) * len(view.shape) for view in views)
    axes = AxisMap(operands, ((WHOLE,) * len(shape),), {})
    calling = Calling(function, name, many=False, avals=((dtype, shape),))
    source = MergedSource(views, axes, calling, 0, shape, title_of(views))
    window = Window.whole(shape)
    return Strided(barrier(Strided(source, 0, dtype, window), source.name), 0, dtype, window)


def title_of(views: Sequence[View]) -> str:
    """What the source of a merge is called."""
    sources = dict.fromkeys(source.name for view in views for source in view.sources)
    return f"merged {' and '.join(sources)}"
