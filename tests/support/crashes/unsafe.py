"""Ways of saving that lose something if the power is cut: what the states have to show."""

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final


def in_place(path: Path, data: bytes) -> None:
    """The old bytes are overwritten."""
    with path.open("r+b") as file:
        file.write(data)
        os.fsync(file.fileno())
    _flush(path.parent)


def without_a_flush(path: Path, data: bytes) -> None:
    """The file gets its name before its bytes are on the disk."""
    new = path.with_name("new")
    new.write_bytes(data)
    os.rename(new, path)
    _flush(path.parent)


def without_the_folder(path: Path, data: bytes) -> None:
    """The file does not stay at its name, although its bytes are on the disk."""
    new = path.with_name("new")
    _write(new, data)
    os.rename(new, path)


def flushed_late(path: Path, data: bytes) -> None:
    """The file gets its name, and is flushed then."""
    new = path.with_name("new")
    new.write_bytes(data)
    os.rename(new, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    _flush(path.parent)


def removed_first(path: Path, data: bytes) -> None:
    """There is a moment without a file."""
    new = path.with_name("new")
    _write(new, data)
    os.unlink(path)
    os.rename(new, path)
    _flush(path.parent)


UNSAFE: Final[dict[str, Callable[[Path, bytes], None]]] = {
    way.__name__: way
    for way in (in_place, without_a_flush, without_the_folder, flushed_late, removed_first)
}


def by_mapping(process: int, path: Path) -> None:
    """Writing without a call: the record would not show it."""
    if process == 0:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[0] = 7


def by_several_parts(process: int, path: Path) -> None:
    """Writing by a call that the replay does not know."""
    if process == 0:
        with path.open("r+b") as file:
            os.writev(file.fileno(), [b"two ", b"parts"])


def by_copying(process: int, path: Path) -> None:
    """Writing by calls that have no bytes in them."""
    if process == 0:
        with path.open("rb") as source, path.with_name("copy").open("xb") as file:
            source.seek(2)
            os.copy_file_range(source.fileno(), file.fileno(), 5)
            os.sendfile(file.fileno(), source.fileno(), 1, 3)
            os.copy_file_range(source.fileno(), file.fileno(), 2, 0)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
