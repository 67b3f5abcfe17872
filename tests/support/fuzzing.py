"""What is fuzzed: readers of foreign bytes, each with what has to hold of any bytes.

A reader raises safejax's errors and no others. What it accepts is what others read in the same
bytes, and is the same when it is written and read again. `python -m tests.fuzz` looks for bytes of
which this does not hold; what was found is in `tests/fuzzed/`, by target, and tried with the tests.
"""

import io
import json
import math
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import ml_dtypes
import msgpack
import numpy as np

from safejax._src.checkpoint.orbax_items import _leaves
from safejax._src.dtypes import Stored
from safejax._src.format import msgpack as our_msgpack
from safejax._src.format import npy, orbax_tree, strict_json
from safejax._src.format.header import faults_of_header, read_header
from safejax._src.format.index import read_index
from safejax._src.format.record import RECORD_KEY, read_record, with_record
from safejax._src.format.written_header import data_order, write_header
from safejax._src.pytrees.building import build
from safejax._src.pytrees.extent import check_extent
from safejax._src.pytrees.patterns import Template
from safejax._src.pytrees.walk import walk
from safejax.errors import InvalidFileError, SafejaxError, TransformError
from tests.support.files import file_of
from tests.support.forged_records import FORGED, forged
from tests.support.hostile_headers import HOSTILE
from tests.support.reference_header import compared


class Target(NamedTuple):
    """What is checked of any bytes, with bytes to begin with, and the words of the format."""

    check: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    words: tuple[str, ...]


def _is_for_people(error: SafejaxError) -> None:
    """Check that an error is not as long as what it is about."""
    assert len(str(error)) < 4000, error


def _fetch(data: bytes) -> Callable[[int, int], bytes]:
    return lambda begin, end: data[begin : max(begin, end)]


# ---- JSON, and what is written in it


