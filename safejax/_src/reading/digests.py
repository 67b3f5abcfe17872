"""Digests: one for each block of a tensor's bytes, so that a part is checked by its blocks.

`save(..., checksum=True)` records the digests, and `load(..., verify=True)` checks each block
when it is read. The digest is 64-bit XXH3, which detects damage, but does not protect against
somebody who changes the digest too. `xxhash` is an extra (`safejax[checksum]`), imported when
digests are first needed.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias, final

ALGORITHM: Final = "xxh3_64"
DIGEST_BYTES: Final = 8

_MIN_BLOCK_BYTES: Final = 1 << 20
_MAX_BLOCKS: Final = 1 << 16

_Hash: TypeAlias = Any
"""An xxhash hash object, which works like those of hashlib. `Any`, since xxhash is an extra."""


@final
class Digests(NamedTuple):
    """The digests of a file: one for each block of `block_bytes` of each tensor, in order.

    `of` maps the name of each tensor to its concatenated digests, `DIGEST_BYTES` each.
    """

    block_bytes: int
    of: Mapping[str, bytes]


def chosen_block_bytes(total: int) -> int:
    """The block size for a file with `total` bytes of data: 1 MiB, or more above 64 GiB.

    A header is limited to 100 MB, so the number of blocks is bounded, and not their size.
    """
    block = _MIN_BLOCK_BYTES
    while total > block * _MAX_BLOCKS:
        block *= 2
    return block


def digests_size(nbytes: int, block_bytes: int) -> int:
    """The total size in bytes of the digests of a tensor of `nbytes`."""
    return -(-nbytes // block_bytes) * DIGEST_BYTES


def hasher() -> Callable[[], _Hash]:
    """The function that makes a new hash object; `ImportError` if xxhash is not installed."""
    try:
        # Imported by name: only callers that ask for digests need it.
        return importlib.import_module("xxhash").xxh3_64
    except ImportError as error:
        raise ImportError(
            f"checksums need xxhash, which cannot be imported ({error}): "
            "pip install 'safejax[checksum]'",
            name=error.name,
        ) from error


@final
class BlockHasher:
    """Computes the digests of a tensor whose bytes arrive in chunks of any size."""

    def __init__(self, new: Callable[[], _Hash], block_bytes: int) -> None:
        self._new = new
        self._block_bytes = block_bytes
        self._done: list[bytes] = []
        self._current = new()
        self._missing = block_bytes

    def update(self, chunk: memoryview) -> None:
        """Add the next bytes of the tensor."""
        while chunk.nbytes:
            part = chunk[: self._missing]
            self._current.update(part)
            self._missing -= part.nbytes
            chunk = chunk[part.nbytes :]
            if not self._missing:
                self._finish_block()

    def digests(self) -> bytes:
        """The digests of all blocks, concatenated; the last block may be shorter."""
        if self._missing < self._block_bytes:
            self._finish_block()
        return b"".join(self._done)

    def _finish_block(self) -> None:
        self._done.append(self._current.digest())
        self._current = self._new()
        self._missing = self._block_bytes
