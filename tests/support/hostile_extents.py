"""Foreign bytes that ask for much: what a reader may take of memory, and the error, if it is one.

`most` is how many bytes of memory are taken for each byte of the file, beside what any file takes;
None where counting them takes much longer than reading. They are small here; what they need grows
with their size.
"""

import io
import json
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack
import numpy as np

import safejax
import safejax.recipes
from safejax._src.checkpoint.orbax_items import _leaves
from safejax._src.format import orbax_tree
from safejax._src.format.index import read_index
from safejax._src.format.record import read_record
from safejax._src.format.strict_json import parse
from safejax._src.pytrees.patterns import Template
from safejax._src.tensorstores import Folder
from tests.support.files import file_of

SIZE: Final = 100_000
EMPTY: Final = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'


class Case(NamedTuple):
    """What is read, by which reader, how much it may take, and the error, if it is one."""

    data: Callable[[], bytes]
    read: Callable[[bytes], Any]
    most: int | None
    error: str | None = None


def _repeated(part: str, count: int = SIZE) -> bytes:
    return file_of('{"a":[' + part * (count // len(part)) + "0]}")


def _tensors(names: list[str], metadata: Any = None) -> bytes:
    entries = [f"{json.dumps(name)}:{EMPTY}" for name in names]
    if metadata is not None:
        record = json.dumps({"version": 1, **metadata})
        entries.insert(0, f'"__metadata__":{json.dumps({"safejax": record})}')
    return file_of("{" + ",".join(entries) + "}")


def _deep(count: int, depth: int, length: int = 1) -> list[str]:
    return [f"x{n}." + ".".join(["a" * length] * depth) for n in range(count)]


def _kinds(depth: int) -> dict[str, Any]:
    """Flat containers beside each container on the way down."""
    return {
        "kinds": {
            ".".join(["x1"] + ["a"] * n + ["b"]): {"type": "dict", "flat": True}
            for n in range(depth)
        }
    }


# ---- readers


def _loaded(suffix: str) -> Callable[[bytes], Any]:
    """Loads a file of this suffix, in the working folder, which is of the test."""

    def read(data: bytes) -> Any:
        path = Path(f"m{suffix}")
        path.write_bytes(data)
        return safejax.load(path)

    return read


def _placed(data: bytes) -> Any:
    loaded: Any = _loaded(".npz")(data)
    return {name: np.asarray(leaf) for name, leaf in loaded.items()}


def _record(data: bytes) -> Any:
    return read_record({"safejax": data.decode()}, "f")


def _index(data: bytes) -> Any:
    return read_index(data, "f")


def _orbax(data: bytes) -> Any:
    return _leaves(orbax_tree.read_tree(data, "f"), lambda _: 0, "f")


def _without_limits(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A reader in a program that has raised Python's own limits."""

    def unlimited(data: bytes) -> Any:
        depth, digits = sys.getrecursionlimit(), sys.get_int_max_str_digits()
        sys.setrecursionlimit(10**6)
        sys.set_int_max_str_digits(0)
        try:
            return read(data)
        finally:
            sys.setrecursionlimit(depth)
            sys.set_int_max_str_digits(digits)

    return unlimited


def _matched(pattern: str) -> Callable[[bytes], Any]:
    match = Template.parse(pattern).matcher()
    return lambda data: match(data.decode())


def _sparse(name: str) -> Callable[[bytes], Any]:
    """Loads a folder with a file of a terabyte, which has no byte on the disk."""

    def read(data: bytes) -> Any:
        os.makedirs("sparse", exist_ok=True)
        path = Path("sparse", name)
        path.write_bytes(data)
        os.truncate(path, 10**12)
        try:
            if name == "config.json":
                return safejax.recipes.of("sparse")
            return safejax.load(path) if name.endswith(".json") else Folder("sparse").read(name)
        finally:
            path.unlink()

    return read


def _endless(_: bytes) -> Any:
    path = Path("model.safetensors.index.json")
    path.symlink_to("/dev/zero")
    try:
        return safejax.load(path)
    finally:
        path.unlink()


# ---- msgpack


def _many_lists(count: int) -> bytes:
    return b"\x82\xa1a\xdd" + struct.pack(">I", count) + b"\x90" * count + b"\xa1b\x00"


def _array(shape: Any, dtype: str, data: bytes) -> bytes:
    return msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb([shape, dtype, data])), "b": 0})


def _below(inner: Any, keys: list[str]) -> bytes:
    for key in keys:
        inner = {key: inner}
    return msgpack.packb({"a": {}, "b": inner})


# ---- NumPy


def _npy(header: str, data: bytes = b"") -> bytes:
    encoded = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(encoded)) + encoded + data


def _header_of(shape: str, descr: str = "'<f8'") -> str:
    return f"{{'descr':{descr},'fortran_order':False,'shape':{shape}}}\n"


