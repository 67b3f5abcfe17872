"""Headers that no reader may accept, and what an error says of each."""

from typing import Any, Final

from tests.support.files import file_of

INFO: Final = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
"""The entry of a tensor of eight bytes, as JSON text."""


def info(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    """The entry of a tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


EIGHT: Final = bytes(8)

HOSTILE: Final[dict[str, tuple[bytes, str]]] = {
    # the length
    "no bytes": (b"", "an empty file"),
    "one byte": (b"\x02", "got 1 bytes"),
    "seven bytes": (b"\x02\0\0\0\0\0\0", "got 7 bytes"),
    "length zero": (bytes(8), "begin with '{'"),
    "length one": (b"\x01" + bytes(7) + b"{", "property name"),
    "length beyond the file": (b"\x03\0\0\0\0\0\0\0{}", "header of 3 bytes, got 2"),
    "length 100 MB": ((10**8).to_bytes(8, "little") + b"{}", "header of 100000000 bytes, got 2"),
    "length over 100 MB": ((10**8 + 1).to_bytes(8, "little") + b"{}", "at most 100000000 bytes"),
    "length 2**63": ((2**63).to_bytes(8, "little") + b"{}", "a length of 9223372036854775808"),
    "length 2**64 - 1": (b"\xff" * 8 + b"{}", "a length of 18446744073709551615"),
    "text": (b"Hello, world! This is not it.", "not a safetensors file"),
    "a zip": (b"PK\x03\x04\x14\x00\x00\x00\x08\x00", "a zip archive"),
    "a pickle": (b"\x80\x04\x95\x1a\x00\x00\x00\x00" + bytes(40), "a pickle"),
    "big-endian length": (bytes(7) + b"\x02{}", "at most 100000000 bytes"),
    "cut in the header": (file_of({"a": info()}, EIGHT)[:30], "cut short"),
    # the encoding
    "space first": (file_of(" {}"), "begin with '{', got b' '"),
    "an array": (file_of("[]"), "begin with '{'"),
    "a string": (file_of('"{}"'), "begin with '{'"),
    "null": (file_of("null"), "begin with '{'"),
    "byte order mark": (file_of(b"\xef\xbb\xbf{}"), "begin with '{'"),
    "utf-16": (file_of("{}".encode("utf-16")), "begin with '{'"),
    "utf-16 without a mark": (file_of("{}".encode("utf-16-le")), "in UTF-8"),
    "utf-32": (file_of("{}".encode("utf-32-le")), "in UTF-8"),
    "utf-16, big-endian": (file_of("{}".encode("utf-16-be")), "begin with '{'"),
    "a mark behind it": (file_of(b"{}\xef\xbb\xbf"), "Extra data"),
    "a mark within": (file_of(b"{\xef\xbb\xbf}"), "property name"),
    "latin-1": (file_of('{"é":1}'.encode("latin-1")), "in UTF-8"),
    "overlong utf-8": (file_of(b'{"\xc0\xaf":1}'), "in UTF-8"),
    "utf-8 of a surrogate": (file_of(b'{"\xed\xa0\x80":1}'), "in UTF-8"),
    "utf-8 beyond unicode": (file_of(b'{"\xf4\x90\x80\x80":1}'), "in UTF-8"),
    "cut in a character": (file_of('{"é'.encode()[:-1]), "in UTF-8"),
    "nul padding": (file_of(b'{"a":' + INFO.encode() + b"}\0\0", EIGHT), "Extra data"),
    "nul in front": (file_of(b"\0{}"), "begin with '{'"),
    "nul within": (file_of(b"{\0}"), "property name"),
    "nul in a name": (file_of('{"a\0":' + INFO + "}", EIGHT), "control character"),
    "nothing but nul": (file_of(bytes(100)), "begin with '{'"),
    "nothing but spaces": (file_of(b" " * 100), "begin with '{', got b' '"),
    "form feed padding": (file_of("{}\f"), "Extra data"),
    "no-break space": (file_of('{"a":\u00a0' + INFO + "}", EIGHT), "Expecting value"),
    # the JSON
    "only a brace": (file_of("{"), "Expecting property name"),
    "not closed": (file_of('{"a":' + INFO, EIGHT), "Expecting ',' delimiter"),
    "two values": (file_of("{}{}"), "Extra data"),
    "a comma too many": (file_of('{"a":' + INFO + ",}", EIGHT), "property name|trailing comma"),
    "single quotes": (file_of("{'a':" + INFO + "}", EIGHT), "property name"),
    "a comment": (file_of("{/**/}"), "property name"),
    "control character": (file_of('{"a\n":' + INFO + "}", EIGHT), "control character"),
    "bad escape": (file_of('{"\\a":' + INFO + "}", EIGHT), "escape"),
    "lone surrogate in a name": (file_of('{"\\ud800":' + INFO + "}", EIGHT), "surrogate"),
    "reversed surrogates": (file_of('{"\\ude00\\ud83d":' + INFO + "}", EIGHT), "surrogate"),
    "lone surrogate in metadata": (file_of('{"__metadata__":{"a":"\\udc00"}}'), "surrogate"),
    "lone surrogate in a metadata key": (
        file_of('{"__metadata__":{"\\udc00":"a"}}'),
        "surrogate",
    ),
    "lone surrogate in a dtype": (
        file_of('{"a":' + INFO.replace("F32", "\\ud800") + "}", EIGHT),
        "surrogate",
    ),
    # Python 3.14 parses as deep as the stack is large, and finds the next fault.
    "10,000 lists deep": (file_of('{"a":' + "[" * 10_000), "nested too deeply|Expecting value"),
    "1,000,000 lists deep": (file_of('{"a":' + "[" * 1_000_000), "nested too deeply"),
    "10,000 objects deep in the metadata": (
        file_of('{"__metadata__":' + '{"a":' * 10_000 + '"x"' + "}" * 10_001),
        "nested too deeply|string",
    ),
    "1,000,000 objects deep": (file_of('{"a":' * 1_000_000), "nested too deeply"),
    "closed 100,000 deep": (
        file_of('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
        "nested too deeply",
    ),
    "lists in a shape": (file_of('{"a":' + INFO.replace("[2]", "[[2]]") + "}", EIGHT), "of sizes"),
    "duplicate tensors": (file_of('{"a":' + INFO + ',"a":' + INFO + "}", EIGHT), "appears twice"),
    "20,000 duplicates": (
        file_of("{" + ",".join(['"a":' + INFO] * 20_000) + "}", EIGHT),
        "'a' appears twice",
    ),
    "duplicate by escape": (
        file_of('{"a":' + INFO + ',"\\u0061":' + INFO + "}", EIGHT),
        "'a' appears twice",
    ),
    "duplicate metadata": (
        file_of('{"__metadata__":{},"__metadata__":{}}'),
        "'__metadata__' appears twice",
    ),
    "duplicate metadata, once null": (
        file_of('{"__metadata__":null,"a":' + INFO + ',"__metadata__":{}}', EIGHT),
        "'__metadata__' appears twice",
    ),
    "duplicate metadata keys": (file_of('{"__metadata__":{"k":"1","k":"2"}}'), "'k' appears twice"),
    "duplicate fields": (
        file_of('{"a":' + INFO.replace('"shape"', '"dtype":"F32","shape"') + "}", EIGHT),
        "'dtype' appears twice",
    ),
    # the metadata
    "metadata a list": (file_of('{"__metadata__":[]}'), "map strings to strings, got []"),
    "metadata a string": (file_of('{"__metadata__":"a"}'), "map strings to strings, got 'a'"),
    "metadata false": (file_of('{"__metadata__":false}'), "map strings to strings"),
    "metadata true": (file_of('{"__metadata__":true}'), "map strings to strings, got True"),
    "metadata zero": (file_of('{"__metadata__":0}'), "map strings to strings, got 0"),
    "metadata empty text": (file_of('{"__metadata__":""}'), "map strings to strings, got ''"),
    "metadata a tensor": (file_of('{"__metadata__":' + INFO + "}", EIGHT), "string under"),
    "metadata true inside": (file_of('{"__metadata__":{"a":true}}'), "got True"),
    "metadata NaN inside": (file_of('{"__metadata__":{"a":NaN}}'), "NaN is not JSON"),
    "metadata a list inside": (file_of('{"__metadata__":{"a":["b"]}}'), "got ['b']"),
    "metadata a number": (file_of('{"__metadata__":{"a":1}}'), "string under '__metadata__' 'a'"),
    "metadata null inside": (file_of('{"__metadata__":{"a":null}}'), "got None"),
    "metadata nested": (file_of('{"__metadata__":{"a":{}}}'), "got {}"),
    # a tensor's entry
    "entry null": (file_of('{"a":null}'), "tensor 'a': expected the fields"),
    "entry NaN": (file_of('{"a":NaN}'), "NaN is not JSON"),
    "entry -Infinity": (file_of('{"a":-Infinity}'), "-Infinity is not JSON"),
    "entry true": (file_of('{"a":true}'), "tensor 'a': expected the fields"),
    "entry a number": (file_of('{"a":1}'), "tensor 'a': expected the fields"),
    "entry a string": (file_of('{"a":"dtype"}'), "tensor 'a': expected the fields"),
    "entry a list": (file_of('{"a":["F32",[2],[0,8]]}', EIGHT), "expected the fields"),
    "entry empty": (file_of('{"a":{}}'), "expected the fields"),
    "no dtype": (file_of({"a": {"shape": [2], "data_offsets": [0, 8]}}, EIGHT), "the fields"),
    "no shape": (file_of({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, EIGHT), "the fields"),
    "no offsets": (file_of({"a": {"dtype": "F32", "shape": [2]}}, EIGHT), "the fields"),
    "unknown field": (file_of({"a": {**info(), "x": 1}}, EIGHT), "the fields"),
    "another field": (file_of({"a": {**info(), "Shape": 1}}, EIGHT), "the fields"),
    "unknown dtype": (file_of({"a": info("F33")}, EIGHT), "known dtype, got 'F33'"),
    "dtype in lower case": (file_of({"a": info("f32")}, EIGHT), "known dtype, got 'f32'"),
    "dtype null": (file_of({"a": info(None)}, EIGHT), "known dtype, got None"),
    "dtype a list": (file_of({"a": info(["F32"])}, EIGHT), "known dtype, got ['F32']"),
    "dtype an object": (file_of({"a": info({"F32": None})}, EIGHT), "known dtype, got {"),
    "shape null": (file_of('{"a":' + INFO.replace("[2]", "null") + "}", EIGHT), "a list of sizes"),
    "shape a number": (file_of('{"a":' + INFO.replace("[2]", "2") + "}", EIGHT), "list of sizes"),
    "shape an object": (file_of('{"a":' + INFO.replace("[2]", "{}") + "}", EIGHT), "of sizes"),
    "shape a string": (file_of('{"a":' + INFO.replace("[2]", '"2"') + "}", EIGHT), "of sizes"),
    "size negative": (file_of({"a": info(shape=(-2,))}, EIGHT), "sizes, got [-2]"),
    "sizes negative": (file_of({"a": info(shape=(-1, -2))}, EIGHT), "sizes, got [-1, -2]"),
    "size a float": (file_of('{"a":' + INFO.replace("[2]", "[2.0]") + "}", EIGHT), "got [2.0]"),
    "size with exponent": (file_of('{"a":' + INFO.replace("[2]", "[2e0]") + "}", EIGHT), "[2.0]"),
    "size minus zero": (
        file_of('{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'),
        "sizes, got [-0.0]",
    ),
    "size true": (file_of({"a": info(shape=(True, 2))}, EIGHT), "got [True, 2]"),
    "size null": (file_of({"a": info(shape=(None,))}, EIGHT), "got [None]"),
    "size a string": (file_of({"a": info(shape=("2",))}, EIGHT), "got ['2']"),
    "size NaN": (file_of({"a": info(shape=(float("nan"),))}, EIGHT), "NaN is not JSON"),
    "size infinite": (file_of({"a": info(shape=(float("inf"),))}, EIGHT), "Infinity is not JSON"),
    "size 1e999": (file_of('{"a":' + INFO.replace("[2]", "[1e999]") + "}", EIGHT), "out of range"),
    "size with a leading zero": (
        file_of('{"a":' + INFO.replace("[2]", "[02]") + "}", EIGHT),
        "Expecting ',' delimiter",
    ),
    "size with a plus": (file_of('{"a":' + INFO.replace("[2]", "[+2]") + "}", EIGHT), "Expecting"),
    "size in hexadecimal": (file_of('{"a":' + INFO.replace("[2]", "[0x2]") + "}", EIGHT), "','"),
    "size 2**63, and none": (file_of({"a": info(shape=(2**63, 0), offsets=(0, 0))}), "overflows"),
    "size 2**63 of one byte, and none": (
        file_of({"a": info("U8", (2**63, 0), (0, 0))}),
        "overflows",
    ),
    "size 2**64": (file_of({"a": info(shape=(2**64,))}, EIGHT), "a list of sizes"),
    "size of 5,000 digits": (
        file_of('{"a":' + INFO.replace("[2]", f"[{'9' * 5000}]") + "}", EIGHT),
        "4300 digits",
    ),
    "product over 64 bits": (
        file_of({"a": info("U8", (2**32, 2**32), (0, 0))}),
        "expected 18446744073709551616 bytes",
    ),
    "product wraps round to 8": (file_of({"a": info("U8", (2**62 + 2, 4))}, EIGHT), "bytes for U8"),
    "product over 64 bits, none": (
        file_of({"a": info("U8", (2**40, 2**40, 0), (0, 0))}),
        "overflows",
    ),
    "none, then over 64 bits": (
        file_of({"a": info("U8", (0, 2**40, 2**40), (0, 0))}),
        "overflows",
    ),
    "100,000 axes": (
        file_of({"a": info("U8", (1,) * 100_000, (0, 1))}, b"x"),
        "at most 64 axes, got 100000",
    ),
    "100,000 axes of none": (
        file_of({"a": info("U8", (0,) * 100_000, (0, 0))}),
        "at most 64 axes, got 100000",
    ),
    "65 axes": (file_of({"a": info("U8", (1,) * 65, (0, 1))}, b"x"), "at most 64 axes, got 65"),
    "300,000 large sizes": (
        file_of({"a": info("U8", [2**63] * 300_000, (0, 1))}, b"x"),
        "at most 64 axes",
    ),
    # the offsets
    "offsets null": (file_of('{"a":' + INFO.replace("[0,8]", "null") + "}"), "two offsets"),
    "one offset": (file_of({"a": info(offsets=(8,))}, EIGHT), "two offsets, got [8]"),
    "three offsets": (file_of({"a": info(offsets=(0, 8, 8))}, EIGHT), "two offsets, got [0, 8, 8]"),
    "no offset": (file_of({"a": info(offsets=())}, EIGHT), "two offsets, got []"),
    "offsets a string": (file_of('{"a":' + INFO.replace("[0,8]", '"08"') + "}"), "two offsets"),
    "offsets an object": (
        file_of('{"a":' + INFO.replace("[0,8]", '{"0":0,"1":8}') + "}", EIGHT),
        "two offsets",
    ),
    "offset a float": (file_of({"a": info(offsets=(0, 8.0))}, EIGHT), "two offsets, got [0, 8.0]"),
    "offset with exponent": (
        file_of('{"a":' + INFO.replace("[0,8]", "[0e0,8e0]") + "}", EIGHT),
        "two offsets, got [0.0, 8.0]",
    ),
    "offset minus zero": (
        file_of('{"a":' + INFO.replace("[0,8]", "[-0,8]") + "}", EIGHT),
        "two offsets, got [-0.0, 8]",
    ),
    "offset with a leading zero": (
        file_of('{"a":' + INFO.replace("[0,8]", "[00,8]") + "}", EIGHT),
        "Expecting ',' delimiter",
    ),
    "offset null": (file_of({"a": info(offsets=(None, 8))}, EIGHT), "two offsets, got [None, 8]"),
    "offset a string": (file_of({"a": info(offsets=("0", "8"))}, EIGHT), "two offsets, got ['0'"),
    "offset NaN": (file_of({"a": info(offsets=(0, float("nan")))}, EIGHT), "NaN is not JSON"),
    "offset of 5,000 digits": (
        file_of('{"a":' + INFO.replace("[0,8]", f"[0,{'9' * 5000}]") + "}", EIGHT),
        "4300 digits",
    ),
    "offset a bool": (file_of({"a": info("U8", (1,), (False, True))}, b"x"), "[False, True]"),
    "offset negative": (file_of({"a": info(offsets=(-8, 0))}, EIGHT), "two offsets, got [-8, 0]"),
    "offset 2**64": (file_of({"a": info(offsets=(2**64, 2**64 + 8))}, EIGHT), "two offsets"),
    "offset 2**63": (file_of({"a": info(offsets=(2**63, 2**63 + 8))}, EIGHT), "a hole"),
    "end 2**64": (
        file_of({"a": info("U8", (1,), (2**64 - 1, 2**64))}, b"x"),
        "two offsets",
    ),
    "end 2**64 - 1": (
        file_of({"a": info("U8", (2**64 - 1,), (0, 2**64 - 1))}, b"x"),
        "expected 18446744073709551615 bytes of data, got 1",
    ),
    "offsets reversed": (file_of({"a": info(offsets=(8, 0))}, EIGHT), "got the offsets [8, 0)"),
    "offsets too wide": (file_of({"a": info(offsets=(0, 12))}, bytes(12)), "expected 8 bytes for"),
    "offsets too narrow": (file_of({"a": info(offsets=(0, 4))}, EIGHT), "expected 8 bytes for F32"),
    "half a byte": (file_of({"a": info("F4", (3,), (0, 2))}, b"xx"), "not 12 bits"),
    "half a byte, rounded down": (file_of({"a": info("F4", (3,), (0, 1))}, b"x"), "not 12 bits"),
    "empty tensor with bytes": (file_of({"a": info(shape=(0,))}, EIGHT), "expected 0 bytes"),
    # the layout
    "hole at the front": (
        file_of({"a": info(offsets=(4, 12))}, bytes(12)),
        "tensor 'a': expected its data to begin where that of the header ends",
    ),
    "hole between": (
        file_of({"a": info(), "b": info(offsets=(12, 20))}, bytes(20)),
        "tensor 'b': expected its data to begin where that of 'a' ends",
    ),
    "hole in front of an empty tensor": (
        file_of({"a": info(), "b": info(shape=(0,), offsets=(9, 9))}, bytes(9)),
        "a hole",
    ),
    "overlap": (
        file_of({"a": info(), "b": info(offsets=(4, 12))}, bytes(12)),
        "tensor 'b': expected its data to begin where that of 'a' ends",
    ),
    "the same bytes twice": (file_of({"b": info(), "a": info()}, EIGHT), "an overlap"),
    "the same bytes 1,000 times": (
        file_of({f"{n}": info() for n in range(1000)}, EIGHT),
        "tensor '1': expected its data to begin where that of '0' ends",
    ),
    "one within the other": (
        file_of({"a": info(shape=(4,), offsets=(0, 16)), "b": info(offsets=(4, 12))}, bytes(16)),
        "an overlap",
    ),
    "empty tensor within another": (
        file_of({"a": info(), "b": info(shape=(0,), offsets=(4, 4))}, EIGHT),
        "an overlap",
    ),
    "trailing bytes": (file_of({"a": info()}, bytes(9)), "bytes that belong to no tensor"),
    "only trailing bytes": (file_of("{}", b"x"), "expected 0 bytes of data, got 1"),
    "missing bytes": (file_of({"a": info()}, bytes(7)), "8 bytes of data, got 7: the file"),
    "no data": (file_of({"a": info()}), "got 0: the file was cut short"),
    # length of what a message repeats
    "a long name": (file_of({"n" * 10**6: 1}), "expected the fields"),
    "a long name, twice": (
        file_of('{"%s":1,"%s":1}' % (("n" * 10**6,) * 2)),
        "appears twice",
    ),
    "a long surrogate": (file_of('{"\\ud800%s":1}' % ("n" * 10**6)), "surrogate"),
    "a long metadata key": (file_of({"__metadata__": {"n" * 10**6: 1}}), "expected a string under"),
    "a long dtype": (file_of({"a": info("F" * 10**6)}, EIGHT), "known dtype"),
    "many fields": (file_of({"a": {str(n): n for n in range(10**5)}}), "the fields"),
}  # fmt: skip
"""A file's bytes, and the part of the error that names the fault; `|` separates two of them."""
