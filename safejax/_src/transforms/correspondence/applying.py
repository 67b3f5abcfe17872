"""Applying a table of correspondences to leaves: the views of what its rows take."""

from itertools import product
from typing import Any

import jax

from safejax._src.arrays.content import Content
from safejax._src.arrays.lazy import LazyArray
from safejax._src.leaves.leaf import (
    aval_of,
    check_leaf,
    content_at,
    describe,
    is_array,
    like_leaf,
    named,
)
from safejax._src.leaves.leaves import Leaves
from safejax._src.pytrees.moving import moved
from safejax._src.pytrees.names import check_name
from safejax._src.reading.view import View
from safejax._src.transforms.correspondence.axes import part_names
from safejax._src.transforms.correspondence.examining import Examination
from safejax._src.transforms.correspondence.matching import Group
from safejax._src.transforms.correspondence.rearranging import Arranger, Part, numbered, stacked
from safejax._src.transforms.tie import same_values
from safejax.errors import TransformError


def made_of(found: Examination) -> Leaves:
    """The leaves that the table makes, unread."""
    entries: dict[str, Any] = {}
    origins: dict[str, str] = {}
    used: set[str] = set()
    for group in found.groups:
        for name, leaf in _leaves_of(found, group, used).items():
            if name not in entries:
                check_name(name)
                entries[name] = leaf
                origins[name] = group.first
            elif not same_values(name, leaf, name, entries[name]):
                raise TransformError(
                    f"correspond: leaf {group.first!r}: expected the values of "
                    f"{origins[name]!r}, which is tied to it, {describe(entries[name])}, got "
                    f"others, {describe(leaf)}: one of them would be lost; make a row with "
                    "another name for it"
                )
        used.update(group.names.values())
    if found.is_inverse:
        _restore(found, entries)
    leaves = found.leaves
    # Containers keep their kinds if all leaves only get other names, as those of `rename` do.
    if len(used) == len(leaves) == len(origins) and all(
        len(group.names) == 1 for group in found.groups
    ):
        structure = moved(leaves.structure, origins, "correspond")
        return Leaves(entries, structure, leaves.metadata)
    return leaves.replace(entries)


def _restore(found: Examination, entries: dict[str, Any]) -> None:
    """Add what the table has left out, and restores."""
    is_abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in entries.values())
    for row in found.rows:
        if row.restored is None:
            continue
        (template,) = row.theirs.names
        names = template.placeholders
        for numbers in product(*(range(found.sizes.size(name)) for name in names)):
            name = template.fill(dict(zip(names, map(str, numbers), strict=True)))
            leaf = row.restored.of(name)
            check_leaf(name, leaf)
            if name in entries:
                raise TransformError(
                    f"correspond: leaf {name!r}: expected a name that is only restored, by the row "
                    f"{row}, got one that another row makes: make the templates more specific"
                )
            entries[name] = aval_of(leaf) if is_abstract and is_array(leaf) else leaf


def _leaves_of(found: Examination, group: Group, used: set[str]) -> dict[str, Any]:
    names = found.names[id(group)]
    if group.is_plain:
        (old,), (new,) = group.names.values(), names.values()
        leaf = found.leaves[old]
        if old in used and isinstance(leaf, jax.Array):
            # One of its own, so that each of the tied leaves can be donated.
            leaf = LazyArray(content_at(old, leaf), new)
        return {new: named(leaf, new)}
    sources, targets = found.tensors[id(group)]
    size = found.size(group)
    orders = [(*group.source.lead, *names) for tensor in targets for names in part_names(tensor)]
    each = len(orders) // len(sources)
    pieces: list[list[dict[tuple[int, ...], View]]] = [[{} for _ in range(each)] for _ in sources]
    arrangers = [
        Arranger(tensor, size, orders[place * each : (place + 1) * each])
        for place, tensor in enumerate(sources)
    ]
    for (place, numbers), name in group.names.items():
        views = arrangers[place].parts(found.contents[name].view)
        for piece, view in zip(pieces[place], views, strict=True):
            piece[numbers] = view
    parts = [
        Part(order, stacked(group.stacked, order, piece))
        for order, piece in zip(orders, (each for some in pieces for each in some), strict=True)
    ]
    contents = [found.contents[name] for name in group.names.values()]
    weak = all(content.weak_type for content in contents)
    leaves = [found.leaves[name] for name in group.names.values()]
    like = next((leaf for leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)), leaves[0])
    made: dict[str, Any] = {}
    each = len(parts) // len(targets)
    views = [
        numbered(parts[place * each : (place + 1) * each], group.source.lead, tensor, size)
        for place, tensor in enumerate(targets)
    ]
    for (place, numbers), name in names.items():
        view = views[place][numbers]
        made[name] = like_leaf(like, Content(view, contents[0].key, weak), name)
    return made
