"""The contents of a tree: as those of a file, except that its leaves may be placed."""

from typing import Any

from jax.sharding import AbstractMesh, NamedSharding

from safejax._src.arrays.lazy import LazyArray
from safejax._src.checkpoint.saving import leaves_of
from safejax._src.inspection.contents import Contents, Item
from safejax._src.inspection.shards import Shard, shards_of
from safejax._src.leaves.leaf import Unsupported, content_at, is_array, is_weakly_typed


def contents_of_tree(tree: Any) -> Contents:
    """What is in a tree, or in Leaves; nothing is read and nothing is placed."""
    leaves = leaves_of(tree)
    items: dict[str, Item] = {}
    values: dict[str, Any] = {}
    shards: dict[Any, tuple[Shard, ...]] = {}
    for name, leaf in leaves.items():
        if isinstance(leaf, Unsupported):
            items[name] = Item(name, leaf.code, leaf.shape, 0, None, leaf.file)
        elif is_array(leaf):
            items[name] = _item(name, leaf, shards)
        else:
            values[name] = leaf
    kinds = leaves.structure.kinds
    return Contents("tree", items, values, dict(leaves.metadata), kinds, (), ())


def _item(name: str, leaf: Any, shards: dict[Any, tuple[Shard, ...]]) -> Item:
    content = content_at(name, leaf)
    view = content.view
    file = None
    if isinstance(leaf, LazyArray) and not leaf.is_placed:
        file = ", ".join(dict.fromkeys(source.name for source in view.sources))
    sharding = getattr(leaf, "sharding", None)
    # Many leaves have the same shape and sharding.
    key = sharding, view.shape
    if key not in shards:
        shards[key] = _shards(sharding, leaf.shape, view.shape)
    return Item(
        name, view.dtype.name, view.shape, view.nbytes, view if view.has_values else None, file,
        None, content.key, is_weakly_typed(leaf), 0, None if sharding is None else str(sharding),
        shards[key],
    )  # fmt: skip


def _shards(sharding: Any, shape: tuple[int, ...], stored: tuple[int, ...]) -> tuple[Shard, ...]:
    """The shards of a leaf; none where the devices are not known, or the sharding does not fit."""
    is_abstract = isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh)
    if sharding is None or is_abstract:
        return ()
    try:
        indices = sharding.devices_indices_map(shape)
    except ValueError:
        return ()
    return shards_of(indices, stored)
