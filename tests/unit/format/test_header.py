"""The header is read and written, and a hostile one is refused at once with the reason."""

import json
import random
import time

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from safejax._src.dtypes import Stored
from safejax._src.format.header import (
    MAX_HEADER_BYTES,
    Header,
    Tensor,
    read_header,
)
from safejax._src.format.written_header import data_order, write_header
from safejax.errors import InvalidFileError, LeafError
from tests.support.files import data_begin, file_of
from tests.support.hostile_headers import HOSTILE, info


def read(data):
    return read_header(lambda begin, end: data[begin:end], len(data), "m.safetensors")


# ---- what is read


def test_tensors_are_found_at_their_offsets():
    table = {
        "__metadata__": {"format": "pt", "": "\0é"},
        "b": info("F32", (2, 1), (3, 11)),
        "a.w": info("U8", (3,), (0, 3)),
        "": info("BOOL", (), (11, 12)),
        "empty": info("F64", (0, 5), (3, 3)),
        "half": info("F4", (3, 2), (12, 15)),
    }
    data = file_of(table, bytes(15))
    at = len(data) - 15
    assert read(data) == Header(
        {
            "b": Tensor("F32", (2, 1), at + 3, at + 11),
            "a.w": Tensor("U8", (3,), at, at + 3),
            "": Tensor("BOOL", (), at + 11, at + 12),
            "empty": Tensor("F64", (0, 5), at + 3, at + 3),
            "half": Tensor("F4", (3, 2), at + 12, at + 15),
        },
        {"format": "pt", "": "\0é"},
    )
    assert list(read(data).tensors) == ["b", "a.w", "", "empty", "half"]


@pytest.mark.parametrize(
    "header",
    [
        "{}",
        "{} \n\t\r ",
        '{"__metadata__":{}}',
        '{"__metadata__":null}',
        '{\n"__metadata__" :null}',
    ],
)
def test_a_file_without_tensors(header):
    assert read(file_of(header)) == Header({}, {})


def test_only_the_header_is_requested():
    data = file_of({"a": info()}, bytes(8))
    asked = []

    def prefix(begin, end):
        asked.append((begin, end))
        return data[begin:end]

    read_header(prefix, len(data), "m")
    assert asked == [(0, 8), (8, len(data) - 8)]


def test_a_tensor_may_have_64_axes():
    data = file_of({"a": info("U8", (1,) * 64, (0, 1))}, b"x")
    assert read(data).tensors["a"].shape == (1,) * 64


def test_the_shape_of_an_empty_tensor_may_have_large_sizes():
    data = file_of({"a": info("U8", (0, 2**62), (0, 0))})
    assert read(data).tensors["a"].shape == (0, 2**62)


# ---- what is refused


def test_there_are_hostile_headers_enough():
    assert len(HOSTILE) >= 120


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_is_refused_at_once_with_the_reason(kind):
    data, fault = HOSTILE[kind]
    begin = time.process_time()
    with pytest.raises(InvalidFileError) as refusal:
        read(data)
    assert time.process_time() - begin < 1
    message = str(refusal.value)
    assert message.startswith("m.safetensors: ")
    assert any(part in message for part in fault.split("|"))
    assert len(message) < 400
    assert isinstance(refusal.value, safetensors.SafetensorError)
    assert isinstance(refusal.value, ValueError)


def test_a_file_that_is_cut_at_any_byte_is_refused():
    data = file_of({"__metadata__": {"k": "é"}, "a": info(), "b": info(offsets=(8, 16))}, bytes(16))
    read(data)
    for end in range(len(data)):
        with pytest.raises(InvalidFileError):
            read(data[:end])


# ---- what is written


def stored(code, *shape, nbytes):
    return Stored(code, shape, None, nbytes)


@pytest.mark.parametrize(
    ("nbytes", "alignment"), [(0, 64), (4, 64), (2**20 - 1, 64), (2**20, 4096), (2**40, 4096)]
)
@pytest.mark.parametrize("name", ["n" * length for length in range(1, 140, 23)], ids=len)
def test_data_begins_aligned(name, nbytes, alignment):
    head = write_header({name: stored("U8", nbytes, nbytes=nbytes)}, {}, "m")
    assert len(head) == data_begin(head)
    assert len(head) % alignment == 0
    assert len(head.rstrip(b" ")) > len(head) - alignment, "no more padding than it takes"


