"""NNX: modules, optimizers and states to nested dicts of their variables' values, and back.

`safejax.flax` uses this module for NNX; `load_into` is public there too.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar, Unpack

import jax

from safejax._src.adapter import Source, explain_missing, fetch, have_same_bits
from safejax._src.arrays.jax_private import current_mesh
from safejax._src.checkpoint.options import LoadOptions, Options, parse_options, shows_options
from safejax._src.leaves.flatten import flatten
from safejax._src.leaves.leaf import is_array, is_weakly_typed
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import apply
from safejax._src.pytrees.names import join
from safejax._src.pytrees.structure import EMPTY
from safejax._src.pytrees.walk import walk
from safejax._src.reading.filesystems import FileSystem
from safejax.errors import LeafError

try:
    from flax import nnx
except ModuleNotFoundError as error:
    explain_missing(error, "flax", {"flax": "flax"})
    raise

__all__ = ["load_into"]

_Graph = TypeVar("_Graph")

# The segment that a variable, as a pytree, has above its value.
_BOX: Final = "value"

# The metadata that names a variable's axes: in Flax 0.12, and before.
_AXES: Final = ("out_sharding", "sharding_names", "sharding")


def is_nnx(tree: Any) -> bool:
    """Whether `tree` is, or contains, an object that holds variables of NNX."""
    return any(map(_is_graph, jax.tree_util.tree_leaves(tree, is_leaf=_is_graph)))


def values_of(graph: Any, only: Any = ...) -> dict[Any, Any]:
    """The values of the variables of a module or state, as nested dicts that follow their paths.

    `only` is an NNX filter. Raises `LeafError` if it selects no variable.
    """
    state = _state(graph)
    if only is ...:
        return nnx.to_pure_dict(state, _value)
    selected: Any = nnx.filter_state(state, only)
    values = nnx.to_pure_dict(selected, _value)
    if not values:
        kinds = sorted({type(variable).__name__ for _, variable in nnx.to_flat_state(state)})
        raise LeafError(
            f"only: expected a filter that selects a variable, {only!r} selects none: the "
            f"variables are of {', '.join(kinds) or 'no kind, since there are none'}"
        )
    return values


@shows_options
def load_into(
    model: Any,
    path_or_bytes: Source,
    fs: FileSystem = None,
    *,
    only: Any = ...,
    **options: Unpack[LoadOptions],
) -> None:
    """Assign the values in a file to the variables of an NNX module, lazily.

    `model` is what `serialize` takes: a module, an optimizer, or a dict or tuple of these. It
    may be abstract (from `nnx.eval_shape`), so that its parameters never exist twice. `only` is
    an NNX filter, for example `nnx.Param`: other variables are left alone, and what the file
    holds for them is ignored. Variables with named shardings are placed by them, on their mesh
    or on that of the context, unless `sharding` gives another one. The other options are those
    of `safejax.load`.

    >>> import safejax.flax
    >>> from flax import nnx
    >>> data = safejax.flax.serialize(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    >>> model = nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(1)))
    >>> safejax.flax.load_into(model, data)
    >>> model(jax.numpy.ones((1, 2))).shape
    (1, 3)

    Raises `MismatchError`, which reports everything that does not match, and whatever else
    `safejax.load` raises; the module is then unchanged.
    """
    parsed = parse_options(load_into, options)
    leaves, file = fetch(path_or_bytes, fs, parsed)
    leaves = _unboxed(apply(parsed.transform, leaves), model)
    parsed = replace(parsed, transform=None)
    state = nnx.state(model, only)
    if only is not ...:
        others = flatten(values_of(model)).keys() - flatten(values_of(state)).keys()
        leaves = leaves.replace({name: leaves[name] for name in leaves if name not in others})
    nnx.update(model, _filled(leaves, file, state, parsed))


def deserialize_like(leaves: Leaves, file: str, like: _Graph, options: Options) -> _Graph:
    """A state or module like `like`, whose variables have the values of `leaves`."""
    leaves = _unboxed(apply(options.transform, leaves), like)
    return _filled(leaves, file, like, replace(options, transform=None))


def _filled(leaves: Leaves, file: str, like: _Graph, options: Options) -> _Graph:
    """What `deserialize_like` returns, for leaves that have the paths of their variables."""
    state = _state(like)
    expected = nnx.to_pure_dict(state, _expected)
    if is_nnx(options.sharding):  # As nnx.get_named_sharding gives them.
        options = replace(options, sharding=values_of(options.sharding))
    values = options.tree(leaves, file, expected)
    filled: Any = nnx.from_flat_state(
        (path, _with_value(variable, _at(values, path)))
        for path, variable in nnx.to_flat_state(state)
    )
    if isinstance(like, nnx.State):
        return filled
    graph, _ = nnx.split(like)
    return nnx.merge(graph, filled)


def _unboxed(leaves: Leaves, graph: Any) -> Leaves:
    """The leaves by the paths of their variables, also where `safejax.save` stored a module.

    As a pytree, a variable is a container of its value, so that its names have one segment more,
    and a variable with two paths is stored under both.
    """
    state = _state(graph)
    names = flatten(nnx.to_pure_dict(state, _value))
    boxed = {
        stored: name
        for stored, name in zip(flatten(nnx.to_pure_dict(state, _boxed)), names, strict=True)
        if stored in leaves and stored not in names and name not in leaves
    }
    if not boxed:
        return leaves
    second = _second_names(leaves, graph, boxed)
    # Next to their variables, modules have containers of their own state, which are stored empty.
    return leaves.replace(
        {
            boxed.get(name, name): leaf
            for name, leaf in leaves.items()
            if name not in second and (leaf is not EMPTY or name in boxed or name in names)
        }
    )


def _second_names(leaves: Leaves, graph: Any, boxed: Mapping[str, str]) -> set[str]:
    """The names of leaves whose variable is stored, with the same bits, under its own name."""
    paths: dict[int, list[str]] = {}
    for name, node in walk(graph, _is_variable).entries.items():
        if _is_variable(node):
            paths.setdefault(id(node), []).append(join((name, _BOX)))
    return {
        second
        for names in paths.values()
        for first in names
        for second in names
        if first in boxed and second not in boxed and second in leaves
        if have_same_bits(leaves[first], leaves[second])
    }


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _is_graph(node: Any) -> bool:
    return isinstance(node, nnx.Pytree | nnx.State)


def _state(graph: Any) -> Any:
    return graph if isinstance(graph, nnx.State) else nnx.state(graph)


def _value(variable: Any) -> Any:
    """The value as the variable holds it, before any hook; a plain array is its own value."""
    if not isinstance(variable, nnx.Variable):
        return variable
    if hasattr(nnx.Variable, "get_raw_value"):
        return variable.get_raw_value()
    return variable.raw_value  # Flax 0.12.0


def _boxed(variable: Any) -> Any:
    value = _value(variable)
    return {_BOX: value} if isinstance(variable, nnx.Variable) else value


def _with_value(variable: Any, value: Any) -> Any:
    return variable.replace(value) if isinstance(variable, nnx.Variable) else value


def _at(values: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def _expected(variable: Any) -> Any:
    """The value; abstract, and with its sharding on its mesh, if the variable names one."""
    value = _value(variable)
    if not isinstance(variable, nnx.Variable) or not is_array(value):
        return value
    metadata = variable.get_metadata()
    mesh = metadata.get("mesh") or current_mesh()
    named = any(metadata.get(key) is not None for key in _AXES)
    if mesh is None or not named or getattr(value, "committed", False):
        return value
    (sharding,) = jax.tree_util.tree_leaves(nnx.get_named_sharding(variable, mesh))
    weak_type = is_weakly_typed(value)
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding, weak_type=weak_type)
