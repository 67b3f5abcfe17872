"""Inspect: what is in a file or a tree, as a value that prints as a table."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, cast, final

from safejax._src.format.markup import html_lines, html_table
from safejax._src.inspection import text
from safejax._src.inspection.contents import Contents, FileInfo, Item, contents, described_value
from safejax._src.inspection.rows import Row, rows_of
from safejax._src.inspection.statistics import statistics_of
from safejax._src.inspection.tensors import TensorInfo, Total, lines_of_totals, totals
from safejax._src.progress import ProgressArgument, shown_progress
from safejax._src.public import set_module
from safejax._src.pytrees.choices import (
    Where,
    any_of,
    checked,
    choices_of,
    pattern_of_others,
    predicate,
)
from safejax._src.reading.filesystems import FileSystem
from safejax.errors import TransformError

_SHOWN_ROWS: Final = 60
_SHOWN_VALUES: Final = 20

COLUMNS: Final = ("name", "dtype", "shape", "size", "")
OF_STATISTICS: Final = ("min", "max", "mean", "std", "NaN", "inf", "histogram")
RIGHT: Final = ("size", "min", "max", "mean", "std", "NaN", "inf")
"""The columns of the table, those of statistics, and those with numbers."""


@set_module("safejax")
@final
@dataclass(frozen=True, slots=True, repr=False)
class Inspection:
    """What is in a file, in several, or in a tree; printed as a table, and in notebooks.

    `tensors` maps each name to a value with its `dtype`, `shape`, `nbytes`, `file`, `span`,
    `aligned`, `in_place`, `key`, `weak_type`, `digests`, `sharding`, `shards` and `statistics`.
    `values` has the entries that are not tensors. `structure` maps the name of each container that
    is not a dict with string keys to its kind (`""` is the tree itself). `files` has a value for
    each file, with its `name`, `nbytes`, `header_bytes`, `alignment`, `tensors` and `digests`.
    `warnings` has what a load would warn of.
    """

    source: str
    tensors: Mapping[str, TensorInfo]
    values: Mapping[str, Any]
    metadata: Mapping[str, str]
    structure: Mapping[str, str]
    files: tuple[FileInfo, ...]
    warnings: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors together."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def size(self) -> int:
        """The number of elements of all tensors together."""
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def by_dtype(self) -> Mapping[str, Total]:
        """The total of each dtype, the one with the most bytes first."""
        return totals(self.tensors.values(), lambda tensor: tensor.dtype)

    @property
    def by_prefix(self) -> Mapping[str, Total]:
        """The total of each first segment of the names, the one with the most bytes first."""
        return totals(self.tensors.values(), lambda tensor: tensor.name.partition(".")[0])

    def to_json(self) -> str:
        """Everything as JSON text; numbers that are not finite are strings."""
        tensors = {name: asdict(tensor) for name, tensor in self.tensors.items()}
        for tensor in tensors.values():
            del tensor["name"]
        return text.to_json(
            {
                "source": self.source,
                "nbytes": self.nbytes,
                "size": self.size,
                "files": [asdict(file) for file in self.files],
                "by_dtype": {key: asdict(total) for key, total in self.by_dtype.items()},
                "by_prefix": {key: asdict(total) for key, total in self.by_prefix.items()},
                "tensors": tensors,
                "values": {name: described_value(value) for name, value in self.values.items()},
                "metadata": self.metadata,
                "structure": self.structure,
                "warnings": self.warnings,
            }
        )

    def to_html(self) -> str:
        """A page for browsers, which needs no other file and no network.

        It has the tree of the names, which can be searched, a map of the sizes, what is known of
        each tensor, its statistics if there are any, and, of a tree with shardings, which device
        holds which part of it.
        """
        # Imported by name: only who asks for a page needs it.
        return importlib.import_module("safejax._src.inspection.page").page_of(self)

    def rows(self) -> list[Row]:
        """The rows of the table: a tree of containers, with their totals, and of tensors."""
        return rows_of(self.tensors)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns of the table, with those of statistics if there are any."""
        has_statistics = any(each.statistics is not None for each in self.tensors.values())
        return COLUMNS + (OF_STATISTICS if has_statistics else ())

    def title(self) -> str:
        """What is said above the table."""
        nbytes = sum(file.nbytes for file in self.files)
        files = f" in {text.counted(len(self.files), 'file')} of {text.size(nbytes)}"
        return (
            f"{self.source}: {text.counted(len(self.tensors), 'tensor')}, "
            f"{text.counted(self.size, 'element')}, {text.size(self.nbytes)}"
            f"{files if self.files else ''}"
        )

    def notes(self) -> list[str]:
        """What is said below the table."""
        in_place = sum(tensor.in_place for tensor in self.tensors.values())
        lines = [f"{in_place:,} of {text.counted(len(self.tensors), 'tensor')} used in place"]
        if len(self.by_dtype) > 1:
            lines += lines_of_totals("dtype", self.by_dtype)
        if 1 < len(self.by_prefix) < len(self.tensors):
            lines += lines_of_totals("prefix", self.by_prefix)
        for name, value in list(self.values.items())[:_SHOWN_VALUES]:
            lines.append(f"value {name}: {described_value(value)}")
        if len(self.values) > _SHOWN_VALUES:
            lines.append(f"… {len(self.values) - _SHOWN_VALUES} more values")
        kinds = [f"{name or 'the tree'}: {kind}" for name, kind in self.structure.items()]
        if kinds:
            more = f", … {len(kinds) - 8} more" if len(kinds) > 8 else ""
            lines.append(f"structure {', '.join(kinds[:8])}{more}")
        lines += [f"metadata {key}: {value:.200}" for key, value in self.metadata.items()]
        for file in self.files:
            digests = "with digests" if file.digests else "no digests"
            lines.append(
                f"file {file.name}: {text.size(file.nbytes)}, header {text.size(file.header_bytes)}"
                f", data on a multiple of {file.alignment} bytes, {digests}"
            )
        return [*lines, *(f"warning: {warning}" for warning in self.warnings)]

    def __repr__(self) -> str:
        """A line; `print(inspection)` shows the table."""
        tensors = text.counted(len(self.tensors), "tensor")
        return f"Inspection({self.source!r}: {tensors}, {text.size(self.nbytes)})"

    def __str__(self) -> str:
        rows, more = self._shown_rows()
        return text.joined(
            [self.title(), *text.table(self.columns, rows, RIGHT), *more, *self.notes()]
        )

    def _repr_html_(self) -> str:
        """What notebooks show: the table that `print` shows."""
        rows, more = self._shown_rows()
        table = html_table(self.columns, rows, RIGHT)
        lines = html_lines([*more, *self.notes()])
        return f"{html_lines([self.title()])}{table}{lines}"

    def _shown_rows(self) -> tuple[list[tuple[str, ...]], list[str]]:
        rows = self.rows()
        more = [f"… {len(rows) - _SHOWN_ROWS:,} more rows"] if len(rows) > _SHOWN_ROWS else []
        return [cells_of(row, self.columns) for row in rows[:_SHOWN_ROWS]], more