def test_the_order_of_the_data():
    tensors = {
        "z": stored("F32", 16, nbytes=64),
        "odd.u8": stored("U8", 3, nbytes=3),
        "odd.f64": stored("F64", 1, nbytes=8),
        "odd.f4": stored("F4", 2, nbytes=1),
        "odd.bf16": stored("BF16", 3, nbytes=6),
        "odd.c64": stored("C64", 1, nbytes=8),
        "a": stored("U8", 128, nbytes=128),
        "empty.b": stored("F64", 0, nbytes=0),
        "empty.a": stored("U8", 0, nbytes=0),
        "odd.f32": stored("F32", 1, nbytes=4),
    }
    ordered = [
        "empty.a", "empty.b", "a", "z",
        "odd.c64", "odd.f64", "odd.f32", "odd.bf16", "odd.u8", "odd.f4",
    ]  # fmt: skip
    for seed in range(20):
        shuffled = list(tensors.items())
        random.Random(seed).shuffle(shuffled)
        found = data_order(dict(shuffled))
        assert list(found) == ordered
        assert found == tensors


def test_the_header_lists_tensors_in_the_order_of_their_data():
    tensors = {"a": stored("U8", 1, nbytes=1), "b": stored("U8", 64, nbytes=64)}
    head = write_header(data_order(tensors), {"z": "1", "a": "2"}, "m")
    assert head[8:].rstrip(b" ") == (
        b'{"__metadata__":{"a":"2","z":"1"},'
        b'"b":{"dtype":"U8","shape":[64],"data_offsets":[0,64]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[64,65]}}'
    )


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(
    tensors=st.dictionaries(
        _TEXTS.filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(["F32", "U8", "F8_E4M3"]), st.lists(st.integers(0, 99))),
    ),
    metadata=st.dictionaries(_TEXTS, _TEXTS),
)
def test_the_header_is_the_text_that_json_writes_of_the_table(tensors, metadata):
    written = {name: stored(code, *shape, nbytes=64) for name, (code, shape) in tensors.items()}
    table = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    for number, (name, (code, shape)) in enumerate(tensors.items()):
        table[name] = info(code, shape, (64 * number, 64 * number + 64))
    expected = json.dumps(table, ensure_ascii=False, separators=(",", ":"))
    assert write_header(written, metadata, "m")[8:].decode().rstrip(" ") == expected.rstrip(" ")


def test_without_metadata_the_header_has_no_entry_for_it():
    assert b"__metadata__" not in write_header({}, {}, "m")


@pytest.mark.parametrize(
    ("name", "metadata", "sentence"),
    [
        ("__metadata__", {}, "m: expected a tensor's name, got '__metadata__'"),
        ("a\ud800b", {}, r"m: expected names .* UTF-8 can hold, got .*a\\ud800b.* rename"),
        ("a", {"k": "\udfff"}, "half a surrogate pair"),
        ("a", {"\udfff": "v"}, "half a surrogate pair"),
    ],
)
def test_a_name_that_no_header_can_hold_is_an_error(name, metadata, sentence):
    with pytest.raises(LeafError, match=sentence):
        write_header({name: stored("U8", 1, nbytes=1)}, metadata, "m")


def test_a_header_that_readers_would_refuse_is_not_written():
    assert MAX_HEADER_BYTES == 10**8
    one = stored("U8", 1, nbytes=1)
    others = len(write_header({"": one}, {}, "m").rstrip(b" ")) - 8
    # Padding rounds the file's first 8 bytes and the header up to a multiple of 64.
    longest = 10**8 - 8 - others
    assert len(write_header({"n" * longest: one}, {}, "m")) == 10**8
    message = "m: expected a header of at most 100000000 bytes, got 100000056"
    with pytest.raises(InvalidFileError, match=message):
        write_header({"n" * (longest + 1): one}, {}, "m")
