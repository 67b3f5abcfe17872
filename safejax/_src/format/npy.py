"""NumPy's format: the header of an array (`.npy`), and the arrays of an archive (`.npz`).

Source of the rules: NumPy's format description (NEP 1), whose functions parse the headers, and
PKWARE's APPNOTE, which zipfile follows. Objects, which NumPy pickles, are never read.
"""

import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple, final

import ml_dtypes
import numpy as np

from safejax._src.dtypes import Dtype, can_exist
from safejax.errors import InvalidFileError

Fetch = Callable[[int, int], bytes]
"""The bytes `[begin, end)` of a file, or as many of them as it has."""

MAGIC: Final = b"\x93NUMPY"
ZIP_MAGIC: Final = b"PK\x03\x04"

_MAX_HEADER: Final = 10_000
"""Bytes of a header; NumPy parses no longer one of a file that is not trusted."""

_NEAR: Final = 1024
"""Bytes that nearly always have both headers of a member."""

_ERRORS: Final = (
    ValueError, TypeError, SyntaxError, RecursionError, MemoryError, OverflowError, KeyError,
    tokenize.TokenError,
)  # fmt: skip
"""What NumPy raises for a header that is none."""

_ZIP_ERRORS: Final = (
    zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, EOFError,
    OSError, ValueError,
)  # fmt: skip
"""What zipfile raises for an archive that is damaged."""

_METHODS: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
"""How NumPy stores members. Of other methods, zipfile does not bound what it decompresses."""

_ENCRYPTED: Final = 1
"""A bit of the flags of a member (APPNOTE, 4.4.4)."""

_LOCAL_HEADER: Final = struct.Struct("<4s5HLLLHH")


@final
class Array(NamedTuple):
    """An array of a file: its data are `nbytes` bytes from `begin` on.

    `columns_first` says that they are in Fortran's order. `dtype` is what the header says, of
    whichever byte order and kind.
    """

    dtype: Dtype
    shape: tuple[int, ...]
    columns_first: bool
    begin: int
    nbytes: int


@final
class Member(NamedTuple):
    """An array of an archive; the `begin` of one that is compressed counts decompressed bytes."""

    name: str
    array: Array
    info: zipfile.ZipInfo

    @property
    def is_stored(self) -> bool:
        """Whether its bytes are in the file as they are."""
        return self.info.compress_type == zipfile.ZIP_STORED


def read_npy(fetch: Fetch, begin: int, file: str) -> Array:
    """The array whose header begins at `begin`; `InvalidFileError` if there is none."""
    data = fetch(begin, begin + _MAX_HEADER + 12)
    stream = io.BytesIO(data)
    try:
        shape, columns_first, dtype = _header(stream)
    except _ERRORS as error:
        raise InvalidFileError(
            f"{file}: expected an array of NumPy at byte {begin}, got: {error!s:.300}: get the "
            "file again"
        ) from error
    own = known_dtype(dtype)
    if not can_exist(own, shape):
        raise InvalidFileError(
            f"{file}: expected the shape of an array, got {shape!s:.80}: get the file again"
        )
    nbytes = math.prod(shape) * own.itemsize
    return Array(own, shape, columns_first, begin + stream.tell(), nbytes)


def _header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, Dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream, _MAX_HEADER)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream, _MAX_HEADER)
    raise ValueError(f"version {version[0]}.{version[1]}, which only records have")


