"""The values of a record as JSON and back: container kinds, dict keys, Python scalars, bytes."""

import base64
import math
import re
import struct
from typing import Any, Final, cast

from safejax._src.pytrees.structure import EMPTY, MAX_DEPTH, Empty, Kind, Scalar

_HEX: Final = re.compile(r"-?0x[0-9a-f]+")
_DOUBLE: Final = re.compile(r"[0-9a-f]{16}")


# ---- kinds


def kind_to_json(kind: Kind) -> Any:
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


def kind_from_json(item: Any) -> Kind:
    if isinstance(item, str):
        return Kind(item)
    table = json_object(item, "a kind")
    unknown = table.keys() - {"type", "keys", "order", "flat", "aliases"}
    if unknown:
        raise ValueError(
            f"expected a kind of type, keys, order, flat and aliases, got {sorted(unknown)}"
        )
    keys = table.get("keys", {})
    order = table.get("order")
    flat = table.get("flat", False)
    aliases = json_object(table.get("aliases", {}), "aliases")
    if not isinstance(flat, bool):
        raise ValueError(f"expected flat to be true or false, got {flat!r}")
    return Kind(
        json_string(table.get("type")),
        "int" if keys == "int" else _keys(keys),
        None if order is None else json_strings(order),
        flat,
        tuple((json_string(alias), json_string(to)) for alias, to in aliases.items()),
    )


def _keys(table: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((segment, _key(item)) for segment, item in json_object(table, "keys").items())


def _key_to_json(key: Any) -> Any:
    if isinstance(key, tuple):
        return [_key_to_json(part) for part in cast("tuple[Any, ...]", key)]
    if isinstance(key, bytes):
        return {"bytes": bytes_to_json(key)}
    return value_to_json(key)


def _key(item: Any, depth: int = 0) -> Any:
    if isinstance(item, list):
        if depth == MAX_DEPTH:
            raise ValueError(f"expected dict keys of at most {MAX_DEPTH} nested tuples, got more")
        return tuple([_key(part, depth + 1) for part in cast("list[Any]", item)])
    if isinstance(item, dict) and cast("dict[str, Any]", item).keys() == {"bytes"}:
        return bytes_from_json(item["bytes"])
    key = value_from_json(item)
    if key is EMPTY:
        raise ValueError(f"expected a dict key, got {item!r}")
    return key


# ---- values


def value_to_json(value: Any) -> Any:
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
    return {"complex": [value_to_json(value.real), value_to_json(value.imag)]}


def value_from_json(item: Any) -> Scalar | Empty | None:
    if item is None or isinstance(item, bool | int | float | str):
        return item
    table = json_object(item, "a value")
    match table:
        case {"empty": True}:
            result: Scalar | Empty = EMPTY
        case {"int": str(digits)} if _HEX.fullmatch(digits):
            result = int(digits, 16)
        case {"float": str(digits)} if _DOUBLE.fullmatch(digits):
            (result,) = struct.unpack(">d", bytes.fromhex(digits))
        case {"complex": [real, imag]}:
            parts = value_from_json(real), value_from_json(imag)
            if not (isinstance(parts[0], float) and isinstance(parts[1], float)):
                raise ValueError(f"expected two floats, got {table!r:.80}")
            result = complex(parts[0], parts[1])
        case _:
            raise ValueError(f"expected a Python scalar, got {table!r:.80}")
    if len(table) != 1:
        raise ValueError(f"expected a Python scalar, got {table!r:.80}")
    return cast("Scalar | Empty", result)


# ---- shapes of JSON


def json_object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected {what} to be an object, got {value!r:.80}")
    return cast("dict[str, Any]", value)


def json_string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a string, got {value!r:.80}")
    return value


def bytes_to_json(value: bytes) -> str:
    return base64.b64encode(value).decode()


def bytes_from_json(value: Any) -> bytes:
    return base64.b64decode(json_string(value), validate=True)


def json_strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list of strings, got {value!r:.80}")
    return tuple(json_string(item) for item in cast("list[Any]", value))
