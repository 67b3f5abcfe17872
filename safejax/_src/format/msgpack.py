"""Flax's msgpack: the tree of a file that `flax.serialization` has written, without its arrays.

Source of the rules: the msgpack specification, and Flax's `serialization.py` for its extensions:
1 is an array, `[shape, dtype, bytes]`; 2 a pair of floats, a complex number; 3 a scalar of NumPy.
An array of more than 1 GiB is a dict of chunks. The bytes of arrays are passed over, not read.
"""

import math
import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast, final

import numpy as np

from safejax._src.dtypes import Dtype, can_exist, stored_as
from safejax._src.pytrees.structure import MAX_DEPTH
from safejax.errors import InvalidFileError

Fetch = Callable[[int, int], bytes]
"""The bytes `[begin, end)` of a file, or as many of them as it has."""

_MOST: Final = 100_000_000
"""Bytes of a tree without its arrays, as of the header of a safetensors file."""

_MOST_VALUES: Final = 1_000_000
"""Values of a tree: each takes memory, and may take one byte of the file."""

_LONGEST_DTYPE: Final = 32
"""Characters of the name of a dtype; NumPy would take a longer one for that of very many fields."""

_AHEAD: Final = 1 << 14
"""Bytes that are fetched at a time."""

_CHUNKED: Final = "__msgpack_chunked_array__"

_NUMBERS: Final = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_CONSTANTS: Final = {0xC0: None, 0xC2: False, 0xC3: True}
_SIZED: Final = {
    0xC4: ("bytes", ">B"), 0xC5: ("bytes", ">H"), 0xC6: ("bytes", ">I"),
    0xC7: ("extension", ">B"), 0xC8: ("extension", ">H"), 0xC9: ("extension", ">I"),
    0xD9: ("text", ">B"), 0xDA: ("text", ">H"), 0xDB: ("text", ">I"),
    0xDC: ("list", ">H"), 0xDD: ("list", ">I"), 0xDE: ("dict", ">H"), 0xDF: ("dict", ">I"),
}  # fmt: skip


@final
class Array(NamedTuple):
    """An array whose data begins at a byte of the file; `chunks` are its parts, if it has some."""

    dtype: Dtype
    shape: tuple[int, ...]
    begin: int
    chunks: tuple["Array", ...] = ()


@final
class Other(NamedTuple):
    """A value that no leaf can be: `what` it is, and where its bytes are."""

    what: str
    begin: int
    nbytes: int


def read_msgpack(fetch: Fetch, size: int, file: str) -> Any:
    """The tree in a file: dicts and lists of `Array`, numbers, strings, None and `Other`.

    Raises `InvalidFileError`.
    """
    reader = _Reader(fetch, size, file)
    tree = reader.tree()
    if reader.at != size:
        raise reader.invalid("the end of the file", "more bytes")
    return tree


class _Open:
    """A container of which `left` items are still to come."""

    def __init__(self, is_dict: bool, count: int) -> None:
        self.is_dict = is_dict
        self.left = 2 * count if is_dict else count
        self.items: list[Any] = []


