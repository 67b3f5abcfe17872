"""The record: what a header cannot express, as one JSON string in the file's metadata.

It describes the tree (`kinds`, `paths`), leaves that are not arrays (`values`), and properties
of single tensors (`dtypes`, `keys`, `weak`, `digests`). Nothing in it names code to run or import:
a class's name is looked up among the containers that an adapter has registered, and a container
whose class is not among them becomes a dict.
"""

from collections.abc import Callable, Mapping, Set
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar, final

from safejax._src.format import strict_json
from safejax._src.format.record_values import (
    bytes_from_json,
    bytes_to_json,
    json_object,
    json_string,
    json_strings,
    kind_from_json,
    kind_to_json,
    value_from_json,
    value_to_json,
)
from safejax._src.pytrees.names import check_name
from safejax._src.pytrees.structure import MAX_DEPTH, Empty, Scalar, Structure, container_segments
from safejax._src.reading.digests import ALGORITHM, DIGEST_BYTES, Digests
from safejax.errors import InvalidFileError, TransformError

VERSION: Final = 2
"""The newest version. A record is written in the first version that has all of its fields."""

RECORD_KEY: Final = "safejax"
"""The key in a file's metadata under which safejax stores its record."""

DEFAULT_FORMAT: Final = "pt"
"""The default `format` in the metadata: transformers and huggingface_hub refuse files without."""

_FIRST: Final = frozenset(
    {"version", "format", "kinds", "paths", "values", "dtypes", "keys", "digests"}
)
_FIELDS: Final[Mapping[int, frozenset[str]]] = MappingProxyType({1: _FIRST, 2: _FIRST | {"weak"}})
"""The fields of each version."""

_DIGEST_FIELDS: Final = frozenset({"algorithm", "block_bytes", "tensors"})

_T = TypeVar("_T")


@final
class Record(NamedTuple):
    """A file's record. `values` maps names to scalars, strings, None and `EMPTY`.

    `dtypes` gives the true dtype of tensors that are stored under another code, `keys` the
    implementation of typed key arrays, `weak` the names of weakly typed arrays; the bytes of
    tensors are checked against `digests`.
    `adds_format` is true if the user's metadata has no `format`, and the file's is ours.
    """

    structure: Structure = Structure()
    values: Mapping[str, Scalar | Empty | None] = {}
    dtypes: Mapping[str, str] = {}
    keys: Mapping[str, str] = {}
    weak: Set[str] = frozenset()
    digests: Digests | None = None
    adds_format: bool = False


def with_record(metadata: Mapping[str, str], record: Record) -> dict[str, str]:
    """The metadata of a file: the user's, and the record if there is anything to record."""
    table = _table(record)
    if not metadata and len(table) == 1:
        return {}
    stored = dict(metadata)
    if "format" not in metadata:
        table["format"] = "default"
        stored["format"] = DEFAULT_FORMAT
    stored[RECORD_KEY] = _written(table)
    return stored


def record_text(record: Record) -> str:
    """The record as it is stored in an index, which has metadata of its own."""
    return _written(_table(record))


def _written(table: Mapping[str, Any]) -> str:
    # ASCII, since a key may hold half a surrogate pair, which UTF-8 cannot encode.
    return strict_json.write(table, ascii_only=True)


def _table(record: Record) -> dict[str, Any]:
    table: dict[str, Any] = {"version": 2 if record.weak else 1}
    if record.structure.kinds:
        table["kinds"] = _sorted(record.structure.kinds, kind_to_json)
    if record.structure.paths:
        table["paths"] = _sorted(record.structure.paths, list)
    if record.values:
        table["values"] = _sorted(record.values, value_to_json)
    if record.dtypes:
        table["dtypes"] = _sorted(record.dtypes, str)
    if record.keys:
        table["keys"] = _sorted(record.keys, str)
    if record.weak:
        table["weak"] = sorted(record.weak)
    if record.digests is not None:
        table["digests"] = {
            "algorithm": ALGORITHM,
            "block_bytes": record.digests.block_bytes,
            "tensors": _sorted(record.digests.of, bytes_to_json),
        }
    return table


