"""`rename`: leaves to other names, by templates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from safejax.errors import TransformError
from safejax.leaves import Leaves
from safejax.names import Template
from safejax.steps import Transform
from safejax.transforms.selection import Renamed, nothing_matched


@final
@dataclass(frozen=True, slots=True)
class Rename(Transform):
    """Names that match one template to the name that the other gives; see `rename`."""

    rules: tuple[tuple[Template, Template], ...]
    strict: bool = False
    must_match: bool = True

    def __call__(self, leaves: Leaves, /) -> Leaves:
        back = self.inverse
        renamed = Renamed(self)
        used: set[int | None] = set()
        forward, backward = _Renamer(self.rules), _Renamer(back.rules)
        for name, leaf in leaves.items():
            rule, target = forward.rename(name)
            if rule is None and self.strict:
                raise TransformError(
                    f"{self!r}: expected a template for every leaf, {name!r} matches none: "
                    "add one, or pass strict=False"
                )
            used.add(rule)
            renamed.add(target, leaf, name)
            _, returned = backward.rename(target)
            if returned != name:
                raise TransformError(
                    f"{self!r}: expected a name that the inverse takes back, got {target!r} for "
                    f"{name!r}, which goes back to {returned!r}: make the templates tell them apart"
                )
        for number, (source, _) in enumerate(self.rules):
            if self.must_match and number not in used:
                raise nothing_matched(self, repr(source.text), leaves)
        return leaves.replace(renamed.entries)

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
    """The rules, ready to be asked."""

    def __init__(self, rules: tuple[tuple[Template, Template], ...]) -> None:
        self._rules = [(source.matcher(), target) for source, target in rules]

    def rename(self, name: str) -> tuple[int | None, str]:
        """Which rule speaks of `name`, and what it makes of it; the first one wins."""
        for number, (match, target) in enumerate(self._rules):
            values = match(name)
            if values is not None:
                return number, target.fill(values)
        return None, name


def rename(
    templates: Mapping[str, str], *, strict: bool = False, must_match: bool = True
) -> Rename:
    """A transform that renames leaves; its inverse names them back.

    Each key is a template matched on whole names, each value the template of the new name, with
    the same placeholders: `{i}` is one segment, `*` (the first on one side goes to the first on
    the other) any run of characters. The first template that matches wins. Names that match
    none stay, or are an error with `strict`; a template that matches none is an error, unless
    `must_match` is false. Values, shapes and dtypes stay as they are; nothing is read.

    >>> from safejax import Leaves, rename
    >>> t = rename({"encoder.layer.{i}.weight": "layers.{i}.kernel"})
    >>> list(t(Leaves({"encoder.layer.0.weight": 1})))
    ['layers.0.kernel']
    >>> t.inverse
    rename({'layers.{i}.kernel': 'encoder.layer.{i}.weight'})

    Raises `TransformError` when built for templates that are wrong or whose placeholders
    differ; when applied where two leaves would have one name, or the inverse would not take a
    name back.
    """
    if not isinstance(templates, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TransformError(f"rename: expected a mapping of templates, got {templates!r}")
    rules: list[tuple[Template, Template]] = []
    for old, new in templates.items():
        for text in (old, new):
            if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TransformError(f"rename: expected templates to be strings, got {text!r}")
        source, target = Template.parse(old), Template.parse(new)
        if set(source.placeholders) != set(target.placeholders):
            raise TransformError(
                f"rename: expected the same placeholders in {old!r} and {new!r}, got "
                f"{sorted(source.placeholders)} and {sorted(target.placeholders)}: the inverse "
                "could not know the others"
            )
        for _, earlier in rules:
            if earlier.text == target.text:
                raise TransformError(
                    f"rename: expected a new name for each template, got {new!r} twice: the "
                    "inverse could not know which to go back to"
                )
        rules.append((source, target))
    if not rules:
        raise TransformError("rename: expected at least one template, got none")
    return Rename(tuple(rules), strict, must_match)
