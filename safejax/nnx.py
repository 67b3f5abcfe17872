"""NNX: modules and states to nested dicts of their variables' values, and back.

`safejax.flax` hands NNX over to this module; `load_into` is public there.
"""

from typing import Any, TypeVar

import jax
from flax import nnx

from safejax.adapter import Source, fetch, finish
from safejax.jax_registration import current_mesh
from safejax.leaves import Leaves
from safejax.shardings import ShardingArgument
from safejax.steps import Transform, apply
from safejax.tree import flatten

_Model = TypeVar("_Model")

# Where a variable's axes are named: in Flax 0.12, and before.
_SHARDING_METADATA = ("out_sharding", "sharding_names", "sharding")


def is_nnx(tree: Any) -> bool:
    """Whether `tree` is an NNX module or state."""
    return isinstance(tree, nnx.Module | nnx.State)


def pure_dict(model: Any) -> dict[Any, Any]:
    """The values of a module's or state's variables, in nested dicts by their paths."""
    return nnx.to_pure_dict(_state(model))


def load_into(
    model: nnx.Module,
    path_or_bytes: Source,
    fs: Any = None,
    *,
    only: Any = ...,
    sharding: ShardingArgument = None,
    transform: Transform | None = None,
    strict: bool = True,
) -> None:
    """Give the variables of an NNX module the values in a file, lazily.

    The module may be abstract (from `nnx.eval_shape`): its parameters then never exist twice.
    `only` is an NNX filter (`nnx.Param`, say): other variables are left alone, and what the
    file has for them is not read. Variables with named shardings are placed by them on the mesh
    of the context, unless `sharding` says otherwise. The other options are those of
    `safejax.load`.

    Raises `MismatchError` with everything that does not match; the module is then unchanged.
    """
    leaves, file = fetch(path_or_bytes, fs)
    state = nnx.state(model, only)
    if only is not ...:
        wanted = flatten(pure_dict(state)).keys()
        leaves = apply(transform, leaves)
        transform = None
        leaves = leaves.replace({name: leaves[name] for name in leaves if name in wanted})
    loaded = deserialize_like(
        leaves, file, state, sharding=sharding, transform=transform, strict=strict
    )
    nnx.update(model, loaded)


def deserialize_like(
    leaves: Leaves,
    file: str,
    like: _Model,
    *,
    sharding: ShardingArgument,
    transform: Transform | None,
    strict: bool,
) -> _Model:
    """A state or module like `like`, whose variables have the values of `leaves`."""
    state = _state(like)
    expected = nnx.to_pure_dict(jax.tree.map(_with_named_sharding, state, is_leaf=_is_variable))
    values = finish(
        leaves, file, like=expected, sharding=sharding, transform=transform, strict=strict
    )
    # A copy, so that `like` keeps its own values.
    filled = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(filled, values)
    if isinstance(like, nnx.State):
        return filled
    graph, _ = nnx.split(like)
    return nnx.merge(graph, filled)


def _state(model: Any) -> Any:
    return model if isinstance(model, nnx.State) else nnx.state(model)


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _with_named_sharding(variable: Any) -> Any:
    """The variable, abstract and on the mesh of the context if a sharding is named on it."""
    mesh = current_mesh()
    value = variable.get_raw_value() if hasattr(variable, "get_raw_value") else variable.raw_value
    metadata = variable.get_metadata()
    named = any(metadata.get(key) is not None for key in _SHARDING_METADATA)
    if mesh is None or not named or getattr(value, "committed", False):
        return variable
    sharding = nnx.get_named_sharding(variable, mesh)
    return variable.replace(
        jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=jax.tree.leaves(sharding)[0])
    )
