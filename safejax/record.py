"""The record: what a header cannot express, as one JSON string in the file's metadata.

It describes the tree (`kinds`, `paths`), leaves that are not arrays (`values`), and properties
of single tensors (`dtypes`, `keys`, `digests`). Nothing in it names code to run or import: a
class's name is looked up among the containers that an adapter has registered, and a container
whose class is not among them becomes a dict.
"""

import base64
import math
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar, cast, final

from safejax import strict_json
from safejax.errors import InvalidFileError, TransformError
from safejax.integrity import ALGORITHM, DIGEST_BYTES, Digests
from safejax.leaves import RECORD_KEY, Scalar, check_name
from safejax.structure import EMPTY, MAX_DEPTH, Empty, Kind, Structure, container_segments

VERSION: Final = 1

DEFAULT_FORMAT: Final = "pt"
"""The default `format` in the metadata: transformers and huggingface_hub refuse files without."""

_FIELDS: Final = frozenset(
    {"version", "format", "kinds", "paths", "values", "dtypes", "keys", "digests"}
)
_DIGEST_FIELDS: Final = frozenset({"algorithm", "block_bytes", "tensors"})
_HEX: Final = re.compile(r"-?0x[0-9a-f]+")
_DOUBLE: Final = re.compile(r"[0-9a-f]{16}")
_T = TypeVar("_T")


@final
class Record(NamedTuple):
    """A file's record. `values` maps names to scalars, strings, None and `EMPTY`.

    `dtypes` gives the true dtype of tensors that are stored under another code, `keys` the
    implementation of typed key arrays; the bytes of tensors are checked against `digests`.
    `adds_format` is true if the user's metadata has no `format`, and the file's is ours.
    """

    structure: Structure = Structure()
    values: Mapping[str, Scalar | Empty | None] = {}
    dtypes: Mapping[str, str] = {}
    keys: Mapping[str, str] = {}
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
    table: dict[str, Any] = {"version": VERSION}
    if record.structure.kinds:
        table["kinds"] = _sorted(record.structure.kinds, _kind_to_json)
    if record.structure.paths:
        table["paths"] = _sorted(record.structure.paths, list)
    if record.values:
        table["values"] = _sorted(record.values, _value_to_json)
    if record.dtypes:
        table["dtypes"] = _sorted(record.dtypes, str)
    if record.keys:
        table["keys"] = _sorted(record.keys, str)
    if record.digests is not None:
        table["digests"] = {
            "algorithm": ALGORITHM,
            "block_bytes": record.digests.block_bytes,
            "tensors": _sorted(record.digests.of, _base64),
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
            f"{file}: invalid {RECORD_KEY!r} record in the metadata: {error}; load it with "
            "safetensors, which ignores the record, if the arrays alone are enough"
        ) from None
    if record.adds_format:
        metadata.pop("format", None)
    return metadata, record


def _sorted(table: Mapping[str, _T], to_json: Callable[[_T], Any]) -> dict[str, Any]:
    return {name: to_json(table[name]) for name in sorted(table)}


def _record(table: Any) -> Record:
    table = _dict(table, "the record")
    version = table.get("version")
    if type(version) is not int or version != VERSION:
        raise ValueError(f"expected version {VERSION}, got {version!r}: a newer safejax wrote it")
    unknown = table.keys() - _FIELDS
    if unknown:
        raise ValueError(f"expected the fields {sorted(_FIELDS)}, got {sorted(unknown)}")
    if table.get("format", "default") != "default":
        raise ValueError(f"expected format 'default', got {table['format']!r}")
    kinds = {key: _kind(item) for key, item in _dict(table.get("kinds", {}), "kinds").items()}
    for key in kinds:
        container_segments(key)
    paths = {name: _strings(item) for name, item in _dict(table.get("paths", {}), "paths").items()}
    for name, path in paths.items():
        if len(path) > MAX_DEPTH:
            raise ValueError(f"the path of {name[:80]!r} is more than {MAX_DEPTH} deep")
    values = {name: _value(item) for name, item in _dict(table.get("values", {}), "values").items()}
    for name in values:
        _check_leaf_name(name)
    return Record(
        Structure(kinds, paths),
        values,
        {name: _str(item) for name, item in _dict(table.get("dtypes", {}), "dtypes").items()},
        {name: _str(item) for name, item in _dict(table.get("keys", {}), "keys").items()},
        _digests(table["digests"]) if "digests" in table else None,
        "format" in table,
    )


