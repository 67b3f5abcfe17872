"""`tie`: one stored leaf under two names, as models with tied weights have it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import jax
import numpy as np

from safejax._src.arrays.lazy import LazyArray
from safejax._src.leaves.leaf import aval_of, content_at, describe, is_array
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import Transform
from safejax._src.public import set_module
from safejax._src.pytrees.patterns import Template, agreeing
from safejax._src.transforms.renaming import parsed_template
from safejax._src.transforms.selection import Faults, fault, nothing_matched
from safejax.errors import TransformError

_BLOCK_BYTES = 16 << 20


@final
@dataclass(frozen=True, slots=True)
class Tie(Transform):
    """Second names for leaves, added or removed; see `tie`."""

    rules: tuple[tuple[Template, Template], ...]
    adds: bool = True
    must_match: bool = True

    def __call__(self, leaves: Leaves, /) -> Leaves:
        entries = dict(leaves)
        faults = Faults(self)
        pairs = list(self._pairs(leaves))
        seconds = {name for name, _ in pairs}
        for name, original in pairs:
            try:
                if not self.adds and original in seconds:
                    raise fault(
                        self,
                        f"leaf {original!r}: expected the one of {name!r} that is stored, got a "
                        "second name, which is removed, too: make the templates more specific",
                    )
                if self.adds:
                    _check_new(self, name, entries)
                    entries[name] = _second(name, leaves[original])
                elif name in leaves:
                    _check_same(self, name, leaves[name], original, leaves[original])
                    entries.pop(name)
            except TransformError as error:
                faults.add(name, error)
        faults.check()
        return leaves.replace(entries)

    def _pairs(self, leaves: Leaves) -> Iterator[tuple[str, str]]:
        """The second name and the first one of each leaf that is tied."""
        for name, original in self.rules:
            match = original.matcher()
            matched = False
            for found in leaves:
                values = match(found)
                if values is not None:
                    second = name.fill(values)
                    if self.adds or second in leaves:
                        matched = True
                        yield second, found
            if self.must_match and not matched:
                pattern = original.text if self.adds else name.text
                raise nothing_matched(self, pattern, leaves)

    @property
    def inverse(self) -> "Tie":
        return Tie(self.rules, not self.adds, self.must_match)

    def __repr__(self) -> str:
        rules = {name.text: original.text for name, original in self.rules}
        must_match = "" if self.must_match else ", must_match=False"
        return f"tie({rules!r}{must_match}){'' if self.adds else '.inverse'}"


def _second(name: str, leaf: Any) -> Any:
    """A leaf of its own with the same values, so that either may be donated."""
    if not is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return LazyArray(content_at(name, leaf), name)


def _check_new(step: Tie, name: str, entries: Mapping[str, Any]) -> None:
    if name in entries:
        raise fault(
            step,
            f"expected {name!r} to be a new name, there is a leaf of that name: drop it first, or "
            "correct the template",
        )


def _check_same(step: Tie, name: str, leaf: Any, original: str, first: Any) -> None:
    if not same_values(name, leaf, original, first):
        raise fault(
            step,
            f"leaf {name!r}: expected the values of {original!r}, {describe(first)}, got "
            f"others, {describe(leaf)}: they would be lost; keep both, or drop({name!r})",
        )


def same_values(name: str, leaf: Any, original: str, first: Any) -> bool:
    """Whether two leaves are equal, bit by bit; they are read only if that is not known without."""
    if leaf is first:
        return True
    if not is_array(leaf) or not is_array(first):
        return type(leaf) is type(first) and repr(leaf) == repr(first)
    if isinstance(leaf, jax.ShapeDtypeStruct) or isinstance(first, jax.ShapeDtypeStruct):
        return aval_of(leaf) == aval_of(first)
    one, other = content_at(name, leaf), content_at(original, first)
    if one == other:
        return True
    kinds = {(each.key, each.view.dtype, each.weak_type, each.view.shape) for each in (one, other)}
    if len(kinds) > 1:
        return False
    blocks = zip(one.view.blocks(_BLOCK_BYTES), other.view.blocks(_BLOCK_BYTES), strict=True)
    return all(_bytes(left.read()) == _bytes(right.read()) for left, right in blocks)


def _bytes(array: np.ndarray[Any, Any]) -> bytes:
    return np.ascontiguousarray(array).tobytes()


@set_module("safejax")
def tie(names: Mapping[str, str], *, must_match: bool = True) -> Tie:
    """A transform that gives leaves a second name; its inverse removes it again.

    Each key is the template of the second name, and its value is the template of the leaf that is
    stored, with the same placeholders. Models with tied weights store one array and have it twice
    in their tree: load such a file with `tie(...)`, and save such a tree with `tie(...).inverse`.
    Nothing is read to tie; each of the two leaves is placed by itself, so that either may be
    donated. The inverse compares the two leaves bit by bit, unless they are one array, and removes
    the second only if they are equal. A template that matches no leaf is an error, unless
    `must_match` is false.

    >>> import jax.numpy as jnp
    >>> from safejax import flatten, tie
    >>> tied = tie({"head.weight": "embed.weight"})
    >>> leaves = tied(flatten({"embed": {"weight": jnp.ones((4, 2))}}))
    >>> sorted(leaves), sorted(tied.inverse(leaves))
    (['embed.weight', 'head.weight'], ['embed.weight'])

    Raises `TransformError` when it is built with invalid templates, or with a second name that is
    tied to another one, and when it is applied where
    the second name is taken or, for the inverse, to two leaves with different values.
    """
    if not isinstance(names, Mapping) or not names:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TransformError(f"tie: expected a mapping of second names to names, got {names!r}")
    rules: list[tuple[Template, Template]] = []
    for second, first in names.items():
        name, original = agreeing(parsed_template("tie", second), parsed_template("tie", first))
        if set(name.placeholders) != set(original.placeholders):
            raise TransformError(
                f"tie: expected the same placeholders in {second!r} and {first!r}, got "
                f"{sorted(set(name.placeholders))} and {sorted(set(original.placeholders))}"
            )
        rules.append((name, original))
    _check_apart(rules)
    return Tie(tuple(rules), must_match=must_match)


def _check_apart(rules: list[tuple[Template, Template]]) -> None:
    """Raise `TransformError` if the leaf that a second name is for is a second one itself."""
    seconds = {_shape(name) for name, _ in rules}
    for name, original in rules:
        if _shape(original) == _shape(name):
            raise TransformError(
                f"tie: expected two names, got {name.text!r} for {original.text!r}, which is the "
                "same: correct one of them"
            )
        if _shape(original) in seconds:
            raise TransformError(
                f"tie: expected {original.text!r} to be stored, since {name.text!r} is a second "
                "name for it, got another one: the inverse would remove both; tie each second "
                "name to the one that is stored"
            )


def _shape(template: Template) -> tuple[object, ...]:
    """What templates have in common that differ in what they call their placeholders."""
    order = {name: at for at, name in enumerate(dict.fromkeys(template.placeholders))}
    places = tuple(
        (name.startswith("*"), order[name], among)
        for name, among in zip(template.placeholders, template.among, strict=True)
    )
    return template.parts, places
