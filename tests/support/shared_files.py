"""A file system of fsspec that several processes of this machine share, and that is not local.

Its files are those of the disk, but safejax knows only what fsspec offers: it can neither map
them, nor write a part of one, nor replace a folder.
"""

from typing import Any, Final

from fsspec.implementations.local import LocalFileSystem


class SharedFiles(LocalFileSystem):
    """The files of the disk under another protocol; `refuses` is a part of names not to write."""

    protocol = "shared"
    cachable: Final = False

    def __init__(self, refuses: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.refuses = refuses

    def open(self, path: str, mode: str = "rb", *arguments: Any, **options: Any) -> Any:
        if "w" in mode and self.refuses is not None and self.refuses in path:
            raise OSError(5, "Input/output error", path)
        return super().open(path, mode, *arguments, **options)
