"""Tables of counts: how a plan shows what it holds."""

from collections.abc import Iterable, Sequence
from typing import Final

_LISTED: Final = 5
"""The most names that a list spells out."""


def table(columns: Sequence[str], rows: Iterable[tuple[str, Sequence[int]]]) -> list[str]:
    """The lines of a table: a title and its counts in each row, under the names of the columns.

    A row may have fewer counts than there are columns; the rest of its line is left empty.
    """
    cells = [["", *columns]]
    for title, counts in rows:
        row = [title, *map(with_commas, counts)]
        cells.append(row + [""] * (len(cells[0]) - len(row)))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines: list[str] = []
    for title, *counts in cells:
        aligned = [text.rjust(width) for text, width in zip(counts, widths[1:], strict=True)]
        lines.append("  ".join([title.ljust(widths[0]), *aligned]).rstrip())
    return lines


def with_commas(count: int) -> str:
    """The count in decimal, with a comma between each three digits."""
    return f"{count:,}"


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f", … {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(repr, names[:_LISTED])) + more
