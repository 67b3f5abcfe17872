"""The record: what is told comes back, and what cannot be true is refused, quickly."""

import json
import math
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from safejax._src.checkpoint.codec import decode
from safejax._src.format import strict_json
from safejax._src.format.record import Record, read_record, with_record
from safejax._src.leaves.flatten import unflatten
from safejax._src.pytrees.structure import EMPTY, MAX_DEPTH, Kind, Structure
from safejax.errors import InvalidFileError, TransformError


def double(bits: int) -> float:
    return struct.unpack(">d", struct.pack(">Q", bits))[0]


def exact(value: Any) -> Any:
    """A form whose equality is that of type and every bit."""
    if isinstance(value, float):
        return ("float", struct.pack(">d", value))
    if isinstance(value, complex):
        return ("complex", struct.pack(">dd", value.real, value.imag))
    if isinstance(value, tuple):
        return ("tuple", [exact(item) for item in value])
    return (type(value), value)


def there_and_back(record: Record, metadata: dict[str, str] | None = None) -> Any:
    stored = with_record(metadata or {}, record)
    assert all(isinstance(item, str) for pair in stored.items() for item in pair)
    return read_record(stored, "f")


VALUES: list[Any] = [
    None, EMPTY, True, False, 0, 1, -1, 2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 2**200, -(2**200),
    10**6000, 0.0, -0.0, 0.1, 1e300, 5e-324, 1.0, 1e22, math.inf, -math.inf, math.nan, -math.nan,
    double(0x7FF8000000000001), double(0xFFF8DEADBEEF0001), 0j, -0j, complex(-0.0, -0.0), 1 + 2j,
    complex(math.nan, math.inf), complex(double(0x7FF8000000000002), -0.0), "", "x", "é🦎", "\x00",
    "\ud800", "half \udfff", "null", '{"empty": true}', "x" * 100_000,
]  # fmt: skip


def test_every_value_comes_back_bit_for_bit() -> None:
    values = {str(number): value for number, value in enumerate(VALUES)}
    _, record = there_and_back(Record(values=values))
    assert list(record.values) == sorted(values)
    for name, value in values.items():
        assert exact(record.values[name]) == exact(value)


KEYS: list[Any] = [
    0, -1, 2**70, True, 1.5, -0.0, math.inf, None, b"", b"\xff\x00", "\ud800", (), (1, "a"),
    ((1, (2.5, b"x")), None), ("\udfff",), "empty", 1j,
]  # fmt: skip

KINDS: dict[str, Kind] = {
    "": Kind("list"),
    "a": Kind("tuple"),
    "a.b": Kind("some.where.Class"),
    "c": Kind(keys="int"),
    "d": Kind(keys=tuple((str(number), key) for number, key in enumerate(KEYS))),
    "e": Kind("collections.OrderedDict", order=("b", "a", "")),
    "f": Kind("collections.OrderedDict", order=()),
    "g": Kind(flat=True),
    "h": Kind("x.Y", (("1~1", "1"),), ("1~1",), True, (("p", "q"),)),
    '["a.b","c"]': Kind("list"),
}


def test_every_kind_and_path_comes_back() -> None:
    structure = Structure(KINDS, {"a~1": ("a",), "": (), "x.y.z": ("x.y", "z"), "é": ("é",)})
    _, record = there_and_back(Record(structure))
    assert dict(record.structure.paths) == structure.paths
    assert record.structure.kinds == KINDS
    found = dict(record.structure.kinds["d"].keys)
    for number, key in enumerate(KEYS):
        assert exact(found[str(number)]) == exact(key)


def test_dtypes_and_keys_come_back() -> None:
    _, record = there_and_back(Record(dtypes={"a": "int4"}, keys={"k": "rbg"}))
    assert (record.dtypes, record.keys) == ({"a": "int4"}, {"k": "rbg"})


METADATA: list[dict[str, str]] = [
    {}, {"k": "v"}, {"format": "pt"}, {"format": "np", "k": "v"}, {"": ""}, {"format": ""},
    {"é🦎\x00": "\n\"'\\"}, {"version": "1"},
]  # fmt: skip


@pytest.mark.parametrize("metadata", METADATA)
@pytest.mark.parametrize("record", [Record(), Record(values={"a": 1})])
def test_metadata_comes_back_as_it_was(metadata: dict[str, str], record: Record) -> None:
    stored = with_record(metadata, record)
    found, again = read_record(stored, "f")
    assert found == metadata
    assert again.values == record.values
    if stored:
        # Readers that ask for a format find one.
        assert stored["format"] == metadata.get("format", "pt")


def test_nothing_to_tell_is_no_metadata() -> None:
    assert with_record({}, Record()) == {}


