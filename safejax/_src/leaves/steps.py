"""Steps: pure functions, most of them with an inverse, that compose into one value.

    to_bytes = chain(flatten, cast("bfloat16", source="float32"), encode)

`chain(a, b)` applies `a`, then `b`; its inverse applies their inverses in reverse order.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final, Generic, NoReturn, TypeAlias, TypeVar, cast, final, overload

import numpy as np

from safejax._src.arrays.lazy import LazyArray
from safejax._src.leaves.leaf import check_leaf, content_at
from safejax._src.leaves.leaves import Leaves
from safejax._src.public import set_module
from safejax.errors import NotInvertibleError, SafejaxError, TransformError

_In = TypeVar("_In")
_Out = TypeVar("_Out")


TransformArgument: TypeAlias = Callable[[Leaves], Leaves]
"""A transform, or any function from Leaves to Leaves."""


_MOST_SHOWN: Final = 160


def within(step: object) -> str:
    """The end of a message about a step, in which it is shown in short."""
    shown = step if isinstance(step, str) else repr(step)
    return f"; in {shown if len(shown) <= _MOST_SHOWN else f'{shown[: _MOST_SHOWN - 1]}…'}"


@set_module("safejax")
class Step(ABC, Generic[_In, _Out]):
    """A pure function of one value, which may have an inverse.

    Building, chaining and printing a step read nothing.
    """

    __slots__ = ()

    @abstractmethod
    def __call__(self, value: _In, /) -> _Out:
        """The result of the step for `value`, which is not changed."""

    @property
    def inverse(self) -> "Step[_Out, _In]":
        """The step that reverses this one; `NotInvertibleError` if there is none."""
        self._refuse_inverse()

    def _refuse_inverse(self) -> NoReturn:
        raise self._not_invertible(
            "expected a step with an inverse, this one has none: pair it with one by "
            "step(forward, inverse)"
        )

    def _not_invertible(self, sentence: str) -> NotInvertibleError:
        """The error of a step that has no inverse."""
        return NotInvertibleError(f"{sentence}{within(self)}")


@set_module("safejax")
class Transform(Step[Leaves, Leaves]):
    """A step from Leaves to Leaves, whose inverse is one, too.

    Subclass it for a transform of your own, or make one of two functions with `step`.
    """

    __slots__ = ()

    @property
    def inverse(self) -> "Transform":
        """The transform that reverses this one; `NotInvertibleError` if there is none."""
        self._refuse_inverse()


@final
@dataclass(frozen=True, slots=True)
class FunctionStep(Step[_In, _Out]):
    """A pair of functions as a step; see `step`."""

    forward: Callable[[_In], _Out]
    backward: Callable[[_Out], _In] | None = None

    def __call__(self, value: _In, /) -> _Out:
        try:
            return self.forward(value)
        except (SafejaxError, Warning):  # It says by itself where it is from.
            raise
        except Exception as error:
            of_leaves = isinstance(value, Leaves)
            remedy = " to Leaves: in leaves.map(function), an error names the leaf"
            error.add_note(f"while applying {self!r}{remedy if of_leaves else ''}")
            raise

    @property
    def inverse(self) -> "FunctionStep[_Out, _In]":
        if self.backward is None:
            raise self._not_invertible(
                "expected a step with an inverse, this one was made without one: give the function "
                "that reverses it, step(forward, inverse)"
            )
        return FunctionStep(self.backward, self.forward)

    def __repr__(self) -> str:
        functions = (self.forward,) if self.backward is None else (self.forward, self.backward)
        return f"step({', '.join(_function_name(function) for function in functions)})"


@dataclass(frozen=True, slots=True)
class Chain(Step[Any, Any]):
    """Steps that are applied one after the other; see `chain`."""

    steps: tuple[Step[Any, Any], ...]

    def __call__(self, value: Any, /) -> Any:
        for part in self.steps:
            value = part(value)
        return value

    @property
    def inverse(self) -> "Chain":
        return Chain(self._inverses())

    def _inverses(self) -> tuple[Step[Any, Any], ...]:
        return tuple(part.inverse for part in reversed(self.steps))

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.steps))})"


@final
@dataclass(frozen=True, slots=True, repr=False)
class TransformChain(Chain, Transform):
    """Transforms that are applied one after the other, which is a transform; see `chain`."""

    @property
    def inverse(self) -> "TransformChain":
        return TransformChain(self._inverses())


@set_module("safejax")
def step(
    forward: Callable[[_In], _Out], inverse: Callable[[_Out], _In] | None = None
) -> FunctionStep[_In, _Out]:
    """A step that applies `forward`, and whose inverse, if given, applies `inverse`.

    An error that a function raises gets a note with its name. In `leaves.map(function)` it names
    the leaf, too.

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