def check_strict_json(data: bytes) -> None:
    """Python's own parser accepts whatever this one does, with the same values."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    try:
        value = strict_json.parse(text)
    except ValueError as error:
        refusal = str(error)
        reasons = "appears twice", "is not JSON", "out of range", "surrogate", "nested too deeply"
        if not any(reason in refusal for reason in reasons):
            _assert_raises(ValueError, lambda: json.loads(text))
        return
    same = json.loads(text, parse_int=lambda digits: -0.0 if digits == "-0" else int(digits))
    assert repr(value) == repr(same)
    assert repr(strict_json.parse(strict_json.write(value))) == repr(value)


def check_header(data: bytes) -> None:
    """The reference reader accepts whatever this one does, with the same tensors."""
    for file in (data, file_of(data), file_of(data, bytes(8))):
        fetch = _fetch(file)
        if compared(file) != "both accept":
            assert all(": " in fault for fault in faults_of_header(fetch, len(file), "m"))
            continue
        header = read_header(fetch, len(file), "m")
        assert faults_of_header(fetch, len(file), "m") == []
        stored = {
            name: Stored(tensor.code, tensor.shape, None, tensor.end - tensor.begin)
            for name, tensor in header.tensors.items()
        }
        head = write_header(data_order(stored), header.metadata, "m")
        size = len(head) + sum(each.nbytes for each in stored.values())
        again = read_header(_fetch(head), size, "m")
        assert again.metadata == header.metadata
        assert {name: tensor[:2] for name, tensor in again.tensors.items()} == {
            name: tensor[:2] for name, tensor in header.tensors.items()
        }


def check_record(data: bytes) -> None:
    """What is read of a record is read again when it is written."""
    text = data.decode(errors="replace")
    try:
        metadata, record = read_record({RECORD_KEY: text, "format": "pt"}, "m")
    except InvalidFileError as error:
        _is_for_people(error)
        return
    again = read_record(with_record(metadata, record), "m")
    assert repr(again[0]) == repr(metadata)
    for one, other in zip(again[1], record, strict=True):
        assert _sorted(one) == _sorted(other)


def _sorted(value: Any) -> Any:
    """The `repr` of a field of a record, whose tables are written by name."""
    if isinstance(value, dict):
        return sorted((name, repr(item)) for name, item in value.items())
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [_sorted(each) for each in value]
    return repr(value)


def check_index(data: bytes) -> None:
    """An index is the JSON that it says, of files in its own folder."""
    try:
        index = read_index(data, "m")
    except InvalidFileError as error:
        _is_for_people(error)
        return
    assert index.weight_map == json.loads(data)["weight_map"]
    assert set(index.files) == set(index.weight_map.values())
    assert not any(".." in file.split("/") or file.startswith("/") for file in index.files)


# ---- templates


def check_template(data: bytes) -> None:
    """A name is matched as trying all ends, the nearest first, matches it."""
    pattern, _, name = data.decode(errors="replace").partition("\n")
    try:
        template = Template.parse(pattern)
    except TransformError as error:
        _is_for_people(error)
        return
    found = template.matcher()(name)
    if len(name) <= 40 and len(template.placeholders) <= 4:
        assert found == _first_match(template, name)
    if found is not None:
        assert template.fill(found) == name
        assert template._match_in_steps(name) == found


def _first_match(template: Template, name: str) -> dict[str, str] | None:
    def search(n: int, begin: int, values: dict[str, str]) -> dict[str, str] | None:
        if n == len(template.placeholders):
            return values if begin == len(name) else None
        placeholder, literal = template.placeholders[n], template.parts[n + 1]
        for end in range(begin, len(name) + 1):
            text = name[begin:end]
            if values.get(placeholder, text) != text or not _may_be(template, n, text):
                continue
            if name.startswith(literal, end):
                found = search(n + 1, end + len(literal), {**values, placeholder: text})
                if found is not None:
                    return found
        return None

    head = template.parts[0]
    return search(0, len(head), {}) if name.startswith(head) else None


def _may_be(template: Template, n: int, text: str) -> bool:
    among = template.among[n]
    if isinstance(among, tuple):
        return text in among
    if template.placeholders[n].startswith("*"):
        return True
    allowed = "0123456789" if among == "int" else None
    return text != "" and "." not in text and (allowed is None or set(text) <= set(allowed))


# ---- msgpack


def check_msgpack(data: bytes) -> None:
    """The package msgpack accepts whatever this reader does, with the same values."""
    try:
        tree = our_msgpack.read_msgpack(_fetch(data), len(data), "m")
    except InvalidFileError as error:
        _is_for_people(error)
        return
    # The package has timestamps, of kind -1, which Flax never writes.
    if b"__msgpack_chunked_array__" not in data and b"\xff" not in data:
        others = msgpack.unpackb(
            data, ext_hook=_extension, raw=False, strict_map_key=False,
            object_pairs_hook=list_of_pairs,
        )  # fmt: skip
        assert _shown(tree, data) == _shown(others, data)
    # The tree of a file has names, and is built from them.
    try:
        check_extent(tree, "m")
        walked = walk(tree, lambda node: isinstance(node, our_msgpack.Array | our_msgpack.Other))
        build(walked.entries, walked.structure._replace(flattened=None), "m")
    except SafejaxError as error:
        _is_for_people(error)


class list_of_pairs(list[Any]):
    """A dict as msgpack reads it, with its keys as they are."""


def _extension(kind: int, data: bytes) -> Any:
    if kind in (1, 3):
        return tuple(msgpack.unpackb(data, raw=False, strict_map_key=False))
    if kind == 2:
        return complex(*msgpack.unpackb(data))
    return _Extension(data)


class _Extension(NamedTuple):
    """What is not Flax's; the package has no value for a negative kind."""

    data: bytes


def _shown(value: Any, data: bytes) -> Any:
    """A value of either reader, in one form."""
    if isinstance(value, our_msgpack.Array):
        nbytes = math.prod(value.shape) * value.dtype.itemsize
        return [list(value.shape), value.dtype.name, data[value.begin : value.begin + nbytes]]
    if isinstance(value, our_msgpack.Other):
        held = data[value.begin : value.begin + value.nbytes]
        return held if value.what == "bytes" else ["extension", held]
    if isinstance(value, _Extension):
        return ["extension", value.data]
    if isinstance(value, list_of_pairs):
        return {repr(key): _shown(item, data) for key, item in value}
    if isinstance(value, dict):
        return {repr(key): _shown(item, data) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(each, data) for each in value]
    return repr(value) if isinstance(value, float | complex) else value


# ---- NumPy


