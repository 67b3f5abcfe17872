"""The safetensors header: from bytes to a table of tensors, without I/O.

A file is 8 bytes of header length (little-endian), that many bytes of JSON, padded with
spaces, and the data. The JSON object maps each name to `dtype`, `shape` and `data_offsets`
(half-open, counted from the end of the header), and `__metadata__` to a map of strings. The
rules are those of the safetensors format description and its reference reader; where this
reader is stricter, the reason is given next to the rule.
"""

import contextlib
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, cast, final

from safejax._src.collector import collector_paused
from safejax._src.dtypes import BITS
from safejax._src.format import strict_json
from safejax._src.format.foreign import HEAD_BYTES, recognized
from safejax._src.pytrees.names import METADATA_NAME
from safejax._src.reading.windows import MAX_AXES
from safejax.errors import InvalidFileError

LENGTH_BYTES: Final = 8
"""Bytes of the header length, which a file begins with."""

MAX_HEADER_BYTES: Final = 100_000_000
"""The longest header that the reference reader accepts, in bytes."""

_TENSOR_FIELDS: Final = frozenset({"dtype", "shape", "data_offsets"})
_MAX_COUNT: Final = 1 << 64
_MAX_EXTENT: Final = 1 << 63
_BITS: Final = dict(BITS)  # read 100,000 times; a MappingProxyType takes twice as long

# Messages truncate long names and lists of a million sizes.
_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlist = _SHORT.maxdict = 8
_short: Final = _SHORT.repr


# A named tuple: a file may hold 100,000, and frozen dataclasses would take three times as long.
class Tensor(NamedTuple):
    """A tensor's entry: its dtype code, its shape, and its bytes `[begin, end)` in the file."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int


@final
class Header(NamedTuple):
    """A parsed header: `tensors` in the file's order, with offsets from the start of the file."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read_header(prefix: Callable[[int, int], bytes], size: int, file: str) -> Header:
    """The header of a file of `size` bytes; `prefix(begin, end)` returns bytes of the file.

    Raises `InvalidFileError`, which names `file` and the tensor at fault, or what else it is.
    """
    try:
        return _read_header(prefix, size, file)
    except InvalidFileError:
        kind = recognized(prefix(0, min(size, HEAD_BYTES)), MAX_HEADER_BYTES)
        if kind is None:
            raise
        raise InvalidFileError(f"{file}: expected a safetensors file, got {kind}") from None


def _read_header(prefix: Callable[[int, int], bytes], size: int, file: str) -> Header:
    if size < LENGTH_BYTES:
        raise InvalidFileError(
            f"{file}: expected the {LENGTH_BYTES} bytes of a header length, got {size} bytes: "
            "this is not a safetensors file, or it was cut short"
        )
    length = int.from_bytes(prefix(0, LENGTH_BYTES), "little")
    if length > MAX_HEADER_BYTES:
        raise InvalidFileError(
            f"{file}: expected a header of at most {MAX_HEADER_BYTES} bytes, got a length of "
            f"{length}: this is not a safetensors file"
        )
    data_begin = LENGTH_BYTES + length
    if data_begin > size:
        raise InvalidFileError(
            f"{file}: expected a header of {length} bytes, got {size - LENGTH_BYTES}: "
            "the file was cut short, or is not a safetensors file"
        )
    return parse_header(prefix(LENGTH_BYTES, data_begin), size - data_begin, file)


def parse_header(encoded: bytes, data_size: int, file: str) -> Header:
    """The header that the JSON bytes hold, for a file with `data_size` bytes of data."""

    def fault(sentence: str) -> InvalidFileError:
        return InvalidFileError(f"{file}: invalid header: {sentence}")

    # The format requires this; the reference reader skips white space in front of the brace.
    if encoded[:1] != b"{":
        raise fault(f"expected it to begin with '{{', got {encoded[:1]!r}")
    with collector_paused():
        try:
            table = strict_json.parse(encoded.decode())
        except ValueError as error:  # UnicodeDecodeError is a subclass.
            raise fault(f"expected JSON in UTF-8; {error}") from None
        metadata = _metadata(table.pop(METADATA_NAME, None), fault)
        data_begin = LENGTH_BYTES + len(encoded)
        tensors = {
            name: _tensor(name, info, data_begin, fault)
            for name, info in cast("dict[str, Any]", table).items()
        }
    _check_layout(tensors, data_begin, data_begin + data_size, fault)
    return Header(tensors, metadata)


