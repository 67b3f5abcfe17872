"""`merge`: several leaves into one by a function, block by block where it says so."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import jax
import numpy as np

from safejax._src.arrays.content import Content, is_key
from safejax._src.dtypes import stored_as
from safejax._src.leaves.leaf import aval_of, like_leaf
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import Transform
from safejax._src.public import set_module
from safejax._src.pytrees.choices import show_where
from safejax._src.pytrees.lookup import Lookup
from safejax._src.pytrees.patterns import Template
from safejax._src.reading.view import View
from safejax._src.transforms.merging.axes import MergeAxes, parse_merge_axes
from safejax._src.transforms.merging.calling import Calling, Function
from safejax._src.transforms.merging.rules import Rule, parsed_rule
from safejax._src.transforms.merging.views import numbers_of, results_of, whole_of
from safejax._src.transforms.renaming import Renamed, check_shadows, filled, representative
from safejax._src.transforms.selection import Faults, fault, nothing_matched, quoted
from safejax.errors import TransformError


@final
@dataclass(frozen=True, slots=True)
class Merge(Transform):
    """Leaves that a function makes one of; see `merge`."""

    rules: tuple[Rule, ...]
    function: Function
    axes: MergeAxes | None = None
    aval: Function | None = None
    backward: Function | None = None
    must_match: bool = True

    def __call__(self, leaves: Leaves, /) -> Leaves:
        groups = self._groups(leaves)
        of_name = {name: target for target, names in groups.items() for name in names}
        back = Lookup(into for into, _ in self.rules)

        def claimed(name: str) -> bool:
            return self.backward is not None and back.first(name)[1] is not None

        tries: dict[Any, Calling] = {}
        renamed = Renamed(self, claimed)
        made: set[str] = set()
        for name, leaf in leaves.items():
            target = of_name.get(name)
            if target is None:
                renamed.leave(name, leaf)
            elif target not in made:
                made.add(target)
                names = groups[target]
                try:
                    content = self._merged(leaves, names, target, tries)
                except TransformError as error:
                    renamed.faults.add(target, error)
                    continue
                renamed.add(target, like_leaf(representative(leaves, names), content, target), name)
        return leaves.replace(renamed.entries)

    def _groups(self, leaves: Leaves) -> dict[str, list[str]]:
        """The new names, with the old ones in the order of the templates."""
        lookup = Lookup(part for _, parts in self.rules for part in parts)
        count = len(self.rules[0][1])
        backs = [into.matcher() for into, _ in self.rules]
        found: dict[str, dict[int, str]] = {}
        of: dict[str, int] = {}
        faults = Faults(self)
        for name in leaves:
            at, values = lookup.first(name)
            if values is None:
                continue
            number, place = divmod(at, count)
            into = self.rules[number][0]
            try:
                target = (
                    into.fill(values)
                    if self.backward is None
                    else filled(self, into, backs[number], values, name)
                )
            except TransformError as error:
                faults.add(name, error)
                continue
            if of.setdefault(target, number) != number:
                wrong = fault(
                    self,
                    f"leaf {name!r}: expected the leaves of {target!r} from one list of templates, "
                    "got them from two: make the templates more specific",
                )
                faults.add(name, wrong)
                continue
            found.setdefault(target, {})[place] = name
        faults.check()
        groups: dict[str, list[str]] = {}
        missing: list[str] = []
        for target, names in found.items():
            parts = self.rules[of[target]][1]
            if len(names) == len(parts):
                groups[target] = [names[place] for place in range(len(parts))]
            elif list(names.values()) != [target]:  # One that has the new name is made already.
                lacks = [part.text for place, part in enumerate(parts) if place not in names]
                missing.append(
                    f"{target!r} has {quoted(names.values())}, and none for {quoted(lacks)}"
                )
        if missing:
            more = f"; and {len(missing) - 8} more" if len(missing) > 8 else ""
            raise fault(
                self,
                "expected a leaf for each template, got some without: "
                f"{'; '.join(missing[:8])}{more}: narrow the templates",
            )
        used = {of[target] for target in groups}
        self.check_used(self, used, [parts[-1] for _, parts in self.rules], leaves)
        return groups

    def check_used(
        self, step: Transform, used: set[int], templates: list[Template], leaves: Leaves
    ) -> None:
        """Raise `TransformError` for the rules, each with one of its templates, without a leaf."""
        unused = [number for number in range(len(self.rules)) if number not in used]
        if unused and self.must_match:
            check_shadows(step, templates, unused, leaves)
            first, *others = [templates[number].text for number in unused]
            raise nothing_matched(step, first, leaves, others=others)

    def _merged(
        self, leaves: Leaves, names: list[str], target: str, tries: dict[Any, Calling]
    ) -> Content:
        contents = [numbers_of(name, leaves[name]) for name in names]
        views = tuple(content.view for content in contents)
        if self.axes is not None:
            (made,) = results_of(self.axes, self.function, views, names, False, tries, target)
            return Content(made)
        aval = aval_of(leaves[names[0]]) if self.aval is None else self._aval(leaves, names, target)
        dtype = views[0].dtype if self.aval is None else np.dtype(aval.dtype)
        shape = tuple(aval.shape)
        return Content(whole_of(self.function, views, shape, dtype, target))

    def _aval(self, leaves: Leaves, names: list[str], target: str) -> jax.ShapeDtypeStruct:
        assert self.aval is not None
        avals = [aval_of(leaves[name]) for name in names]
        aval = self.aval(*avals)
        if not (
            isinstance(aval, jax.ShapeDtypeStruct)
            and not is_key(aval.dtype)
            and stored_as(np.dtype(aval.dtype), ()) is not None
        ):
            raise fault(
                "merge",
                f"leaf {target!r}: expected aval to return a jax.ShapeDtypeStruct, got {aval!r}: "
                "correct aval",
            )
        return aval

    @property
    def inverse(self) -> "Unmerge":
        if self.backward is None:
            raise self._not_invertible(
                "expected a function that takes the result apart, got none: "
                "merge(names, f, axes=..., inverse=g)"
            )
        assert self.axes is not None
        return Unmerge(self)

    def __repr__(self) -> str:
        rules = {into.text: [part.text for part in parts] for into, parts in self.rules}
        options = "" if self.axes is None else f", axes={self.axes.text!r}"
        for option, function in (("aval", self.aval), ("inverse", self.backward)):
            options += "" if function is None else f", {option}={show_where(function)}"
        must_match = "" if self.must_match else ", must_match=False"
        return f"merge({rules}, {show_where(self.function)}{options}{must_match})"


@final
@dataclass(frozen=True, slots=True)
class Unmerge(Transform):
    """Leaves that a function takes apart: the inverse of a merge."""

    merge: Merge

    def __call__(self, leaves: Leaves, /) -> Leaves:
        lookup = Lookup(into for into, _ in self.merge.rules)
        made = Lookup(part for _, parts in self.merge.rules for part in parts)
        rules = [[(part, part.matcher()) for part in parts] for _, parts in self.merge.rules]

        def claimed(name: str) -> bool:
            return made.first(name)[1] is not None

        tries: dict[Any, Calling] = {}
        renamed = Renamed(self, claimed)
        matched: set[int] = set()
        for name, leaf in leaves.items():
            number, values = lookup.first(name)
            if values is None:
                renamed.leave(name, leaf)
                continue
            matched.add(number)
            try:
                names = [filled(self, part, back, values, name) for part, back in rules[number]]
                views = list(self._parts(name, leaf, tries))
            except TransformError as error:
                renamed.faults.add(name, error)
                continue
            for target, view in zip(names, views, strict=True):
                renamed.add(target, like_leaf(leaf, Content(view), target), name)
        self.merge.check_used(self, matched, [into for into, _ in self.merge.rules], leaves)
        return leaves.replace(renamed.entries)

    def _parts(self, name: str, leaf: Any, tries: dict[Any, Calling]) -> Iterator[View]:
        axes, backward = self.merge.axes, self.merge.backward
        assert axes is not None
        assert backward is not None
        view = numbers_of(name, leaf).view
        return results_of(axes.turned, backward, (view,), [name], True, tries, name)

    @property
    def inverse(self) -> Merge:
        return self.merge

    def __repr__(self) -> str:
        return f"{self.merge!r}.inverse"


@set_module("safejax")
def merge(
    names: Mapping[str, Sequence[str]],
    function: Function,
    *,
    axes: str | None = None,
    inverse: Function | None = None,
    aval: Function | None = None,
    must_match: bool = True,
) -> Merge:
    """A transform that makes one leaf of several by a function, when it is read.

    `names` maps the template of each new name to the templates of the leaves that `function` is
    called with, all with the same placeholders. The arrays are NumPy's; it returns one, and must
    not change them. For example, weights with a scale for each block of 128 by 128:

    >>> import jax.numpy as jnp, numpy as np
    >>> from safejax import flatten, merge
    >>> def scaled(q, scale):
    ...     each = np.repeat(np.repeat(scale, 128, axis=0), 128, axis=1)
    ...     return q.astype("float32") * each[: q.shape[0], : q.shape[1]]
    >>> t = merge({"*.w": ["*.w", "*.scale"]}, scaled, axes="i j, i/128 j/128 -> i j")
    >>> tree = {"mlp": {"w": jnp.ones((300, 256), "float8_e4m3fn"), "scale": jnp.ones((3, 2))}}
    >>> {name: leaf.shape for name, leaf in t(flatten(tree)).items()}
    {'mlp.w': (300, 256)}

    `axes` says which elements of the leaves an element of the result depends on: `i/128` is an
    axis with one element for each 128 of `i`, the last of which may be for fewer; `_` is one that
    must be there as a whole, as are those with a name that the result does not have; 1 is one of
    size 1, and `...` are any axes in front. A part of the result reads only the blocks that it
    needs: `function` is called with parts of the leaves that begin at the same block. That is
    checked by calling it for small blocks of ones and twos, which gives the dtype, too. Without
    `axes`, it is called with whole leaves for any part of the result, which has the shape and
    dtype of the first leaf, or those that `aval`, a function of their `jax.ShapeDtypeStruct`s,
    returns.

    `inverse` is the function that returns a tuple of the leaves for a result; it needs `axes`. A
    leaf that has the new name and none of the others with it is kept. A template that matches no
    leaf is an error, unless `must_match` is false.

    Raises `TransformError` when it is built with templates or axes that do not fit, and when it is
    applied to leaves of which one is missing, or whose shapes do not fit `axes`, or for which the
    function raises an error, or returns other values for a block than for the block alone.
    """
    if not isinstance(names, Mapping) or not names:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TransformError(
            f"merge: expected a mapping of new names to lists of old ones, got {names!r}"
        )
    rules = tuple(parsed_rule(into, parts) for into, parts in names.items())
    counts = {len(parts) for _, parts in rules}
    if len(counts) > 1:
        raise TransformError(
            f"merge: expected as many leaves in each list, got {sorted(counts)}: "
            "make a merge of each"
        )
    for given in (function, inverse, aval):
        if not callable(given) and (given is not None or given is function):
            raise TransformError(f"merge: expected a function, got {given!r}")
    if axes is None and inverse is not None:
        raise TransformError(
            "merge: expected axes with an inverse, which say what the leaves are: give axes"
        )
    if axes is not None and aval is not None:
        raise TransformError("merge: expected axes or aval, got both: axes give the shape")
    parsed = None if axes is None else parse_merge_axes(axes, *counts)
    return Merge(rules, function, parsed, aval, inverse, must_match)
