"""Steps: pure functions, most with an inverse, that compose into one value.

    to_bytes = chain(flatten, cast("bfloat16", source="float32"), encode)

`chain(a, b)` applies `a`, then `b`; its inverse applies the inverses the other way round.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar, final

import numpy as np

from safejax.errors import NotInvertibleError, TransformError
from safejax.lazy import LazyArray
from safejax.leaves import Leaves, check_leaf, content_at

_In = TypeVar("_In")
_Out = TypeVar("_Out")


TransformArgument: TypeAlias = Callable[[Leaves], Leaves]
"""What stands for a transform: one, or any function from Leaves to Leaves."""


class Step(ABC, Generic[_In, _Out]):
    """A pure function of one value that may have an inverse.

    Building, chaining and printing a step reads nothing.
    """

    __slots__ = ()

    @abstractmethod
    def __call__(self, value: _In, /) -> _Out:
        """The step applied to `value`, which is left as it is."""

    @property
    def inverse(self) -> "Step[_Out, _In]":
        """The step that goes back; `NotInvertibleError` where there is none."""
        raise NotInvertibleError(
            f"{self!r}: expected a step with an inverse, this one has none: "
            "pair it with one by step(forward, inverse)"
        )


class Transform(Step[Leaves, Leaves]):
    """A step from Leaves to Leaves."""

    __slots__ = ()


@final
@dataclass(frozen=True, slots=True)
class FunctionStep(Step[Any, Any]):
    """A pair of functions as a step; see `step`."""

    forward: Callable[[Any], Any]
    backward: Callable[[Any], Any] | None = None

    def __call__(self, value: Any, /) -> Any:
        return self.forward(value)

    @property
    def inverse(self) -> Step[Any, Any]:
        if self.backward is None:
            raise NotInvertibleError(
                f"{self!r}: expected a step with an inverse, this one was made without: "
                "give the function that goes back, step(forward, inverse)"
            )
        return FunctionStep(self.backward, self.forward)

    def __repr__(self) -> str:
        functions = (self.forward,) if self.backward is None else (self.forward, self.backward)
        return f"step({', '.join(_function_name(function) for function in functions)})"


@final
@dataclass(frozen=True, slots=True)
class Chain(Step[Any, Any]):
    """Steps one after the other; see `chain`."""

    steps: tuple[Step[Any, Any], ...]

    def __call__(self, value: Any, /) -> Any:
        for part in self.steps:
            value = part(value)
        return value

    @property
    def inverse(self) -> "Chain":
        return Chain(tuple(part.inverse for part in reversed(self.steps)))

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.steps))})"


def step(
    forward: Callable[[Any], Any], inverse: Callable[[Any], Any] | None = None
) -> FunctionStep:
    """A step that applies `forward`, and whose inverse, if given, applies `inverse`.

    >>> from safejax import Leaves, step
    >>> upper = step(lambda leaves: leaves.replace({k.upper(): v for k, v in leaves.items()}),
    ...              lambda leaves: leaves.replace({k.lower(): v for k, v in leaves.items()}))
    >>> list(upper.inverse(upper(Leaves({"a": 1}))))
    ['a']

    Raises `TransformError` if either is not callable.
    """
    for function in (forward,) if inverse is None else (forward, inverse):
        if not callable(function):
            raise TransformError(f"expected a function for step(…), got {function!r}")
    return FunctionStep(forward, inverse)


def chain(*steps: Callable[[Any], Any]) -> Chain:
    """A step that applies `steps` one after the other, the first first.

    Plain functions stand for steps without an inverse; chains within chains are opened, so
    that equal pipelines are equal values. `chain()` gives back what it gets.

    >>> from safejax import cast, chain, encode, flatten
    >>> chain(flatten, cast("bfloat16", source="float32"), encode).inverse
    chain(decode, cast('float32', source='bfloat16'), unflatten)

    Raises `TransformError` for what is not callable.
    """
    parts: list[Step[Any, Any]] = []
    for part in steps:
        if isinstance(part, Chain):
            parts.extend(part.steps)
        elif isinstance(part, Step):
            parts.append(part)
        else:
            parts.append(step(part))
    return Chain(tuple(parts))


def apply(transform: Callable[[Leaves], Leaves] | None, leaves: Leaves) -> Leaves:
    """What a user's transform gives; `TransformError` if it gives no Leaves."""
    if transform is None:
        return leaves
    if not callable(transform):
        raise TransformError(
            f"transform: expected a function from Leaves to Leaves, got {transform!r}"
        )
    result = transform(leaves)
    if not isinstance(result, Leaves):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TransformError(
            f"{transform!r}: expected it to give Leaves, got {type(result).__name__}: end it "
            "with leaves.replace(...)"
        )
    if any(isinstance(leaf, np.ndarray | np.generic) for leaf in result.values()):
        # What a user's function computed with NumPy is a JAX array to the rest, as all else is.
        return result.map(_lazy)
    return result


def _lazy(name: str, leaf: Any) -> Any:
    if not isinstance(leaf, np.ndarray | np.generic):
        return leaf
    check_leaf(name, leaf)
    return LazyArray(content_at(name, leaf), name)


def _function_name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))
