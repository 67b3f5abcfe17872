"""Rules of a merge: the template of a new name, and those of the leaves that become it."""

from collections.abc import Sequence
from typing import TypeAlias, cast

from safejax._src.pytrees.patterns import Template, agreeing
from safejax._src.transforms.renaming import parsed_template
from safejax.errors import TransformError

Rule: TypeAlias = tuple[Template, tuple[Template, ...]]


def parsed_rule(into: object, parts: object) -> Rule:
    """The rule of a new name and a list of old ones; `TransformError` if they do not fit."""
    target = parsed_template("merge", into)
    if isinstance(parts, str) or not isinstance(parts, Sequence) or not parts:
        raise TransformError(f"merge: expected a list of templates for {into!r}, got {parts!r}")
    sources = tuple(parsed_template("merge", part) for part in cast("Sequence[object]", parts))
    for source in sources:
        if set(source.placeholders) != set(target.placeholders):
            raise TransformError(
                f"merge: expected the same placeholders in {target.text!r} and {source.text!r}, "
                f"got {sorted(set(target.placeholders))} and {sorted(set(source.placeholders))}"
            )
    if len({source.text for source in sources}) != len(sources):
        raise TransformError(f"merge: expected each template once, got {parts!r}")
    target, *sources = agreeing(target, *sources)
    return target, tuple(sources)
