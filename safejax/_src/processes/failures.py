"""Failures: an error of one process as text, and as the same error in every other process."""

import builtins
from typing import Any, Final

from safejax import errors
from safejax.errors import ProcessError

_BUILTIN: Final = ("ImportError", "MemoryError", "OSError", "TypeError", "ValueError")
_KINDS: Final[dict[str, type[Exception]]] = {
    **{name: getattr(builtins, name) for name in _BUILTIN},
    **{
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.SafejaxError)
    },
}
"""The errors that other processes raise as they are; any other one is a `ProcessError` there."""


def is_shared(error: BaseException) -> bool:
    """Whether other processes can raise an error of the same class."""
    return type(error).__name__ in _KINDS or isinstance(error, OSError)


def described(error: BaseException) -> dict[str, Any]:
    """What `error_of` makes the error from, as JSON holds it."""
    kind = type(error).__name__
    if isinstance(error, OSError) and error.errno is not None:
        file = None if error.filename is None else str(error.filename)
        return {"errno": error.errno, "text": error.strerror, "file": file}
    if not is_shared(error):
        return {"kind": "ProcessError", "text": f"{kind}: {error}".removesuffix(": ")}
    return {"kind": kind if kind in _KINDS else "OSError", "text": str(error)}


def error_of(description: dict[str, Any], process: int | None) -> Exception:
    """The error that was described; its text names the process, unless it is None."""
    text = description["text"] if process is None else f"process {process}: {description['text']}"
    if "errno" in description:
        file = description["file"]
        # Python makes a FileNotFoundError, for example, from its number.
        return OSError(description["errno"], text, *([] if file is None else [file]))
    return _KINDS.get(description["kind"], ProcessError)(text)


def is_because_of(error: BaseException | None, cause: BaseException) -> bool:
    """Whether an error is another one, or was raised from it or while it was handled."""
    while error is not None and error is not cause:
        error = error.__cause__ or error.__context__
    return error is cause
