"""Preparing: what each process makes before all agree on values of it."""

from collections.abc import Callable
from typing import Any, TypeVar

from safejax._src.processes.agreement import Round

_Made = TypeVar("_Made")


def agreed(
    across: Round,
    make: Callable[[], _Made],
    value_of: Callable[[_Made], Any],
    decide: Callable[[list[Any]], Any],
) -> tuple[_Made, Any]:
    """What `make` returns, and what all decide on the values of it.

    An error is given in place of a value, so that one that all have is raised as it is.
    """
    try:
        made = make()
        value = value_of(made)
    except Exception as error:
        across.agree(None, decide, error)
        raise
    return made, across.agree(value, decide)
