"""NNX: modules, optimizers and states to nested dicts of their variables' values, and back.

`safejax.flax` hands NNX over to this module; `load_into` is public there.
"""

from typing import Any, Final, TypeVar

import jax
from flax import nnx

from safejax.access import Access
from safejax.adapter import Source, fetch, finish
from safejax.jax_registration import current_mesh
from safejax.leaves import Leaves, is_array
from safejax.remote import FileSystem
from safejax.shardings import ShardingArgument
from safejax.steps import TransformArgument, apply
from safejax.tree import flatten

_Graph = TypeVar("_Graph")

# Where a variable's axes are named: in Flax 0.12, and before.
_AXES: Final = ("out_sharding", "sharding_names", "sharding")


def is_nnx(tree: Any) -> bool:
    """Whether `tree` is, or has in it, what NNX has variables in."""
    return any(map(_is_graph, jax.tree_util.tree_leaves(tree, is_leaf=_is_graph)))


def values_of(graph: Any) -> dict[Any, Any]:
    """The values of the variables of a module or state, in nested dicts by their paths."""
    return nnx.to_pure_dict(_state(graph), _value)


def load_into(
    model: Any,
    path_or_bytes: Source,
    fs: FileSystem | None = None,
    *,
    only: Any = ...,
    sharding: ShardingArgument = None,
    transform: TransformArgument | None = None,
    strict: bool = True,
    verify: bool = False,
    access: Access = "auto",
) -> None:
    """Give the variables of an NNX module the values in a file, lazily.

    `model` is what `serialize` takes: a module, an optimizer, or a dict or tuple of these. It
    may be abstract (from `nnx.eval_shape`): its parameters then never exist twice. `only` is an
    NNX filter (`nnx.Param`, say): other variables are left alone, and what the file has for
    them is not looked at. Variables with named shardings are placed by them, on their mesh or
    on that of the context, unless `sharding` says otherwise. The other options are those of
    `safejax.load`.

    >>> import safejax.flax
    >>> from flax import nnx
    >>> data = safejax.flax.serialize(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    >>> model = nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(1)))
    >>> safejax.flax.load_into(model, data)
    >>> model(jax.numpy.ones((1, 2))).shape
    (1, 3)

    Raises `MismatchError` with everything that does not match; the module is then unchanged.
    """
    leaves, file = fetch(path_or_bytes, fs, verify=verify, access=access)
    state = nnx.state(model, only)
    if only is not ...:
        leaves, transform = apply(transform, leaves), None
        others = flatten(values_of(model)).keys() - flatten(values_of(state)).keys()
        leaves = leaves.replace({name: leaves[name] for name in leaves if name not in others})
    loaded = deserialize_like(
        leaves, file, state, sharding=sharding, transform=transform, strict=strict
    )
    nnx.update(model, loaded)


def deserialize_like(
    leaves: Leaves,
    file: str,
    like: _Graph,
    *,
    sharding: ShardingArgument,
    transform: TransformArgument | None,
    strict: bool,
) -> _Graph:
    """A state or module like `like`, whose variables have the values of `leaves`."""
    state = _state(like)
    expected = nnx.to_pure_dict(state, _expected)
    if is_nnx(sharding):  # As nnx.get_named_sharding gives them.
        sharding = values_of(sharding)
    values = finish(
        leaves, file, like=expected, sharding=sharding, transform=transform, strict=strict
    )
    filled: Any = nnx.from_flat_state(
        (path, _with_value(variable, _at(values, path)))
        for path, variable in nnx.to_flat_state(state)
    )
    if isinstance(like, nnx.State):
        return filled
    graph, _ = nnx.split(like)
    return nnx.merge(graph, filled)


def _is_graph(node: Any) -> bool:
    return isinstance(node, nnx.Pytree | nnx.State)


def _state(graph: Any) -> Any:
    return graph if isinstance(graph, nnx.State) else nnx.state(graph)


def _value(variable: Any) -> Any:
    """The value as the variable holds it, before any hook; arrays also stand by themselves."""
    if not isinstance(variable, nnx.Variable):
        return variable
    if hasattr(nnx.Variable, "get_raw_value"):
        return variable.get_raw_value()
    return variable.raw_value  # Flax 0.12.0


def _with_value(variable: Any, value: Any) -> Any:
    return variable.replace(value) if isinstance(variable, nnx.Variable) else value


def _at(values: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def _expected(variable: Any) -> Any:
    """The value, abstract and on its mesh if a sharding is named on the variable."""
    value = _value(variable)
    if not isinstance(variable, nnx.Variable) or not is_array(value):
        return value
    metadata = variable.get_metadata()
    mesh = metadata.get("mesh") or current_mesh()
    named = any(metadata.get(key) is not None for key in _AXES)
    if mesh is None or not named or getattr(value, "committed", False):
        return value
    (sharding,) = jax.tree_util.tree_leaves(nnx.get_named_sharding(variable, mesh))
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)
