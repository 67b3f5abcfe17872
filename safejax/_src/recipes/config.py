"""What a recipe is made of: the values of a `config.json`, and the names of the tensors."""

from collections.abc import Collection, Mapping
from typing import Any, cast, final

from safejax.errors import TransformError


@final
class Config:
    """The values of a model's `config.json`, which is at `where`.

    `names` are those of the checkpoint's tensors, or None if they are not known.
    """

    __slots__ = ("_names", "_values", "where")

    def __init__(
        self, values: Mapping[str, Any], where: str, names: Collection[str] | None = None
    ) -> None:
        self._values, self.where, self._names = values, where, names

    def text(self, key: str) -> str:
        """The string of a key; `TransformError` if there is none."""
        value = self._values.get(key)
        if not isinstance(value, str):
            raise TransformError(f"{self.where}: expected a string for {key!r}, got {value!r:.80}")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """The whole number of a key, 1 or more; `default` if it is missing or null."""
        value = self._values.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise TransformError(
                f"{self.where}: expected a whole number, 1 or more, for {key!r}, got {value!r:.80}"
            )
        return value

    def sizes(self, **keys: str) -> dict[str, int]:
        """The sizes of axes, by the keys that give them: those that are there.

        Configurations omit what is a default. The size of such an axis follows from the leaves.
        """
        return {axis: self.size(key) for axis, key in keys.items() if self.has(key)}

    def has(self, key: str) -> bool:
        """Whether a key has a value that is neither null, false nor empty."""
        return bool(self._values.get(key))

    def flag(self, key: str, default: bool) -> bool:
        """The truth value of a key."""
        value = self._values.get(key)
        return default if value is None else bool(value)

    def items(self, key: str) -> list[Any]:
        """The list of a key; empty if it is missing or null."""
        value = self._values.get(key)
        if value is not None and not isinstance(value, list | tuple):
            raise TransformError(f"{self.where}: expected a list for {key!r}, got {value!r:.80}")
        return list(cast("list[Any]", value or []))

    def part(self, key: str) -> "Config":
        """The configuration of a part of the model."""
        value = self._values.get(key)
        if not isinstance(value, Mapping):
            raise TransformError(f"{self.where}: expected an object for {key!r}, got {value!r:.80}")
        return Config(cast("Mapping[str, Any]", value), f"{self.where}: {key}", self._names)

    def is_for(self, what: str) -> bool:
        """Whether the model is one `what`, for example `CausalLM`, as its class says."""
        return any(str(name).endswith(f"For{what}") for name in self.items("architectures"))

    def refuse(self, key: str, expected: str) -> TransformError:
        """The error for a value that the family does not have here."""
        return TransformError(
            f"{self.where}: the recipe for {self._values.get('model_type')!r} expects {expected}, "
            f"got {key}={self._values.get(key)!r:.80}: write a table with safejax.correspond"
        )

    def prefix(self, prefix: str, name: str) -> str:
        """`prefix`, or nothing if the checkpoint has a tensor `name` without it.

        A model that was saved without its head has names without the prefix of the whole.
        """
        return "" if self._names is not None and name in self._names else prefix

    def names_begin_with(self, prefix: str) -> bool:
        """Whether a name of the checkpoint begins so."""
        return any(name.startswith(prefix) for name in self._names or ())

    def names_end_in(self, end: str) -> bool:
        """Whether a name of the checkpoint ends so."""
        return any(name.endswith(end) for name in self._names or ())
