"""Markup: tables and lines in HTML, as notebooks show them; what files say is only text in it."""

from collections.abc import Iterable, Sequence
from html import escape


def printable(text: str) -> str:
    """The text with an escape for each character that would do something to a terminal."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode()
        for each in text
    )


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str]) -> str:
    """A table in HTML; the cells of the columns in `right` end flush."""

    def line(row: Sequence[str], tag: str) -> str:
        cells = (
            f'<{tag} style="text-align:{"right" if column in right else "left"};'
            f'white-space:pre">{escape(printable(text))}</{tag}>'
            for text, column in zip(row, columns, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    return f"<table>{line(columns, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def html_lines(lines: Iterable[str]) -> str:
    """A paragraph of lines; empty for none."""
    text = "<br>".join(escape(printable(line)) for line in lines)
    return f"<p>{text}</p>" if text else ""
