"""The kinds of saves whose crash states are tried: what is there before, and how is saved.

Each version of the tree has the same names, shapes and dtypes, so that what is mixed of two of
them can be read, and is found by its bits.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, final

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from tests.support.crashes.disk import Tree
from tests.support.crashes.history import MARK
from tests.support.crashes.unsafe import UNSAFE
from tests.support.effort import LARGE
from tests.support.together import devices_together

ROWS: Final = 120 if LARGE else 40
"""Rows of the arrays of which all states are made: files of seven sectors, or of three."""

SAMPLE: Final = 300 if LARGE else 10
"""How many states are made at a moment at which there are too many."""

RETURNED: Final = "returned"
"""The mark that a process sets when `save` has returned."""

LATE: Final = "late.txt"
"""A file that somebody adds to a folder while it is saved; and the mark that it is there."""

OTHERS: Final[Tree] = {
    "notes.txt": b"what somebody keeps in the folder",
    "sub": None,
    "sub/deep": None,
    "sub/deep/notes.txt": b"and in a folder of it",
}

LITTER: Final = ".{}.0123456789abcdef.safejax-tmp"
"""The name of a temporary file or folder that a killed save has left."""


def values(version: str, rows: int = ROWS) -> dict[str, np.ndarray]:
    seed = sum(version.encode())
    a = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) + seed * 1000
    return {"a": a, "b": (np.arange(rows * 2, dtype=np.int32) * 7 + seed).reshape(rows, 2)}


@final
@dataclass(frozen=True)
class Kind:
    """A kind of save.

    `before` says what is there: nothing, the old version, litter of a killed save in place of it,
    or both. `options` are those of `save`, `old_options` those of the save before if they differ.
    `modes` are those of a folder and of its files, or of the file, if they are not new ones'.
    `unsafe` is another way of saving, in place of `save`. `refused` is a call that the system
    refuses, as strace injects it. `moves` says that the target has no name for a moment.
    """

    name: str
    target: str = "m.safetensors"
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    before: Literal["nothing", "old", "litter", "old and litter"] = "old"
    old_options: Mapping[str, Any] | None = None
    processes: int = 1
    rows: int = ROWS
    others: bool = False
    late: bool = False
    no_tensor: bool = False
    modes: tuple[int, int] | None = None
    in_background: bool = False
    unsafe: str | None = None
    refused: str | None = None
    moves: bool = False

    @property
    def is_folder(self) -> bool:
        return self.target == "m"

    @property
    def checksum(self) -> bool:
        return bool(self.options.get("checksum"))

    def tree(self, version: str) -> dict[str, Any]:
        """A version of the tree, on the host: `"old"`, `"new"` or `"3rd"`."""
        arrays = {} if self.no_tensor and version == "new" else values(version, self.rows)
        return {**arrays, "of": version}


def _folder(most: int = 512, **options: Any) -> dict[str, Any]:
    return {"max_shard_bytes": most, **options}


_DEALT: Final = _folder(one_writer_per_file=True)

KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind("file, nothing before", before="nothing"),
        Kind("file"),
        Kind("file, checksum", options={"checksum": True}),
        Kind("file, in the background", in_background=True),
        Kind("file, only litter before", before="litter"),
        Kind("file, litter", before="old and litter"),
        Kind("folder, nothing before", "m", _folder(), "nothing"),
        Kind("folder", "m", _folder()),
        Kind("folder, checksum", "m", _folder(checksum=True)),
        Kind("folder of one file", "m", _folder(1 << 20)),
        Kind("folder, others' files", "m", _folder(), others=True),
        Kind("folder, others add a file", "m", _folder(), late=True),
        Kind("folder, only litter before", "m", _folder(), "litter"),
        Kind("folder, litter", "m", _folder(), "old and litter"),
        Kind("index last, nothing before", "m", _DEALT, "nothing"),
        Kind("index last", "m", _DEALT),
        Kind("index last, checksum", "m", {**_DEALT, "checksum": True}),
        Kind("index last, no tensor", "m", _DEALT, no_tensor=True),
        Kind("index last, over one file", "m", _DEALT, old_options=_folder(1 << 20)),
        Kind("folder, over index last", "m", _folder(), old_options=_DEALT),
        Kind("file, private", modes=(0o755, 0o600)),
        Kind("file, for a group", modes=(0o755, 0o664)),
        Kind("folder, private", "m", _folder(), modes=(0o700, 0o600)),
        Kind("folder, private files", "m", _folder(), modes=(0o755, 0o600)),
        Kind("index last, private files", "m", _DEALT, modes=(0o755, 0o600)),
        Kind("two processes, private folder", "m", _folder(), processes=2, modes=(0o755, 0o600)),
        Kind("two processes, private file", processes=2, modes=(0o755, 0o640)),
        Kind("two processes, file", processes=2),
        Kind("two processes, file, checksum", options={"checksum": True}, processes=2),
        Kind("two processes, folder", "m", _folder(), processes=2),
        Kind("two processes, index last", "m", _DEALT, processes=2),
        Kind(
            "folder, no exchange", "m", _folder(), refused="renameat2:error=EINVAL", moves=True
        ),
        Kind(
            "folder, others' files, no links", "m", _folder(), others=True,
            refused="linkat:error=EPERM",
        ),
    )
}  # fmt: skip

UNSAFE_KINDS: Final = {way: Kind(f"unsafe, {way}", unsafe=way) for way in UNSAFE}
"""Saves that are not safe, and in whose states that is to be seen."""

LARGE_KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind("large file", rows=8_000),
        Kind("large file, checksum", options={"checksum": True}, rows=8_000),
        Kind("large folder", "m", _folder(1 << 17), rows=8_000),
        Kind("large, two processes", processes=2, rows=8_000),
        Kind("large, two processes, checksum", "m", _folder(1 << 17, checksum=True),
             processes=2, rows=8_000),
    )
}  # fmt: skip


def prepare(kind: Kind, folder: Path) -> None:
    """Put what is there before a save of this kind into an empty folder."""
    if kind.before != "nothing":
        options = kind.options if kind.old_options is None else kind.old_options
        safejax.save(kind.tree("old"), folder / kind.target, **options)
    litter = LITTER.format(kind.target)
    if kind.before == "litter":
        os.rename(folder / kind.target, folder / litter)
    if kind.before == "old and litter":
        safejax.save(kind.tree("3rd"), folder / litter, **kind.options)
    if kind.modes is not None:
        for path in (folder / kind.target, *(folder / kind.target).glob("*")):
            path.chmod(kind.modes[path.is_file()])
    if kind.others:
        for path, data in OTHERS.items():
            if data is None:
                (folder / kind.target / path).mkdir()
            else:
                (folder / kind.target / path).write_bytes(data)


def run(process: int, kind: Kind, folder: Path) -> None:
    """Save the new version, in each of the processes that the test has."""
    if process >= kind.processes:
        return
    tree = kind.tree("new")
    if kind.unsafe is not None:
        UNSAFE[kind.unsafe](folder / kind.target, safejax.serialize(tree))
        mark(folder, RETURNED)
        return
    if kind.processes > 1:
        tree = {name: _spread(leaf) for name, leaf in tree.items()}
    progress = _adding(folder / kind.target) if kind.late else None
    save: Callable[..., Any] = safejax.save_async if kind.in_background else safejax.save
    handle = save(tree, folder / kind.target, progress=progress, **kind.options)
    if handle is not None:
        handle.result()
    mark(folder, RETURNED)


def mark(folder: Path, name: str) -> None:
    """Name this moment in the record."""
    os.access(folder / f"{MARK}{name}", os.F_OK)


def _spread(leaf: Any) -> Any:
    if isinstance(leaf, str):
        return leaf
    mesh = Mesh(np.array(devices_together()), ("x",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P("x"))
    return jax.make_array_from_callback(leaf.shape, rows, lambda index: leaf[index])


def _adding(target: Path) -> Callable[[int, int], None]:
    """A function that adds a file to the folder, and flushes it, when it is called first."""

    def progress(done: int, total: int) -> None:
        del done, total
        path = target / LATE
        if path.exists():
            return
        with path.open("xb") as file:
            file.write(OTHERS["notes.txt"] or b"")
            file.flush()
            os.fsync(file.fileno())
        flushed = os.open(target, os.O_RDONLY)
        os.fsync(flushed)
        os.close(flushed)
        mark(target.parent, LATE)

    return progress