def check_npy(data: bytes) -> None:
    """NumPy reads the arrays that are read, from the same bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers of Python 2
        try:
            found = npy.read_sequence(_fetch(data), 0, len(data), "m")
        except InvalidFileError as error:
            _is_for_people(error)
            return
        stream = io.BytesIO(data)
        for array in found:
            expected = np.lib.format.read_array(stream, allow_pickle=False)
            _assert_same(array, data[array.begin : array.begin + array.nbytes], expected)
    assert stream.tell() == len(data)


def check_npz(data: bytes) -> None:
    """NumPy reads the arrays of an archive that are read, with the same bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            members = npy.read_npz(_fetch(data), len(data), "m")
        except InvalidFileError as error:
            _is_for_people(error)
            return
        for member in members:
            array = member.array
            if array.dtype.hasobject or array.nbytes > 1 << 20:
                continue
            try:
                if member.is_stored:
                    held = data[array.begin : array.begin + array.nbytes]
                else:
                    held = npy.decompressed(_fetch(data), len(data), member, "m")
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    archive.read(member.info)
            except (InvalidFileError, *npy._ZIP_ERRORS):
                continue  # Its check sum is not that of its bytes, for example.
            with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(member.info) as stream:
                expected = np.lib.format.read_array(
                    io.BytesIO(stream.read(1 << 24)), allow_pickle=False
                )
            _assert_same(array, held, expected)


def _assert_same(array: npy.Array, held: bytes, expected: Any) -> None:
    if array.dtype.subdtype is not None:
        return  # NumPy makes its axes those of the array; a leaf of it is refused.
    order = "F" if array.columns_first else "C"
    dtype = expected.dtype if array.dtype == ml_dtypes.bfloat16 else array.dtype
    same = np.frombuffer(held, np.uint8).tobytes()
    assert expected.shape == array.shape
    assert expected.dtype == dtype
    if not array.dtype.hasobject:
        assert same == expected.tobytes(order)


# ---- Orbax


def check_orbax(data: bytes) -> None:
    """What is read is a tree, or an error."""
    readers: tuple[Callable[[bytes, str], Any], ...] = (
        orbax_tree.read_keys, orbax_tree.read_strings,
        lambda data, file: _leaves(orbax_tree.read_tree(data, file), lambda _: 0, file),
    )  # fmt: skip
    for read in readers:
        try:
            read(data, "m")
        except SafejaxError as error:
            _is_for_people(error)


# ---- what to begin with


def _records() -> list[bytes]:
    return [
        json.dumps(record).encode() for record in FORGED.values() if not isinstance(record, str)
    ]


def _headers() -> list[bytes]:
    files = [data for data, _ in HOSTILE.values()] + [forged(record) for record in FORGED.values()]
    return [data[8:2000] for data in files if len(data) < 2000]


