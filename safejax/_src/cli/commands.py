"""The commands and their options.

What does the work is imported by name, by the command that needs it: `--help` imports no NumPy, and
JAX is imported by `convert` and `plan` only.
"""

import importlib
import json
import math
import re
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from safejax._src.cli.output import UNREAD, discard_output, emit, emit_table, progress_shown

_PATHS: Final = click.argument("paths", nargs=-1, required=True, metavar="PATH...")
_JSON: Final = click.option("--json", "as_json", is_flag=True, help="Write JSON.")
_HTML: Final = click.option("--html", metavar="FILE", help="Write a page for browsers.")
_QUIET: Final = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
_MOST_OF_RULES: Final = 1_000_000
_MOST_DEVICES: Final = 10_000
"""Each takes 0.1 MB of memory here; the largest slices of TPUs have 9,216 chips."""

_MESH: Final = re.compile(r"(\w+)=(\d{1,18})")
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


class _PipeError(Exception):
    """A pipe or a connection broke that is not the output: `cause` says which."""

    def __init__(self, cause: BrokenPipeError) -> None:
        self.cause = cause


class _Command(click.Command):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            # click would take it for one of the output, and end without a word.
            raise _PipeError(error) from None


def run(arguments: Sequence[str] | None) -> int:
    """Run the command with these arguments; its exit status."""
    stream = sys.stdout
    try:
        status = safejax.main(arguments, prog_name="safejax", standalone_mode=False)
    except _PipeError as error:
        raise error.cause from None
    except SystemExit:
        if sys.stdout is stream:
            raise
        # click has another status for help that nobody reads, and puts another stream there.
        discard_output()
        return UNREAD
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    return status if isinstance(status, int) else 0


def _size(value: str) -> int:
    """A number of bytes, such as `5GB`, `512MiB` or `1000`."""
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        raise click.BadParameter(f"{value!r} is not a size such as 5GB or 512MiB")
    power = "kmgt".find(found[2].lower()) + 1 if found[2] else 0
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def _mesh(value: str) -> dict[str, int]:
    """The axes of a mesh, such as `data=4,model=2`."""
    axes: dict[str, int] = {}
    for part in value.split(","):
        found = _MESH.fullmatch(part.strip())
        if found is None or found[1] in axes or int(found[2]) < 1:
            raise click.BadParameter(f"{value!r:.80} is not a mesh such as data=4,model=2")
        axes[found[1]] = int(found[2])
    if math.prod(axes.values()) > _MOST_DEVICES:
        raise click.BadParameter(
            f"{value!r:.80} has more than {_MOST_DEVICES:,} devices: leave out the axes that only "
            "replicate"
        )
    return axes


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="safejax", prog_name="safejax")
def safejax() -> None:
    """Look into, compare, convert and check safetensors files.

    A PATH is a file, a folder, an index (*.safetensors.index.json) or a URL; several are the files
    of one checkpoint. Patterns are matched on whole names: * is any text, {i} one segment.
    """


