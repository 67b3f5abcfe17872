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


def check_tree_and_path(tree: object, path: object, function: str) -> None:
    """Raise `TypeError` for arguments of a function that saves, meant for another call."""
    if isinstance(path, str | os.PathLike):
        # Of two strings it is more likely that the first one is a path than that it is the tree.
        if isinstance(tree, str | os.PathLike):
            raise TypeError(
                f"{function}: expected a tree, got the path {tree!r}: to convert a file, call "
                f"safejax.{function}(safejax.load({tree!r}), {path!r}); to store a string, give "
                "it a name"
            )
    elif isinstance(tree, str | os.PathLike):
        raise TypeError(
            f"{function}: expected the tree first and then its path, got the path {tree!r} and "
            f"{type(path).__name__}: call safejax.{function}(tree, {tree!r})"
        )
    elif is_open_file(path):
        raise TypeError(
            f"{function}: expected a path (str or os.PathLike), got {type(path).__name__}, an open "
            "file: call file.write(safejax.serialize(tree))"
        )


def check_source(path: object, function: str = "load") -> None:
    """Raise `TypeError` for what `load`, or `function`, cannot open, and another function could."""
    if isinstance(path, bytes | bytearray | memoryview):
        remedy = "call safejax.deserialize(data)"
    elif is_open_file(path):
        remedy = "call safejax.deserialize(file.read())"
    elif isinstance(path, str | os.PathLike | list | tuple):
        return
    else:
        remedy = "pass the path first, and a tree as like=tree"
    raise TypeError(
        f"{function}: expected a path (str or os.PathLike), got {type(path).__name__}: {remedy}"
    )


def checked_size(nbytes: object, argument: str, least: int) -> int | None:
    """`nbytes` if it is None or an int of at least `least`, else `ValueError`."""
    if nbytes is not None and (type(nbytes) is not int or nbytes < least):
        raise ValueError(f"{argument}: expected a number of bytes, {least} or more, got {nbytes!r}")
    return nbytes


def is_timeout(timeout: object) -> bool:
    """Whether it is a number of seconds, more than 0."""
    return type(timeout) in (int, float) and 0 < timeout < float("inf")  # pyright: ignore


def check_timeout(timeout: object) -> None:
    """Raise `ValueError` for what is not a number of seconds."""
    if not is_timeout(timeout):
        raise ValueError(f"timeout: expected seconds, more than 0, got {timeout!r}")