def known_dtype(dtype: Dtype) -> Dtype:
    """The dtype that a header means: NumPy writes bfloat16 as two bytes without a name.

    No other dtype of ml_dtypes has two bytes; what those of one byte were is not known.
    """
    return np.dtype(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else dtype


def read_sequence(fetch: Fetch, begin: int, end: int, file: str) -> list[Array]:
    """The arrays that follow each other from `begin` to `end`, which is the size of the file."""
    found: list[Array] = []
    while begin < end:
        array = read_npy(fetch, begin, file)
        begin = array.begin + array.nbytes
        if array.dtype.hasobject or begin > end:
            got = "objects" if array.dtype.hasobject else f"an end after {end - array.begin}"
            raise InvalidFileError(
                f"{file}: array {len(found)}: expected {array.nbytes} bytes of data, got {got}: "
                "get the file again; objects are pickles, which are never read"
            )
        found.append(array)
    return found


def read_npz(fetch: Fetch, size: int, file: str) -> list[Member]:
    """The arrays of an archive; only headers are read. Raises `InvalidFileError`."""
    try:
        archive = zipfile.ZipFile(ByteStream(fetch, size))
        return [_member(archive, info, fetch, size, file) for info in archive.infolist()]
    except InvalidFileError:
        raise
    except _ZIP_ERRORS as error:
        raise InvalidFileError(
            f"{file}: expected an archive of NumPy, got: {error!s:.300}: get the file again"
        ) from error


def _member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, fetch: Fetch, size: int, file: str
) -> Member:
    name = info.filename.removesuffix(".npy")
    shown = f"{file}: member {name!r}"
    if info.compress_type not in _METHODS:
        raise InvalidFileError(
            f"{shown}: expected it stored or deflated, as NumPy does, got the method "
            f"{info.compress_type} of zip: load it with NumPy, and store its arrays with "
            "safejax.save"
        )
    if info.flag_bits & _ENCRYPTED:
        raise InvalidFileError(
            f"{shown}: expected it as NumPy writes it, got it encrypted: unpack it first"
        )
    if info.compress_type == zipfile.ZIP_STORED:
        at = info.header_offset
        near = fetch(at, at + _NEAR)
        if len(near) < _LOCAL_HEADER.size or near[:4] != ZIP_MAGIC:
            raise InvalidFileError(f"{shown}: expected its header, got none: get it again")
        fields = _LOCAL_HEADER.unpack_from(near)
        begin = at + _LOCAL_HEADER.size + fields[-2] + fields[-1]
        try:
            array = read_npy(lambda begin, end: near[begin - at : end - at], begin, shown)
        except InvalidFileError:  # It may be longer than most headers.
            array = read_npy(fetch, begin, shown)
        end = begin + info.file_size
        # Both sizes are in the archive's table, and readers differ in which of them they follow.
        inside = array.begin + array.nbytes == end <= size and info.compress_size == info.file_size
    else:
        with archive.open(info) as stream:
            head = stream.read(_MAX_HEADER + 12)
        array = read_npy(lambda begin, end: head[begin:end], 0, shown)
        inside = array.begin + array.nbytes == info.file_size
    if not (inside or array.dtype.hasobject):
        raise InvalidFileError(
            f"{shown}: expected {array.nbytes} bytes of data for "
            f"{array.dtype}{list(array.shape)}, got a member of {info.file_size}: get it again"
        )
    return Member(name, array, info)


def decompressed(fetch: Fetch, size: int, member: Member, file: str) -> bytes:
    """The data of a member that is compressed: as many bytes as its header says, or an error."""
    try:
        with zipfile.ZipFile(ByteStream(fetch, size)).open(member.info) as stream:
            stream.read(member.array.begin)
            data = stream.read(member.array.nbytes)
    except _ZIP_ERRORS as error:
        raise InvalidFileError(
            f"{file}: member {member.name!r}: expected data of deflate, got: {error}: get the file "
            "again"
        ) from error
    if len(data) != member.array.nbytes:
        raise InvalidFileError(
            f"{file}: member {member.name!r}: expected {member.array.nbytes} bytes, got "
            f"{len(data)}: get the file again"
        )
    return data


@final
class ByteStream(io.RawIOBase):
    """The bytes of a file as a stream, as zipfile reads one."""

    def __init__(self, fetch: Fetch, size: int) -> None:
        self._fetch = fetch
        self._size = size
        self._at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("seek before the begin")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._fetch(self._at, min(self._at + len(buffer), self._size))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
