"""Decoding: a source that holds a safetensors file, as Leaves whose arrays are not read yet."""

from collections.abc import Set
from typing import Any

import numpy as np

from safejax._src import dtypes
from safejax._src.arrays.content import Content, key_data_shape
from safejax._src.arrays.families import Tensors
from safejax._src.arrays.lazy import LazyArray
from safejax._src.arrays.placing import default_placement
from safejax._src.arrays.precision import NarrowingNotice
from safejax._src.collector import collector_paused, collector_resumed
from safejax._src.format.header import Header, Tensor, read_header
from safejax._src.format.record import Record, read_record
from safejax._src.leaves.leaf import Unsupported
from safejax._src.leaves.leaves import Leaves
from safejax._src.pytrees.names import join
from safejax._src.pytrees.structure import name_in
from safejax._src.reading.digests import Digests, digests_size
from safejax._src.reading.packed import PackedSource
from safejax._src.reading.source import File, Source
from safejax._src.reading.verified import VerifiedSource
from safejax._src.reading.view import Strided
from safejax._src.reading.windows import Window
from safejax.errors import ChecksumError, InvalidFileError


@collector_paused()
def open_leaves(source: File, *, verify: bool = False) -> Leaves:
    """The Leaves of a safetensors file, whose unread arrays are for JAX's default device.

    With `verify`, each array is checked when it is read. Raises `InvalidFileError`.
    """

    def fetch(begin: int, end: int) -> bytes:
        with collector_resumed():  # The file may be on a file system of the user's.
            return source.prefix(begin, end)

    file = source.name
    header = read_header(fetch, source.nbytes, file)
    metadata, record = read_record(header.metadata, file)
    _check_of_tensors(header, record, file)
    check_structure(record, header.tensors.keys(), file)
    digests = _matching_digests(header, record, file) if verify else None
    notice, placement = NarrowingNotice(), default_placement()
    special = record.dtypes.keys() | record.keys.keys()
    entries: dict[str, Any] = {}
    # Most tensors of a file have the same dtype and shape as another one.
    models: dict[tuple[str, tuple[int, ...]], tuple[LazyArray, Tensors]] = {}
    for name, tensor in header.tensors.items():
        data: Source = source
        if digests is not None and tensor.end > tensor.begin:
            data = VerifiedSource(source, name, (tensor.begin, tensor.end), digests)
        alike = models.get((tensor.code, tensor.shape))
        if alike is not None and name not in special:
            model, tensors = alike
            entries[name] = model.sibling(tensors.in_source(data), tensor.begin, name)
            continue
        view = _view(data, name, tensor, record)
        if isinstance(view, Unsupported):
            entries[name] = view
            continue
        content = Content(view, record.keys.get(name))
        _check_key(name, content, file)
        leaf = entries[name] = LazyArray(content, name, placement, notice)
        if name not in special and view.source is data:
            models[tensor.code, tensor.shape] = leaf, Tensors(data, view.dtype, view.window)
    return Leaves({**entries, **record.values}, record.structure, metadata)


def _check_of_tensors(header: Header, record: Record, file: str) -> None:
    """Raise `InvalidFileError` if a recorded dtype or key is that of a tensor not in the file."""
    tensors = header.tensors.keys()
    for what, names in (("dtypes", record.dtypes), ("keys", record.keys)):
        for name in names.keys() - tensors:
            raise InvalidFileError(
                f"{file}: invalid record: expected {what} of tensors in the file, got one for "
                f"{name!r}, which is not there"
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


def _matching_digests(header: Header, record: Record, file: str) -> Digests:
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


def _view(source: Source, name: str, tensor: Tensor, record: Record) -> Strided | Unsupported:
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
        return Unsupported(source.name, name, tensor.code, tensor.shape)
    if dtypes.is_packed(tensor.code):
        source = PackedSource(source, tensor.begin)
        return Strided(source, 0, dtype, Window.whole(tensor.shape))
    return Strided(source, tensor.begin, dtype, Window.whole(tensor.shape))


def _check_key(name: str, content: Content, file: str) -> None:
    if content.key is None:
        return
    try:
        data = key_data_shape(content.key)
    except ValueError:
        raise InvalidFileError(
            f"{file}: tensor {name!r}: expected keys of an implementation that this JAX has, got "
            f"{content.key!r}: register it first, or read the key data with safetensors"
        ) from None
    view = content.view
    if view.dtype != np.uint32 or view.shape[len(view.shape) - len(data) :] != data:
        raise InvalidFileError(
            f"{file}: invalid record: tensor {name!r}: expected {content.key} keys, which are "
            f"uint32[…,{','.join(map(str, data))}], got {view.dtype}{list(view.shape)}"
        )