def _digests(item: Any) -> Digests:
    table = _dict(item, "digests")
    if table.keys() != _DIGEST_FIELDS:
        raise ValueError(f"expected digests of {sorted(_DIGEST_FIELDS)}, got {sorted(table)}")
    if table["algorithm"] != ALGORITHM:
        raise ValueError(f"expected digests of {ALGORITHM}, got {table['algorithm']!r:.80}")
    block_bytes = table["block_bytes"]
    if type(block_bytes) is not int or not 0 < block_bytes < 2**63:
        raise ValueError(f"expected a block of 1 byte or more, got {block_bytes!r:.80}")
    of = {name: _bytes(digests) for name, digests in _dict(table["tensors"], "tensors").items()}
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


# ---- kinds


def _kind_to_json(kind: Kind) -> Any:
    table: dict[str, Any] = {"type": kind.type}
    if kind.keys:
        table["keys"] = (
            "int"
            if kind.keys == "int"
            else {segment: _key_to_json(key) for segment, key in kind.keys}
        )
    if kind.order is not None:
        table["order"] = list(kind.order)
    if kind.flat:
        table["flat"] = True
    if kind.aliases:
        table["aliases"] = dict(kind.aliases)
    return kind.type if len(table) == 1 else table


def _kind(item: Any) -> Kind:
    if isinstance(item, str):
        return Kind(item)
    table = _dict(item, "a kind")
    unknown = table.keys() - {"type", "keys", "order", "flat", "aliases"}
    if unknown:
        raise ValueError(
            f"expected a kind of type, keys, order, flat and aliases, got {sorted(unknown)}"
        )
    keys = table.get("keys", {})
    order = table.get("order")
    flat = table.get("flat", False)
    aliases = _dict(table.get("aliases", {}), "aliases")
    if not isinstance(flat, bool):
        raise ValueError(f"expected flat to be true or false, got {flat!r}")
    return Kind(
        _str(table.get("type")),
        "int" if keys == "int" else _keys(keys),
        None if order is None else _strings(order),
        flat,
        tuple((_str(alias), _str(to)) for alias, to in aliases.items()),
    )


def _keys(table: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((segment, _key(item)) for segment, item in _dict(table, "keys").items())


def _key_to_json(key: Any) -> Any:
    if isinstance(key, tuple):
        return [_key_to_json(part) for part in cast("tuple[Any, ...]", key)]
    if isinstance(key, bytes):
        return {"bytes": _base64(key)}
    return _value_to_json(key)


def _key(item: Any) -> Any:
    if isinstance(item, list):
        return tuple(_key(part) for part in cast("list[Any]", item))
    if isinstance(item, dict) and cast("dict[str, Any]", item).keys() == {"bytes"}:
        return _bytes(item["bytes"])
    key = _value(item)
    if key is EMPTY:
        raise ValueError(f"expected a dict key, got {item!r}")
    return key


# ---- values


def _value_to_json(value: Any) -> Any:
    if value is EMPTY:
        return {"empty": True}
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        # Beyond 64 bits, other readers of JSON lose digits, and Python limits decimal digits.
        return value if -(2**63) <= value < 2**63 else {"int": hex(value)}
    if isinstance(value, float):
        # The repr of a finite float is exact; infinities and NaNs are stored by their bits.
        return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
    assert isinstance(value, complex)
    return {"complex": [_value_to_json(value.real), _value_to_json(value.imag)]}


def _value(item: Any) -> Scalar | Empty | None:
    if item is None or isinstance(item, bool | int | float | str):
        return item
    table = _dict(item, "a value")
    match table:
        case {"empty": True}:
            result: Scalar | Empty = EMPTY
        case {"int": str(digits)} if _HEX.fullmatch(digits):
            result = int(digits, 16)
        case {"float": str(digits)} if _DOUBLE.fullmatch(digits):
            (result,) = struct.unpack(">d", bytes.fromhex(digits))
        case {"complex": [real, imag]}:
            parts = _value(real), _value(imag)
            if not (isinstance(parts[0], float) and isinstance(parts[1], float)):
                raise ValueError(f"expected two floats, got {table!r:.80}")
            result = complex(parts[0], parts[1])
        case _:
            raise ValueError(f"expected a Python scalar, got {table!r:.80}")
    if len(table) != 1:
        raise ValueError(f"expected a Python scalar, got {table!r:.80}")
    return cast("Scalar | Empty", result)


# ---- shapes of JSON


def _dict(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected {what} to be an object, got {value!r:.80}")
    return cast("dict[str, Any]", value)


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a string, got {value!r:.80}")
    return value


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _bytes(value: Any) -> bytes:
    return base64.b64decode(_str(value), validate=True)


def _strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list of strings, got {value!r:.80}")
    return tuple(_str(item) for item in cast("list[Any]", value))
