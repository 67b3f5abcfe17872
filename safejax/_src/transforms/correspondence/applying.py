"""Applying a table of correspondences to leaves: the views of what its rows take."""

from itertools import product
from typing import Any, final

import jax

from safejax._src.arrays.content import Content
from safejax._src.arrays.lazy import LazyArray
from safejax._src.collector import collector_resumed
from safejax._src.leaves.leaf import (
    aval_of,
    check_leaf,
    content_at,
    describe,
    is_array,
    named,
)
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.making import Maker
from safejax._src.pytrees.moving import moved
from safejax._src.pytrees.names import check_name
from safejax._src.reading.view import Strided, View
from safejax._src.reading.windows import Window
from safejax._src.transforms.correspondence.axes import Tensor, part_names
from safejax._src.transforms.correspondence.examining import Examination
from safejax._src.transforms.correspondence.matching import Group, Place, scope_of
from safejax._src.transforms.correspondence.rearranging import Arranger, Part, numbered, stacked
from safejax._src.transforms.tie import same_values
from safejax.errors import TransformError


def made_of(found: Examination) -> Leaves:
    """The leaves that the table makes, unread; to be called while the collector is paused."""
    entries: dict[str, Any] = {}
    origins: dict[str, str] = {}
    used: set[str] = set()
    making = _Making(found)
    for group in found.groups:
        for name, leaf in making.leaves(group, used).items():
            if name not in entries:
                check_name(name)
                entries[name] = leaf
                origins[name] = group.first
            elif not _is_same(name, leaf, entries[name]):
                raise TransformError(
                    f"correspond: leaf {group.first!r}: expected the values of "
                    f"{origins[name]!r}, which is tied to it, {describe(entries[name])}, got "
                    f"others, {describe(leaf)}: one of them would be lost; make a row with "
                    "another name for it"
                )
        used.update(group.names.values())
    if found.is_inverse:
        with collector_resumed():  # Functions of the user make what is restored.
            _restore(found, entries)
    leaves = found.leaves
    # Containers keep their kinds if all leaves only get other names, as those of `rename` do.
    if len(used) == len(leaves) == len(origins) and all(
        len(group.names) == 1 for group in found.groups
    ):
        structure = moved(leaves.structure, origins)
        return Leaves(entries, structure, leaves.metadata)
    return leaves.replace(entries)


def _is_same(name: str, leaf: Any, other: Any) -> bool:
    with collector_resumed():  # Both are read, where it is not known otherwise.
        return same_values(name, leaf, name, other)


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


@final
class _Making:
    """Makes the leaves of one group after the other; what groups share is made once."""

    def __init__(self, found: Examination) -> None:
        self._found = found
        self._maker = Maker()
        self._arrangers: dict[tuple[Any, ...], Arranger] = {}
        self._windows: dict[tuple[Any, ...], Window] = {}

    def leaves(self, group: Group, used: set[str]) -> dict[str, Any]:
        """The leaves that a group becomes, by name; `used` are those of earlier groups."""
        found = self._found
        names = found.names[id(group)]
        if group.is_plain:
            (old,), (new,) = group.names.values(), names.values()
            leaf = found.leaves[old]
            if old in used and isinstance(leaf, jax.Array):
                # One of its own, so that each of the tied leaves can be donated.
                leaf = LazyArray(content_at(old, leaf), new)
            return {new: named(leaf, new)}
        views = self._views(group)
        if len(group.names) == len(names) == 1:
            (old,), (new,), (view,) = group.names.values(), names.values(), views.values()
            _, key, weak = found.contents[old]
            return {new: self._maker.like(found.leaves[old], Content(view, key, weak), new)}
        contents = [found.contents[name] for name in group.names.values()]
        weak = all(content.weak_type for content in contents)
        leaves = [found.leaves[name] for name in group.names.values()]
        like = next((leaf for leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)), leaves[0])
        return {
            name: self._maker.like(like, Content(views[place], contents[0].key, weak), name)
            for place, name in names.items()
        }

    def _views(self, group: Group) -> dict[Place, View]:
        """The views of the new leaves of a group."""
        tensors = self._found.tensors[id(group)]
        (name, *others) = group.names.values()
        view = self._found.contents[name].view
        if others or group.source.lead or len(tensors[1]) > 1 or not isinstance(view, Strided):
            return self._rearranged(group)
        # One leaf becomes another: what is done to its window is done to that of many leaves.
        key = tensors, scope_of(group, tensors[0]), view.window
        window = self._windows.get(key)
        if window is not None:
            return {(0, ()): Strided(view.source, view.begin, view.dtype, window)}
        views = self._rearranged(group)
        (made,) = views.values()
        if isinstance(made, Strided) and made.source is view.source:
            self._windows[key] = made.window
        return views

    def _rearranged(self, group: Group) -> dict[Place, View]:
        targets, parts = self._found.tensors[id(group)][1], self._parts(group)
        each, lead, size = len(parts) // len(targets), group.source.lead, self._found.size(group)
        return {
            (place, numbers): view
            for place, tensor in enumerate(targets)
            for numbers, view in numbered(
                parts[place * each : (place + 1) * each], lead, tensor, size
            ).items()
        }

    def _parts(self, group: Group) -> list[Part]:
        """The parts of what the new leaves are made of, each stacked."""
        found = self._found
        sources, targets = found.tensors[id(group)]
        orders = [
            (*group.source.lead, *names) for tensor in targets for names in part_names(tensor)
        ]
        each = len(orders) // len(sources)
        pieces: list[list[dict[tuple[int, ...], View]]] = [
            [{} for _ in range(each)] for _ in sources
        ]
        arrangers = [
            self._arranger(group, tensor, tuple(orders[place * each : (place + 1) * each]))
            for place, tensor in enumerate(sources)
        ]
        for (place, numbers), name in group.names.items():
            views = arrangers[place].parts(found.contents[name].view)
            for piece, view in zip(pieces[place], views, strict=True):
                piece[numbers] = view
        flat = [piece for some in pieces for piece in some]
        return [
            Part(order, stacked(group.stacked, order, piece))
            for order, piece in zip(orders, flat, strict=True)
        ]

    def _arranger(
        self, group: Group, tensor: Tensor, orders: tuple[tuple[str, ...], ...]
    ) -> Arranger:
        """The one for these axes: of another group, if none of them has a size of its own."""
        key = tensor, orders, scope_of(group, (tensor,))
        if key not in self._arrangers:
            self._arrangers[key] = Arranger(tensor, self._found.size(group), orders)
        return self._arrangers[key]
