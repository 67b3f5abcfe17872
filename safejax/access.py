"""Access: how the bytes of a local file are obtained, decided in one place.

- `"map"`: the file is mapped. Values that are aligned for a CPU device are used in place;
  others are copied once, by a system call if they are contiguous.
- `"copy"`: the file is mapped and always copied: no array uses the file once it is placed.
- `"read"`: the file is never mapped; every span is read into private memory.
- `"auto"`: `"read"` for a file on a network, where a page that is no longer available ends the
  process and each page fault is a request; `"map"` for any other file.
"""

import os
import re
from functools import lru_cache
from typing import Final, Literal, TypeAlias, get_args

from safejax.sources import CAN_READ, FileSource, MappedSource

Access: TypeAlias = Literal["auto", "map", "copy", "read"]

_NETWORK: Final = {
    "9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "cvmfs", "fhgfs", "gfs", "gfs2",
    "glusterfs", "gpfs", "lustre", "mmfs", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs",
    "pvfs2", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "wekafs",
}  # fmt: skip
"""File systems, by Linux's names, that store files on another machine; all of FUSE counts too."""

_MOUNTS: Final = "/proc/self/mountinfo"


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


def is_on_network(path: str) -> bool:
    """Whether another machine stores the file, as far as Linux reports the file system's type."""
    return _is_network(_type_of_device(os.stat(path).st_dev))


def _is_network(name: str) -> bool:
    return name in _NETWORK or name == "fuse" or name.startswith("fuse.")


@lru_cache(maxsize=64)
def _type_of_device(device: int) -> str:
    """The type of the file system with this device number; empty if it is unknown."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                # See proc(5): the third field is the device, and the type follows the dash.
                found = re.fullmatch(r"\d+ \d+ (\S+) .* - (\S+) .*\n?", line)
                if found and found[1] == number:
                    return found[2]
    except OSError:
        pass
    return ""
