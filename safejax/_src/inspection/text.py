"""Text: sizes, tables and JSON, as reports for people and for programs show them."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

from safejax._src.format.markup import printable

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB")

_WIDEST: Final = 160
"""Characters that a column is padded to: else one long name would be paid for in each line."""


def size(nbytes: int) -> str:
    """The number of bytes with a unit: `512 B`, `86.7 MiB`."""
    if nbytes < 1024:
        return f"{nbytes} B"
    value, power = nbytes / 1024, 0
    while value >= 1023.95 and power < len(_UNITS) - 1:
        value, power = value / 1024, power + 1
    return f"{value:,.1f} {_UNITS[power]}"


def counted(count: int, what: str) -> str:
    """The count with its noun: `1 tensor`, `1,200 tensors`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def number(value: float | None) -> str:
    """A value in few digits; empty for None."""
    return "" if value is None else f"{value:.4g}"


def apart(a: str | None, b: str | None, most: int) -> tuple[str | None, str | None]:
    """What two texts begin with; of those that begin alike, what is where they differ."""
    if a is None or b is None or a[:most] != b[:most]:
        return a and a[:most], b and b[:most]
    pairs = enumerate(zip(a, b, strict=False))
    at = next((at for at, (one, other) in pairs if one != other), min(len(a), len(b)))
    begin = max(0, at - most // 2)
    return f"…{a[begin : begin + most]}", f"…{b[begin : begin + most]}"


def joined(lines: Iterable[str]) -> str:
    """The lines as one text; what files say cannot begin a line of its own."""
    return "\n".join(map(printable, lines))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str]) -> list[str]:
    """The lines of a table whose columns are as wide as they need; those in `right` end flush.

    What is longer than a line of a terminal moves the rest of its own line, and no other.
    """
    cells = [list(columns), *(list(map(printable, row)) for row in rows)]
    widths = [min(max(map(len, column)), _WIDEST) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        aligned = (
            text.rjust(width) if column in right else text.ljust(width)
            for text, width, column in zip(row, widths, columns, strict=True)
        )
        return "  ".join(aligned).rstrip()

    return list(map(line, cells))


def to_json(value: Any) -> str:
    """The indented JSON text of a value; what is no finite number is its name, as a string."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        table = cast("Mapping[Any, Any]", value)
        return {str(key): _plain(item) for key, item in table.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("Sequence[Any]", value)]
    return value
