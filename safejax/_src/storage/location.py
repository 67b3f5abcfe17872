"""Locations: which store a path or a URL is in, and the path that the store knows it by."""

import importlib

from safejax._src.reading.filesystems import FileSystem
from safejax._src.storage.local import LocalStore
from safejax._src.storage.store import Store


def locate(path: str, fs: FileSystem = None) -> tuple[Store, str]:
    """The store that holds what is at `path`, and its path there; nothing is opened.

    `fs` is an fsspec file system, a store of obstore, or None. If it is None, `path` may be a
    URL, for which fsspec finds the file system. Local files that are given by a URL or a file
    system are in the local store, and can be mapped. Raises `ImportError` for a URL if fsspec, or
    what it needs for the URL, is not installed, `TypeError` if `fs` is not a file system.
    """
    if fs is None and "://" not in path:
        return LocalStore(), path
    # Imported by name: it takes longer than all that a local file needs.
    elsewhere = importlib.import_module("safejax._src.storage.elsewhere")
    return elsewhere.locate_elsewhere(path, fs)
