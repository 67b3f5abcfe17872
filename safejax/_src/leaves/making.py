"""Making the leaves of a step's result: those of one shape and type have everything else once."""

from typing import Any, final

import jax

from safejax._src.arrays.content import Content
from safejax._src.arrays.lazy import LazyArray
from safejax._src.leaves.leaf import like_leaf


@final
class Maker:
    """Makes leaves as `like_leaf` does, for one application of a step.

    Most leaves have the shape and the type of another one: then their abstract value and their
    placement are the same, which would take most of the time that it takes to make a lazy leaf.
    """

    __slots__ = ("_models",)

    def __init__(self) -> None:
        self._models: dict[tuple[Any, ...], LazyArray] = {}

    def like(self, leaf: Any, content: Content, name: str) -> Any:
        """A leaf that holds `content`, as abstract as `leaf` is."""
        if type(leaf) is LazyArray:
            if content is leaf.content:
                return leaf
        elif isinstance(leaf, jax.ShapeDtypeStruct):
            return like_leaf(leaf, content, name)
        view, key, weak_type = content
        kind = view.shape, view.dtype, key, weak_type
        model = self._models.get(kind)
        if model is not None:
            return model.sibling(content, name)
        model = self._models[kind] = LazyArray(content, name)
        return model
