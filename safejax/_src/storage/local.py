"""Access: how the bytes of a local file are obtained, decided in one place.

- `"map"`: the file is mapped. Values that are aligned for a CPU device are used in place;
  others are copied once, by a system call if they are contiguous.
- `"copy"`: the file is mapped and always copied: no array uses the file once it is placed.
- `"read"`: the file is never mapped; every span is read into private memory.
- `"auto"`: `"read"` for a file on a network, where a page that is no longer available ends the
  process and each page fault is a request; `"map"` for any other file.
"""

from typing import Literal, TypeAlias, get_args

from safejax._src.reading.file import FileSource, MappedSource
from safejax._src.storage.network import is_on_network
from safejax._src.system import CAN_READ

Access: TypeAlias = Literal["auto", "map", "copy", "read"]


def open_source(path: str, access: Access = "auto") -> MappedSource | FileSource:
    """The source of the file at `path`; `ValueError` for an unknown or unsupported `access`."""
    if access not in get_args(Access):
        raise ValueError(
            f"access: expected one of {', '.join(map(repr, get_args(Access)))}, got {access!r}"
        )
    if access == "auto":
        access = "read" if CAN_READ and is_on_network(path) else "map"
    if access == "read":
        if not CAN_READ:
            raise ValueError(
                f"{path}: access: expected 'map' or 'copy', since this system has no preadv, got "
                "'read'"
            )
        return FileSource(path)
    return MappedSource(path, in_place=access == "map")