def _npz(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


# ---- Orbax


def _rich(count: int, depth: int) -> bytes:
    """Very many containers below one long path, of which one is a tuple."""
    tuple_ = '{"category":"custom","clazz":"tuple","entries":[]}'
    text = "[" + ",".join(["{}"] * count + [tuple_]) + "]"
    for _ in range(depth):
        text = f'{{"a":{text}}}'
    return json.dumps({"tree_metadata": {}, "value_metadata_tree": text}).encode()


def _entries(count: int, depth: int, length: int = 1) -> bytes:
    keys = [{"key": "a" * length, "key_type": 2}] * depth
    return json.dumps({
        "tree_metadata": {
            str(n): {
                "key_metadata": [{"key": str(n), "key_type": 2}, *keys],
                "value_metadata": {"value_type": "None"},
            }
            for n in range(count)
        }
    }).encode()  # fmt: skip


_INVALID: Final = "InvalidFileError"
_PATTERN: Final = "TransformError"

CASES: Final[dict[str, Case]] = {
    # JSON
    "empty lists": Case(lambda: _repeated("[],"), safejax.deserialize, 40, _INVALID),
    "empty objects": Case(lambda: _repeated("{},"), safejax.deserialize, 40, _INVALID),
    "objects of one": Case(lambda: _repeated('{"":0},'), safejax.deserialize, 40, _INVALID),
    "ints": Case(lambda: _repeated("999,"), safejax.deserialize, 20, _INVALID),
    "long ints": Case(lambda: _repeated("9" * 4300 + ","), safejax.deserialize, 20, _INVALID),
    "an int of a million digits, without Python's limit": Case(
        lambda: file_of('{"a":' + "9" * 10**6 + "}"),
        _without_limits(safejax.deserialize), 10, _INVALID),
    "a float of a million digits": Case(
        lambda: file_of('{"a":0.' + "9" * 10**6 + "}"), safejax.deserialize, 10, _INVALID),
    "very deep, without Python's limit": Case(
        lambda: _repeated("["), _without_limits(safejax.deserialize), 20, _INVALID),
    "a long string, without Python's limit": Case(
        lambda: file_of('{"a":"' + "x" * 10**6 + '"}'),
        _without_limits(safejax.deserialize), 20, _INVALID),
    "wide characters": Case(
        lambda: file_of('{"a":"' + "a" * SIZE + '\U0001f600"}'), safejax.deserialize, 20, _INVALID),
    "the same key": Case(lambda: _tensors(["a"] * 2000), safejax.deserialize, 30, _INVALID),
    "constants": Case(lambda: b"[" + b"NaN," * 25_000 + b"NaN]",
        lambda data: parse(data.decode(), allow_constants=True), 20),
    # headers
    "many tensors": Case(lambda: _tensors(list(map(str, range(2000)))), safejax.deserialize, 60),
    "a name of a megabyte": Case(lambda: _tensors(["a" * 10**6]), safejax.deserialize, 20),
    "a name of a million dots": Case(
        lambda: _tensors(["." * 10**6]), safejax.deserialize, 40, _PATTERN),
    "deep names": Case(lambda: _tensors(_deep(30, 490)), safejax.deserialize, 200),
    "deep names with long segments": Case(
        lambda: _tensors(_deep(1, 490, 1000)), safejax.deserialize, 20),
    "deep names beside flat containers": Case(
        lambda: _tensors(_deep(30, 490), _kinds(490)), safejax.deserialize, 200),
    "names that extend names": Case(
        lambda: _tensors([".".join("a" * n) for n in range(1, 400)]), safejax.deserialize, 60),
    # records
    "a long version": Case(lambda: json.dumps({"version": "x" * SIZE}).encode(), _record, 10,
        _INVALID),
    "unknown fields": Case(
        lambda: json.dumps({"version": 1, **{f"f{n}": 0 for n in range(10_000)}}).encode(),
        _record, 40, _INVALID),
    "a deep list as a container, without Python's limit": Case(
        lambda: json.dumps({"version": 1, "kinds": {"[" * SIZE: "list"}}).encode(),
        _without_limits(_record), 20, _INVALID),
    "deep keys, without Python's limit": Case(
        lambda: (
            '{"version":1,"kinds":{"a":{"type":"dict","keys":{"b":' + "[" * 9000 + "]" * 9000
            + "}}}}"
        ).encode(),
        _without_limits(_record), None, _INVALID),
    "deep complex numbers, without Python's limit": Case(
        lambda: (
            '{"version":1,"values":{"a":' + '{"complex":[' * 4000 + "0" + ",0]}" * 4000 + "}}"
        ).encode(),
        _without_limits(_record), None, _INVALID),
    "int keys of a megabyte": Case(
        lambda: _tensors(
            ["x" + "9" * 10**6, *("9" * 4300 + str(n) for n in range(9))],
            {"kinds": {"": {"type": "dict", "keys": "int"}}}),
        safejax.deserialize, 20),
    # indices, and what else is read whole
    "an index of many names": Case(
        lambda: json.dumps({"weight_map": {str(n): "a" for n in range(10_000)}}).encode(),
        _index, 40),
    "an index of a terabyte": Case(
        lambda: b"{", _sparse("model.safetensors.index.json"), 10, _INVALID),
    "an index without an end": Case(lambda: b"{", _endless, 250_000_000, _INVALID),
    "a configuration of a terabyte": Case(lambda: b"{", _sparse("config.json"), 10, _INVALID),
    "Orbax's table of a terabyte": Case(lambda: b"{", _sparse("_METADATA"), 10, _INVALID),
    # msgpack
    "lists in a list": Case(lambda: _many_lists(2_000), _loaded(".msgpack"), 1500),
    "too many values": Case(lambda: _many_lists(10**6), _loaded(".msgpack"), 20, _INVALID),
    "more values than bytes": Case(lambda: b"\x82\xa1a\xdd\xff\xff\xff\xff" * 2,
        _loaded(".msgpack"), 20, _INVALID),
    "leaves below a long path": Case(
        lambda: _below({f"{n:04}": 0 for n in range(5000)}, ["k" * 500] * 100),
        _loaded(".msgpack"), 40, _INVALID),
    "long keys, deep": Case(lambda: _below({}, ["k" * 2000] * 480), _loaded(".msgpack"), 40,
        _INVALID),
    "too deep": Case(lambda: b"\x82\xa1a\x00\xa1b" + b"\x91" * SIZE, _loaded(".msgpack"), 40,
        _INVALID),
    "a dtype of many fields": Case(lambda: _array([2], "f4," * 33_333, b"x" * 8),
        _loaded(".msgpack"), 20, _INVALID),
    "a shape of many axes": Case(lambda: _array([2**40] * 10_000, "float32", b"x" * 8),
        _loaded(".msgpack"), 40, _INVALID),
    "a text longer than the file": Case(lambda: b"\x82\xa1a\xdb\xff\xff\xff\xff" + b"x" * 1000,
        _loaded(".msgpack"), 40, _INVALID),
    # NumPy
    "nested brackets": Case(lambda: _npy("(" * 9000), _loaded(".npy"), 400, _INVALID),
    "many signs": Case(lambda: _npy(_header_of("(" + "-" * 9000 + "1,)")), _loaded(".npy"), 400,
        _INVALID),
    "a power": Case(lambda: _npy(_header_of("(9**9**9,)")), _loaded(".npy"), 400, _INVALID),
    "very many fields": Case(
        lambda: _npy(_header_of("(0,)", repr([(f"f{n}", "<f8") for n in range(500)]))),
        _loaded(".npy"), 400, _INVALID),
    "an array of an exabyte": Case(lambda: _npy(_header_of(f"({2**57},)")), _loaded(".npy"), 400,
        _INVALID),
    "arrays without end": Case(lambda: _npy(_header_of("(0,)")) * 2000, _loaded(".npy"), 40,
        _INVALID),
    "a bomb that is longer than its array": Case(
        lambda: _npz({"a.npy": _npy(_header_of("(1,)"), bytes(2 * 10**7))}), _placed, 40, _INVALID),
    "an array that is longer than its member": Case(
        lambda: _npz({"a.npy": _npy(_header_of("(10**9,)".replace("10**9", str(10**9))))}),
        _placed, 400, _INVALID),
    "many members": Case(lambda: _npz({f"{n}.npy": _npy(_header_of("(0,)")) for n in range(500)}),
        _placed, 100),
    # Orbax
    "containers of rich types below a long path": Case(lambda: _rich(10_000, 400), _orbax, 100),
    "deep rich types, without Python's limit": Case(
        lambda: _rich(1, 9_000), _without_limits(_orbax), 200),
    "deep entries": Case(lambda: _entries(5, 450), _orbax, 40),
    "deep entries with long keys": Case(lambda: _entries(1, 450, 2000), _orbax, 40, _INVALID),
    # patterns, of names that a file gives
    "many stars": Case(lambda: b"a" * 10**6, _matched("*a*a*a*a*b"), 20),
    "very many stars": Case(lambda: b"a" * 10**5, _matched("*a" * 40 + "b"), 20),
    "a segment after a star": Case(lambda: b"a" * 10**6, _matched("*a{i}b"), None, _PATTERN),
    "a repeated segment": Case(lambda: b"x" * 1_000_001, _matched("{i}x{i}y"), None, _PATTERN),
    "three repeated segments": Case(
        lambda: b"x" * 1000, _matched("{a}x{b}x{c}x{a}x{b}x{c}y"), None, _PATTERN),
    "many segments": Case(
        lambda: b"x" * 10**5, _matched("x".join(f"{{p{n}}}" for n in range(30)) + "y"), None),
}  # fmt: skip