def test_a_path_is_no_deeper_than_a_tree_may_be() -> None:
    for depth, fails in [(MAX_DEPTH, False), (MAX_DEPTH + 1, True)]:
        path = ["a"] * depth
        text = json.dumps({"version": 1, "paths": {".".join(path): path}})
        if fails:
            with pytest.raises(InvalidFileError, match=f"more than {MAX_DEPTH} deep"):
                read_record({"safejax": text}, "f")
        else:
            assert read_record({"safejax": text}, "f")[1].structure.paths


def test_metadata_of_others_is_left_alone() -> None:
    metadata, record = read_record({"format": "pt", "k": "v"}, "f")
    assert metadata == {"format": "pt", "k": "v"}
    assert record == Record()


def test_the_record_is_sorted_ascii_json() -> None:
    record = Record(
        Structure({"b": Kind("list"), "a": Kind("tuple")}), {"z": "é", "y": "\ud800"}, {}, {}
    )
    text = with_record({}, record)["safejax"]
    assert text == (
        '{"version":1,"kinds":{"a":"tuple","b":"list"},'
        '"values":{"y":"\\ud800","z":"\\u00e9"},"format":"default"}'
    )


# ---- forged records

TENSORS = {"w": ("F32", [2]), "l.0": ("U8", [2]), "l.1": ("U8", [2]), "k": ("U32", [3, 2])}


def forged(record: Any, tensors: dict[str, Any] | None = None) -> bytes:
    """A well-formed file whose record is `record`: JSON text, or a value to write as JSON."""
    text = record if isinstance(record, str) else json.dumps({"version": 1, **record})
    header: dict[str, Any] = {"__metadata__": {"safejax": text}}
    reached = 0
    sizes = {"F32": 4, "U8": 1, "U32": 4, "F64": 8, "I8": 1}
    for name, (code, shape) in (TENSORS if tensors is None else tensors).items():
        end = reached + math.prod(shape) * sizes[code]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [reached, end]}
        reached = end
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes(reached)


def kind(item: Any) -> dict[str, Any]:
    return {"kinds": {"": item}}


def value(item: Any) -> dict[str, Any]:
    return {"values": {"x": item}}


