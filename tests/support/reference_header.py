"""Headers as the reference reader reads them, and what only that accepts, with the reason."""

from typing import Any, Final

import pytest
import safetensors

from safejax._src.format.header import read_header
from safejax.errors import InvalidFileError

_FIELDS: Final = '"dtype":"U8","shape":[1],"data_offsets":[0,1]'
_INFO: Final = "{" + _FIELDS + "}"
_AXES: Final = ",".join("1" * 65)

STRICTER: Final = {
    "one of the two would be dropped, and readers differ in which": (
        '{"a":' + _INFO + ',"a":' + _INFO + "}", b"x", "appears twice"),
    "the same, of metadata": (
        '{"__metadata__":{"k":"1","k":"2"}}', b"", "appears twice"),
    "the format says that a header begins with a brace; the reference skips spaces": (
        ' {"a":' + _INFO + "}", b"x", "begin with '{'"),
    "a field that we do not know may change what the others mean": (
        '{"a":{' + _FIELDS + ',"order":"F"}}', b"x", "expected the fields"),
    "the format wants an object; a list is how the reference's own types happen to be read": (
        '{"a":["U8",[1],[0,1]]}', b"x", "expected the fields"),
    "the format wants a string; an object is how the reference's own types happen to be read": (
        '{"a":{"dtype":{"U8":null},"shape":[1],"data_offsets":[0,1]}}', b"x", "known dtype"),
    "NumPy and JAX have no array with more than 64 axes": (
        '{"a":' + _INFO.replace("[1]", f"[{_AXES}]") + "}", b"x",
        "at most 64 axes"),
    "NumPy has no array of that shape, empty though it is": (
        f'{{"a":{{"dtype":"F32","shape":[0,{2**62}],"data_offsets":[0,0]}}}}', b"", "overflows"),
}  # fmt: skip
"""The reason for refusing it: the file (header, data), and a part of the error message."""


def ours(data: bytes) -> dict[str, Any]:
    """What safejax reads from a file: the code, the shape and the bytes of each tensor."""
    header = read_header(lambda begin, end: data[begin:end], len(data), "m.safetensors")
    return {
        name: (tensor.code, tensor.shape, data[tensor.begin : tensor.end])
        for name, tensor in header.tensors.items()
    }


def reference(data: bytes) -> dict[str, Any]:
    """What the reference reader reads from a file."""
    return {
        name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
        for name, tensor in safetensors.deserialize(data)
    }


def compared(data: bytes) -> str:
    """Check that safejax accepts no more than the reference reader, with the same tensors."""
    try:
        expected = reference(data)
    except safetensors.SafetensorError:
        with pytest.raises(InvalidFileError, match=r"^m\.safetensors: "):
            ours(data)
        return "both refuse"
    try:
        read = ours(data)
    except InvalidFileError as error:
        refusal = str(error)
    else:
        assert read == expected
        return "both accept"
    sentences = [sentence for _, _, sentence in STRICTER.values() if sentence in refusal]
    assert sentences, f"accepted by the reference reader, and refused: {refusal}"
    return f"stricter: {sentences[0]}"
