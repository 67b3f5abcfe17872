"""Permissions: what is replaced hands on its mode, and its owner and group where that is allowed.

The umask is for new files. A checkpoint that its owner made private stays private when it is
saved again.
"""

import contextlib
import os
import stat
from typing import Final

_CAN_CHANGE_OWNERS: Final = hasattr(os, "chown")


def status_of(path: str) -> os.stat_result | None:
    """The status of the file or folder at `path`; None if there is none."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def take_over(where: int | str, replaced: os.stat_result, *, hidden: bool = False) -> None:
    """Give a file or folder the permissions of the one that it replaces.

    `where` is a path or a descriptor. The group's rights go to the same group only: if that is
    not allowed, our group gets the rights that everybody has. While it is `hidden`, only the
    owner has access.
    """
    mode = stat.S_IMODE(replaced.st_mode)
    if not _take_owners(where, replaced):
        mode = mode & ~(stat.S_IRWXG | stat.S_ISGID) | (mode & stat.S_IRWXO) << 3
    if hidden:
        mode = stat.S_IRWXU | mode & stat.S_ISGID  # New files in a folder take its group.
    # Some file systems have no modes.
    with contextlib.suppress(OSError):
        os.chmod(where, mode)


def _take_owners(where: int | str, replaced: os.stat_result) -> bool:
    """Take over the owner and the group, or the group alone; whether the group is the same."""
    found = os.stat(where)
    if not _CAN_CHANGE_OWNERS:
        return True
    for owner in (replaced.st_uid, -1):
        if (found.st_uid, found.st_gid) == (replaced.st_uid, replaced.st_gid):
            break
        with contextlib.suppress(OSError):
            os.chown(where, owner, replaced.st_gid)
        found = os.stat(where)
    return found.st_gid == replaced.st_gid


def least_shared(replaced: list[os.stat_result]) -> os.stat_result | None:
    """The status of the file that the fewest people have access to; None if there are no files."""
    return min(replaced, key=_shared_rights, default=None)


def _shared_rights(status: os.stat_result) -> int:
    return (status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)).bit_count()
