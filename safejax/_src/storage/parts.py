"""Parts: how large the parts are in which a file is sent to an object store."""

from typing import Final

_MOST_PARTS: Final = 10_000
"""Of one file in S3 (Amazon S3, Multipart upload limits)."""

_STEP: Final = 1 << 20
"""Sizes of parts are multiples of this, as Google's uploads need it of 256 KiB."""


def least_part(nbytes: int) -> int:
    """The least size of the parts, in bytes, in which a file of `nbytes` can be sent to S3."""
    # A tenth is left for parts that are smaller than the others.
    return -(-nbytes // (_MOST_PARTS * 9 // 10 * _STEP)) * _STEP
