"""Foreign files as Leaves: archives and arrays of NumPy, and Flax's msgpack, unread.

They are recognized by their first bytes. Nothing in them is a pickle, or is run.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from safejax._src.arrays.content import Content, is_key
from safejax._src.arrays.lazy import LazyArray
from safejax._src.arrays.placing import default_placement
from safejax._src.arrays.precision import NarrowingNotice
from safejax._src.dtypes import Dtype, stored_as
from safejax._src.format import msgpack, npy
from safejax._src.format.foreign import HEAD_BYTES, is_msgpack, is_npz
from safejax._src.format.header import MAX_HEADER_BYTES
from safejax._src.leaves.leaf import Unsupported, is_scalar
from safejax._src.leaves.leaves import Leaves
from safejax._src.pytrees.extent import check_extent
from safejax._src.pytrees.structure import is_something
from safejax._src.pytrees.walk import walk
from safejax._src.reading.computed import ComputedSource
from safejax._src.reading.concatenation import concatenation
from safejax._src.reading.source import File
from safejax._src.reading.view import Strided, View
from safejax._src.reading.windows import Window
from safejax.errors import ChecksumError, InvalidFileError, MismatchError

_MOST_OF_A_LINE: Final = 1 << 20
"""Bytes of a line that may be before the arrays of Equinox."""


def open_foreign(source: File, *, verify: bool) -> Leaves | None:
    """The Leaves of a file of NumPy or Flax; None if it is neither.

    Raises `InvalidFileError` for one that is damaged, or does not name its arrays, and
    `ChecksumError` if it is to be verified.
    """
    head = source.prefix(0, min(HEAD_BYTES, source.nbytes))
    reader: Callable[[File], Leaves] | None = None
    if is_npz(head):
        reader = _open_npz
    elif head.startswith(npy.MAGIC):
        reader = _open_npy
    elif is_msgpack(head, MAX_HEADER_BYTES):
        reader = _open_msgpack
    if reader is None:
        return None
    if verify:
        raise ChecksumError(
            f"{source.name}: verify: expected a safetensors file with digests, got another file: "
            "load it without verify"
        )
    return reader(source)


def _fetch_of(source: File) -> Callable[[int, int], bytes]:
    """The bytes of a file, as far as it goes."""
    return lambda begin, end: source.inside(begin, min(max(begin, end), source.nbytes))


def _open_npz(source: File) -> Leaves:
    makes = _Makes(source)
    members = npy.read_npz(_fetch_of(source), source.nbytes, source.name)
    entries = {member.name: makes.member(member) for member in members}
    if len(entries) != len(members):
        raise InvalidFileError(
            f"{source.name}: expected members of different names, got one twice: get it again"
        )
    return Leaves(entries)


def _open_npy(source: File) -> Leaves:
    found = npy.read_sequence(_fetch_of(source), 0, source.nbytes, source.name)
    if len(found) != 1:
        raise InvalidFileError(
            f"{source.name}: expected one array of NumPy, got {len(found)} without names, probably "
            "of Equinox: load it with safejax.equinox.deserialize(path, like=model)"
        )
    leaf = _Makes(source).array("", found[0])
    walked = walk(leaf, lambda node: isinstance(node, Unsupported))
    return Leaves(walked.entries, walked.structure)


def _open_msgpack(source: File) -> Leaves:
    makes = _Makes(source)
    table = msgpack.read_msgpack(_fetch_of(source), source.nbytes, source.name)
    check_extent(table, source.name)
    walked = walk(table, lambda node: isinstance(node, msgpack.Array | msgpack.Other))
    entries = {name: makes.value(name, value) for name, value in walked.entries.items()}
    return Leaves(entries, walked.structure._replace(flattened=None))


def open_eqx(source: File, like: Any) -> Leaves | None:
    """The Leaves of a file of Equinox; None if its first bytes are not those of one.

    It has the arrays and scalars of `like`, one after another, without their names; before them
    there may be a line of JSON. Scalars are read. Raises `MismatchError` unless it has as many.
    """
    begin = _begin_of_arrays(source)
    if begin is None:
        return None
    file = source.name
    found = npy.read_sequence(_fetch_of(source), begin, source.nbytes, file)
    walked = walk(like)
    names = [name for name, leaf in walked.entries.items() if is_something(leaf)]
    if len(found) != len(names):
        raise MismatchError(
            f"{file}: expected the {len(names)} arrays and numbers of like, got {len(found)}: make "
            "like as the model was made that was saved",
            missing=names[len(found) :],
        )
    makes = _Makes(source)
    entries: dict[str, Any] = {}
    for name, array in zip(names, found, strict=True):
        expected = walked.entries[name]
        if is_scalar(expected) and array.shape == () and array.dtype.kind in "biufc":
            entries[name] = makes.view(array, None).read().item()
            continue
        is_numeric = not (is_scalar(expected) or is_key(expected.dtype))
        dtype = np.dtype(expected.dtype) if is_numeric else None
        entries[name] = makes.array(name, array, dtype)
    return Leaves(entries, walked.structure)


def _begin_of_arrays(source: File) -> int | None:
    head = source.prefix(0, min(_MOST_OF_A_LINE, source.nbytes))
    begin = head.find(b"\n") + 1 if head.startswith(b"{") else 0
    return begin if head.startswith(npy.MAGIC, begin) else None


class _Makes:
    """Makes leaves of the arrays of a file."""

    def __init__(self, source: File) -> None:
        self._source = source
        self._notice, self._placement = NarrowingNotice(), default_placement()

    def leaf(self, name: str, view: View) -> LazyArray:
        return LazyArray(Content(view), name, self._placement, self._notice)

    def array(self, name: str, array: npy.Array, expected: Dtype | None = None) -> Any:
        view = self.view(array, expected)
        if stored_as(view.dtype, array.shape) is None:
            code = _code_of(array.dtype)
            return Unsupported(self._source.name, name, code, array.shape, "NumPy")
        return self.leaf(name, view)

    def view(self, array: npy.Array, expected: Dtype | None) -> View:
        """The values of an array of NumPy's, which are `expected` ones if it does not say so."""
        dtype = array.dtype
        # Fields and arrays of a dtype are of the kind V, too: those say what they are.
        if expected is not None and dtype == np.dtype((np.void, expected.itemsize)):
            dtype = expected
        native = dtype.newbyteorder("=")
        window = _window(array)
        view = Strided(self._source, array.begin, native, window)
        if dtype.isnative:
            return view
        swapped = ComputedSource(
            lambda: view.read().byteswap(), f"swapped {self._source.name}", immutable=True
        )
        return Strided(swapped, 0, native, Window.whole(array.shape))

    def member(self, member: npy.Member) -> Any:
        array = member.array
        leaf = self.array(member.name, array)
        if member.is_stored or isinstance(leaf, Unsupported):
            return leaf
        file, size = self._source.name, self._source.nbytes
        fetch = _fetch_of(self._source)

        def compute() -> Any:
            data = npy.decompressed(fetch, size, member, file)
            values = np.frombuffer(data, array.dtype)
            return values.astype(array.dtype.newbyteorder("="), copy=False)

        data = ComputedSource(compute, f"{file}/{member.name}", immutable=True)
        native = array.dtype.newbyteorder("=")
        return self.leaf(member.name, Strided(data, 0, native, _window(array)))

    def value(self, name: str, value: Any) -> Any:
        """A value of a msgpack file."""
        if isinstance(value, msgpack.Other):
            return Unsupported(self._source.name, name, value.what, (), "Flax")
        if not isinstance(value, msgpack.Array):
            return value
        if not value.chunks:
            return self.leaf(name, self._strided(value))
        flat = concatenation(tuple(map(self._strided, value.chunks)), 0)
        return self.leaf(name, flat.reshape(value.shape))

    def _strided(self, array: msgpack.Array) -> Strided:
        return Strided(self._source, array.begin, array.dtype, Window.whole(array.shape))


def _window(array: npy.Array) -> Window:
    window = Window.whole(array.shape[::-1] if array.columns_first else array.shape)
    if not array.columns_first:
        return window
    return window.transpose(tuple(reversed(range(len(array.shape)))))


def _code_of(dtype: Dtype) -> str:
    if dtype.hasobject:
        return "objects, which are pickles and never read"
    shown = f"{dtype!s:.80}"
    return f"{shown}, of which NumPy's format says no more" if dtype.kind == "V" else shown
