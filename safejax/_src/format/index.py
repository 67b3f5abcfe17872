"""The index of a checkpoint in several files: which tensor is in which file.

The index is authoritative, as in Hugging Face's libraries. It is JSON with a `weight_map` from
names to files, and `metadata` that contains our record of the tree.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, cast, final

from safejax._src.format import strict_json
from safejax._src.format.record import RECORD_KEY, Record, read_record
from safejax.errors import InvalidFileError

_NAME: Final = re.compile(r"(.*)\.safetensors\.index(\..+)?\.json", re.DOTALL)
STEM: Final = "model"
"""What the names of files and of their index begin with, unless a save is told another name."""
INDEX_NAME: Final = f"{STEM}.safetensors.index.json"


@final
class Index(NamedTuple):
    """Which tensor is in which file, and what the record says about the tree."""

    weight_map: Mapping[str, str]
    record: Record | None = None

    @property
    def files(self) -> list[str]:
        """The files, in the order in which the index first names them."""
        return list(dict.fromkeys(self.weight_map.values()))


def is_index(name: str) -> bool:
    """Whether a file of this name is an index; it may be that of a variant (`….fp16.json`)."""
    return name.endswith(".index.json") or index_stem(name) is not None


def index_stem(name: str) -> str | None:
    """What the names of an index's files begin with; None if it is none of safetensors files.

    The variant is a part of it: it is `model.fp16` for `model.safetensors.index.fp16.json`.
    """
    found = _NAME.fullmatch(name)
    return None if found is None else found[1] + (found[2] or "")


def read_index(data: bytes, file: str) -> Index:
    """The index in `data`; `InvalidFileError` if it is invalid or names files in other folders."""

    def fault(sentence: str) -> InvalidFileError:
        return InvalidFileError(f"{file}: invalid index: {sentence}")

    try:
        table = strict_json.parse(data.decode())
    except ValueError as error:
        raise fault(f"expected JSON: {error}") from None
    weight_map = _object(table).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise fault("expected a 'weight_map' from names to files, got none")
    for name, shard in cast("dict[str, object]", weight_map).items():
        if not isinstance(shard, str) or not _is_inside(shard):
            raise fault(
                f"tensor {name!r:.80}: expected the name of a file in the same folder, got "
                f"{shard!r:.80}"
            )
    text = _object(_object(table).get("metadata")).get(RECORD_KEY)
    if text is None:
        return Index(weight_map)
    if not isinstance(text, str):
        raise fault(f"expected the {RECORD_KEY!r} record to be a string, got {text!r:.80}")
    _, record = read_record({RECORD_KEY: text}, file)
    return Index(weight_map, record)


def _object(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _is_inside(shard: str) -> bool:
    parts = re.split(r"[/\\]", shard)
    return all(part not in ("", ".", "..") for part in parts) and ":" not in parts[0]
