"""Arguments in each other's place: their errors name the call that was probably meant."""

import os
from typing import Any, Final

_ENDINGS: Final = (".safetensors", ".json")


def refuse_path(tree: object, function: str, remedy: str) -> None:
    """Raise `TypeError` if `function` was given a path where it takes a tree.

    A string is a tree, too: it is taken for a path if it ends like one, or if there is a file.
    """
    if is_path(tree):
        raise TypeError(f"{function}: expected a tree, got the path {tree!r}: {remedy}")


def is_path(value: object) -> bool:
    """Whether a value is a path, or a string that is probably one."""
    if not isinstance(value, str):
        return isinstance(value, os.PathLike)
    if value.endswith(_ENDINGS) or "://" in value:
        return True
    try:
        return os.path.exists(value)
    except ValueError:  # A null character, or half a surrogate pair.
        return False


def is_open_file(value: Any) -> bool:
    """Whether a value is an open file, or a buffer with the methods of one."""
    return hasattr(value, "read") and hasattr(value, "write")


def check_progress(progress: object, function: str) -> None:
    """Raise `TypeError` unless `progress` can be called, or is None."""
    if progress is not None and not callable(progress):
        raise TypeError(
            f"{function}: progress: expected a function of the bytes done and of all bytes, got "
            f"{progress!r}: pass progress=lambda done, total: print(done, total)"
        )