def read_record(stored: Mapping[str, str], file: str) -> tuple[dict[str, str], Record]:
    """The user's metadata and the record that a file's metadata holds.

    Raises `InvalidFileError` for a record that `with_record` never writes.
    """
    metadata = dict(stored)
    text = metadata.pop(RECORD_KEY, None)
    if text is None:
        return metadata, Record()
    try:
        table = strict_json.parse(text, allow_surrogates=True)
        record = _record(table)
    except (ValueError, RecursionError) as error:
        raise InvalidFileError(
            f"{file}: invalid {RECORD_KEY!r} record in the metadata: {error!s:.400}; load it with "
            "safetensors, which ignores the record, if the arrays alone are enough"
        ) from None
    if record.adds_format:
        metadata.pop("format", None)
    return metadata, record


def _sorted(table: Mapping[str, _T], to_json: Callable[[_T], Any]) -> dict[str, Any]:
    return {name: to_json(table[name]) for name in sorted(table)}


def _record(table: Any) -> Record:
    table = json_object(table, "the record")
    version = table.get("version")
    if type(version) is not int or version not in _FIELDS:
        raise ValueError(
            f"expected a version of 1 to {VERSION}, got {version!r}: a newer safejax wrote it"
        )
    fields = _FIELDS[version]
    unknown = table.keys() - fields
    if unknown:
        raise ValueError(f"expected the fields {sorted(fields)}, got {sorted(unknown)}")
    if table.get("format", "default") != "default":
        raise ValueError(f"expected format 'default', got {table['format']!r}")
    kinds = {
        key: kind_from_json(item)
        for key, item in json_object(table.get("kinds", {}), "kinds").items()
    }
    for key in kinds:
        container_segments(key)
    paths = {
        name: json_strings(item)
        for name, item in json_object(table.get("paths", {}), "paths").items()
    }
    for name, path in paths.items():
        if len(path) > MAX_DEPTH:
            raise ValueError(f"the path of {name[:80]!r} is more than {MAX_DEPTH} deep")
    values = {
        name: value_from_json(item)
        for name, item in json_object(table.get("values", {}), "values").items()
    }
    for name in values:
        _check_leaf_name(name)
    return Record(
        Structure(kinds, paths),
        values,
        {
            name: json_string(item)
            for name, item in json_object(table.get("dtypes", {}), "dtypes").items()
        },
        {
            name: json_string(item)
            for name, item in json_object(table.get("keys", {}), "keys").items()
        },
        _names(table.get("weak", [])),
        _digests(table["digests"]) if "digests" in table else None,
        "format" in table,
    )


def _names(item: Any) -> frozenset[str]:
    listed = json_strings(item)
    names = frozenset(listed)
    if len(names) != len(listed):
        raise ValueError("expected each name in weak once, got one twice")
    return names


def _digests(item: Any) -> Digests:
    table = json_object(item, "digests")
    if table.keys() != _DIGEST_FIELDS:
        raise ValueError(f"expected digests of {sorted(_DIGEST_FIELDS)}, got {sorted(table)}")
    if table["algorithm"] != ALGORITHM:
        raise ValueError(f"expected digests of {ALGORITHM}, got {table['algorithm']!r:.80}")
    block_bytes = table["block_bytes"]
    if type(block_bytes) is not int or not 0 < block_bytes < 2**63:
        raise ValueError(f"expected a block of 1 byte or more, got {block_bytes!r:.80}")
    of = {
        name: bytes_from_json(digests)
        for name, digests in json_object(table["tensors"], "tensors").items()
    }
    for name, digests in of.items():
        if len(digests) % DIGEST_BYTES:
            raise ValueError(
                f"expected {DIGEST_BYTES} bytes per digest, got {len(digests)} for {name!r:.80}"
            )
    return Digests(block_bytes, of)


def _check_leaf_name(name: str) -> None:
    try:
        check_name(name)
    except TransformError as error:
        raise ValueError(f"values: {error}") from None
