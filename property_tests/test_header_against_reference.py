"""Headers against the reference reader: each reads what the other wrote.

What safejax accepts, the reference reader accepts too, with the same tensors. `STRICTER` lists what
it accepts and safejax does not, with the reason.
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

from safejax._src.dtypes import BITS, Stored
from safejax._src.format.header import read_header
from safejax._src.format.written_header import (
    LARGE_DATA_BYTES,
    PAGE_ALIGNMENT,
    SMALL_ALIGNMENT,
    data_order,
    write_header,
)
from safejax._src.pytrees.names import METADATA_NAME
from safejax.errors import InvalidFileError
from tests.support.files import data_begin, file_of
from tests.support.reference_header import STRICTER, compared, ours, reference

# ---- what only the reference reader accepts


@pytest.mark.parametrize("reason", STRICTER)
def test_what_only_the_reference_reader_accepts_is_refused_with_the_reason(reason):
    header, data, sentence = STRICTER[reason]
    file = file_of(header.encode(), data)
    reference(file)
    with pytest.raises(InvalidFileError, match=sentence):
        ours(file)


def test_numpy_has_no_empty_array_of_such_a_shape():
    for shape in [(0, 2**61), (2**61, 0), (0, 2**40, 2**40)]:
        with pytest.raises(ValueError, match="too big"):
            np.empty(shape, np.float32)
    assert np.empty((0, 2**60), np.float32).size == 0


def compare(data):
    event(compared(data))


# ---- files that are written

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = texts.filter(lambda name: name != METADATA_NAME)
codes = st.sampled_from(sorted(BITS))
sizes = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 64])


@st.composite
def stored_tensors(draw):
    """How a tensor is stored that takes a whole number of bytes."""
    code, shape = draw(codes), draw(st.lists(sizes, max_size=3))
    bits = int(np.prod(shape, dtype=int)) * BITS[code]
    if bits % 8:
        shape.append(8)
        bits *= 8
    return Stored(code, tuple(shape), None, bits // 8)


tables = st.dictionaries(names, stored_tensors(), max_size=6)
metadata = st.dictionaries(texts, texts, max_size=3)


def written(table, strings):
    """A file that holds the tensors with distinct bytes, and the bytes of each."""
    ordered = data_order(table)
    rng = np.random.default_rng(len(table))
    held = {name: rng.bytes(stored.nbytes) for name, stored in ordered.items()}
    head = write_header(ordered, strings, "m.safetensors")
    return head + b"".join(held.values()), held


@given(tables, metadata)
def test_the_reference_reader_reads_what_safejax_writes(table, strings):
    data, held = written(table, strings)
    expected = {name: (each.code, each.shape, held[name]) for name, each in table.items()}
    assert reference(data) == ours(data) == expected
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        path.write_bytes(data)
        with safetensors.safe_open(path, "numpy") as file:
            assert (file.metadata() or {}) == strings
    header = read_header(lambda begin, end: data[begin:end], len(data), "m")
    assert header.metadata == strings
    assert list(header.tensors) == list(data_order(table))


@given(tables, metadata, st.randoms(use_true_random=False))
def test_the_same_tensors_give_the_same_bytes(table, strings, random):
    data, _ = written(table, strings)
    shuffled = list(table.items())
    random.shuffle(shuffled)
    turned = dict(reversed(strings.items()))
    assert written(dict(shuffled), turned)[0] == data


@given(tables, st.booleans())
def test_data_is_aligned(table, large):
    if large:
        table |= {"large" * 9: Stored("U8", (LARGE_DATA_BYTES,), None, LARGE_DATA_BYTES)}
    head = write_header(data_order(table), {}, "m")
    total = sum(stored.nbytes for stored in table.values())
    begin = len(head)
    assert begin % (PAGE_ALIGNMENT if total >= LARGE_DATA_BYTES else SMALL_ALIGNMENT) == 0
    header = read_header(lambda b, e: head[b:e], begin + total, "m")
    for tensor in header.tensors.values():
        nbytes = tensor.end - tensor.begin
        if nbytes:
            # Data has the alignment that its size allows, and at least that of its dtype.
            assert tensor.begin % max(BITS[tensor.code] // 8, 1) == 0
            assert nbytes % SMALL_ALIGNMENT or tensor.begin % SMALL_ALIGNMENT == 0


NUMPY_DTYPES = ["bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]


@given(
    st.dictionaries(
        names, st.tuples(st.sampled_from(NUMPY_DTYPES), st.lists(sizes, max_size=2)), max_size=5
    ),
    st.none() | metadata,
)
def test_safejax_reads_what_the_reference_writer_writes(leaves, strings):
    # For no tensors and empty metadata, safetensors 0.8 writes a file that it cannot read itself.
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


# ---- generated files


@st.composite
def damaged(draw):
    """A valid file in which bytes of the header are changed, removed, doubled or inserted."""
    data, _ = written(draw(tables), draw(metadata))
    begin = data_begin(data)
    header = bytearray(data[8:begin].rstrip())
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        at = draw(st.integers(0, len(header) - 1))
        match draw(st.sampled_from(["change", "drop", "double", "insert", "digit"])):
            case "change":
                header[at] = draw(st.integers(0, 255))
            case "drop" if len(header) > 1:
                del header[at]
            case "double":
                header[at:at] = header[at : at + draw(st.integers(1, 40))]
            case "insert":
                header[at:at] = draw(st.sampled_from(list('"{},-0.\\ '))).encode()
            case _:
                header[at : at + 1] = str(draw(st.integers(-1, 99))).encode()
    return file_of(bytes(header), data[begin:])


@given(damaged())
@example(file_of(b" {}"))
def test_a_file_with_a_damaged_header_is_refused_or_read_in_the_same_way(data):
    compare(data)


@given(tables, metadata, st.data())
def test_a_shortened_or_extended_file_is_refused_or_read_in_the_same_way(table, strings, data):
    whole, _ = written(table, strings)
    end = data.draw(st.integers(0, len(whole)))
    compare(whole[:end])
    compare(whole + data.draw(st.binary(min_size=1, max_size=9)))
    length = data.draw(st.integers(-9, 9)) + int.from_bytes(whole[:8], "little")
    compare(max(length, 0).to_bytes(8, "little") + whole[8:])


@given(st.binary(max_size=40), st.binary(max_size=10))
@example(b"{}", b"")
@example(b"{} ", b"")
@example(b"{}\x00", b"")
def test_any_bytes_are_refused_or_read_in_the_same_way(header, data):
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


made_up = st.dictionaries(
    st.sampled_from(["a", "b", "", METADATA_NAME, "é\0", "a.b"]) | texts,
    odd_infos | odd_infos | garbage | st.dictionaries(texts, texts, max_size=2),
    max_size=3,
)


@given(made_up, st.booleans(), st.integers(0, 20))
def test_any_json_is_refused_or_read_in_the_same_way(table, ascii_only, nbytes):
    compare(file_of(json.dumps(table, ensure_ascii=ascii_only).encode(), bytes(nbytes)))


def json_of(pairs):
    """The JSON text of an object, given as pairs of a key and the text of its value."""
    return "{" + ",".join(f"{json.dumps(key)}:{text}" for key, text in pairs) + "}"


@st.composite
def nearly_right(draw):
    """A header that is valid except for at most one fault, and the size of its data."""
    reached = 0
    tensors = []
    for name, stored in draw(tables).items():
        gap = draw(st.sampled_from([0] * 19 + [1, -1]))
        begin, reached = reached + gap, reached + gap + stored.nbytes
        fields = {
            "dtype": json.dumps(stored.code),
            "shape": json.dumps(stored.shape),
            "data_offsets": json.dumps([begin, reached]),
        }
        tensors.append((name, draw(st.permutations(sorted(fields.items())))))
    odd = draw(st.integers(0, 2)) == 0 and tensors
    if odd:
        _, fields = draw(st.sampled_from(tensors))
        at = draw(st.integers(0, 2))
        key, text = fields[at]
        match draw(st.sampled_from(["value", "key", "extra", "twice", "missing", "object"])):
            case "value":
                fields[at] = key, json.dumps(draw(odd_infos)[key])
            case "key":
                fields[at] = draw(st.sampled_from(["dtype", "Dtype", ""])), text
            case "extra":
                fields.append((draw(texts), json.dumps(draw(garbage))))
            case "twice":
                fields.append((key, text))
            case "missing":
                del fields[at]
            case _:
                fields[at] = key, f"{{{text if key == 'dtype' else 1}:null}}"
    pairs = [(name, json_of(fields)) for name, fields in draw(st.permutations(tensors))]
    if pairs and draw(st.integers(0, 9)) == 0:
        pairs.append(draw(st.sampled_from(pairs)))
    if tensors and draw(st.integers(0, 9)) == 0:
        name, fields = draw(st.sampled_from(tensors))
        listed = [dict(fields).get(key, "0") for key in ("dtype", "shape", "data_offsets")]
        pairs = [pair for pair in pairs if pair[0] != name] + [(name, f"[{','.join(listed)}]")]
    if draw(st.booleans()):
        strings = draw(st.lists(st.tuples(texts, texts | simple), max_size=2))
        if draw(st.booleans()):
            strings = [(key, str(value)) for key, value in strings]
        value = json_of((key, json.dumps(value)) for key, value in strings)
        pairs.insert(draw(st.integers(0, len(pairs))), (METADATA_NAME, value))
    padding = draw(st.sampled_from(["", "", "", " ", "\n\t\r ", "\0"]))
    return (json_of(pairs) + padding).encode(), max(0, reached)


@given(nearly_right())
def test_a_header_with_one_fault_is_refused_or_read_in_the_same_way(case):
    header, nbytes = case
    hypothesis.assume(nbytes < 100_000)
    compare(file_of(header, np.random.default_rng(0).bytes(nbytes)))


@given(nearly_right(), st.sampled_from(["-0", "00", "0.0", "0e0", "1e0", "1E1", "+0", "0x0", "٠"]))
def test_numbers_in_other_notations_are_refused_or_read_in_the_same_way(case, number):
    header, nbytes = case
    hypothesis.assume(nbytes < 100_000)
    compare(file_of(header.replace(b"0", number.encode(), 1), bytes(nbytes)))