def faults_of_header(prefix: Callable[[int, int], bytes], size: int, file: str) -> list[str]:
    """All that is wrong with the entries of a header that `read_header` refuses.

    Empty if its bytes are not JSON with an object in it, or there is no header at all.
    """
    length = int.from_bytes(prefix(0, LENGTH_BYTES), "little") if size >= LENGTH_BYTES else size
    if length > min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
        return []
    data_begin = LENGTH_BYTES + length
    encoded = prefix(LENGTH_BYTES, data_begin)
    try:
        table = strict_json.parse(encoded.decode())
    except ValueError:
        return []
    if encoded[:1] != b"{":
        return []
    faults: list[str] = []
    tensors: dict[str, Tensor] = {}

    def fault(sentence: str) -> InvalidFileError:
        faults.append(f"{file}: invalid header: {sentence}")
        return InvalidFileError(faults[-1])

    with contextlib.suppress(InvalidFileError):
        _metadata(table.pop(METADATA_NAME, None), fault)
    for name, info in cast("dict[str, Any]", table).items():
        with contextlib.suppress(InvalidFileError):
            tensors[name] = _tensor(name, info, data_begin, fault)
    if len(tensors) == len(table):  # Of other entries, it is not known where their data is.
        with contextlib.suppress(InvalidFileError):
            _check_layout(tensors, data_begin, size, fault)
    return faults


_Fault = Callable[[str], InvalidFileError]


def _metadata(entries: Any, fault: _Fault) -> dict[str, str]:
    if entries is None:  # MLX writes null.
        return {}
    if not isinstance(entries, dict):
        raise fault(f"expected '{METADATA_NAME}' to map strings to strings, got {_short(entries)}")
    strings = cast("dict[str, Any]", entries)
    for key, value in strings.items():
        if not isinstance(value, str):
            raise fault(
                f"expected a string under '{METADATA_NAME}' {_short(key)}, got {_short(value)}"
            )
    return strings


def _tensor(name: str, info: Any, data_begin: int, fault: _Fault) -> Tensor:
    # The reference reader skips fields that the format does not name. They are refused here,
    # since they could change what the others mean.
    if type(info) is not dict or info.keys() != _TENSOR_FIELDS:
        raise fault(
            f"tensor {_short(name)}: expected the fields dtype, shape and data_offsets, "
            f"got {_short(info)}"
        )
    code, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    bits = _BITS.get(code) if type(code) is str else None
    if bits is None:
        raise fault(f"tensor {_short(name)}: expected a known dtype, got {_short(code)}")
    if type(shape) is not list:
        raise fault(
            f"tensor {_short(name)}: expected the shape to be a list of sizes, got {_short(shape)}"
        )
    if len(shape) > MAX_AXES:
        raise fault(f"tensor {_short(name)}: expected at most {MAX_AXES} axes, got {len(shape)}")
    count = 1
    for size in shape:
        # isinstance would accept a bool as an int.
        if type(size) is not int or not 0 <= size < _MAX_COUNT:
            raise fault(
                f"tensor {_short(name)}: expected the shape to be a list of sizes, got "
                f"{_short(shape)}"
            )
        count *= size
    if type(offsets) is not list or len(offsets) != 2:
        raise fault(f"tensor {_short(name)}: expected two offsets, got {_short(offsets)}")
    begin, end = offsets
    if (
        type(begin) is not int
        or type(end) is not int
        or not (0 <= begin < _MAX_COUNT and 0 <= end < _MAX_COUNT)
    ):
        raise fault(f"tensor {_short(name)}: expected two offsets, got {_short(offsets)}")
    if count * bits != (end - begin) * 8:
        raise fault(
            f"tensor {_short(name)}: expected {_bytes(count * bits)} for {code}{_short(shape)}, "
            f"got the offsets [{begin}, {end})"
        )
    if count == 0:
        _check_extent(name, code, shape, fault)
    return Tensor(code, tuple(shape), data_begin + begin, data_begin + end)


def _bytes(bits: int) -> str:
    return f"{bits // 8} bytes" if bits % 8 == 0 else f"whole bytes, not {bits} bits,"


def _check_extent(name: str, code: str, shape: list[int], fault: _Fault) -> None:
    # An empty tensor has no data that would bound its other sizes. NumPy has no arrays whose
    # strides in bytes exceed 63 bits; the reference reader accepts some of these shapes.
    extent = max(_BITS[code] // 8, 1)
    for size in shape:
        extent *= max(size, 1)
    if extent >= _MAX_EXTENT:
        raise fault(f"tensor {_short(name)}: the shape {_short(shape)} overflows 63 bits")


def _check_layout(
    tensors: Mapping[str, Tensor], data_begin: int, data_end: int, fault: _Fault
) -> None:
    if _are_side_by_side(tensors.values(), data_begin, data_end):
        return  # The data is in the header's order, as in most files.
    reached = data_begin
    before = "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != reached:
            kind = "a hole" if tensor.begin > reached else "an overlap"
            raise fault(
                f"tensor {_short(name)}: expected its data to begin where that of {before} ends, "
                f"at byte {reached} of the file, got {tensor.begin}: {kind}"
            )
        reached = tensor.end
        before = _short(name)
    if reached != data_end:
        raise fault(
            f"expected {reached - data_begin} bytes of data, got {data_end - data_begin}: "
            + ("the file was cut short" if reached > data_end else "bytes that belong to no tensor")
        )


def _are_side_by_side(tensors: Iterable[Tensor], begin: int, end: int) -> bool:
    for tensor in tensors:
        if tensor.begin != begin:
            return False
        begin = tensor.end
    return begin == end
