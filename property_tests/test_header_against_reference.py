"""The reference reader is the oracle of headers: each reads what the other wrote.

What we accept, it accepts too, and as the same tensors. What it accepts and we do not stands
in `STRICTER`, with the reason.
"""

import json
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import event, example, given
from hypothesis import strategies as st

from safejax.dtypes import BITS
from safejax.errors import InvalidFileError
from safejax.header import (
    LARGE_DATA_BYTES,
    METADATA_NAME,
    PAGE_ALIGNMENT,
    SMALL_ALIGNMENT,
    Entry,
    data_order,
    read_header,
    write_header,
)


def file_of(header, data=b""):
    return len(header).to_bytes(8, "little") + header + data


def ours(data):
    """What we make of a file: each tensor's code, shape and bytes."""
    header = read_header(lambda begin, end: data[begin:end], len(data), "m.safetensors")
    return {
        name: (tensor.code, tensor.shape, data[tensor.begin : tensor.end])
        for name, tensor in header.tensors.items()
    }


def reference(data):
    """What the reference reader makes of it."""
    return {
        name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
        for name, tensor in safetensors.deserialize(data)
    }


# ---- what it accepts and we do not

FIELDS = '"dtype":"U8","shape":[1],"data_offsets":[0,1]'
INFO = "{" + FIELDS + "}"
AXES = ",".join("1" * 65)

# Why we refuse it: the file (header, data), and how the message says so.
STRICTER = {
    "one of the two would be dropped, and readers differ in which": (
        '{"a":' + INFO + ',"a":' + INFO + "}", b"x", "stands twice"),
    "the same, of metadata": (
        '{"__metadata__":{"k":"1","k":"2"}}', b"", "stands twice"),
    "a field that we do not know may change what the others mean": (
        '{"a":{' + FIELDS + ',"order":"F"}}', b"x", "expected the fields"),
    "the format wants an object; a list is how the reference's own types happen to be read": (
        '{"a":["U8",[1],[0,1]]}', b"x", "expected the fields"),
    "the format wants a string; an object is how the reference's own types happen to be read": (
        '{"a":{"dtype":{"U8":null},"shape":[1],"data_offsets":[0,1]}}', b"x", "known dtype"),
    "NumPy and JAX have no array with more than 64 axes": (
        '{"a":' + INFO.replace("[1]", f"[{AXES}]") + "}", b"x",
        "at most 64 axes"),
    "NumPy has no array of that shape, empty though it is": (
        f'{{"a":{{"dtype":"F32","shape":[0,{2**62}],"data_offsets":[0,0]}}}}', b"", "overflows"),
}  # fmt: skip


@pytest.mark.parametrize("reason", STRICTER)
def test_we_are_stricter_for_a_reason(reason):
    header, data, sentence = STRICTER[reason]
    file = file_of(header.encode(), data)
    reference(file)
    with pytest.raises(InvalidFileError, match=sentence):
        ours(file)


def test_that_numpy_has_no_such_empty_array():
    for shape in [(0, 2**61), (2**61, 0), (0, 2**40, 2**40)]:
        with pytest.raises(ValueError, match="too big"):
            np.empty(shape, np.float32)
    assert np.empty((0, 2**60), np.float32).size == 0


def compare(data):
    """We accept no more than the reference reader, and read the same."""
    try:
        expected = reference(data)
    except safetensors.SafetensorError:
        with pytest.raises(InvalidFileError, match=r"^m\.safetensors: "):
            ours(data)
        event("both refuse")
        return
    try:
        read = ours(data)
    except InvalidFileError as error:
        refusal = str(error)
    else:
        event("both accept")
        assert read == expected
        return
    sentences = [sentence for _, _, sentence in STRICTER.values() if sentence in refusal]
    assert sentences, f"accepted by the reference reader, and refused: {refusal}"
    event(f"stricter: {sentences[0]}")


# ---- files that are written

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = texts.filter(lambda name: name != METADATA_NAME)
codes = st.sampled_from(sorted(BITS))
sizes = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 64])


