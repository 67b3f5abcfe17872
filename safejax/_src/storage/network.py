"""Which local paths are on a network: files that another machine holds, as Linux reports it."""

import os
import re
from functools import lru_cache
from typing import Final

_NETWORK: Final = {
    "9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "cvmfs", "fhgfs", "gfs", "gfs2",
    "glusterfs", "gpfs", "lustre", "mmfs", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs",
    "pvfs2", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "wekafs",
}  # fmt: skip
"""File systems, by Linux's names, that store files on another machine; all of FUSE counts too."""

_MOUNTS: Final = "/proc/self/mountinfo"


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
