"""The header of a file that is to be written: the order of its tensors, and its bytes."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from safejax._src.dtypes import BITS, Stored
from safejax._src.format import strict_json
from safejax._src.format.header import LENGTH_BYTES, MAX_HEADER_BYTES
from safejax._src.pytrees.names import METADATA_NAME
from safejax.errors import InvalidFileError, LeafError

SMALL_ALIGNMENT: Final = 64
"""Bytes: XLA's CPU client uses a buffer with this alignment in place, without a copy."""

PAGE_ALIGNMENT: Final = 4096
"""Bytes: the data of a large file begins on a page, so that its pages hold nothing else."""

LARGE_DATA_BYTES: Final = 1 << 20
"""Bytes of data from which a file counts as large."""


def data_order(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors, by name, in the order in which their data is stored.

    Empty tensors come first; then those whose size is a multiple of 64 bytes, so that each
    begins on such a multiple; then the rest by decreasing width of their elements, so that each
    is at least aligned for its dtype. Tensors that are equal in this are ordered by name.
    """
    # Names alone are sorted in a fraction of the time of pairs.
    ranked: dict[int, list[str]] = {}
    ranks: dict[Stored, int] = {}
    for name, stored in tensors.items():
        rank = ranks.get(stored)
        if rank is None:
            rank = ranks[stored] = _rank(stored)
        ranked.setdefault(rank, []).append(name)
    return {name: tensors[name] for _, names in sorted(ranked.items()) for name in sorted(names)}


def _rank(stored: Stored) -> int:
    if stored.nbytes == 0:
        return -1 << 16
    return -BITS[stored.code] if stored.nbytes % SMALL_ALIGNMENT else -1 << 15


@lru_cache(maxsize=1024)
def _written(stored: Stored) -> str:
    """What comes before the offsets of a tensor."""
    shape = strict_json.write(stored.shape)
    return f'{{"dtype":"{stored.code}","shape":{shape},"data_offsets":['


def write_header(tensors: Mapping[str, Stored], metadata: Mapping[str, str], file: str) -> bytes:
    """The bytes of the length and the header of a file with the tensors' data in their order.

    `tensors` says for each name how the tensor is stored. Raises `LeafError` for a name or metadata
    that no header can hold, and `InvalidFileError` for a header so long that readers refuse it.
    """
    if METADATA_NAME in tensors:
        raise LeafError(
            f"{file}: expected a tensor's name, got {METADATA_NAME!r}, which the format reserves "
            "for metadata: rename the leaf"
        )
    parts: list[str] = []
    if metadata:
        parts.append(f'"{METADATA_NAME}":{strict_json.write(dict(sorted(metadata.items())))}')
    reached = 0
    # One text for each tensor: to write them all as one value takes three times as long.
    for name, stored in tensors.items():
        end = reached + stored.nbytes
        parts.append(f"{strict_json.write_string(name)}:{_written(stored)}{reached},{end}]}}")
        reached = end
    try:
        encoded = f"{{{','.join(parts)}}}".encode()
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 20) : error.end + 20]
        raise LeafError(
            f"{file}: expected names and metadata that UTF-8 can hold, got {around!r}, which has "
            "half a surrogate pair: rename the leaf"
        ) from None
    alignment = PAGE_ALIGNMENT if reached >= LARGE_DATA_BYTES else SMALL_ALIGNMENT
    encoded += b" " * (-(LENGTH_BYTES + len(encoded)) % alignment)
    if len(encoded) > MAX_HEADER_BYTES:
        raise InvalidFileError(
            f"{file}: expected a header of at most {MAX_HEADER_BYTES} bytes, got {len(encoded)} "
            f"for {len(tensors)} tensors: readers refuse it; store fewer or shorter names"
        )
    return len(encoded).to_bytes(LENGTH_BYTES, "little") + encoded
