"""Warnings that point at the caller's line, however many of our own frames lie in between."""

import contextlib
import os
import sys
import warnings
from collections.abc import Generator
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from types import FrameType
from typing import Final

# Packages whose frames are not a caller's: this one, and the one that calls it on users' behalf.
_PACKAGES: Final = (__name__.partition(".")[0], "jax")

# The frame of a context manager that is used as a decorator.
_FILES: Final = frozenset({contextlib.__file__})

_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)


@contextlib.contextmanager
def warnings_collected() -> Generator[list[str]]:
    """A list that gets the messages of `warn_caller` in the block, which are not issued then.

    Those of other threads are issued. (`warnings.catch_warnings` would take theirs, too.)
    """
    messages: list[str] = []
    token = _collected.set(messages)
    try:
        yield messages
    finally:
        _collected.reset(token)


def warn_caller(message: str, category: type[Warning]) -> None:
    """Issue a warning at the innermost line that is neither safejax's nor JAX's.

    That is the line of the user's function, also where JAX calls back into safejax from inside
    `jax.jit`. The warning filters that apply there, the "once per location" one included, apply
    to the warning. It must be called in the user's thread: a thread of ours has no caller.
    """
    collected = _collected.get()
    if collected is not None:
        collected.append(message)
        return
    # From Python 3.12, warnings.warn has skip_file_prefixes for this; 3.11 has not.
    level = 1
    frame: FrameType | None = sys._getframe()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    while frame is not None and _is_internal(frame.f_code.co_filename):
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)


def _is_internal(file: str) -> bool:
    return file in _FILES or file.startswith(_folders())


@cache
def _folders() -> tuple[str, ...]:
    """The folders of the packages whose frames are skipped, each with a separator at its end."""
    folders: list[str] = []
    for package in _PACKAGES:
        spec = find_spec(package)
        if spec is not None:
            folders += [
                os.path.join(folder, "") for folder in spec.submodule_search_locations or ()
            ]
    return tuple(folders)
