"""The record comes back as it was written, and a forged one is refused quickly."""

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
from tests.support.forged_records import CONFLICTS, FORGED, forged
from tests.support.leaves import float_of_bits


def exact(value: Any) -> Any:
    """A form that is equal if types and all bits are equal."""
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
    float_of_bits(0x7FF8000000000001), float_of_bits(0xFFF8DEADBEEF0001), 0j, -0j,
    complex(-0.0, -0.0), 1 + 2j, complex(math.nan, math.inf),
    complex(float_of_bits(0x7FF8000000000002), -0.0), "", "x", "é🦎", "\x00",
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
        # Readers that look for a format find one.
        assert stored["format"] == metadata.get("format", "pt")


def test_an_empty_record_is_not_written() -> None:
    assert with_record({}, Record()) == {}


def test_a_path_may_be_as_deep_as_a_tree_but_no_deeper() -> None:
    for depth, fails in [(MAX_DEPTH, False), (MAX_DEPTH + 1, True)]:
        path = ["a"] * depth
        text = json.dumps({"version": 1, "paths": {".".join(path): path}})
        if fails:
            with pytest.raises(InvalidFileError, match=f"more than {MAX_DEPTH} deep"):
                read_record({"safejax": text}, "f")
        else:
            assert read_record({"safejax": text}, "f")[1].structure.paths


def test_metadata_of_other_writers_is_not_changed() -> None:
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
