"""What transforms that give new names share: templates, and a distinct name for each leaf."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import jax

from safejax._src.arrays.content import Content
from safejax._src.collector import collector_paused
from safejax._src.leaves.leaf import named
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.making import Maker
from safejax._src.leaves.steps import Transform
from safejax._src.pytrees.lookup import Lookup
from safejax._src.pytrees.moving import moved
from safejax._src.pytrees.names import check_name
from safejax._src.pytrees.patterns import Template
from safejax._src.transforms.selection import Faults, fault, nothing_matched, quoted
from safejax.errors import TransformError


@final
class Renamed:
    """The entries of new Leaves, each under a name of its own.

    `claimed` says whether the inverse of the transform applies to a name. The name of a leaf that
    the transform itself leaves alone must not be such a name.
    """

    def __init__(
        self, transform: Transform, claimed: Callable[[str], bool] = lambda _: False
    ) -> None:
        self.faults = Faults(transform)
        self._entries: dict[str, Any] = {}
        self._transform = transform
        self._claimed = claimed
        self._origins: dict[str, str] = {}

    @property
    def entries(self) -> dict[str, Any]:
        """The leaves by their names; raises `TransformError` if something is at fault with any."""
        self.faults.check()
        return self._entries

    def leave(self, name: str, leaf: Any) -> None:
        """Keep `leaf` under its name."""
        if self._claimed(name):
            wrong = fault(
                self._transform,
                f"leaf {name!r}: expected leaves that are left alone to have "
                "names unlike the new ones, the inverse would apply to this one as well: give the "
                "new leaves other names",
            )
            self.faults.add(name, wrong)
            return
        self.add(name, leaf, name)

    def add(self, name: str, leaf: Any, origin: str) -> None:
        """Add `leaf`, whose name was `origin`, as `name`; it is at fault if that is taken."""
        if name in self._entries:
            wrong = fault(
                self._transform,
                f"expected a name for each leaf, got {name!r} for both "
                f"{self._origins[name]!r} and {origin!r}: correct the templates",
            )
            self.faults.add(origin, wrong)
            return
        if name != origin:
            check_name(name)
            leaf = named(leaf, name)
        self._entries[name] = leaf
        self._origins[name] = origin

    def leaves_like(self, leaves: Leaves) -> Leaves:
        """The entries as Leaves, if each is one of `leaves`: containers that moved keep kinds."""
        entries = self.entries
        structure = moved(leaves.structure, self._origins)
        return Leaves(entries, structure, leaves.metadata)


def filled(
    transform: Transform,
    template: Template,
    back: Callable[[str], dict[str, str] | None],
    values: dict[str, str],
    name: str,
) -> str:
    """The new name of the leaf `name`; `back`, the inverse, must match it with the same values."""
    target = template.fill(values)
    if back(target) != values:
        raise fault(
            transform,
            f"expected a name that the inverse maps back, got {target!r} for "
            f"{name!r}, which it matches with {back(target)}: make the templates more specific",
        )
    return target


@collector_paused()
def parted(
    transform: Transform,
    leaves: Leaves,
    template: Template,
    must_match: bool,
    claimed: Callable[[str], bool],
    parts: Callable[[str, Any, dict[str, str]], Iterable[tuple[str, Content]]],
) -> Leaves:
    """The leaves, with each that matches `template` replaced by its `parts`.

    `parts(name, leaf, values)` gives names and contents; `values` are those of the placeholders.
    """
    match, maker = template.matcher(), Maker()
    renamed = Renamed(transform, claimed)
    matched = False
    for name, leaf in leaves.items():
        values = match(name)
        if values is None:
            renamed.leave(name, leaf)
            continue
        matched = True
        try:
            made = list(parts(name, leaf, values))
        except TransformError as error:
            renamed.faults.add(name, error)
            continue
        for target, part in made:
            renamed.add(target, maker.like(leaf, part, target), name)
    if must_match and not matched:
        raise nothing_matched(transform, template.text, leaves)
    return leaves.replace(renamed.entries)


@collector_paused()
def gathered(
    transform: Transform,
    leaves: Leaves,
    groups: Mapping[str, tuple[str, list[str]]],
    into: Template,
    whole: Callable[[list[str], str], Content],
) -> Leaves:
    """The leaves, with each group of them replaced by `whole(names, target)`.

    `groups` maps each new name to the old name whose position it takes, and to all old names.
    """
    back, maker = into.matcher(), Maker()
    renamed = Renamed(transform, lambda name: back(name) is not None)
    group_of = {name: target for target, (_, names) in groups.items() for name in names}
    for name, leaf in leaves.items():
        target = group_of.get(name)
        if target is None:
            renamed.leave(name, leaf)
            continue
        place, names = groups[target]
        if name == place:
            try:
                content = whole(names, target)
            except TransformError as error:
                renamed.faults.add(target, error)
                continue
            made = maker.like(representative(leaves, names), content, target)
            renamed.add(target, made, name)
    return leaves.replace(renamed.entries)


def representative(leaves: Leaves, names: list[str]) -> Any:
    """The leaf that one made of all these will be like: an abstract one, if there is one."""
    abstract = [leaves[name] for name in names if isinstance(leaves[name], jax.ShapeDtypeStruct)]
    return (abstract or [leaves[names[0]]])[0]


def check_shadows(
    transform: Transform, templates: Sequence[Template], unused: Iterable[int], leaves: Leaves
) -> None:
    """Raise `TransformError` if earlier templates take all names that an unused one matches."""
    shadowed: list[str] = []
    for number in unused:
        match = templates[number].matcher()
        taken = [name for name in leaves if match(name) is not None]
        if taken:
            rule, _ = Lookup(templates[:number]).first(taken[0])
            text, earlier = templates[number].text, templates[rule].text
            shadowed.append(
                f"expected {text!r} to match a leaf of its own, but {earlier!r}, which comes "
                f"before it, takes {quoted(taken)}: put {text!r} first"
            )
    if shadowed:
        raise fault(transform, "; ".join(shadowed[:8]))


def parsed_template(step: str, text: object) -> Template:
    """`text` as a template; `TransformError` if it is not one."""
    if not isinstance(text, str):
        raise TransformError(f"{step}: expected templates to be strings, got {text!r}")
    return Template.parse(text)


def parsed_parts(step: str, argument: str, texts: Sequence[str]) -> tuple[Template, ...]:
    """The templates of several names; `TransformError` for anything else, or one twice."""
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TransformError(
            f"{step}: expected {argument} to be a sequence of templates, got {texts!r}"
        )
    parts = tuple(parsed_template(step, text) for text in texts)
    if len({part.text for part in parts}) != len(parts):
        raise TransformError(
            f"{step}: expected a name for each part, got one twice in {list(texts)}"
        )
    return parts


def check_placeholders(step: str, whole: Template, parts: tuple[Template, ...]) -> None:
    """Raise `TransformError` unless all of the templates have the same placeholders."""
    for part in parts:
        if set(part.placeholders) != set(whole.placeholders):
            raise TransformError(
                f"{step}: expected the same placeholders in {whole.text!r} and {part.text!r}, "
                f"got {sorted(set(whole.placeholders))} and {sorted(set(part.placeholders))}"
            )
