"""Faults: the errors of file systems, as errors that say of which file they are.

They have no credentials.
"""

import contextlib
import errno
from collections.abc import Callable, Generator
from typing import TypeVar

from safejax._src.reading import patience as patience_of
from safejax._src.reading.masking import masked
from safejax._src.reading.patience import patiently, status_of
from safejax._src.reading.remote import remedy, said_by, shown_cause
from safejax.errors import ReadError

_T = TypeVar("_T")


def told(kind: str, path: str, question: Callable[[], _T]) -> _T:
    """The answer of a place of this kind to a question about a path, which is asked patiently.

    Raises `FileNotFoundError` or `ReadError`.
    """
    try:
        return patiently(question, patience_of.PATIENCE)
    except Exception as error:  # noqa: BLE001 - a file system may raise anything
        said = said_by(error)
        shown = masked(path)
        if isinstance(error, FileNotFoundError) or status_of(error) in (404, 410):
            missing = FileNotFoundError(f"{shown}: there is no such file; got {said}")
            raise missing from shown_cause(error)
        raise ReadError(f"{shown}: asking {kind} failed: {said}{remedy(error)}") from shown_cause(
            error
        )


@contextlib.contextmanager
def saving(kind: str, path: str) -> Generator[None]:
    """A block in which a place of this kind is asked to save a file.

    Its errors become an `OSError` of the same number.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a file system may raise anything
        number = error.errno if isinstance(error, OSError) else None
        status = status_of(error)
        help_ = ""
        if status in (401, 403) or isinstance(error, PermissionError):
            number = number or errno.EACCES
            help_ = "; pass a file system that may write there, with fs="
        elif status == 404 or isinstance(error, FileNotFoundError):
            number = number or errno.ENOENT
            help_ = "; the bucket, or the folder, has to be there"
        elif isinstance(error, NotImplementedError):
            help_ = "; save to a local path, and copy that there"
        reason = f"saving to {kind} failed: {said_by(error)}{help_}"
        raise OSError(number or errno.EIO, reason, masked(path)) from shown_cause(error)