@set_module("safejax")
def inspect(
    path_or_tree: Any,
    *,
    where: Where | None = None,
    stats: bool = False,
    progress: ProgressArgument = None,
    fs: FileSystem = None,
) -> Inspection:
    """What is at a path, or in a tree: names, shapes, dtypes, sizes, metadata and structure.

    `path_or_tree` is a path as `load` takes it, the bytes of a file, or a tree (also Leaves). Of
    files only the headers are read, and JAX is not imported for them. It may also be a checkpoint
    of Orbax, or the folder of its manager, whose last step is taken; that needs the extra `orbax`,
    and JAX. `where` is a pattern, several
    of them, or a function of a name: only such tensors are in the result. With `stats`, each
    tensor's values are read, in a window of a few MiB, and it has `statistics`: `min`, `max`,
    `mean`, `std`, how many are NaN or infinite, and a histogram. `progress` is then called with
    bytes of tensors, or shown if it is True.

    >>> import jax.numpy as jnp, safejax, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "params.safetensors")
    >>> safejax.save({"mlp": {"w": jnp.ones((4, 2)), "b": jnp.zeros(2)}}, path)
    >>> inspection = safejax.inspect(path, stats=True)
    >>> inspection.tensors["mlp.w"].shape, inspection.tensors["mlp.w"].statistics.mean
    ((4, 2), 1.0)
    >>> inspection.by_dtype
    {'float32': Total(tensors=2, size=10, nbytes=40)}
    >>> with open(os.path.join(tempfile.mkdtemp(), "page.html"), "w") as file:
    ...     written = file.write(inspection.to_html())

    Raises what `load` raises for a file that cannot be opened, and `TransformError` for a pattern
    that no name matches.
    """
    held = contents(path_or_tree, fs)
    items = _chosen(held, where)
    tensors = {name: _info(item) for name, item in items.items()}
    if stats:
        total = sum(item.nbytes for item in items.values())
        with shown_progress(progress, "inspect", total) as read:
            for name, item in items.items():
                if item.view is not None and item.key is None:
                    found = statistics_of(item.view, read)
                    tensors[name] = replace(tensors[name], statistics=found)
    kinds = {key.rstrip("."): kind.type for key, kind in held.kinds.items()}
    return Inspection(
        held.source, tensors, held.values, held.metadata, kinds, held.files, held.warnings
    )


def cells_of(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    """The texts of a row, one for each column; names are indented as deep as they are."""
    label = f"{'  ' * row.depth}{row.label}"
    tensor = cast("TensorInfo | None", row.tensor)
    if tensor is None:
        cells = (label, "", f"{row.tensors:,}", text.size(row.nbytes), "")
    else:
        shape = f"[{','.join(map(str, tensor.shape))}]"
        cells = (label, tensor.dtype, shape, text.size(tensor.nbytes), tensor.notes)
    if len(columns) == len(COLUMNS):
        return cells
    found = None if tensor is None else tensor.statistics
    if found is None:
        return (*cells, *("" for _ in OF_STATISTICS))
    moments = map(text.number, (found.min, found.max, found.mean, found.std))
    return (*cells, *moments, f"{found.nans:,}", f"{found.infs:,}", found.bars)


def _chosen(held: Contents, where: Where | None) -> Mapping[str, Item]:
    if where is None:
        return held.items
    where = checked(where, "inspect")
    for pattern in choices_of(where):
        others = pattern_of_others(pattern)
        if isinstance(pattern, str) and not any(map(predicate(others or pattern), held.items)):
            raise TransformError(
                f"{held.source}: where: expected a pattern that matches a tensor's name, got "
                f"{pattern!r}, which matches none of {len(held.items)}"
            )
    is_chosen = any_of(where)
    return {name: item for name, item in held.items.items() if is_chosen(name)}


def _info(item: Item) -> TensorInfo:
    aligned = item.in_place if item.span is None else item.span[0] % 64 == 0
    return TensorInfo(
        item.name, item.dtype, item.shape, item.nbytes, item.file, item.span, aligned,
        item.in_place, item.key, item.weak_type, item.digests, item.sharding, item.shards, None,
    )  # fmt: skip
