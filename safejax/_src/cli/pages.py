"""Pages: how they are written to files."""

import contextlib
from typing import Final

from safejax._src.cli.output import emit
from safejax._src.storage.files import write_atomically

_BEGIN: Final = b"<!doctype html>"


def write_page(file: str, page: str) -> None:
    """Write a page to a file, which it replaces if that is a page, too; `-` is stdout."""
    if file == "-":
        emit(page)
        return
    # A name that is forgotten after --html is that of a file to be looked into.
    with contextlib.suppress(FileNotFoundError), open(file, "rb") as there:
        if there.read(len(_BEGIN)) not in (b"", _BEGIN):
            raise FileExistsError(
                f"{file}: expected a path at which there is nothing, or a page, for --html, got "
                "another file: give another name"
            )
    data = memoryview(page.encode())
    write_atomically(file, iter([data]), lambda _: None)