@safejax.command(cls=_Command)
@_PATHS
@click.option("-w", "--where", multiple=True, metavar="PATTERN", help="Only such tensors.")
@click.option("--stats", is_flag=True, help="Read the values, and show what they are like.")
@_HTML
@_JSON
@_QUIET
def inspect(
    paths: tuple[str, ...], where: tuple[str, ...], stats: bool, html: str | None, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Show what is in a file: names, dtypes, shapes, sizes, metadata and structure.

    Only the header is read, unless --stats is given. With --html, the tree, a map of the sizes and
    all else is drawn in one page, which needs no network.
    """
    inspecting = _imported("inspection.inspect")
    found = inspecting.inspect(
        _path(paths), where=where or None, stats=stats, progress=stats and progress_shown(quiet)
    )
    if html is not None:
        _imported("cli.pages").write_page(html, found.to_html())
    if as_json:
        emit(found.to_json())
    if as_json or html is not None:
        return
    columns = found.columns
    rows = ((row.tensor is None, inspecting.cells_of(row, columns)) for row in found.rows())
    emit_table(found.title(), columns, rows, inspecting.RIGHT, found.notes())


@safejax.command(cls=_Command)
@click.argument("a")
@click.argument("b")
@click.option("--rtol", type=click.FloatRange(0), default=0.0, help="Relative tolerance.")
@click.option("--atol", type=click.FloatRange(0), default=0.0, help="Absolute tolerance.")
@_JSON
@_QUIET
def diff(a: str, b: str, rtol: float, atol: float, as_json: bool, quiet: bool) -> int:
    """Compare two files: names, shapes, dtypes, values, structure and metadata.

    The exit status is 0 if they are the same, 1 if they differ, and 2 if there is trouble.
    """
    found = _imported("inspection.diff").diff(
        a, b, rtol=rtol, atol=atol, progress=progress_shown(quiet)
    )
    emit(found.to_json() if as_json else str(found))
    return 0 if found.is_same else 1


@safejax.command(cls=_Command)
@_PATHS
@click.option("--headers-only", is_flag=True, help="Do not compare values with their digests.")
@_JSON
@_QUIET
def verify(paths: tuple[str, ...], headers_only: bool, as_json: bool, quiet: bool) -> int:
    """Check headers, records, the index, and the digests of values; report all that is wrong.

    The exit status is 0 if nothing is, 1 if something is, and 2 if there is trouble.
    """
    progress = progress_shown(quiet)
    found = _imported("inspection.verify").verify(
        _path(paths), digests=not headers_only, progress=progress
    )
    emit(found.to_json() if as_json else str(found))
    return 0 if found.is_valid else 1


@safejax.command(cls=_Command)
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@click.argument("target", metavar="DST")
@click.option("--select", multiple=True, metavar="PATTERN", help="Only such tensors.")
@click.option("--drop", multiple=True, metavar="PATTERN", help="All but such tensors.")
@click.option(
    "--rename", nargs=2, multiple=True, metavar="OLD NEW", help="Two patterns, such as a.{i} b.{i}."
)
@click.option("--prefix", metavar="TEXT", help="Put TEXT and a dot before all names.")
@click.option("--dtype", help="Convert floating-point values to this dtype.")
@click.option("--where", metavar="PATTERN", help="Convert only such tensors, by their new names.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Add to the metadata.")
@click.option(
    "--max-shard-size", type=_size, metavar="SIZE", help="Make DST a folder of files of this size."
)
@click.option("--checksum", is_flag=True, help="Record digests of the values.")
@click.option("--verify", "is_verified", is_flag=True, help="Check the digests of SRC.")
@click.option("--item", metavar="NAME", help="Of a step of Orbax's with several items.")
@click.option("--step", type=click.IntRange(0), help="Of Orbax's CheckpointManager; else the last.")
@click.option("--overwrite", is_flag=True, help="Replace what is at DST.")
@_QUIET
def convert(target: str, where: str | None, dtype: str | None, **options: Any) -> None:
    """Write the tensors of SRC to DST, block by block: renamed, cast, selected, in other files.

    The order is: select, drop, rename, prefix, dtype. SRC may also be a checkpoint of Orbax, an
    archive or an array of NumPy (.npz, .npy), or a file of Flax (.msgpack). DST appears when it is
    complete; what was there before stays until then.
    """
    if where is not None and dtype is None:
        raise click.UsageError("--where chooses what --dtype converts: give --dtype, or --select.")
    metadata: dict[str, str] = {}
    for pair in options.pop("metadata"):
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--metadata: expected KEY=VALUE, got {pair!r}.")
        metadata[key] = value
    progress = progress_shown(options.pop("quiet"))
    _imported("cli.converting").convert(
        _path(options.pop("sources")), target, dtype=dtype, where=where, metadata=metadata,
        progress=progress, **options,
    )  # fmt: skip


@safejax.command(cls=_Command)
@_PATHS
@click.option("--mesh", type=_mesh, metavar="AXES", help="The axes of the mesh: data=4,model=2.")
@click.option(
    "--rules",
    type=click.File(encoding="utf-8"),
    help='A JSON file: {"PATTERN": [null, "model"], ...}, the first match wins.',
)
@_HTML
@_JSON
def plan(
    paths: tuple[str, ...], mesh: dict[str, int] | None, rules: Any, html: str | None, as_json: bool
) -> int:
    """Show what a load onto a mesh would read, place and copy; only headers are read.

    With --html, a page shows which device holds which part of each tensor.

    The mesh has virtual devices of the CPU, so that none of its size is needed here. The exit
    status is 1 if the plan has problems, such as a sharding that does not divide a shape.
    """
    if rules is not None and mesh is None:
        raise click.UsageError("--rules are for a mesh: give --mesh, too.")
    text = None if rules is None else rules.read(_MOST_OF_RULES + 1)
    if text is not None and len(text) > _MOST_OF_RULES:
        raise click.UsageError(f"--rules: expected at most {_MOST_OF_RULES} characters, got more.")
    planned = _imported("cli.planned")
    found = planned.plan_of(_path(paths), mesh, text, getattr(rules, "name", ""))
    if html is not None:
        _imported("cli.pages").write_page(html, planned.page_of(found))
    if as_json or html is None:
        emit(json.dumps(planned.as_json(found), indent=2) if as_json else str(found))
    return 1 if found.problems else 0


def _imported(module: str) -> Any:  # Any: a module that is not known here.
    return importlib.import_module(f"safejax._src.{module}")


def _path(paths: Sequence[str]) -> Any:
    return paths[0] if len(paths) == 1 else list(paths)
