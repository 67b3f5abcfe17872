"""`stack` and `unstack`: numbered leaves into one with an axis for the number, and back."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

from safejax._src.arrays.content import Content
from safejax._src.leaves.leaf import content_at, describe, is_array
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import Transform
from safejax._src.public import set_module
from safejax._src.pytrees.names import SEPARATOR
from safejax._src.pytrees.patterns import Template, agreeing
from safejax._src.reading.concatenation import stack as stack_views
from safejax._src.transforms.renaming import filled, gathered, parsed_template, parted
from safejax._src.transforms.selection import Faults, checked_axis, fault, nothing_matched
from safejax._src.transforms.stacking import (
    check_templates,
    checked_numbers,
    concat_new,
    fault_of_numbers,
    index_of,
    is_in_range,
    is_number,
    refuse_numbers,
    split_off,
)
from safejax.errors import TransformError


@final
@dataclass(frozen=True, slots=True)
class Stack(Transform):
    """Numbered leaves that are stacked into one; see `stack`."""

    template: Template
    into: Template
    axis: int = 0
    start: int = 0
    count: int | None = None
    must_match: bool = True

    def __call__(self, leaves: Leaves, /) -> Leaves:
        groups = self._groups(leaves)
        if self.must_match and not groups:
            raise nothing_matched(self, self.template.text, leaves)

        def whole(names: list[str], target: str) -> Content:
            return self._stacked(leaves, names, target)

        return gathered(self, leaves, groups, self.into, whole)

    def _groups(self, leaves: Leaves) -> dict[str, tuple[str, list[str]]]:
        """The groups of `gathered`, with old names in the order of their numbers."""
        (index,) = index_of(self.template, self.into)
        match, back = self.template.matcher(), self.into.matcher()
        numbered: dict[str, dict[int, str]] = {}
        targets: dict[str, tuple[str, ...]] = {}
        made: dict[tuple[str, ...], str] = {}
        places = self.template.placeholders
        before = places[: places.index(index)]
        faults = Faults(self)
        for name in leaves:
            values = match(name)
            if values is None or not is_number(values[index]):
                continue
            text = values.pop(index)
            if not is_in_range(text, self.start, self.count):
                continue
            others = tuple(values.values())
            try:
                if str(int(text)) != text:
                    raise fault(
                        self,
                        f"leaf {name!r}: expected numbers without padding, 0, 1, 2 …, got "
                        f"{text!r}: the inverse could not restore it; rename it first",
                    )
                if others not in made:
                    target = made[others] = filled(self, self.into, back, values, name)
                    targets[target] = tuple([values[placeholder] for placeholder in before])
            except TransformError as error:
                faults.add(name, error)
                continue
            numbered.setdefault(made[others], {})[int(text)] = name
        faults.check()
        wrong = fault_of_numbers(numbered, targets, self.start, self.count)
        if wrong is not None:
            raise fault(self, wrong)
        return {
            target: (names[self.start], [names[self.start + at] for at in range(len(names))])
            for target, names in numbered.items()
        }

    def _stacked(self, leaves: Leaves, names: list[str], target: str) -> Content:
        first = leaves[names[0]]
        kind = (first.shape, first.dtype) if is_array(first) else None
        for name in names:
            leaf = leaves[name]
            if not (is_array(leaf) and (leaf.shape, leaf.dtype) == kind):
                raise fault(
                    self,
                    f"expected arrays of one shape and dtype, got {describe(first)} for "
                    f"{names[0]!r} and {describe(leaf)} for {name!r}: narrow the template",
                )
        contents = [content_at(name, leaves[name]) for name in names]
        if len({(content.view.dtype, content.key) for content in contents}) > 1:
            raise fault(self, f"{target!r}: expected one stored dtype, got several")
        axis = checked_axis(self, self.axis, len(first.shape) + 1, names[0])
        view = stack_views(tuple(content.view for content in contents), axis)
        return Content(view, contents[0].key, all(content.weak_type for content in contents))

    @property
    def inverse(self) -> "Unstack":
        return Unstack(self.into, self.template, self.axis, self.start, self.count, self.must_match)

    def __repr__(self) -> str:
        return f"stack({_arguments(self)})"


@final
@dataclass(frozen=True, slots=True)
class Unstack(Transform):
    """Leaves that are unstacked into numbered ones; see `unstack`."""

    template: Template
    into: Template
    axis: int = 0
    start: int = 0
    count: int | None = None
    must_match: bool = True

    def __call__(self, leaves: Leaves, /) -> Leaves:
        (index,) = index_of(self.into, self.template)
        back = self.into.matcher()

        def parts(name: str, leaf: Any, values: dict[str, str]) -> Iterator[tuple[str, Content]]:
            for number, part in enumerate(self._parts(name, leaf), self.start):
                numbered = {**values, index: str(number)}
                yield filled(self, self.into, back, numbered, name), part

        def claimed(name: str) -> bool:
            number = (back(name) or {}).get(index, "")
            return is_number(number) and is_in_range(number, self.start, self.count)

        return parted(self, leaves, self.template, self.must_match, claimed, parts)

    def _parts(self, name: str, leaf: Any) -> list[Content]:
        if not is_array(leaf) or not leaf.shape:
            raise fault(
                self,
                f"leaf {name!r}: expected an array with an axis to unstack, got "
                f"{describe(leaf)}: narrow the template",
            )
        axis = checked_axis(self, self.axis, len(leaf.shape), name)
        if not leaf.shape[axis]:
            raise fault(
                self,
                f"leaf {name!r}: expected one element or more along axis {axis}, got "
                f"the shape {list(leaf.shape)}: no leaf would remain of it",
            )
        if self.count not in (None, leaf.shape[axis]):
            raise fault(
                self,
                f"leaf {name!r}: expected the size {self.count} of axis {axis}, got the "
                f"shape {list(leaf.shape)}: narrow the template, or correct count",
            )
        content = content_at(name, leaf)
        lead = (slice(None),) * axis
        return [
            content.of(content.view.index((*lead, number))) for number in range(leaf.shape[axis])
        ]

    @property
    def inverse(self) -> Stack:
        return Stack(self.into, self.template, self.axis, self.start, self.count, self.must_match)

    def __repr__(self) -> str:
        return f"unstack({_arguments(self)})"


@set_module("safejax")
def stack(
    template: str | Sequence[str],
    into: str | None = None,
    *,
    axis: int = 0,
    start: int = 0,
    count: int | None = None,
    must_match: bool = True,
) -> Transform:
    """A transform that stacks numbered leaves into one, as `jax.lax.scan` takes them.

    One placeholder of `template` is the number: the one that `into`, the template of the new
    name, does not have. Without `into`, the segment of the number is left out: `layers.{i}.*`
    becomes `layers.*`. The numbers must be `start` to `start` + n-1, without padding, and the
    leaves must have the same shape and dtype; the new axis, of size n, is at `axis`. n is the same
    for all leaves whose names are alike up to the number, or `count`: then those with other numbers
    are left alone, as are names with any other text in the place of the number. A list of templates
    stacks leaves of these names, in their order. The inverse is `unstack`. A lazy leaf stays lazy,
    and a part of it reads only the bytes that the part needs. A template that matches no leaf is an
    error, unless `must_match` is false.

    >>> import jax.numpy as jnp
    >>> from safejax import flatten, stack
    >>> tree = {"layers": [{"w": jnp.ones((2, 3))}, {"w": jnp.zeros((2, 3))}]}
    >>> stack("layers.{i}.*")(flatten(tree))["layers.w"].shape
    (2, 2, 3)
    >>> stack("layers.{i}.*").inverse
    unstack('layers.*', 'layers.{i}.*')
    >>> stack(["{i}.k", "{i}.v"], "{i}.kv").inverse
    unstack('{i}.kv', ['{i}.k', '{i}.v'])

    Raises `TransformError` when it is built with templates whose placeholders do not fit, and when
    it is applied to leaves of which one is missing, or differs in shape or dtype.
    """
    if not isinstance(template, str) and isinstance(template, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        refuse_numbers("stack", start, count)
        if into is None:
            raise TransformError("stack: expected the template of the new name: give into=...")
        return concat_new(template, into, axis, must_match)
    source = parsed_template("stack", template)
    if into is None:
        named = [p for p in source.placeholders if not p.startswith("*")]
        segments = template.split(SEPARATOR)
        number = re.compile(rf"\{{{named[0]}(:int)?\}}") if len(named) == 1 else None
        rest = [s for s in segments if number is None or not number.fullmatch(s)]
        if len(rest) != len(segments) - 1 or not rest:
            raise TransformError(
                "stack: expected a template with one segment for the number, as in "
                f"'layers.{{i}}.*', got {template!r}: give the new name, into=..."
            )
        into = SEPARATOR.join(rest)
    source, target = agreeing(source, parsed_template("stack", into))
    check_templates("stack", source, target)
    return Stack(
        source,
        target,
        checked_axis("stack", axis),
        *checked_numbers("stack", start, count),
        must_match,
    )


@set_module("safejax")
def unstack(
    template: str,
    into: str | Sequence[str],
    *,
    axis: int = 0,
    start: int = 0,
    count: int | None = None,
    must_match: bool = True,
) -> Transform:
    """A transform that splits a leaf into numbered ones along `axis`; the inverse of `stack`.

    `into` is the template of the new names. It has the placeholders of `template`, and one more
    for the number, from `start` on. `count` is the size of the axis, which is checked. A list of
    templates gives each element along the axis a name. A template that matches no leaf is an error,
    unless `must_match` is false.

    >>> import jax.numpy as jnp
    >>> from safejax import flatten, unstack
    >>> tree = {"layers": {"w": jnp.ones((2, 3))}}
    >>> list(unstack("layers.*", "layers.{i}.*")(flatten(tree)))
    ['layers.0.w', 'layers.1.w']
    >>> list(unstack("layers.w", ["up", "down"])(flatten(tree)))
    ['up', 'down']

    Raises `TransformError` when it is built with templates whose placeholders do not fit, and when
    it is applied to a leaf without that axis, or with another size along it.
    """
    if not isinstance(into, str) and isinstance(into, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        refuse_numbers("unstack", start, count)
        return split_off(template, into, axis, must_match)
    source, target = agreeing(
        parsed_template("unstack", template), parsed_template("unstack", into)
    )
    check_templates("unstack", target, source)
    return Unstack(
        source, target, checked_axis("unstack", axis), *checked_numbers("unstack", start, count),
        must_match,
    )  # fmt: skip


def _arguments(transform: Stack | Unstack) -> str:
    axis = "" if transform.axis == 0 else f", axis={transform.axis}"
    axis += "" if transform.start == 0 else f", start={transform.start}"
    axis += "" if transform.count is None else f", count={transform.count}"
    must_match = "" if transform.must_match else ", must_match=False"
    return f"{transform.template.text!r}, {transform.into.text!r}{axis}{must_match}"
