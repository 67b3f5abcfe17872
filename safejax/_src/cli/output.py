"""Output: reports on a terminal, where rich draws them, and elsewhere, as plain lines or JSON."""

import codecs
import importlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

from safejax._src.format.markup import printable
from safejax._src.inspection import text

UNREAD: Final = 141
"""The exit status of a command whose output nobody reads: that of one that SIGPIPE ended."""

_ESCAPED: Final = "safejax.escaped"


def _as_json_escapes(error: UnicodeError) -> tuple[str, int]:
    """Escapes of what an encoding lacks, as JSON has them, so that JSON stays JSON."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error(_ESCAPED, _as_json_escapes)


def emit(shown: str) -> None:
    """Write text to stdout at once; the command ends, without a word, if nobody reads it."""
    stream: Any = sys.stdout
    if stream is None:  # It was closed when Python started.
        return
    # A terminal, or a pipe, may be of an encoding that lacks the characters of a histogram.
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(f"{shown}\n".encode(encoding, _ESCAPED).decode(encoding))
        stream.flush()
    except OSError as error:
        discard_output()
        if isinstance(error, BrokenPipeError):
            raise SystemExit(UNREAD) from None
        raise


def discard_output() -> None:
    """Write nothing more to stdout: what is left in its buffer is no error when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def emit_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[tuple[bool, Sequence[str]]],
    right: Sequence[str],
    notes: Iterable[str],
) -> None:
    """Write a table with its title and notes; rows that are marked stand out on a terminal."""
    stream: Any = sys.stdout
    if stream is None or not stream.isatty():
        cells = [row for _, row in rows]
        lines = text.table(columns, cells, right) if cells else []
        emit("\n".join([printable(title), *lines, text.joined(notes)]).rstrip("\n"))
        return
    # Imported by name: it takes longer than all the rest, and only a terminal needs it.
    console: Any = importlib.import_module("rich.console").Console()
    escaped: Any = importlib.import_module("rich.text").Text
    table: Any = importlib.import_module("rich.table").Table(box=None, pad_edge=False)
    for column in columns:
        justify = "right" if column in right else "left"
        table.add_column(escaped(column), justify=justify, overflow="fold")
    for stands_out, row in rows:
        cells = [escaped(printable(cell)) for cell in row]
        table.add_row(*cells, style="bold" if stands_out else None)
    console.print(escaped(printable(title), style="bold cyan"))
    if table.row_count:
        console.print(table)
    for note in notes:
        style = "red" if note.startswith(("fault:", "problem:", "warning:")) else "dim"
        console.print(escaped(printable(note), style=style))
    sys.stdout.flush()


def progress_shown(quiet: bool) -> bool:
    """Whether progress is shown: if somebody looks at stderr who has not asked for silence."""
    stream: Any = sys.stderr  # None, if it was closed when Python started.
    return not quiet and stream is not None and stream.isatty()
