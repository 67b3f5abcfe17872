"""How a class of ours becomes an array to JAX, by the hooks that JAX has for that.

JAX lets a type in by private tables. Each is found by feature; where one is missing,
`import safejax` still works and `missing` says which, so that a leaf that reaches `jit` can
tell its user to call `safejax.materialize`.

1. *aval*: the abstract value that tracing sees, without reading.
2. *canonicalizer*: what a leaf becomes when JAX needs its values: the placed array. Primitives
   and arguments of Python-side dispatch pass through it, and from JAX 0.10 on the constants of
   a trace too; before, those have a table of their own.
3. *dispatch*: C++ dispatch flattens arguments by a registry of its own; as a dataclass whose one
   field is the placed array, a leaf takes the fast path. One that is not placed has a child that
   C++ does not know, so that it leaves the call to Python, which traces and compiles first, and
   then asks for all arguments of a type together: they are read at once. The tree that tracing
   sees does not change: there it is still a leaf.

4. *device_put*: JAX has no table here. Its implementation asks what calls itself an array for its
   buffers, and gives them to C++, so it is wrapped: leaves become their placed arrays before it
   runs.
5. *cotangents*: the sum of two of them is looked up by the type of the first.

`LOOK_AT_REAL_TYPES` are the functions that hand whatever calls itself an array to C++, which
looks at the real type: to those a leaf must not call itself one.
"""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from types import CodeType
from typing import Any, Final, Protocol, TypeVar

import jax


def _codes_of(functions: Iterable[tuple[str, str]]) -> frozenset[CodeType]:
    """The code of functions of JAX, by module and name, and of what is defined inside them."""
    codes: set[CodeType] = set()
    for module, name in functions:
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
        pending = [getattr(inspect.unwrap(function), "__code__", None)]
        while pending:
            code = pending.pop()
            if isinstance(code, CodeType):
                codes.add(code)
                pending += [const for const in code.co_consts if isinstance(const, CodeType)]
    return frozenset(codes)


_SHARD_ARGS: Final = _codes_of([("jax._src.interpreters.pxla", "shard_args")])
"""What asks for the arguments of a compiled function: each canonical, then those of a type."""

REAL_TYPE_FUNCTIONS: Final = (
    ("jax._src.api", "block_until_ready"),
    ("jax._src.api", "copy_to_host_async"),
    ("jax._src.interpreters.pxla", "batched_device_put"),
)
"""By module and name: the functions of JAX that hand what calls itself an array to C++."""

LOOK_AT_REAL_TYPES: Final = _codes_of(REAL_TYPE_FUNCTIONS)


class Lazy(Protocol):
    """What is asked here of a class whose instances JAX shall take as arrays."""

    @property
    def has_keys(self) -> bool: ...

    def traced_aval(self) -> Any:
        """What tracing sees."""
        ...

    def placed(self) -> jax.Array:
        """The plain array."""
        ...

    @property
    def at_dispatch(self) -> object:
        """What C++ dispatch sees: the plain array, or `UNPLACED`."""
        ...


_Lazy = TypeVar("_Lazy", bound=Lazy)


def register(
    cls: type[_Lazy], placed_at_once: Callable[[Sequence[_Lazy]], list[jax.Array]]
) -> tuple[str, ...]:
    """Make JAX take instances of `cls` as arrays; the names of the hooks that are missing.

    `placed_at_once` returns the plain arrays of several of them.
    """
    hooks: dict[str, Callable[[], None]] = {
        "abstract values": lambda: _register_aval(cls),
        "canonicalization": lambda: _register_canonicalizer(cls),
        "dispatch": lambda: _register_dispatch(cls, placed_at_once),
        "device_put": lambda: _register_device_put(cls),
        "cotangents": lambda: _register_adder(cls),
    }
    missing: list[str] = []
    for name, hook in hooks.items():
        try:
            hook()
        except (ImportError, AttributeError, TypeError):
            missing.append(name)
    return tuple(missing)


def _register_aval(cls: type[Lazy]) -> None:
    from jax._src import core

    core.pytype_aval_mappings[cls] = lambda leaf: leaf.traced_aval()


def _register_canonicalizer(cls: type[Lazy]) -> None:
    from jax._src import dtypes
    from jax._src.interpreters import mlir

    def canonical(leaf: Lazy) -> Any:
        caller = sys._getframe(depth).f_code  # noqa: SLF001  # pyright: ignore
        return leaf if caller in _SHARD_ARGS and not leaf.has_keys else leaf.placed()

    # How far away the caller of `canonicalize_value` is: from JAX 0.10 on, that is C++.
    depth = 2 if inspect.isfunction(dtypes.canonicalize_value) else 1
    if hasattr(dtypes, "register_canonicalize_value_handler"):  # JAX 0.10
        dtypes.register_canonicalize_value_handler(cls, canonical)
        return

    def constant(val: Any, aval: Any) -> Any:
        placed = val.placed()
        return mlir.get_constant_handler(type(placed))(placed, aval)

    dtypes.canonicalize_value_handlers[cls] = canonical
    mlir.register_constant_handler(cls, constant)


UNPLACED: Final = object()
"""In the place of an array: C++ dispatch leaves the call to Python, which knows all arguments."""


def _register_dispatch(
    cls: type[_Lazy], placed_at_once: Callable[[Sequence[_Lazy]], list[jax.Array]]
) -> None:
    from jax._src import tree_util
    from jax._src.array import ArrayImpl
    from jax._src.interpreters import pxla

    handlers: dict[Any, Any] = pxla.shard_arg_handlers
    of_arrays = handlers[ArrayImpl]

    def put(leaves: Sequence[_Lazy], *targets: Any) -> Any:
        return of_arrays(placed_at_once(leaves), *targets)

    handlers[cls] = put
    # C++ takes the attribute itself: a call of Python for each leaf would take twice the time.
    tree_util.dispatch_registry.register_dataclass_node(cls, ["at_dispatch"], [])


_DEVICE_PUT: Final = "_batched_device_put_impl"


def _register_device_put(cls: type[Lazy]) -> None:
    from jax._src import dispatch

    put: Callable[..., Any] = getattr(dispatch, _DEVICE_PUT)

    @functools.wraps(put)
    def put_placed(*arrays: Any, **params: Any) -> Any:
        return put(*(x.placed() if type(x) is cls else x for x in arrays), **params)

    setattr(dispatch, _DEVICE_PUT, put_placed)


def _register_adder(cls: type[Lazy]) -> None:
    from jax._src import ad_util
    from jax._src.array import ArrayImpl

    ad_util.raw_jaxval_adders[cls] = ad_util.raw_jaxval_adders[ArrayImpl]
