"""`prefix`: a segment that is put before all names."""

from dataclasses import dataclass
from typing import final

from safejax._src.collector import collector_paused
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import Transform
from safejax._src.public import set_module
from safejax._src.pytrees.names import SEPARATOR, check_name
from safejax._src.transforms.renaming import Renamed
from safejax._src.transforms.selection import fault, quoted
from safejax.errors import TransformError


@final
@dataclass(frozen=True, slots=True)
class Prefix(Transform):
    """Names with a prefix added, or removed; see `prefix`."""

    text: str
    adds: bool = True

    @collector_paused()
    def __call__(self, leaves: Leaves, /) -> Leaves:
        if not self.adds:
            others = [name for name in leaves if self._below(self._above(name)) != name]
            if others:
                raise fault(
                    self,
                    f"expected names that begin with {self.text + SEPARATOR!r}, got "
                    f"{quoted(others)}: select those that do first",
                )
        renamed = Renamed(self)
        for name, leaf in leaves.items():
            renamed.add(self._below(name) if self.adds else self._above(name), leaf, name)
        return renamed.leaves_like(leaves)

    def _below(self, name: str) -> str:
        return f"{self.text}{SEPARATOR}{name}" if name else self.text

    def _above(self, name: str) -> str:
        return name.removeprefix(self.text).removeprefix(SEPARATOR)

    @property
    def inverse(self) -> "Prefix":
        return Prefix(self.text, not self.adds)

    def __repr__(self) -> str:
        return f"prefix({self.text!r}){'' if self.adds else '.inverse'}"


@set_module("safejax")
def prefix(text: str) -> Prefix:
    """A transform that puts `text` and a dot before all names: `w` becomes `text.w`.

    A bare leaf, whose name is empty, gets the name `text`. The inverse removes the prefix, and
    raises an error for a name without it.

    >>> from safejax import Leaves, prefix
    >>> list(prefix("model")(Leaves({"encoder.w": 1})))
    ['model.encoder.w']
    >>> list(prefix("model").inverse(Leaves({"model.encoder.w": 1})))
    ['encoder.w']

    Raises `TransformError` for anything that cannot be the beginning of a name.
    """
    if not isinstance(text, str) or not text:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TransformError(f"prefix: expected a string to put before names, got {text!r}")
    check_name(f"{text}{SEPARATOR}")
    return Prefix(text)
