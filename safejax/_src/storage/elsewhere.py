"""Elsewhere: which store a URL, or a path on a file system that is given, is in.

This module is imported with the first of them, since local files need nothing of what it imports.
"""

import importlib
import os
import re
from typing import Any, Final

from safejax._src.reading.filesystems import FileSystem
from safejax._src.reading.masking import masked
from safejax._src.reading.remote import shown_cause
from safejax._src.storage.hub import hub_store
from safejax._src.storage.local import LocalStore
from safejax._src.storage.objects import object_store
from safejax._src.storage.remote import RemoteStore
from safejax._src.storage.store import Store

_LOCAL: Final = frozenset({"file", "local"})


def locate_elsewhere(path: str, fs: FileSystem) -> tuple[Store, str]:
    """The store of a path on the file system `fs`, or else of a URL, as `locate` says."""
    if fs is None:
        try:
            # Imported by name: fsspec is an extra that only URLs need.
            fsspec = importlib.import_module("fsspec")
        except ImportError as error:
            raise _missing(path, "fsspec", error) from error
        fs, path = _found(fsspec, path)
    elif not hasattr(fs, "cat_ranges") or isinstance(fs, type):
        objects = object_store(fs, path)
        if objects is not None:
            return objects
        raise TypeError(
            "fs: expected a file system of fsspec, for example fsspec.filesystem('s3'), or a "
            f"store of obstore, got {fs!r:.80}"
        )
    while fs.protocol == "dir":  # A folder of another file system.
        fs, path = fs.fs, fs._join(path)  # noqa: SLF001
    on_hub = hub_store(fs, path)
    if on_hub is not None:
        return on_hub
    protocol = fs.protocol
    names = {protocol} if isinstance(protocol, str) else set(protocol)
    if names & _LOCAL:
        return LocalStore(), os.fspath(fs._strip_protocol(path))  # noqa: SLF001
    return object_store(fs, path) or (RemoteStore(fs), path)


_EXTRAS: Final = {
    "http": "http", "https": "http", "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hf",
}  # fmt: skip
"""The extra that has what the URLs of a scheme need."""


def _found(fsspec: Any, path: str) -> tuple[FileSystem, str]:
    """The file system of a URL, and the path there."""
    try:
        return fsspec.url_to_fs(path)
    except ImportError as error:
        raise _missing(path, "a package", error) from error
    except ValueError as error:
        raise ValueError(
            f"{masked(path)}: expected the URL of a place that fsspec knows, for example s3://, "
            f"gs://, hf:// or https://, got an error of it: {masked(str(error))}: correct the URL, "
            "or give a file system as fs"
        ) from shown_cause(error)


def _missing(path: str, what: str, error: ImportError) -> ImportError:
    # A URL may be that of a file in another one: `zip://a::s3://b`.
    schemes = re.findall(r"(\w+)://", path)
    extra = next((_EXTRAS[scheme] for scheme in schemes if scheme in _EXTRAS), "remote")
    return ImportError(
        f"{masked(path)}: the URL needs {what}, which cannot be imported ({error}): "
        f"pip install 'safejax[{extra}]'",
        name=error.name,
    )