FORGED: dict[str, Any] = {
    # Not a record at all.
    "no JSON": "x",
    "empty text": "",
    "a list": "[]",
    "a string": '"version"',
    "null": "null",
    "a number": "1",
    "true": "true",
    "NaN": '{"version": NaN}',
    "a key twice": '{"version": 1, "version": 1}',
    "nested without end": "[" * 100_000,
    "nested objects": '{"version":1,"kinds":' + '{"a":' * 50_000,
    "a number of a million digits": '{"version": ' + "1" * 1_000_000 + "}",
    "more behind it": '{"version": 1} {}',
    "a byte order mark": '\ufeff{"version": 1}',
    "half a pair": '{"version": 1, "\\ud800": 1}',
    # Its version.
    "no version": "{}",
    "version 0": {"version": 0},
    "version 2": {"version": 2},
    "version true": {"version": True},
    "version 1.0": '{"version": 1.0}',
    "version '1'": {"version": "1"},
    "version 1e0": '{"version": 1e0}',
    "version -1": {"version": -1},
    "version 2**70": {"version": 2**70},
    "version null": {"version": None},
    # Its fields.
    "an unknown field": {"code": "import os"},
    "format of its own": {"format": "np"},
    "format a list": {"format": ["default"]},
    **{f"{field} a list": {field: []} for field in ("kinds", "paths", "values", "dtypes", "keys")},
    **{f"{field} null": {field: None} for field in ("kinds", "paths", "values", "dtypes", "keys")},
    # Kinds.
    "kind a number": kind(1),
    "kind a list": kind(["list"]),
    "kind without a type": kind({"flat": True}),
    "kind with an unknown field": kind({"type": "list", "call": "os.system"}),
    "kind's type a number": kind({"type": 1}),
    "kind's type a kind": kind({"type": {"type": "list"}}),
    "two kinds of one container": '{"version":1,"kinds":{"":"list","":"tuple"}}',
    "kind flat as 1": kind({"type": "dict", "flat": 1}),
    "kind's order a string": kind({"type": "dict", "order": "ab"}),
    "kind's order of numbers": kind({"type": "dict", "order": [1]}),
    "kind's keys a list": kind({"type": "dict", "keys": ["a"]}),
    "kind's keys another word": kind({"type": "dict", "keys": "float"}),
    "kind's key an empty container": kind({"type": "dict", "keys": {"w": {"empty": True}}}),
    "kind's key no base64": kind({"type": "dict", "keys": {"w": {"bytes": "*"}}}),
    "kind's key é in base64": kind({"type": "dict", "keys": {"w": {"bytes": "é"}}}),
    "kind's key bytes a number": kind({"type": "dict", "keys": {"w": {"bytes": 1}}}),
    "kind's key nested deeply": '{"version":1,"kinds":{"":{"type":"dict","keys":{"w":'
    + "[" * 100_000 + "]" * 100_000 + "}}}}",
    "kind's aliases a list": kind({"type": "x", "aliases": []}),
    "kind's aliases a string": kind({"type": "x", "aliases": "w"}),
    "kind's alias of a number": kind({"type": "x", "aliases": {"v": 1}}),
    "kind's alias of a container": kind({"type": "x", "aliases": {"v": "l"}}),
    "kind's alias that is a leaf": kind({"type": "x", "aliases": {"k": "w"}}),
    "kind's alias in a container that is not there": {
        "kinds": {"gone": {"type": "x", "aliases": {"v": "w"}}}
    },
    "kind's alias to nothing": kind({"type": "x", "aliases": {"v": "gone"}}),
    "kind's alias of itself": kind({"type": "x", "aliases": {"w": "w"}}),
    "kind's alias of an alias": kind({"type": "x", "aliases": {"a": "b", "b": "a"}}),
    "kind's aliases in a ring": kind({"type": "x", "aliases": {"a": "b", "b": "c", "c": "a"}}),
    "kind of no container": {"kinds": {"[": "list"}},
    "kind of numbers": {"kinds": {"[1]": "list"}},
    "kind of a nest": {"kinds": {"[" * 100_000: "list"}},
    "kind of a container a million deep": {"kinds": {json.dumps(["a"] * 1_000_000): "list"}},
    # Paths.
    "path a string": {"paths": {"w": "w"}},
    "path of numbers": {"paths": {"l.0": ["l", 0]}},
    "path of a name that is not there": {"paths": {"gone": ["gone"]}},
    "paths of 20,000 names that are not there": {
        "paths": {f"gone {n}": [f"gone {n}"] for n in range(20_000)}
    },
    "path with half a pair": {"paths": {"w": ["\ud800"]}},
    "path that is another": {"paths": {"w": ["l", "0"]}},
    "path that hides a name": {"paths": {"w": []}},
    "path through a leaf": {"paths": {"l.0": ["l.0", ""]}},
    "path of a thousand": {"paths": {"w": ["w"] * 1000}},
    "path of a million": {"paths": {"w": [""] * 1_000_000}},
    # Values.
    "value a list": value([]),
    "value an object": value({}),
    "value a pickle": value({"pickle": "gASVAAAA"}),
    "value a type to import": value({"py/object": "os.system"}),
    "value NaN": '{"version":1,"values":{"x":NaN}}',
    "value 1e999": '{"version":1,"values":{"x":1e999}}',
    "value a nest": '{"version":1,"values":{"x":' + '{"complex":[' * 50_000,
    "value with two forms": value({"int": "0x1", "float": "0" * 16}),
    "int in decimal": value({"int": "10"}),
    "int without digits": value({"int": "-0x"}),
    "int with a sign": value({"int": "+0x1"}),
    "int with a break": value({"int": "0x1_0"}),
    "float too short": value({"float": "00"}),
    "float of spaces": value({"float": "  7ff0  00000000"}),
    "float of 16 other digits": value({"float": "١" * 16}),
    "complex of one": value({"complex": [0.0]}),
    "complex of ints": value({"complex": [1, 2]}),
    "complex of complex": value({"complex": [{"complex": [0.0, 0.0]}, 0.0]}),
    "empty as 1": value({"empty": 1}),
    "empty as false": value({"empty": False}),
    "a value that is a tensor": {"values": {"w": 1}},
    "a value named __metadata__": {"values": {"__metadata__": 1}},
    "a value with half a pair": {"values": {"\ud800": 1}},
    # Dtypes and keys.
    "dtype of a name that is not there": {"dtypes": {"gone": "int4"}},
    "dtype of a value": {"values": {"x": 1}, "dtypes": {"x": "int4"}},
    "dtype a number": {"dtypes": {"w": 4}},
    "dtype that is unknown": {"dtypes": {"w": "float7"}},
    "dtype that is Python's": {"dtypes": {"w": "object"}},
    "dtype of another code": {"dtypes": {"l.0": "bool"}},
    "dtype stored otherwise": {"dtypes": {"w": "int4"}},
    "complex without its parts": {"dtypes": {"w": "complex128"}},
    "key of a name that is not there": {"keys": {"gone": "rbg"}},
    "key of an unknown implementation": {"keys": {"k": "os.system"}},
    "key of another width": {"keys": {"k": "rbg"}},
    "key that is no uint32": {"keys": {"w": "threefry2x32"}},
    "key with a recorded dtype": {"keys": {"l.0": "threefry2x32"}, "dtypes": {"l.0": "uint4"}},
    "key a number": {"keys": {"k": 1}},
}  # fmt: skip


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_record_is_refused_at_once(case: str) -> None:
    data = forged(FORGED[case])
    begin = time.process_time()
    with pytest.raises((InvalidFileError, TransformError)) as caught:
        unflatten(decode(data))
    assert time.process_time() - begin < 10
    message = str(caught.value)
    assert message.startswith(("<bytes>: ", "leaves: "))
    assert len(message) < 2000


CONFLICTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "two whole trees": ({"paths": {"": [], "~1": []}}, {"": ("U8", [1]), "~1": ("U8", [1])}),
    "one place for two": ({"paths": {"a~1": ["a"]}}, {"a": ("U8", [1]), "a~1": ("U8", [1])}),
    "a million dots": ({}, {"." * 1_000_000: ("U8", [1])}),
    "a million dots in a flat file": (
        {"kinds": {"a.b": {"type": "dict", "flat": True}}},
        {"a" + "." * 1_000_000: ("U8", [1])},
    ),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_names_that_contradict_each_other_are_refused_at_once(case: str) -> None:
    data = forged(*CONFLICTS[case])
    begin = time.process_time()
    with pytest.raises((InvalidFileError, TransformError), match="leaf"):
        unflatten(decode(data))
    assert time.process_time() - begin < 10


HARMLESS: dict[str, tuple[Any, Callable[[Any], bool]]] = {
    "a list that is none": ({"kinds": {"": "list"}}, lambda tree: type(tree) is dict),
    "an alias over a container": (
        {"kinds": {"": {"type": "x", "aliases": {"l": "w"}}}},
        lambda tree: tree["l"].keys() == {"0", "1"},
    ),
    "a list": ({"kinds": {"l": "list"}}, lambda tree: type(tree["l"]) is list),
    "os.system": ({"kinds": {"": "os.system"}}, lambda tree: type(tree) is dict),
    "eval": ({"kinds": {"l": "builtins.eval"}}, lambda tree: type(tree["l"]) is dict),
    "a module that acts when imported": (
        {"kinds": {"": "antigravity.x", "l": "this"}},
        lambda tree: type(tree) is dict and type(tree["l"]) is dict,
    ),
    "a namedtuple": ({"kinds": {"": "collections.namedtuple"}}, lambda tree: type(tree) is dict),
    "kinds of what is not there": (
        {"kinds": {"gone": "list", '["gone."]': "tuple"}},
        lambda tree: sorted(tree) == ["k", "l", "w"],
    ),
    "an order with strangers": (
        {"kinds": {"": {"type": "collections.OrderedDict", "order": ["w", "no", "w", "l"]}}},
        lambda tree: list(tree) == ["w", "l", "k"],
    ),
    "keys that fall together": (
        {"kinds": {"": {"type": "dict", "keys": {"w": 1, "l": 1}}}},
        lambda tree: sorted(tree) == ["k", "l", "w"],
    ),
    "keys that cannot be sorted": (
        {"kinds": {"": {"type": "dict", "keys": {"w": 1, "l": None}}}},
        lambda tree: sorted(tree) == ["k", "l", "w"],
    ),
    "values among containers": (
        {"values": {"l": {"empty": True}, "w.x": 3}},
        lambda tree: tree["w.x"] == 3 and tree["l"] == {} and "l.0" in tree,
    ),
    "an int of many digits": (
        {"values": {"n": {"int": "0x" + "f" * 100_000}}},
        lambda tree: tree["n"] == 16**100_000 - 1,
    ),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_a_record_runs_and_imports_nothing(case: str) -> None:
    record, check = HARMLESS[case]
    modules = set(sys.modules)
    begin = time.process_time()
    tree = unflatten(decode(forged(record)))
    assert time.process_time() - begin < 10
    assert check(tree)
    assert {"antigravity", "this"}.isdisjoint(sys.modules)
    assert set(sys.modules) == modules


def test_errors_name_the_fault() -> None:
    with pytest.raises(InvalidFileError) as caught:
        read_record({"safejax": '{"version":1,"kinds":{"":{"type":"list","flat":1}}}'}, "m.st")
    assert str(caught.value) == (
        "m.st: invalid 'safejax' record in the metadata: expected flat to be true or false, got 1; "
        "load it with safetensors, which ignores the record, if the arrays alone are enough"
    )


def test_the_record_stays_readable_by_strict_json() -> None:
    stored = with_record({}, Record(values={"x": math.nan}))
    assert strict_json.parse(stored["safejax"])["values"] == {"x": {"float": "7ff8000000000000"}}
