"""`rename`: other names for leaves, by templates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from safejax._src.collector import collector_paused
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import Transform
from safejax._src.public import set_module
from safejax._src.pytrees.lookup import Lookup
from safejax._src.pytrees.patterns import Template, agreeing
from safejax._src.transforms.renaming import Renamed, check_shadows
from safejax._src.transforms.selection import capped, fault, nothing_matched
from safejax.errors import TransformError


@final
@dataclass(frozen=True, slots=True)
class Rename(Transform):
    """Names that match a template, changed to what another template makes; see `rename`."""

    rules: tuple[tuple[Template, Template], ...]
    strict: bool = False
    must_match: bool = True

    @collector_paused()
    def __call__(self, leaves: Leaves, /) -> Leaves:
        back = self.inverse
        renamed = Renamed(self)
        used: set[int | None] = set()
        forward, backward = _Renamer(self.rules), _Renamer(back.rules)
        unmatched: list[str] = []
        elsewhere: list[str] = []
        for name, leaf in leaves.items():
            rule, target = forward.rename(name)
            if rule is None and self.strict:
                unmatched.append(repr(name))
            used.add(rule)
            renamed.add(target, leaf, name)
            _, returned = backward.rename(target)
            if returned != name:
                elsewhere.append(f"{target!r} for {name!r}, which it maps to {returned!r}")
        renamed.faults.check()
        if unmatched:
            verb = "matches none" if len(unmatched) == 1 else "match none"
            raise fault(
                self,
                f"expected a template for every leaf, {capped(unmatched)} {verb}: add one, or "
                "pass strict=False",
            )
        if elsewhere:
            raise fault(
                self,
                f"expected a name that the inverse maps back, got {capped(elsewhere)}: make the "
                "templates more specific",
            )
        unused = [n for n in range(len(self.rules)) if n not in used] if self.must_match else []
        check_shadows(self, [source for source, _ in self.rules], unused, leaves)
        if unused:
            (source, target), *others = [self.rules[number] for number in unused]
            also = [other.text for other, _ in others]
            raise nothing_matched(self, source.text, leaves, target.text, also)
        return renamed.leaves_like(leaves)

    @property
    def inverse(self) -> "Rename":
        rules = tuple((target, source) for source, target in self.rules)
        return Rename(rules, self.strict, self.must_match)

    def __repr__(self) -> str:
        rules = {source.text: target.text for source, target in self.rules}
        strict = ", strict=True" if self.strict else ""
        return f"rename({rules!r}{strict}{'' if self.must_match else ', must_match=False'})"


@final
class _Renamer:
    """The rules, compiled."""

    def __init__(self, rules: tuple[tuple[Template, Template], ...]) -> None:
        self._lookup = Lookup(source for source, _ in rules)
        self._targets = [target for _, target in rules]

    def rename(self, name: str) -> tuple[int | None, str]:
        """The number of the first rule that matches `name`, and the new name."""
        number, values = self._lookup.first(name)
        return (None, name) if values is None else (number, self._targets[number].fill(values))


@set_module("safejax")
def rename(
    templates: Mapping[str, str], *, strict: bool = False, must_match: bool = True
) -> Rename:
    """A transform that renames leaves; its inverse restores their names.

    Each key is a template that is matched on whole names; its value is the template of the new
    name, with the same placeholders. `{i}` is one segment, `{i:int}` a number, `{p:q|k|v}` one of
    these texts, and `*` any run of characters; the first `*` of the key corresponds to the first
    of the value. The first template that matches a name is applied. A name that matches none is
    kept or, with `strict`, is an error; a template that matches no name is an error, unless
    `must_match` is false. Values, shapes and dtypes are kept, and nothing is read.

    >>> from safejax import Leaves, rename
    >>> t = rename({"encoder.layer.{i}.weight": "layers.{i}.kernel"})
    >>> list(t(Leaves({"encoder.layer.0.weight": 1})))
    ['layers.0.kernel']
    >>> t.inverse
    rename({'layers.{i}.kernel': 'encoder.layer.{i}.weight'})

    Raises `TransformError` when it is built with invalid templates or with placeholders that
    differ, and when it is applied to leaves of which two would get the same name, or one would
    get a name that the inverse does not map back.
    """
    if not isinstance(templates, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TransformError(f"rename: expected a mapping of templates, got {templates!r}")
    rules: list[tuple[Template, Template]] = []
    seen: set[str] = set()
    for old, new in templates.items():
        for text in (old, new):
            if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TransformError(f"rename: expected templates to be strings, got {text!r}")
        source, target = agreeing(Template.parse(old), Template.parse(new))
        if set(source.placeholders) != set(target.placeholders):
            raise TransformError(
                f"rename: expected the same placeholders in {old!r} and {new!r}, got "
                f"{sorted(source.placeholders)} and {sorted(target.placeholders)}: the inverse "
                "could not fill in the others"
            )
        if target.text in seen:
            raise TransformError(
                f"rename: expected a new name for each template, got {new!r} twice: the "
                "inverse could not choose between them"
            )
        seen.add(target.text)
        rules.append((source, target))
    if not rules:
        raise TransformError("rename: expected at least one template, got none")
    return Rename(tuple(rules), strict, must_match)
