"""The page: an inspection as one HTML file, which needs no other file and no network.

What files say of themselves is in the page as text: escaped in HTML, and as JSON in a script that
is not run, in which no character can end it. The page's policy allows the one script and the one
style that are written here, by their digests, and nothing else.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from typing import Any, Final

from safejax._src.format.markup import printable
from safejax._src.inspection import text
from safejax._src.inspection.contents import described_value
from safejax._src.inspection.inspect import Inspection
from safejax._src.inspection.statistics import Statistics
from safejax._src.inspection.tensors import TensorInfo, Total

_MOST_ROWS: Final = 200
"""The most rows of a table of what is no tensor."""

_MOST_TEXT: Final = 4000
"""The most characters of a value of the metadata."""

_PARTS: Final = ("ground.js", "shards.js", "map.js", "table.js", "detail.js")
"""The parts of the script, in their order; they are in `web/`."""

_HOLE: Final = re.compile(r"\{([a-z_]+)\}")


def page_of(inspection: Inspection) -> str:
    """The page that shows an inspection."""
    template, style = _read("page.html"), _read("page.css")
    # The parts share their names, and none of them is the page's.
    script = f'"use strict";\n(() => {{\n{"".join(map(_read, _PARTS))}}})();\n'
    source, summary = inspection.source, inspection.title().removeprefix(f"{inspection.source}: ")
    holes = {
        "title": _text(f"{source}, inspected by safejax"),
        "source": _text(source),
        "summary": _text(summary),
        "warnings": _warnings(inspection.warnings),
        "facts": "\n".join(_facts(inspection)),
        "style": style,
        "script": script,
        "style_hash": _digest(style),
        "script_hash": _digest(script),
        "data": _json(_data(inspection)),
    }
    return _HOLE.sub(lambda found: holes[found[1]], template)


def _read(name: str) -> str:
    return resources.files("safejax._src.inspection").joinpath("web", name).read_text("utf-8")


def _text(value: str) -> str:
    return escape(printable(value))


def _digest(content: str) -> str:
    """What the policy allows: the content of one element."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _json(value: Any) -> str:
    """JSON with none of the characters that mean something in HTML."""
    found = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return found.translate({ord(each): f"\\u{ord(each):04x}" for each in "<>&"})


def _data(inspection: Inspection) -> dict[str, Any]:
    """What the script draws, in which texts that are repeated are numbers."""
    tensors = list(inspection.tensors.values())
    number_of = {tensor.name: number for number, tensor in enumerate(tensors)}
    dtypes = _Numbers()
    for dtype in inspection.by_dtype:
        dtypes[dtype]
    files, devices, layouts = _Numbers(), _Numbers(), _Layouts()
    rows = [
        (
            row.depth,
            printable(row.label),
            -1 if row.tensor is None else number_of[row.tensor.name],
        )
        for row in inspection.rows()
    ]
    found = [
        (
            printable(tensor.name), dtypes[tensor.dtype], tensor.shape, tensor.nbytes,
            -1 if tensor.file is None else files[tensor.file],
            None if tensor.span is None else tensor.span[0], printable(tensor.notes),
            layouts.number(tensor, devices), _statistics(tensor.statistics),
        )
        for tensor in tensors
    ]  # fmt: skip
    return {
        "rows": rows,
        "tensors": found,
        "dtypes": list(map(printable, dtypes)),
        "files": list(map(printable, files)),
        "layouts": layouts.all,
        "devices": list(devices),
        "statistics": any(tensor.statistics is not None for tensor in tensors),
    }


class _Numbers(dict[str, int]):
    """Numbers of texts, in the order in which they are first asked for."""

    def __missing__(self, key: str) -> int:
        self[key] = number = len(self)
        return number


class _Layouts:
    """The shardings, each with a shape; many tensors have the same."""

    def __init__(self) -> None:
        self.all: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def number(self, tensor: TensorInfo, devices: _Numbers) -> int:
        if tensor.sharding is None:
            return -1
        # The same shards are one value for all tensors that have them.
        key = tensor.sharding, tensor.shape, id(tensor.shards)
        if key not in self._numbers:
            self._numbers[key] = len(self.all)
            parts = [
                (shard.begin, shard.end, [devices[each] for each in shard.devices])
                for shard in tensor.shards
            ]
            self.all.append((printable(tensor.sharding), tensor.shape, parts))
        return self._numbers[key]


def _statistics(found: Statistics | None) -> list[Any] | None:
    if found is None:
        return None
    numbers = [found.min, found.max, found.mean, found.std]
    # A mean may overflow; JSON has no numbers that are not finite.
    finite = [
        value if value is None or abs(value) < float("inf") else text.number(value)
        for value in numbers
    ]
    return [*finite, found.nans, found.infs, found.histogram, found.bars]


def _warnings(warnings: Iterable[str]) -> str:
    lines = "".join(f"<p>{_text(warning)}</p>" for warning in warnings)
    return f'<section class="panel warnings">{lines}</section>' if lines else ""


def _facts(inspection: Inspection) -> list[str]:
    """Tables of what is no tensor."""
    files = {
        file.name: f"{text.size(file.nbytes)}, header {text.size(file.header_bytes)}, "
        f"{text.counted(file.tensors, 'tensor')}, data on a multiple of {file.alignment} bytes, "
        f"{'with digests' if file.digests else 'no digests'}"
        for file in inspection.files
    }
    structure = {name or "the tree": kind for name, kind in inspection.structure.items()}
    values = {name: described_value(value) for name, value in inspection.values.items()}
    tables: dict[str, Mapping[str, str]] = {
        "By dtype": _totals(inspection.by_dtype),
        "By prefix": _totals(inspection.by_prefix),
        "Metadata": inspection.metadata,
        "Values that are not tensors": values,
        "Structure": structure,
        "Files": files,
    }
    return [_table(title, table) for title, table in tables.items() if table]


def _totals(totals: Mapping[str, Total]) -> dict[str, str]:
    return {
        key: f"{text.counted(total.tensors, 'tensor')}, {text.size(total.nbytes)}"
        for key, total in totals.items()
    }


def _table(title: str, table: Mapping[str, str]) -> str:
    rows = [
        f"<tr><td>{_text(_cut(key))}</td><td>{_text(_cut(value))}</td></tr>"
        for key, value in list(table.items())[:_MOST_ROWS]
    ]
    more = len(table) - len(rows)
    if more:
        rows.append(f"<tr><td>… {more:,} more</td><td></td></tr>")
    return f'<section class="panel"><h2>{title}</h2><table>{"".join(rows)}</table></section>'


def _cut(value: str) -> str:
    more = len(value) - _MOST_TEXT
    return f"{value[:_MOST_TEXT]} … {more:,} more characters" if more > 0 else value
