"""The extent of a tree that somebody else has written: how long the names of its leaves would be.

Each name has the whole path to a leaf, so a file of a megabyte, in which very many leaves are below
one long path, would have names of many gigabytes.
"""

from typing import Any, Final, cast

from safejax.errors import InvalidFileError

MAX_NAMES: Final = 100_000_000
"""Characters of all names of a tree together; a header could not hold more."""

_CONTAINERS: Final = (dict, list, tuple)  # and not what derives from them, which is a leaf


def check_extent(tree: Any, file: str) -> None:
    """Raise `InvalidFileError` if the names of a tree of dicts, lists and tuples are too long."""
    total = 0
    pending: list[tuple[Any, int]] = [(tree, 0)] if type(tree) in _CONTAINERS else []
    while pending:
        node, length = pending.pop()
        items = node.items() if type(node) is dict else enumerate(cast("list[Any]", node))
        for key, child in items:
            reached = length + len(str(key)) + 1
            total += reached
            if type(child) in _CONTAINERS:
                pending.append((child, reached))
        if total > MAX_NAMES:
            raise InvalidFileError(
                f"{file}: expected names of at most {MAX_NAMES} characters together, got more, "
                "since there are many leaves below long paths: store it with shorter keys"
            )
