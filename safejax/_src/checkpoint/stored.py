"""Stored: what a file says of itself, checked, and its tensors as views that are not read yet.

This module does not import JAX.
"""

from collections.abc import Callable, Mapping, Set
from typing import NamedTuple, final

from safejax._src import dtypes
from safejax._src.format.header import Header, Tensor, read_header
from safejax._src.format.record import Record, read_record
from safejax._src.pytrees.names import join
from safejax._src.pytrees.structure import name_in
from safejax._src.reading.digests import Digests, digests_size
from safejax._src.reading.packed import PackedSource
from safejax._src.reading.source import File, Source
from safejax._src.reading.view import Strided
from safejax._src.reading.windows import Window
from safejax.errors import ChecksumError, InvalidFileError


@final
class Stored(NamedTuple):
    """A file: its header, the user's metadata in it, and its record."""

    source: File
    header: Header
    metadata: Mapping[str, str]
    record: Record


def read_stored(source: File, prefix: Callable[[int, int], bytes] | None = None) -> Stored:
    """What a file says of itself; `prefix`, if given, reads it in place of the source's own.

    Raises `InvalidFileError`.
    """
    file = source.name
    header = read_header(prefix or source.prefix, source.nbytes, file)
    metadata, record = read_record(header.metadata, file)
    check_of_tensors(header, record, file)
    check_structure(record, header.tensors.keys(), file)
    source.learn(header.tensors.values())
    return Stored(source, header, metadata, record)


def stored_view(source: Source, name: str, tensor: Tensor, record: Record) -> Strided | None:
    """The unread tensor; None if JAX has no such dtype. Raises `InvalidFileError`."""
    recorded = record.dtypes.get(name)
    if recorded is not None:
        restored = dtypes.restored(recorded, tensor.code, tensor.shape)
        if restored is None:
            raise InvalidFileError(
                f"{source.name}: invalid record: tensor {name!r}: expected a dtype that is stored "
                f"as {tensor.code}{list(tensor.shape)}, got {recorded!r}"
            )
        dtype, shape = restored
        return Strided(source, tensor.begin, dtype, Window.whole(shape))
    dtype = dtypes.dtype_of_code(tensor.code)
    if dtype is None:
        return None
    if dtypes.is_packed(tensor.code):
        source = PackedSource(source, tensor.begin)
        return Strided(source, 0, dtype, Window.whole(tensor.shape))
    return Strided(source, tensor.begin, dtype, Window.whole(tensor.shape))


def check_of_tensors(header: Header, record: Record, file: str) -> None:
    """Raise `InvalidFileError` unless what is recorded of tensors is of those in the file."""
    tensors = header.tensors.keys()
    of_tensors: tuple[tuple[str, Set[str]], ...] = (
        ("dtypes", record.dtypes.keys()),
        ("keys", record.keys.keys()),
        ("weak types", record.weak),
    )
    for what, names in of_tensors:
        for name in names - tensors:
            raise InvalidFileError(
                f"{file}: invalid record: expected {what} of tensors in the file, got one for "
                f"{name!r}, which is not there"
            )
    for name in record.weak & record.keys.keys():
        raise InvalidFileError(
            f"{file}: invalid record: expected weak types of tensors that are no keys, got one for "
            f"{name!r}, which has keys"
        )


def check_structure(record: Record, tensors: Set[str], file: str) -> None:
    """Raise `InvalidFileError` unless the record's names are those of tensors or of its values."""
    for name in record.values.keys() & tensors:
        raise InvalidFileError(
            f"{file}: invalid record: expected values with names that no tensor has, got one for "
            f"{name!r}, which is a tensor"
        )
    for key, kind in record.structure.kinds.items():
        for alias, to in kind.aliases:
            for segment, there in ((to, True), (alias, False)):
                name = name_in(key, segment)
                if (name in tensors or name in record.values) != there:
                    raise InvalidFileError(
                        f"{file}: invalid record: expected the alias {alias!r} to refer to a leaf "
                        f"in the file, {to!r}, and not to be one itself, got {name!r}"
                    )
    for name, path in record.structure.paths.items():
        if name not in tensors and name not in record.values:
            raise InvalidFileError(
                f"{file}: invalid record: expected paths of leaves in the file, got one for "
                f"{name!r}, which is not there"
            )
        # A suffix distinguishes names that would be equal; they may differ in nothing else.
        joined = join(path).encode(errors="backslashreplace").decode()
        if name != joined and not name.startswith(f"{joined}~"):
            raise InvalidFileError(
                f"{file}: invalid record: expected {name!r} to be its path joined by dots, got "
                f"the path {list(path)}"
            )


def matching_digests(header: Header, record: Record, file: str) -> Digests:
    """The digests of the file; `ChecksumError` unless there is one for every block."""
    digests = record.digests
    if digests is None:
        raise ChecksumError(
            f"{file}: verify: expected a file that was saved with checksum=True, got one without "
            "digests: load it without verify, and save it with checksum=True"
        )
    for name in header.tensors.keys() | digests.of.keys():
        tensor = header.tensors.get(name)
        nbytes = 0 if tensor is None else tensor.end - tensor.begin
        expected = digests_size(nbytes, digests.block_bytes)
        found = len(digests.of.get(name, b""))
        if found != expected or (tensor is None):
            raise ChecksumError(
                f"{file}: leaf {name!r}: expected {expected} bytes of digests for {nbytes} bytes "
                f"of data, got {found} bytes: another program changed the file since it was "
                "saved; load it without verify"
            )
    return digests
