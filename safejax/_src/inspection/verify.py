"""Verify: all that is wrong with a file, a folder or an index, as a value that is a report."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, cast, final

import numpy as np

from safejax._src.arguments import check_source
from safejax._src.checkpoint.finding import Opener, Path, find, shown_path
from safejax._src.checkpoint.stored import (
    Stored,
    check_of_tensors,
    check_structure,
    matching_digests,
    stored_view,
)
from safejax._src.format.header import Header, faults_of_header, read_header
from safejax._src.format.index import Index
from safejax._src.format.markup import html_lines
from safejax._src.format.record import Record, read_record
from safejax._src.inspection import text
from safejax._src.inspection.contents import IN_MEMORY, items_of, united
from safejax._src.progress import ProgressArgument, shown_progress
from safejax._src.public import set_module
from safejax._src.reading.buffer import BufferSource
from safejax._src.reading.digests import DIGEST_BYTES, Digests, hasher
from safejax._src.reading.filesystems import FileSystem
from safejax._src.reading.masking import masked
from safejax._src.reading.source import File
from safejax._src.reading.windows import Window
from safejax.errors import InvalidFileError, ReadError

_SHOWN: Final = 200


@set_module("safejax")
@final
@dataclass(frozen=True, slots=True, repr=False)
class Verification:
    """Whether the files at a path are whole; printed as a report, and in notebooks.

    `faults` has a message for each thing that is wrong, with the file and the tensor; a load raises
    an error for each of them, those of digests with `verify=True`. `warnings` has what a load warns
    of. `files` are the files that were opened, `tensors` is how many they have, and `nbytes` how
    many bytes of them were compared with their digests. `without_digests` names the files that
    have none, so that only their headers were checked.
    """

    source: str
    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    files: tuple[str, ...]
    tensors: int
    nbytes: int
    without_digests: tuple[str, ...]

    @property
    def is_valid(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def to_json(self) -> str:
        """Everything as JSON text."""
        return text.to_json({"is_valid": self.is_valid, **asdict(self)})

    def __repr__(self) -> str:
        """A line; `print(verification)` shows the report."""
        return f"Verification({self._title()!r})"

    def __str__(self) -> str:
        return text.joined([self._title(), *self._lines()])

    def _repr_html_(self) -> str:
        """What notebooks show: the report that `print` shows."""
        return html_lines([self._title(), *self._lines()])

    def _title(self) -> str:
        found = "valid" if self.is_valid else text.counted(len(self.faults), "fault")
        return (
            f"{self.source}: {found}; {text.counted(self.tensors, 'tensor')} in "
            f"{text.counted(len(self.files), 'file')}, {text.size(self.nbytes)} compared with "
            "digests"
        )

    def _lines(self) -> list[str]:
        faults = [f"fault: {fault}" for fault in self.faults[:_SHOWN]]
        more = len(self.faults) - _SHOWN
        lines = [*faults, *([f"… {more:,} more faults"] if more > 0 else [])]
        lines += [f"warning: {warning}" for warning in self.warnings[:_SHOWN]]
        if self.without_digests:
            names = ", ".join(self.without_digests[:5])
            dots = " …" if len(self.without_digests) > 5 else ""
            lines.append(f"no digests, so that values were not checked: {names}{dots}")
        return lines


@set_module("safejax")
def verify(
    path: Any, *, digests: bool = True, progress: ProgressArgument = None, fs: FileSystem = None
) -> Verification:
    """What is wrong with the files at a path: headers, records, the index, and digests of values.

    `path` is one as `load` takes it, or the bytes of a file. All that is wrong is in the result,
    and not only the first of it. Values are compared with the digests that
    `save(..., checksum=True)` recorded, block by block (`pip install 'safejax[checksum]'`), unless
    `digests` is false: then only headers are read. `progress` is called with bytes of tensors, or
    shown if it is True. JAX is not imported.

    >>> import jax.numpy as jnp, safejax
    >>> data = bytearray(safejax.serialize({"w": jnp.ones(3)}, checksum=True))
    >>> safejax.verify(data).is_valid
    True
    >>> data[-1] ^= 1
    >>> len(safejax.verify(data).faults)
    1

    Raises `FileNotFoundError` if there is nothing, and `ReadError` if it cannot be read.
    """
    verifier = _Verifier()
    if isinstance(path, bytes | bytearray | memoryview):
        source = IN_MEMORY
        verifier.one(BufferSource(bytes(path), IN_MEMORY))
    else:
        check_source(path, "verify")
        source = shown_path(cast("Path", path))
        opener = Opener(verifier.one, verifier.several, missed=verifier.missed)
        try:
            find(cast("Path", path), fs, opener)
        except InvalidFileError as error:  # An invalid index, or a folder without a checkpoint.
            verifier.faults.append(str(error))
    nbytes = verifier.compare(progress) if digests else 0
    return Verification(
        source, tuple(verifier.faults), tuple(verifier.warnings), tuple(verifier.files),
        verifier.tensors, nbytes, tuple(verifier.without_digests),
    )  # fmt: skip


@final
class _Verifier:
    """Collects what is wrong; it begins anew if the files are opened again."""

    def __init__(self) -> None:
        self._missed: list[str] = []
        self._reset()

    def _reset(self) -> None:
        self.faults: list[str] = []
        self.warnings: list[str] = []
        self.files: list[str] = []
        self.without_digests: list[str] = []
        self.tensors = 0
        self._checked: list[tuple[Stored, Digests]] = []

    def missed(self, file: str, error: Exception) -> None:
        """Called with a file that cannot be opened, before `several` is called."""
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        self._missed.append(f"{file}: {reason}")

    def one(self, source: File) -> None:
        self._reset()
        self._stored(source)

    def several(self, files: Sequence[tuple[str, File]], index: Index | None, name: str) -> None:
        self._reset()
        self.faults += self._missed
        self._missed = []
        parts = [(file, self._stored(source)) for file, source in files]
        whole = [(file, part) for file, part in parts if part is not None]
        problems, items = united(
            [_items(part) for _, part in whole], [file for file, _ in whole], index
        )
        for problem in problems:
            (self.faults if problem.is_error else self.warnings).append(f"{name}: {problem.text}")
        if index is not None and index.record is not None and len(whole) == len(index.files):
            self._check(lambda: check_structure(cast("Any", index.record), items.keys(), name))

    def compare(self, progress: ProgressArgument) -> int:
        """Compare the values with their digests; how many bytes have some."""
        total = sum(
            tensor.end - tensor.begin
            for stored, _ in self._checked
            for tensor in stored.header.tensors.values()
        )
        new = hasher() if self._checked else None
        with shown_progress(progress, "verify", total) as read:
            for stored, digests in self._checked:
                for fault in _damaged(stored, digests, new, read):
                    self.faults.append(fault)
        return total

    def _check(self, check: Callable[[], Any]) -> bool:
        try:
            check()
        except InvalidFileError as error:
            self.faults.append(str(error))
            return False
        return True

    def _stored(self, source: File) -> Stored | None:
        """What a file says of itself, and all that is wrong with that; None if too much is."""
        file = masked(source.name)
        self.files.append(file)
        try:
            header = read_header(source.prefix, source.nbytes, source.name)
        except InvalidFileError as error:
            self.faults += faults_of_header(source.prefix, source.nbytes, file) or [str(error)]
            return None
        self.tensors += len(header.tensors)
        try:
            metadata, record = read_record(header.metadata, source.name)
        except InvalidFileError as error:
            self.faults.append(str(error))
            return None
        stored = Stored(source, header, metadata, record)
        self._check_record(stored, header, record)
        if record.digests is None:
            self.without_digests.append(file)
        elif self._check(lambda: matching_digests(header, record, file)):
            self._checked.append((stored, record.digests))
        return stored

    def _check_record(self, stored: Stored, header: Header, record: Record) -> None:
        file = stored.source.name
        self._check(lambda: check_of_tensors(header, record, file))
        self._check(lambda: check_structure(record, header.tensors.keys(), file))
        for name in record.dtypes.keys() & header.tensors.keys():
            tensor = header.tensors[name]
            self._check(
                lambda name=name, tensor=tensor: stored_view(stored.source, name, tensor, record)
            )


def _items(stored: Stored) -> dict[str, Any]:
    try:
        return dict(items_of(stored))
    except InvalidFileError:  # A dtype of the record, which is reported.
        return dict.fromkeys(stored.header.tensors)


def _damaged(
    stored: Stored, digests: Digests, new: Any, read: Callable[[int], None]
) -> Iterator[str]:
    """The blocks whose bytes are not those that were saved, one message for each tensor."""
    for name, tensor in stored.header.tensors.items():
        damaged: list[tuple[int, int]] = []
        wanted = digests.of.get(name, b"")
        for number, begin in enumerate(range(tensor.begin, tensor.end, digests.block_bytes)):
            end = min(begin + digests.block_bytes, tensor.end)
            try:
                block = stored.source.read(begin, np.dtype(np.uint8), Window.whole((end - begin,)))
            except ReadError as error:
                yield str(error)
                return
            hashed = new()
            hashed.update(np.ascontiguousarray(block).data)
            if hashed.digest() != wanted[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]:
                damaged.append((begin, end))
            read(end - begin)
        if damaged:
            spans = ", ".join(f"[{begin}, {end})" for begin, end in damaged[:3])
            dots = " …" if len(damaged) > 3 else ""
            yield (
                f"{masked(stored.source.name)}: leaf {name!r}: expected the bytes that were saved, "
                f"got others in {text.counted(len(damaged), 'block')} {spans}{dots}: the file was "
                "damaged, or changed, since it was saved; restore it from a copy"
            )
