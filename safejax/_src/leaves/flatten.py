"""Flatten and unflatten: pytrees to Leaves and back."""

from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast, final, overload

import jax
from jax.sharding import Sharding

from safejax._src.arrays.lazy import LazyArray
from safejax._src.arrays.placing import Placement
from safejax._src.collector import collector_paused
from safejax._src.leaves.leaf import Unsupported, check_leaves, content_at
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.like import matched
from safejax._src.leaves.on_host import read_all
from safejax._src.leaves.shardings import ShardingArgument, resolve
from safejax._src.leaves.steps import Step
from safejax._src.pytrees.building import build
from safejax._src.pytrees.walk import walk

_Tree = TypeVar("_Tree")
_OtherTree = TypeVar("_OtherTree")


@final
@dataclass(frozen=True, slots=True)
class Flatten(Step[Any, Leaves]):
    """A pytree as Leaves: each leaf under its name, the keys on the path to it joined by dots.

    Reads nothing and changes nothing. The inverse is `unflatten`.

    >>> from safejax import flatten
    >>> list(flatten({"mlp": [{"w": 1.5}, {"w": 2.5}]}))
    ['mlp.0.w', 'mlp.1.w']

    Raises `LeafError` for a leaf that is not an array, a Python scalar, a string or None, and
    for dict keys that no file can hold.
    """

    def __call__(self, tree: Any, /) -> Leaves:
        walked = walk(tree)
        check_leaves(walked.entries)
        return Leaves(walked.entries, walked.structure)

    @property
    def inverse(self) -> "Unflatten[Any]":
        return Unflatten()

    def __repr__(self) -> str:
        return "flatten"


@final
@dataclass(frozen=True, slots=True, eq=False)
class Unflatten(Step[Leaves, _Tree]):
    """Leaves as a pytree: the one that they were flattened from, or the one that `like` has.

    `unflatten(leaves)` builds the tree. `unflatten(leaves, like=tree)` rebuilds the structure of
    `like` and checks shapes and dtypes against it, matching leaves by name; where `like` has an
    array or a scalar of NumPy, so has the result, read at once. `unflatten(like=tree)` is that as
    a step. Without `like`, node types that are not built in come back as dicts of
    their fields, unless the Leaves were flattened in this process and kept their names. The
    inverse is `flatten`.

    >>> from safejax import Leaves, unflatten
    >>> unflatten(Leaves({"mlp.w": 1.5, "mlp.b": 2.5}))
    {'mlp': {'w': 1.5, 'b': 2.5}}

    Raises `MismatchError`, which reports every leaf that is missing, unexpected or of another
    shape or dtype.
    """

    like: _Tree | None = None

    @overload
    def __call__(self, leaves: Leaves, /) -> _Tree: ...
    @overload
    def __call__(self, leaves: Leaves, /, *, like: _OtherTree) -> _OtherTree: ...
    @overload
    def __call__(self, /, *, like: _OtherTree) -> "Unflatten[_OtherTree]": ...
    def __call__(self, leaves: Leaves | None = None, /, *, like: Any = None) -> Any:
        if leaves is None:
            return Unflatten(like)
        if not isinstance(leaves, Leaves):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"unflatten: expected Leaves, got {type(leaves).__name__}")
        like = self.like if like is None else like
        return assemble(leaves, like=like, file="leaves")

    @property
    def inverse(self) -> Flatten:
        return Flatten()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unflatten) and self.like is cast("Any", other).like

    def __hash__(self) -> int:
        return hash((Unflatten, id(self.like)))

    def __repr__(self) -> str:
        if self.like is None:
            return "unflatten"
        return f"unflatten(like={type(self.like).__qualname__} of {_count(self.like)} leaves)"


flatten: Final = Flatten()
unflatten: Final[Unflatten[Any]] = Unflatten()


def assemble(
    leaves: Leaves,
    *,
    like: Any = None,
    sharding: ShardingArgument = None,
    strict: bool = True,
    file: str,
) -> Any:
    """The tree of `leaves`, in which each array has its sharding; reads only what NumPy holds.

    `bound_leaves` takes the same arguments.
    """
    bound = bound_leaves(leaves, like=like, sharding=sharding, strict=strict, file=file)
    return build(read_all(bound), bound.structure, file)


def bound_leaves(
    leaves: Leaves,
    *,
    like: Any = None,
    sharding: ShardingArgument = None,
    strict: bool = True,
    file: str,
) -> Leaves:
    """The leaves of the tree to be built, in which each array has its sharding; reads nothing.

    Leaves are matched with `like` first. Each array then gets the sharding that `sharding` gives
    it, otherwise that of its leaf in `like` if that is committed or abstract, and otherwise
    JAX's default device. A leaf that is NumPy's in `like`, and to which `sharding` gives none, is
    an `OnHost`.
    """
    defaults: dict[str, Sharding] = {}
    host: dict[str, Any] = {}
    if like is not None:
        leaves, defaults, host = matched(leaves, like, strict, file)
    for leaf in leaves.values():
        # isinstance would ask each lazy leaf for its class, which takes longer than this.
        if type(leaf) is Unsupported:
            raise leaf.error()
    if sharding is None and not defaults:
        return leaves.replace({**leaves, **host}) if host else leaves
    chosen = resolve(sharding, defaults, leaves, file, host.keys())
    with collector_paused():
        entries = {
            name: _bound(name, leaf, chosen[name]) if name in chosen else host.get(name, leaf)
            for name, leaf in leaves.items()
        }
    return leaves.replace(entries)


def _bound(name: str, leaf: Any, sharding: Sharding) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding, weak_type=leaf.weak_type
        )
    placement = Placement(sharding, committed=True)
    if isinstance(leaf, LazyArray):
        return leaf.at_placement(placement)
    if isinstance(leaf, jax.Array):
        return jax.device_put(leaf, sharding)
    return LazyArray(content_at(name, leaf), name, placement)


def _count(tree: Any) -> int:
    return len(jax.tree_util.tree_leaves(tree))
