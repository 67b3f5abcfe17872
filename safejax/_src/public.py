"""The module from which users import what is written in here."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

_Public = TypeVar("_Public", bound=Callable[..., Any])


def set_module(name: str) -> Callable[[_Public], _Public]:
    """A decorator that gives a class or a function the name of the module that exports it.

    `repr`, `help()` and pickles then show the path that users import it by, and a pickle can be
    read after the private module has moved. JAX and NumPy do the same, with the same function.
    The price is theirs too: `inspect.getsource` looks for a class in its module's file, and finds
    none. Functions and methods it finds by their code.
    """

    def decorate(value: _Public) -> _Public:
        value.__module__ = name
        # From Python 3.13, inspect would show what is at this line of the other file. Python
        # forgets the line by itself, but not of every class.
        if "__firstlineno__" in vars(value):
            del cast("Any", value).__firstlineno__
        return value

    return decorate
