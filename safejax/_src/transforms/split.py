"""`split` and `concat`: one leaf into several along an axis, and several into one."""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, final

from safejax._src.arrays.content import Content
from safejax._src.leaves.leaf import content_at, describe, is_array
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import Transform
from safejax._src.public import set_module
from safejax._src.pytrees.patterns import Template, agreeing
from safejax._src.reading.concatenation import concatenation
from safejax._src.transforms.renaming import (
    check_placeholders,
    filled,
    gathered,
    parsed_parts,
    parsed_template,
    parted,
)
from safejax._src.transforms.selection import Faults, checked_axis, fault, nothing_matched, quoted
from safejax.errors import TransformError


@final
@dataclass(frozen=True, slots=True)
class Split(Transform):
    """Leaves that are split into parts; see `split`."""

    template: Template
    into: tuple[Template, ...]
    axis: int = 0
    sizes: tuple[int, ...] | None = None
    must_match: bool = True
    stacks: bool = False

    def __call__(self, leaves: Leaves, /) -> Leaves:
        backs = [template.matcher() for template in self.into]

        def parts(name: str, leaf: Any, values: dict[str, str]) -> Iterator[tuple[str, Content]]:
            for template, back, part in zip(self.into, backs, self._parts(name, leaf), strict=True):
                yield filled(self, template, back, values, name), part

        def claimed(name: str) -> bool:
            return any(back(name) is not None for back in backs)

        return parted(self, leaves, self.template, self.must_match, claimed, parts)

    def _parts(self, name: str, leaf: Any) -> list[Content]:
        if not is_array(leaf) or not leaf.shape:
            raise fault(
                self,
                f"leaf {name!r}: expected an array with an axis to split, got "
                f"{describe(leaf)}: narrow the template",
            )
        axis = checked_axis(self, self.axis, len(leaf.shape), name)
        total = leaf.shape[axis]
        count = len(self.into)
        if self.sizes is None and total % count:
            raise fault(
                self,
                f"leaf {name!r}: expected {count} equal parts along axis {axis}, got "
                f"the size {total}: give sizes",
            )
        if self.stacks and total != count:
            raise fault(
                self,
                f"leaf {name!r}: expected the size {count} of axis {axis}, one for each "
                f"name, got the shape {list(leaf.shape)}: narrow the template",
            )
        sizes = self.sizes or (total // count,) * count
        if sum(sizes) != total:
            raise fault(
                self,
                f"leaf {name!r}: expected sizes that add up to {total}, the size of axis "
                f"{axis}, got {list(sizes)}, which add up to {sum(sizes)}",
            )
        content = content_at(name, leaf)
        lead = (slice(None),) * axis
        if self.stacks:
            return [content.of(content.view.index((*lead, number))) for number in range(count)]
        ends = list(accumulate(sizes, initial=0))
        return [
            content.of(content.view.index((*lead, slice(begin, end))))
            for begin, end in pairwise(ends)
        ]

    @property
    def inverse(self) -> "Concat":
        return Concat(self.into, self.template, self.axis, self.sizes, self.must_match, self.stacks)

    def __repr__(self) -> str:
        into = [template.text for template in self.into]
        step = "unstack" if self.stacks else "split"
        return f"{step}({self.template.text!r}, {into}{_options(self)})"


@final
@dataclass(frozen=True, slots=True)
class Concat(Transform):
    """Leaves that are concatenated; see `concat`."""

    templates: tuple[Template, ...]
    into: Template
    axis: int = 0
    sizes: tuple[int, ...] | None = None
    must_match: bool = True
    stacks: bool = False

    def __call__(self, leaves: Leaves, /) -> Leaves:
        groups = self._groups(leaves)
        if self.must_match and not groups:
            raise nothing_matched(self, self.templates[0].text, leaves)

        def whole(names: list[str], target: str) -> Content:
            return self._concatenated(leaves, names, target)

        return gathered(self, leaves, groups, self.into, whole)

    def _groups(self, leaves: Leaves) -> dict[str, tuple[str, list[str]]]:
        """The groups of `gathered`, with old names in the order of the templates."""
        matches = [template.matcher() for template in self.templates]
        back = self.into.matcher()
        found: dict[str, dict[int, str]] = {}
        faults = Faults(self)
        for name in leaves:
            for number, match in enumerate(matches):
                values = match(name)
                if values is None:
                    continue
                try:
                    target = filled(self, self.into, back, values, name)
                except TransformError as error:
                    faults.add(name, error)
                else:
                    found.setdefault(target, {})[number] = name
                break
        for target, names in found.items():
            lacks = [part.text for at, part in enumerate(self.templates) if at not in names]
            if lacks:
                wrong = fault(
                    self,
                    f"{target!r}: expected {len(self.templates)} leaves, got "
                    f"{quoted(names.values())}, and none for {quoted(lacks)}: narrow the templates",
                )
                faults.add(target, wrong)
        faults.check()
        return {
            target: (
                next(iter(names.values())),
                [names[number] for number in range(len(self.templates))],
            )
            for target, names in found.items()
        }

    def _concatenated(self, leaves: Leaves, names: list[str], target: str) -> Content:
        first = leaves[names[0]]
        for name in names:
            leaf = leaves[name]
            if not is_array(leaf) or not is_array(first) or not (leaf.shape or self.stacks):
                raise fault(
                    self,
                    f"leaf {name!r}: expected an array with an axis to join, got "
                    f"{describe(leaf)}: narrow the templates",
                )
        axis = checked_axis(self, self.axis, len(first.shape) + self.stacks, names[0])
        contents = [content_at(name, leaves[name]) for name in names]
        if self.stacks:
            contents = [content.of(content.view.expand(axis)) for content in contents]
        kinds = {
            (c.view.dtype, c.key, c.shape[:axis], c.shape[axis + 1 :]) for c in contents
        }  # fmt: skip
        if len(kinds) > 1:
            parts = ", ".join(f"{describe(leaves[name])} for {name!r}" for name in names)
            raise fault(
                self,
                f"{target!r}: expected arrays of one dtype, and of one shape except for "
                f"axis {axis}, got {parts}",
            )
        found = tuple(content.shape[axis] for content in contents)
        wanted = self.sizes or (found[0],) * len(found)
        if found != wanted:
            raise fault(
                self,
                f"{target!r}: expected the sizes {list(wanted)} along axis {axis}, got "
                f"{list(found)}: the inverse needs them; give sizes={found}",
            )
        view = concatenation(tuple(content.view for content in contents), axis)
        return Content(view, contents[0].key, all(content.weak_type for content in contents))

    @property
    def inverse(self) -> Split:
        return Split(self.into, self.templates, self.axis, self.sizes, self.must_match, self.stacks)

    def __repr__(self) -> str:
        templates = [template.text for template in self.templates]
        step = "stack" if self.stacks else "concat"
        return f"{step}({templates}, {self.into.text!r}{_options(self)})"


@set_module("safejax")
def split(
    template: str,
    into: Sequence[str],
    *,
    axis: int = 0,
    sizes: Sequence[int] | None = None,
    must_match: bool = True,
) -> Split:
    """A transform that splits a leaf into several, for example a fused query, key and value.

    `into` are the templates of the new names, with the placeholders of `template`. `sizes` are
    the sizes of the parts along `axis`; by default the parts are equal. The inverse is `concat`.
    A lazy leaf stays lazy, and a part of it reads only the bytes that the part needs. A template
    that matches no leaf is an error, unless `must_match` is false.

    >>> import jax.numpy as jnp
    >>> from safejax import flatten, split
    >>> t = split("{i}.qkv", ["{i}.q", "{i}.k", "{i}.v"], axis=-1, sizes=(4, 2, 2))
    >>> {name: leaf.shape for name, leaf in t(flatten({"0": {"qkv": jnp.ones((3, 8))}})).items()}
    {'0.q': (3, 4), '0.k': (3, 2), '0.v': (3, 2)}

    Raises `TransformError` when it is built with templates whose placeholders differ or with
    another number of sizes, and when it is applied to a leaf whose size `sizes` do not add up to.
    """
    source = parsed_template("split", template)
    parts = parsed_parts("split", "into", into)
    check_placeholders("split", source, parts)
    source, *into_parts = agreeing(source, *parts)
    checked = _sizes("split", sizes, len(parts))
    return Split(source, tuple(into_parts), checked_axis("split", axis), checked, must_match)


@set_module("safejax")
def concat(
    templates: Sequence[str],
    into: str,
    *,
    axis: int = 0,
    sizes: Sequence[int] | None = None,
    must_match: bool = True,
) -> Concat:
    """A transform that concatenates several leaves into one along `axis`.

    `templates` have the same placeholders as `into`, the template of the new name. The leaves
    have the given `sizes` along `axis` or, without `sizes`, the same size, so that the inverse,
    `split`, is determined. A lazy leaf stays lazy, and a part of it reads only the bytes that
    the part needs. Templates that match no leaf are an error, unless `must_match` is false.

    >>> import jax.numpy as jnp
    >>> from safejax import concat, flatten
    >>> tree = {"0": {"k": jnp.ones((3, 2)), "v": jnp.zeros((3, 2))}}
    >>> concat(["{i}.k", "{i}.v"], "{i}.kv", axis=1)(flatten(tree))["0.kv"].shape
    (3, 4)

    Raises `TransformError` when it is built with templates whose placeholders differ, and when it
    is applied to leaves of which one is missing, or has another dtype, shape or size.
    """
    target = parsed_template("concat", into)
    parts = parsed_parts("concat", "templates", templates)
    check_placeholders("concat", target, parts)
    target, *of_parts = agreeing(target, *parts)
    checked = _sizes("concat", sizes, len(parts))
    return Concat(tuple(of_parts), target, checked_axis("concat", axis), checked, must_match)


def _sizes(step: str, sizes: Sequence[int] | None, count: int) -> tuple[int, ...] | None:
    if sizes is None:
        return None
    try:
        checked = tuple(map(operator.index, sizes))
    except TypeError:
        checked = ()
    if len(checked) != count or any(size < 1 for size in checked):
        raise TransformError(
            f"{step}: expected {count} sizes of 1 or more, one for each part, got {sizes!r}"
        )
    return checked


def _options(transform: Split | Concat) -> str:
    axis = "" if transform.axis == 0 else f", axis={transform.axis}"
    sizes = "" if transform.sizes is None else f", sizes={transform.sizes}"
    return f"{axis}{sizes}{'' if transform.must_match else ', must_match=False'}"
