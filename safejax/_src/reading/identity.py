"""Identity: what a file system reports of a file, by which a later version is told from it."""

import contextlib
from collections.abc import Mapping
from typing import Any, Final

from safejax._src.reading.filesystems import FileSystem

_VERSIONS: Final = (
    "generation", "versionid", "etag", "md5hash", "contentmd5", "md5", "blobid", "oid", "xethash",
    "sha256", "sha", "hex", "checksum", "digest", "crc32c", "crc",
)  # fmt: skip
"""What file systems call something in `info` that says which content a file has."""

_TIMES: Final = (
    "mtime", "lastmodified", "modified", "updated", "modificationtime", "modifiedtime", "modify",
    "servermodified", "clientmodified", "datetime",
)  # fmt: skip
"""What they call the time of its last modification."""


def identity_of(fs: FileSystem, path: str) -> Mapping[str, Any]:
    """The size, and what distinguishes versions of a file, with the names of the lists."""
    info = fs.info(path)
    named = {key.lower().replace("-", "").replace("_", ""): info[key] for key in info}
    found = {key: named[key] for key in (*_VERSIONS, *_TIMES) if named.get(key) is not None}
    if not found:
        # Most file systems do not have it, each in a way of its own.
        with contextlib.suppress(Exception):
            found["modified"] = fs.modified(path)
    return {**found, "size": info["size"]}


def difference(before: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """In what a file differs from the one that was there before; None if in nothing."""
    known = [key for key in (*_VERSIONS, *_TIMES) if key in found and key in before]
    for key in (*known[:1], "size"):
        if _strong(found[key]) != _strong(before[key]):
            return f"{key} was {before[key]!s:.80} and is {found[key]!s:.80}"
    return None


def _strong(value: Any) -> Any:
    """An ETag without the mark that the bytes may differ in how they are sent (RFC 9110)."""
    return value.removeprefix("W/") if isinstance(value, str) else value