@st.composite
def entries(draw):
    """An entry of a table, of a whole number of bytes."""
    code, shape = draw(codes), draw(st.lists(sizes, max_size=3))
    bits = int(np.prod(shape, dtype=int)) * BITS[code]
    if bits % 8:
        shape.append(8)
        bits *= 8
    return Entry(draw(names), code, tuple(shape), bits // 8)


tables = st.lists(entries(), max_size=6, unique_by=lambda entry: entry.name)
metadata = st.dictionaries(texts, texts, max_size=3)


def written(table, strings):
    """A file that holds the entries with distinct bytes, and what each holds."""
    ordered = data_order(table)
    rng = np.random.default_rng(len(table))
    held = {entry.name: rng.bytes(entry.nbytes) for entry in ordered}
    head = write_header(ordered, strings, "m.safetensors")
    return head + b"".join(held.values()), held


@given(tables, metadata)
def test_the_reference_reader_reads_what_we_write(table, strings):
    data, held = written(table, strings)
    expected = {entry.name: (entry.code, entry.shape, held[entry.name]) for entry in table}
    assert reference(data) == ours(data) == expected
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        path.write_bytes(data)
        with safetensors.safe_open(path, "numpy") as file:
            assert (file.metadata() or {}) == strings
    header = read_header(lambda begin, end: data[begin:end], len(data), "m")
    assert header.metadata == strings
    assert list(header.tensors) == [entry.name for entry in data_order(table)]


@given(tables, metadata, st.randoms(use_true_random=False))
def test_the_same_entries_give_the_same_bytes(table, strings, random):
    data, _ = written(table, strings)
    shuffled = list(table)
    random.shuffle(shuffled)
    turned = dict(reversed(strings.items()))
    assert written(shuffled, turned)[0] == data


@given(tables, st.booleans())
def test_data_is_aligned(table, large):
    if large:
        table = [*table, Entry("large" * 9, "U8", (LARGE_DATA_BYTES,), LARGE_DATA_BYTES)]
    head = write_header(data_order(table), {}, "m")
    total = sum(entry.nbytes for entry in table)
    begin = len(head)
    assert begin % (PAGE_ALIGNMENT if total >= LARGE_DATA_BYTES else SMALL_ALIGNMENT) == 0
    header = read_header(lambda b, e: head[b:e], begin + total, "m")
    for tensor in header.tensors.values():
        nbytes = tensor.end - tensor.begin
        if nbytes:
            # Alignment that its size allows, and its dtype's at the least.
            assert tensor.begin % max(BITS[tensor.code] // 8, 1) == 0
            assert nbytes % SMALL_ALIGNMENT or tensor.begin % SMALL_ALIGNMENT == 0


NUMPY_DTYPES = ["bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]


@given(
    st.dictionaries(
        names, st.tuples(st.sampled_from(NUMPY_DTYPES), st.lists(sizes, max_size=2)), max_size=5
    ),
    st.none() | metadata,
)
def test_we_read_what_the_reference_writer_writes(leaves, strings):
    # Of no tensors and empty metadata safetensors 0.8 writes what it does not read itself.
    hypothesis.assume(leaves or strings != {})
    rng = np.random.default_rng(0)
    arrays = {
        name: np.frombuffer(rng.bytes(4096 * 8), dtype)[: int(np.prod(shape, dtype=int))]
        .reshape(shape)
        .copy()
        for name, (dtype, shape) in leaves.items()
    }
    data = safetensors.numpy.save(arrays, strings)
    assert ours(data) == reference(data)
    assert {name: tensor[2] for name, tensor in ours(data).items()} == {
        name: array.tobytes() for name, array in arrays.items()
    }
    header = read_header(lambda begin, end: data[begin:end], len(data), "m")
    assert header.metadata == (strings or {})


# ---- files that are made up


@st.composite
def damaged(draw):
    """A valid file with some bytes changed, left out, doubled or put in."""
    data, _ = written(draw(tables), draw(metadata))
    data = bytearray(data)
    # Mostly in the header; its padding is dull.
    end = 8 + len(data[8:].rstrip(b" \0"))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, min(end, len(data)) - 1))
        match draw(st.sampled_from(["change", "drop", "double", "insert", "digit"])):
            case "change":
                data[at] = draw(st.integers(0, 255))
            case "drop":
                del data[at]
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 40))]
            case "insert":
                data[at:at] = draw(st.sampled_from(list('"{},-0.\\'))).encode()
            case _:
                data[at : at + 1] = str(draw(st.integers(-1, 99))).encode()
    if draw(st.booleans()):  # Otherwise the length seldom fits.
        closing = data.rfind(b"}", 8)
        if closing > 0:
            data[:8] = (closing + 1 - 8).to_bytes(8, "little")
    return bytes(data)


