"""Names: the path of segments to a leaf, joined by dots, and which names a file can hold."""

from collections.abc import Iterable
from typing import Final

from safejax.errors import TransformError

SEPARATOR: Final = "."

METADATA_NAME: Final = "__metadata__"
"""The only key of the header that does not name a tensor."""


def join(segments: Iterable[str]) -> str:
    """The name of a path of segments: joined by dots, without escapes."""
    return SEPARATOR.join(segments)


def split(name: str) -> tuple[str, ...]:
    """The segments of a name for which no other path is recorded: split at every dot."""
    return tuple(name.split(SEPARATOR))


def check_name(name: object) -> None:
    """Raise `TransformError` if `name` cannot be stored in the header of a file."""
    if not isinstance(name, str):
        raise TransformError(f"expected names to be strings, got {type(name).__name__} {name!r}")
    if name == METADATA_NAME:
        raise TransformError(f"expected a name other than {name!r}, which the format reserves")
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            raise TransformError(
                f"name {name!r}: expected UTF-8, got half a surrogate pair"
            ) from None
