"""Decoding: a source that holds a safetensors file, as Leaves whose arrays are not read yet."""

from typing import Any

import numpy as np

from safejax._src.arrays.content import Content, key_data_shape
from safejax._src.arrays.families import Tensors
from safejax._src.arrays.lazy import LazyArray
from safejax._src.arrays.placing import default_placement
from safejax._src.arrays.precision import NarrowingNotice
from safejax._src.checkpoint.stored import matching_digests, read_stored, stored_view
from safejax._src.collector import collector_paused, collector_resumed
from safejax._src.format.header import Tensor
from safejax._src.format.record import Record
from safejax._src.leaves.leaf import Unsupported
from safejax._src.leaves.leaves import Leaves
from safejax._src.reading.source import File, Source
from safejax._src.reading.verified import VerifiedSource
from safejax._src.reading.view import Strided
from safejax.errors import InvalidFileError


@collector_paused()
def open_leaves(source: File, *, verify: bool = False) -> Leaves:
    """The Leaves of a safetensors file, whose unread arrays are for JAX's default device.

    With `verify`, each array is checked when it is read. Raises `InvalidFileError`.
    """

    def fetch(begin: int, end: int) -> bytes:
        with collector_resumed():  # The file may be on a file system of the user's.
            return source.prefix(begin, end)

    file = source.name
    _, header, metadata, record = read_stored(source, fetch)
    digests = matching_digests(header, record, file) if verify else None
    notice, placement = NarrowingNotice(), default_placement()
    special = record.dtypes.keys() | record.keys.keys()
    entries: dict[str, Any] = {}
    # Most tensors of a file have the same type and shape as another one.
    models: dict[tuple[str, tuple[int, ...], bool], tuple[LazyArray, Tensors]] = {}
    for name, tensor in header.tensors.items():
        data: Source = source
        if digests is not None and tensor.end > tensor.begin:
            data = VerifiedSource(source, name, (tensor.begin, tensor.end), digests)
        weak_type = name in record.weak
        alike = models.get((tensor.code, tensor.shape, weak_type))
        if alike is not None and name not in special:
            model, tensors = alike
            entries[name] = model.sibling((tensors.in_source(data), tensor.begin), name)
            continue
        view = _view(data, name, tensor, record)
        if isinstance(view, Unsupported):
            entries[name] = view
            continue
        content = Content(view, record.keys.get(name), weak_type)
        _check_key(name, content, file)
        leaf = entries[name] = LazyArray(content, name, placement, notice)
        if name not in special and view.source is data:
            tensors = Tensors(data, view.dtype, view.window, weak_type=weak_type)
            models[tensor.code, tensor.shape, weak_type] = leaf, tensors
    return Leaves({**entries, **record.values}, record.structure, metadata)


def _view(source: Source, name: str, tensor: Tensor, record: Record) -> Strided | Unsupported:
    view = stored_view(source, name, tensor, record)
    return Unsupported(source.name, name, tensor.code, tensor.shape) if view is None else view


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
