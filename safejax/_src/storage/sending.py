"""Sending: what all places that files are sent to share: the size of parts, and errors."""

import contextlib
import errno
from collections.abc import Generator
from typing import Final

from safejax._src.reading.masking import masked
from safejax._src.reading.patience import status_of
from safejax._src.reading.remote import shown_cause

_MOST_PARTS: Final = 10_000
"""Of one file in S3 (Amazon S3, Multipart upload limits)."""

_STEP: Final = 1 << 20
"""Sizes of parts are multiples of this, as Google's uploads need it of 256 KiB."""


def least_part(nbytes: int) -> int:
    """The least size of the parts, in bytes, in which a file of `nbytes` can be sent to S3."""
    # A part may be smaller than the others where a chunk ends; a tenth is left for that.
    return -(-nbytes // (_MOST_PARTS * 9 // 10 * _STEP)) * _STEP


@contextlib.contextmanager
def saving(kind: str, path: str) -> Generator[None]:
    """A block in which a place of this kind is asked to save a file.

    Its errors become an `OSError` of the same number, which says which file, and no credentials.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a file system may raise anything
        said = masked(f"{type(error).__name__}: {error}")[:1000]
        number = error.errno if isinstance(error, OSError) else None
        status = status_of(error)
        remedy = ""
        if status in (401, 403) or isinstance(error, PermissionError):
            number = number or errno.EACCES
            remedy = "; pass a file system that may write there, with fs="
        elif status == 404 or isinstance(error, FileNotFoundError):
            number = number or errno.ENOENT
            remedy = "; the bucket, or the folder, has to be there"
        elif isinstance(error, NotImplementedError):
            remedy = "; save to a local path, and copy that there"
        reason = f"saving to {kind} failed: {said}{remedy}"
        raise OSError(number or errno.EIO, reason, masked(path)) from shown_cause(error)