def _packed() -> list[bytes]:
    array = msgpack.ExtType(1, msgpack.packb([[2], "float32", bytes(8)]))
    scalar = msgpack.ExtType(3, msgpack.packb([[], "int8", b"\1"]))
    parts = {"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {"0": array}}
    pair = msgpack.ExtType(2, msgpack.packb([1.0, 2.0]))
    trees: list[Any] = [
        {"a": array, "b": scalar}, {"a": parts}, {"a": pair, "b": [1, -1, None, True, 2.5, "é"]},
        {"a": {}, "b": [], "0": {"0": 1, "1": b"x"}}, {1: 2, 2.5: 3, None: 4, False: 5},
        {"a": msgpack.ExtType(5, b"xy"), "a.b": {"": 2**63}},
    ]  # fmt: skip
    return [msgpack.packb(tree) for tree in trees]


def _arrays() -> list[bytes]:
    values: list[Any] = [
        np.arange(6, dtype=">f4").reshape(2, 3), np.asfortranarray(np.ones((2, 3))),
        np.zeros(0), np.array("text"), np.zeros(2, [("a", "i4"), ("b", "f8", (2,))]),
        np.ones(2, ml_dtypes.bfloat16), np.array(1j), np.zeros(1, "M8[s]"), np.array([True]),
    ]  # fmt: skip
    return [_written(np.save, each) for each in values]


def _archives() -> list[bytes]:
    tables: list[dict[str, Any]] = [{"a": np.arange(3)}, {"a": np.ones((2, 2)), "b.c": np.zeros(0)}]
    return [_written(save, **table) for table in tables for save in (np.savez, np.savez_compressed)]


def _written(save: Callable[..., None], *arrays: Any, **named: Any) -> bytes:
    stream = io.BytesIO()
    save(stream, *arrays, **named)
    return stream.getvalue()


def _tables() -> list[bytes]:
    def key(text: str, kind: int) -> dict[str, Any]:
        return {"key": text, "key_type": kind}

    def entry(kind: str, *keys: dict[str, Any]) -> dict[str, Any]:
        return {"key_metadata": list(keys), "value_metadata": {"value_type": kind}}

    rich = {
        "a": {"category": "custom", "clazz": "tuple", "entries": [{}, {}]},
        "b": {"category": "namedtuple", "entries": [{"key": "x", "value": {"category": "custom"}}]},
    }
    entries = {"1": entry("jax.Array", key("a", 2), key("0", 1)), "2": entry("None", key("b", 2)),
        "3": entry("Dict", key("a", 2), key("1", 1)), "4": entry("scalar")}  # fmt: skip
    described = {"param_name": "a.0", "ext_metadata": {"random_key_impl": "fry"}}
    tables: list[Any] = [
        {"tree_metadata": entries, "use_ocdbt": True, "use_zarr3": False,
         "value_metadata_tree": json.dumps(rich)},
        {"tree_metadata": {}}, {"array_metadatas": [{"array_metadata": described}]},
        {"a": {"b": "text"}},
    ]  # fmt: skip
    return [json.dumps(table).encode() for table in tables]


def _texts() -> Iterator[bytes]:
    yield from (
        b"*.layers.{i}.*\na.layers.0.w", b"{a}x{b}\naxb", b"{i:int}.{k:a|b}\n1.a", b"{{*}}\n{a}",
        b"{i}.{i}\na.a", b"*a{i}b*c\nxaxbxc", b"{a:x|xx}{b}\nxxx", b"a\na", b"*a*a*b\naaab",
        b"{a:x|xx}y{b:x|xx}y{a}\nxyxxyx",
    )  # fmt: skip


_JSON: Final = ("{", "}", "[", "]", ":", ",", '"', "true", "null", "-0", "1e9", "\\u00e9", "NaN")
_HEADER: Final = ('"__metadata__"', '"dtype"', '"shape"', '"data_offsets"', '"F32"', '"U8"', '"F4"')
_RECORD: Final = (
    '"safejax"', '"version"', '"format"', '"kinds"', '"paths"', '"values"', '"dtypes"', '"keys"',
    '"digests"', '"weak"', '"type"', '"order"', '"flat"', '"aliases"', '"int"', '"complex"',
    '"float"', '"empty"', '"bytes"', '"dict"', '"list"', '"algorithm"', '"block_bytes"',
    '"tensors"', '"xxh3_64"',
)  # fmt: skip

TARGETS: Final[dict[str, Target]] = {
    "strict_json": Target(check_strict_json, lambda: _headers() + _records(), _JSON),
    "header": Target(check_header, _headers, _JSON + _HEADER),
    "record": Target(check_record, _records, _JSON + _RECORD),
    "index": Target(
        check_index,
        lambda: [
            b'{"metadata":{"total_size":1},"weight_map":{"a":"m-1.safetensors","b":"x/y"}}',
            b'{"metadata":{"safejax":"{\\"version\\":1}"},"weight_map":{"a":"m"}}',
        ],
        (*_JSON, '"weight_map"', '"metadata"', '"safejax"', "..", "/", "\\\\"),
    ),
    "template": Target(check_template, lambda: list(_texts()), ("*", "{i}", "{i:int}", "{a:b|bb}")),
    "msgpack": Target(
        check_msgpack, _packed, ("float32", "int8", "shape", "chunks", "__msgpack_chunked_array__")
    ),
    "npy": Target(
        check_npy, _arrays, ("descr", "fortran_order", "shape", "True", "False", "<f8", "|V2", "O")
    ),
    "npz": Target(check_npz, _archives, ("PK", ".npy", "descr", "shape", "<f8")),
    "orbax": Target(
        check_orbax, _tables,
        (*_JSON, '"tree_metadata"', '"key_metadata"', '"value_metadata"', '"value_type"', '"key"',
         '"key_type"', '"category"', '"custom"', '"clazz"', '"tuple"', '"entries"'),
    ),
}  # fmt: skip
"""By name: what `python -m tests.fuzz` is told."""


def _assert_raises(kind: type[Exception], call: Callable[[], Any]) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(f"expected {kind.__name__}, got none")
