"""Alike: what a step makes of views that differ only in where they begin is found once.

Most leaves of a model have the shape and the dtype of another one. What a step does to the window
of one of them, it does to those of all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, final

from safejax._src.arrays.content import Content
from safejax._src.reading.pointwise import Pointwise
from safejax._src.reading.source import Source
from safejax._src.reading.view import Strided, View


class _Known(NamedTuple):
    """What a function has returned; `given` keeps what the key is made of alive."""

    given: Content
    changed: Content


@final
class Alike:
    """A function of contents, which is called once for those that are alike.

    What it returns must not depend on where a view begins, other than by beginning there, too; nor
    on names.
    """

    __slots__ = ("_function", "_known")

    def __init__(self, function: Callable[[str, Content], Content]) -> None:
        self._function = function
        self._known: dict[tuple[Any, ...], _Known | None] = {}

    def __call__(self, name: str, content: Content) -> Content:
        """What the function returns; it is told the name, and what it raises is raised."""
        view, key, weak_type = content
        if type(view) is Strided:
            kind = id(view.window), id(view.dtype), key, weak_type
            place = view
        elif type(view) is Pointwise and type(view.operand) is Strided:
            place = view.operand
            kind = (
                id(view.function), id(view.dtype), id(place.window), id(place.dtype), key, weak_type
            )  # fmt: skip
        else:
            return self._function(name, content)
        known = self._known.get(kind)
        if known is not None:
            if known.changed is known.given:
                return content
            made = known.changed
            return Content(_at(made.view, place.source, place.begin), made.key, made.weak_type)
        changed = self._function(name, content)
        if kind not in self._known:
            shows = changed is content or _shows(changed.view, place)
            self._known[kind] = _Known(content, changed) if shows else None
        return changed


def _shows(view: View, place: Strided) -> bool:
    """Whether a view is one of the same tensor, or a function of it."""
    if type(view) is Pointwise:
        return _shows(view.operand, place)
    return type(view) is Strided and view.source is place.source and view.begin == place.begin


def _at(view: View, source: Source, begin: int) -> View:
    """The view of the tensor that begins elsewhere."""
    if type(view) is Pointwise:
        return Pointwise(_at(view.operand, source, begin), view.function, view.dtype)
    assert type(view) is Strided
    return Strided(source, begin, view.dtype, view.window)