@final
class _Reader:
    def __init__(self, fetch: Fetch, size: int, file: str) -> None:
        self.at = 0
        self._fetch, self._size, self._file = fetch, size, file
        self._held, self._held_at = b"", 0
        self._taken = 0
        self._values = 0
        self._in_extension = False

    def invalid(self, expected: str, got: str) -> InvalidFileError:
        return InvalidFileError(
            f"{self._file}: expected {expected} in a msgpack file of Flax, got {got} at byte "
            f"{self.at}: get the file again"
        )

    def tree(self) -> Any:
        """The next value, with all that is in it."""
        stack: list[_Open] = []
        while True:
            value = self._value()
            if isinstance(value, _Open):
                if self._values + value.left > _MOST_VALUES:
                    raise self.invalid(f"at most {_MOST_VALUES} values", "more")
                stack.append(value)
                if len(stack) > MAX_DEPTH:
                    raise self.invalid(f"at most {MAX_DEPTH} nested containers", "more")
            elif stack:
                self._put(stack[-1], value)
            while stack and not stack[-1].left:
                value = self._built(stack.pop())
                if stack:
                    self._put(stack[-1], value)
            if not stack:
                return value

    def _put(self, container: _Open, value: Any) -> None:
        is_key = container.is_dict and len(container.items) % 2 == 0
        if is_key and not (value is None or isinstance(value, str | int | float)):
            raise self.invalid("keys that are strings or numbers", type(value).__name__)
        container.items.append(value)
        container.left -= 1

    def _built(self, container: _Open) -> Any:
        items = container.items
        if not container.is_dict:
            return items
        entries = dict(zip(items[::2], items[1::2], strict=True))
        if 2 * len(entries) != len(items):
            raise self.invalid("keys that differ", "one that appears twice")
        return self._of_chunks(entries) if _CHUNKED in entries else entries

    def _of_chunks(self, entries: dict[Any, Any]) -> Array:
        sizes, parts = entries.get("shape"), entries.get("chunks")
        if isinstance(sizes, dict) and isinstance(parts, dict):
            shape = _in_order(cast("dict[Any, Any]", sizes))
            chunks = _in_order(cast("dict[Any, Any]", parts))
            arrays = [
                chunk for chunk in chunks if isinstance(chunk, Array) and len(chunk.shape) == 1
            ]
            if arrays and len(arrays) == len(chunks) and can_exist(arrays[0].dtype, shape):
                counts = sum(math.prod(each.shape) for each in arrays)
                if len({each.dtype for each in arrays}) == 1 and counts == math.prod(shape):
                    return Array(arrays[0].dtype, shape, arrays[0].begin, chunks)
        raise self.invalid("an array in chunks of one dtype", "something else")

    def _value(self) -> Any:
        """The next value; a container without the items that follow."""
        self._values += 1
        if self._values > _MOST_VALUES:
            raise self.invalid(f"at most {_MOST_VALUES} values", "more")
        code = self._take(1)[0]
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code < 0x80:
            return code
        if code >= 0xE0:
            return code - 0x100
        if code < 0xA0:
            return _Open(code < 0x90, code & 0xF)
        if code < 0xC0:
            return self._text(code & 0x1F)
        if code in _NUMBERS:
            return self._number(_NUMBERS[code])
        if 0xD4 <= code <= 0xD8:
            return self._extension(1 << (code - 0xD4))
        if code not in _SIZED:
            raise self.invalid("a value", f"the byte {code:#x}")
        kind, length = _SIZED[code]
        count = self._number(length)
        if kind == "bytes":
            return self._skip("bytes", count)
        if kind == "text":
            return self._text(count)
        return self._extension(count) if kind == "extension" else _Open(kind == "dict", count)

    def _extension(self, count: int) -> Any:
        kind = self._number(">b")
        if kind not in (1, 2, 3):
            return self._skip(f"a value of the extension {kind}", count)
        end = self.at + count
        if self._in_extension:
            raise self.invalid("an extension of Flax without others in it", "one in another")
        self._in_extension = True
        value = self.tree()
        self._in_extension = False
        if self.at != end or not isinstance(value, list):
            raise self.invalid(f"the extension {kind} of Flax", "something else")
        return self._array(value) if kind != 2 else self._complex(value)

    def _complex(self, parts: list[Any]) -> complex:
        if len(parts) != 2 or not all(isinstance(part, int | float) for part in parts):
            raise self.invalid("a pair of numbers", "something else")
        return complex(*parts)

    def _array(self, parts: list[Any]) -> Array:
        if len(parts) == 3:
            shape, name, data = parts
            dtype = _dtype(name) if isinstance(name, str) else None
            if dtype is None:
                raise self.invalid("a dtype that JAX can hold", f"{name!r:.80}")
            is_array = isinstance(shape, list) and isinstance(data, Other)
            if not is_array or not can_exist(dtype, tuple(shape)):
                raise self.invalid("the shape and the bytes of an array", "something else")
            if math.prod(shape) * dtype.itemsize == data.nbytes:
                return Array(dtype, tuple(shape), data.begin)
        raise self.invalid("an array: its shape, its dtype and its bytes", "something else")

    # ---- bytes

    def _number(self, code: str) -> Any:
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def _text(self, count: int) -> str:
        try:
            return self._take(count).decode()
        except UnicodeDecodeError:
            raise self.invalid("a string in UTF-8", "other bytes") from None

    def _skip(self, what: str, count: int) -> Other:
        self._check(count)
        self.at += count
        return Other(what, self.at - count, count)

    def _take(self, count: int) -> bytes:
        """The next bytes."""
        self._check(count)
        self._taken += count
        if self._taken > _MOST:
            raise self.invalid(f"a tree of at most {_MOST} bytes without its arrays", "more")
        begin = self.at - self._held_at
        if begin < 0 or begin + count > len(self._held):
            end = min(self.at + max(count, _AHEAD), self._size)
            self._held, self._held_at, begin = self._fetch(self.at, end), self.at, 0
        self.at += count
        return self._held[begin : begin + count]

    def _check(self, count: int) -> None:
        if self.at + count > self._size:
            raise self.invalid(f"{count} more bytes", f"the end of the file, at {self._size}")


def _in_order(items: dict[Any, Any]) -> tuple[Any, ...]:
    """The items of what Flax stores as a dict in place of a tuple, in whichever order it is.

    It is empty if there are other keys.
    """
    numbers = [str(number) for number in range(len(items))]
    return tuple(items[number] for number in numbers) if items.keys() == set(numbers) else ()


def _dtype(name: str) -> Dtype | None:
    """The dtype of this name, if it is one that a leaf can have."""
    if len(name) > _LONGEST_DTYPE:
        return None
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError, SyntaxError):
        return None
    # A name may also be that of several fields, or of an array of a dtype.
    return dtype if dtype.name == name and stored_as(dtype, ()) is not None else None
