"""Records that a file must not have, in files that are well-formed otherwise."""

import json
import math
from typing import Any, Final

from tests.support.files import file_of

TENSORS: Final = {"w": ("F32", [2]), "l.0": ("U8", [2]), "l.1": ("U8", [2]), "k": ("U32", [3, 2])}


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
    return file_of(header, bytes(reached))


def kind(item: Any) -> dict[str, Any]:
    return {"kinds": {"": item}}


def value(item: Any) -> dict[str, Any]:
    return {"values": {"x": item}}


FORGED: Final[dict[str, Any]] = {
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
    "version 3": {"version": 3},
    "version 2.0": '{"version": 2.0}',
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
    # Weak types.
    "weak in version 1": {"weak": ["w"]},
    "weak null": {"version": 2, "weak": None},
    "weak an object": {"version": 2, "weak": {"w": True}},
    "weak a string": {"version": 2, "weak": "w"},
    "weak of numbers": {"version": 2, "weak": [1]},
    "weak of a name twice": {"version": 2, "weak": ["w", "w"]},
    "weak of a name that is not there": {"version": 2, "weak": ["gone"]},
    "weak of a value": {"version": 2, "values": {"x": 1}, "weak": ["x"]},
    "weak of keys": {"version": 2, "keys": {"k": "threefry2x32"}, "weak": ["k"]},
}  # fmt: skip
"""Records of which each is refused."""


CONFLICTS: Final[dict[str, tuple[Any, dict[str, Any]]]] = {
    "two whole trees": ({"paths": {"": [], "~1": []}}, {"": ("U8", [1]), "~1": ("U8", [1])}),
    "one place for two": ({"paths": {"a~1": ["a"]}}, {"a": ("U8", [1]), "a~1": ("U8", [1])}),
    "a million dots": ({}, {"." * 1_000_000: ("U8", [1])}),
    "a million dots in a flat file": (
        {"kinds": {"a.b": {"type": "dict", "flat": True}}},
        {"a" + "." * 1_000_000: ("U8", [1])},
    ),
}
"""Records and tensors whose names no tree can have together."""