@overload
def chain(*steps: Transform) -> Transform: ...
@overload
def chain(*steps: Callable[[Any], Any]) -> Chain: ...
@set_module("safejax")
def chain(*steps: Callable[[Any], Any]) -> Step[Any, Any]:
    """A step that applies `steps` one after the other, in the given order.

    A chain of transforms only is a `Transform`. A plain function is a step without an inverse.
    Chains within chains are flattened, so that equal pipelines are equal values. `chain()`
    returns what it is given.

    >>> from safejax import cast, chain, encode, flatten
    >>> chain(flatten, cast("bfloat16", source="float32"), encode).inverse
    chain(decode, cast('float32', source='bfloat16'), unflatten)

    Raises `TransformError` for anything that is not callable.
    """
    parts: list[Step[Any, Any]] = []
    for part in steps:
        if isinstance(part, Chain):
            parts.extend(part.steps)
        elif isinstance(part, Step):
            parts.append(part)
        else:
            parts.append(step(part))
    if all(isinstance(part, Transform) for part in parts):
        return TransformChain(tuple(parts))
    return Chain(tuple(parts))


def apply(transform: Callable[[Leaves], Leaves] | None, leaves: Leaves) -> Leaves:
    """The result of a user's transform; `TransformError` if it does not return Leaves."""
    if transform is None:
        return leaves
    remedy = _remedy_for_transform(transform)
    if remedy is not None:
        raise TransformError(
            f"transform: expected a function from Leaves to Leaves, got {transform!r}: {remedy}"
        )
    # An error of a plain function names it, too.
    applied = transform if isinstance(transform, Step) else FunctionStep(transform)
    result = applied(leaves)
    if not isinstance(result, Leaves):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TransformError(
            f"{transform!r}: expected it to return Leaves, got {type(result).__name__}: end it "
            "with leaves.replace(...)"
        )
    # A lazy leaf that is asked for another class than its own has to look who asks.
    others = (leaf for leaf in result.values() if type(leaf) is not LazyArray)
    if any(isinstance(leaf, np.ndarray | np.generic) for leaf in others):
        # An array that a user's function computed with NumPy becomes a lazy leaf like the others.
        result = result.map(_lazy)
    seen: set[int] = set()
    twice: set[str] = set()
    for name, leaf in result.items():
        if isinstance(leaf, LazyArray):
            if id(leaf) in seen:
                twice.add(name)
            seen.add(id(leaf))
    if twice:
        # A leaf of its own for each name, so that one can be donated without the other.
        return result.map(
            lambda name, leaf: LazyArray(leaf.content, name) if name in twice else leaf
        )
    return result


def _remedy_for_transform(transform: Any) -> str | None:
    """The remedy for a value that is not a transform; None for a value that may be one."""
    if isinstance(transform, list | tuple):
        if transform and all(isinstance(each, list | tuple) for each in transform):
            return f"pass transform=correspond({transform!r})"
        return f"pass transform=chain({', '.join(map(repr, cast('list[Any]', transform)))})"
    if isinstance(transform, Mapping):
        return f"pass transform=rename({dict(cast('Mapping[Any, Any]', transform))!r})"
    if not isinstance(transform, Step) and not isinstance(transform, FunctionType):
        try:
            dtype = np.dtype(transform)
        except (TypeError, ValueError):
            pass
        else:
            # NumPy takes any class for that of objects.
            if dtype != np.dtype(object):
                return f"pass transform=cast({dtype.name!r})"
    if getattr(transform, "__module__", None) == "safejax" and isinstance(transform, FunctionType):
        return f"call it, transform={transform.__name__}(...), which gives the transform"
    return None if callable(transform) else "pass one, for example transform=cast('bfloat16')"


def _lazy(name: str, leaf: Any) -> Any:
    if not isinstance(leaf, np.ndarray | np.generic):
        return leaf
    check_leaf(name, leaf)
    return LazyArray(content_at(name, leaf), name)


def _function_name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))
