"""Strict JSON: what Python's parser accepts and strict readers do not is refused."""

import contextlib
import gc
import json
import math
import sys

import pytest

from safejax._src.format import strict_json


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{}", {}),
        ('{"a": [1, 2.5, true, null, "x"]}', {"a": [1, 2.5, True, None, "x"]}),
        (' \t\r\n{"a" : 1}\n ', {"a": 1}),
        ('{"a":{"b":1},"c":{"b":2}}', {"a": {"b": 1}, "c": {"b": 2}}),
        ('"\\u00e9\\n\\ud83d\\ude00😀\\u0000"', "é\n😀😀\0"),
        ('"\\\\ud800"', "\\ud800"),
        ('["-0", "x-0,y", -1.5e1]', ["-0", "x-0,y", -15.0]),
        ("18446744073709551616", 2**64),
    ],
)
def test_json_is_parsed(text, value):
    parsed = strict_json.parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"a":1,"a":1}', "'a' appears twice"),
        ('{"a":1,"\\u0061":2}', "'a' appears twice"),
        ('[{"x":{"b":1,"c":2,"b":3}}]', "'b' appears twice"),
        ('{"' + "a" * 10_000 + '":1,"' + "a" * 10_000 + '":1}', "appears twice"),
        ("NaN", "NaN is not JSON"),
        ("[Infinity]", "Infinity is not JSON"),
        ("-Infinity", "-Infinity is not JSON"),
        ("1e999", "'1e999' is out of range"),
        ("-1e999", "out of range"),
        ('"\\ud800"', "half a surrogate pair"),
        ('"\\uDFFF"', "half a surrogate pair"),
        ('"\\ude00\\ud83d"', "half a surrogate pair"),
        ('{"\\ud800": 1}', "half a surrogate pair"),
        ('[{"a": ["\\ud800"]}]', "half a surrogate pair"),
        ("[" * 1_000_000, "nested too deeply"),
        ('{"a":' * 1_000_000, "nested too deeply"),
        ("9" * 5_000, "4300 digits"),
        ("", "Expecting value"),
        ("{} {}", "Extra data"),
        ("{}\0", "Extra data"),
        ("01", "Extra data"),
        ("\ufeff{}", "BOM"),
        ("{'a':1}", "Expecting property name"),
        ('{"a":1,}', "property name|trailing comma"),
        ('"\x1f"', "Invalid control character"),
        ('"\\x41"', "Invalid \\\\escape"),
        ("[+1]", "Expecting value"),
        ("[.5]", "Expecting value"),
        ("[0x10]", "Expecting ',' delimiter"),
        ("[1 /* one */]", "Expecting ',' delimiter"),
        ("[\u00a01]", "Expecting value"),
        ("[٣]", "Expecting value"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_anything_but_strict_json_is_refused(text, sentence):
    with pytest.raises(ValueError, match=sentence) as refusal:
        strict_json.parse(text)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("text", ["-0", "[-0]", "[1,-0 ]", '{"a":-0}', '{"a":-0\n}'])
def test_minus_zero_is_not_an_integer(text):
    value = strict_json.parse(text)
    while not isinstance(value, float):
        value = list(value.values())[-1] if isinstance(value, dict) else value[-1]
    assert math.copysign(1, value) == -1


def test_integers_next_to_a_minus_zero_stay_integers():
    value = strict_json.parse('[-0, 0, -1, 10, "-0"]')
    assert [type(item) for item in value] == [float, int, int, int, str]


def test_half_a_surrogate_pair_is_accepted_on_request():
    assert strict_json.parse('{"\\ud800":"\\udfff"}', allow_surrogates=True) == {"\ud800": "\udfff"}


@pytest.mark.parametrize(
    ("value", "text", "ascii_text"),
    [
        ({"b": [1, None, True], "a": "x"},) + ('{"b":[1,null,true],"a":"x"}',) * 2,
        ("é\n😀\0", '"é\\n😀\\u0000"', '"\\u00e9\\n\\ud83d\\ude00\\u0000"'),
    ],
)
def test_json_is_written_in_the_fewest_characters(value, text, ascii_text):
    assert strict_json.write(value) == text
    assert strict_json.write(value, ascii_only=True) == ascii_text
    assert strict_json.parse(text) == strict_json.parse(ascii_text) == value


def test_ascii_output_can_have_half_a_surrogate_pair():
    text = strict_json.write("\ud800", ascii_only=True)
    assert text == '"\\ud800"'
    assert strict_json.parse(text, allow_surrogates=True) == "\ud800"


def test_values_that_are_not_json_are_not_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        strict_json.write(math.nan)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("text", ["{}", "{", "[" * 1_000_000])
def test_the_garbage_collector_is_restored(enabled, text):
    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with contextlib.suppress(ValueError):
            strict_json.parse(text)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()


@pytest.mark.parametrize("text", ["[" * 15_000 + "]" * 15_000, '{"a\\"[":' * 15_000])
def test_nesting_is_limited_even_if_the_recursion_limit_was_raised(text):
    before = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(100_000)
        with pytest.raises(ValueError, match="nested too deeply"):
            strict_json.parse(text)
        brackets = json.dumps(["[{" * 15_000])
        assert strict_json.parse(brackets) == json.loads(brackets)
        assert strict_json.parse("[[]," * 900 + "0" + "]" * 900)
    finally:
        sys.setrecursionlimit(before)


def test_the_recursion_limit_is_not_changed():
    before = sys.getrecursionlimit(), sys.get_int_max_str_digits()
    with pytest.raises(ValueError, match="too deeply"):
        strict_json.parse("[" * 1_000_000)
    assert (sys.getrecursionlimit(), sys.get_int_max_str_digits()) == before


def test_only_numbers_are_limited_where_python_does_not_limit_them():
    before = sys.get_int_max_str_digits()
    digits = "9" * 5_000
    try:
        sys.set_int_max_str_digits(0)
        assert strict_json.parse(f'{{"{digits}": "{digits}", "n": -0}}') == {digits: digits, "n": 0}
        for text in (digits, f"[-{digits}]", f'{{"{digits}": {digits}}}'):
            with pytest.raises(ValueError, match="a number of more than 4300 digits"):
                strict_json.parse(text)
        assert strict_json.parse("-" + digits[:4300]) == -int(digits[:4300])
    finally:
        sys.set_int_max_str_digits(before)