@given(damaged())
def test_a_damaged_file_is_refused_or_read_alike(data):
    compare(data)


@given(st.binary(max_size=40), st.binary(max_size=10))
@example(b"{}", b"")
@example(b"{} ", b"")
@example(b"{}\x00", b"")
def test_raw_bytes_are_refused_or_read_alike(header, data):
    compare(header + data)
    compare(file_of(header, data))
    compare(file_of(b"{" + header, data))
    compare(file_of(b'{"a":{' + header + b"}}", data))


numbers = st.sampled_from([0, 1, 2, 4, 8, -1, 2**32, 2**62, 2**63, 2**64 - 1, 2**64]) | (
    st.sampled_from([1.0, 0.5, -0.0, True, None, "1"])
)
odd_codes = st.sampled_from(["U8", "F32", "F4", "F6_E2M3", "u8", "", "F128", None, 1, ["U8"]])
odd_infos = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "U8", "BF16", "F4", "C64"]) | odd_codes,
        "shape": st.lists(st.integers(0, 3) | numbers, max_size=4) | numbers,
        "data_offsets": st.lists(st.integers(0, 8) | numbers, min_size=2, max_size=2)
        | st.lists(numbers, max_size=3)
        | st.dictionaries(texts, numbers, max_size=2),
    },
    optional={"x": numbers},
)
simple = numbers | texts
nested = simple | st.lists(simple, max_size=3) | st.dictionaries(texts, simple, max_size=2)
garbage = nested | st.lists(nested, max_size=3) | st.dictionaries(texts, nested, max_size=2)


@st.composite
def json_texts(draw, value):
    """JSON text of `value`, in one of the ways in which it can be written."""
    indent = draw(st.sampled_from([None, None, 0, 2]))
    text = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=indent)
    padding = draw(st.sampled_from(["", "", " ", "\n\t\r ", "\0"]))
    number = draw(st.sampled_from(["0", "0", "0", "00", "-0", "0.0", "0e0", "1e0", "1E1", "+0"]))
    return (text.replace("0", number, 1) + padding).encode()


made_up = st.dictionaries(
    st.sampled_from(["a", "b", "", METADATA_NAME, "é\0", "a.b"]) | texts,
    odd_infos | odd_infos | garbage | st.dictionaries(texts, texts, max_size=2),
    max_size=3,
)


@given(made_up.flatmap(json_texts), st.integers(0, 20))
def test_json_of_any_shape_is_refused_or_read_alike(header, nbytes):
    compare(file_of(header, bytes(nbytes)))


@st.composite
def nearly_right(draw):
    """A table that holds together, but for one thing perhaps."""
    table, reached = {}, 0
    for entry in draw(tables):
        begin = reached + draw(st.sampled_from([0] * 9 + [1, -1]))
        reached = begin + entry.nbytes
        table[entry.name] = {
            "dtype": entry.code,
            "shape": list(entry.shape),
            "data_offsets": [begin, reached],
        }
    if table and draw(st.integers(0, 3)) == 0:
        info = table[draw(st.sampled_from(sorted(table)))]
        field = draw(st.sampled_from(sorted(info)))
        info[field] = draw(odd_infos)[field]
    order = draw(st.permutations(list(table)))
    return {name: table[name] for name in order}, max(0, reached)


@given(nearly_right().flatmap(lambda case: st.tuples(json_texts(case[0]), st.just(case[1]))))
def test_tables_in_any_order_are_refused_or_read_alike(case):
    header, nbytes = case
    hypothesis.assume(nbytes < 100_000)
    compare(file_of(header, np.random.default_rng(0).bytes(nbytes)))
