"""Foreign files: what a file that is not a safetensors file is, and what to do with it."""

import re
from typing import Final

HEAD_BYTES: Final = 512
"""How many bytes, from the start of a file, are looked at."""

_NEW: Final = "'model.safetensors'"

_PICKLE: Final = (
    "get the safetensors file of the same model, or convert this one where PyTorch is installed: "
    f"safetensors.torch.save_file(torch.load(file, weights_only=True), {_NEW})"
)

_MSGPACK: Final = rb"[\x81-\x8f\xde\xdf].{0,4}[\xa1-\xbf\xd9]"
"""The begin of a dict with strings as keys."""

_KINDS: Final[tuple[tuple[bytes, str, str], ...]] = (
    (
        rb"version https://git-lfs",
        "a pointer of Git LFS, which only names the file",
        "run 'git lfs pull' in its repository",
    ),
    (
        rb"\s*<(!doctype\s+html|html)",
        "an HTML page",
        "download the file itself, on the Hugging Face Hub from /resolve/ in place of /blob/; "
        "the page may also say that you have to log in",
    ),
    (
        rb"PK\x03\x04.{26}.*?\.npy",
        "an archive of NumPy (.npz)",
        "load it by its path, with safejax.load",
    ),
    (rb"PK\x03\x04.{26}.*/(data\.pkl|\.format_version)", "a file of PyTorch", _PICKLE),
    (rb"PK\x03\x04", "a zip archive", "unpack it, and load the safetensors file in it"),
    (rb"\x80[\x02-\x05]", "a pickle, for example of PyTorch", _PICKLE),
    (
        rb"\x93NUMPY",
        "an array of NumPy (.npy)",
        "load it by its path, with safejax.load",
    ),
    (rb"GGUF", "a GGUF file", "get the safetensors files of the same model"),
    (
        rb"\x89HDF\r\n\x1a\n",
        "an HDF5 file",
        "load it with h5py or Keras, and store its arrays with safejax.save",
    ),
    (
        rb"(\x1f\x8b|\x28\xb5\x2f\xfd|\xfd7zXZ\x00|BZh)",
        "a compressed file",
        "decompress it first",
    ),
    (rb".{257}ustar", "a tar archive", "unpack it, and load the safetensors file in it"),
    (
        rb"\x00\x05\x16\x07",
        "what macOS stores beside a file",
        "name the file itself, without '._' in front",
    ),
    (
        _MSGPACK,
        "probably a msgpack file of Flax",
        "load it by its path, with safejax.load",
    ),
    (
        rb"\s*[{\[]\s*[\"{\[\]}0-9]",
        "a JSON file",
        "name the safetensors file, or an index, whose name ends in .index.json",
    ),
    (
        rb"\x00{64}",
        "a file that begins with zeros",
        "its download or copy was not completed; get it again",
    ),
)
"""What the first bytes match, what such a file is, and what to do."""


def is_msgpack(head: bytes, most: int) -> bool:
    """Whether a file that begins with `head` is probably one of msgpack, as Flax writes them."""
    kind = _kind(head, most)
    return kind is not None and kind[0] is _MSGPACK


def is_npz(head: bytes) -> bool:
    """Whether a file that begins with `head` is an archive whose first member is an array."""
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head.startswith(b"PK\x03\x04") and name.endswith(b".npy")


def recognized(head: bytes, most: int) -> str | None:
    """What a file that begins with `head` is, with the remedy; None if it is not known.

    A safetensors file begins with a length of at most `most`, and then a brace, whatever else
    its first bytes may look like.
    """
    if not head:
        return "an empty file: its download, copy or save was not completed; get it again"
    kind = _kind(head, most)
    return None if kind is None else f"{kind[1]}: {kind[2]}"


def _kind(head: bytes, most: int) -> tuple[bytes, str, str] | None:
    if len(head) < 8 or (int.from_bytes(head[:8], "little") <= most and head[8:9] == b"{"):
        return None
    for kind in _KINDS:
        if re.match(kind[0], head, re.DOTALL | re.IGNORECASE):
            return kind
    return None
