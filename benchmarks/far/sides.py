"""What each side does to have the values of a file of the server in memory."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np

import safejax
from benchmarks.far.server import BUCKET

PIECE: Final = 8 << 20
"""Bytes of the ranges of those that request them by hand; safejax has the same."""

Side = Callable[[str], Any]
"""Loads an object of the bucket."""


def _s3fs(url: str) -> Any:
    import fsspec

    return fsspec.filesystem("s3", key="me", secret="secret", endpoint_url=url)


def _obstore(url: str) -> Any:
    from obstore.store import S3Store

    return S3Store(
        BUCKET, endpoint=url, region="us-east-1", skip_signature=True,
        client_options={"allow_http": True},
    )  # fmt: skip


def _touched(tree: Any) -> Any:
    """The tree on its devices, of which a value in each page is read."""
    placed = jax.block_until_ready(safejax.materialize(tree))
    for leaf in jax.tree.leaves(placed):
        np.asarray(leaf).reshape(-1).view(np.uint8)[::4096].sum()
    return placed


def _ours_s3fs(url: str) -> Side:
    fs = _s3fs(url)
    return lambda key: _touched(safejax.load(f"{BUCKET}/{key}", fs=fs))


def _ours_obstore(url: str) -> Side:
    store = _obstore(url)
    return lambda key: _touched(safejax.load(key, fs=store))


def _download(url: str) -> Side:
    fs = _s3fs(url)

    def load(key: str) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / key
            fs.get_file(f"{BUCKET}/{key}", str(path))
            return _touched(safejax.load(path))

    return load


def _spans(nbytes: int) -> tuple[list[int], list[int]]:
    begins = list(range(0, nbytes, PIECE))
    return begins, [min(begin + PIECE, nbytes) for begin in begins]


def _s3fs_alone(url: str) -> Side:
    fs = _s3fs(url)

    def load(key: str) -> Any:
        path = f"{BUCKET}/{key}"
        begins, ends = _spans(fs.info(path)["size"])
        buffer = np.empty(ends[-1], np.uint8)
        parts = fs.cat_ranges([path] * len(begins), begins, ends)
        for begin, end, part in zip(begins, ends, parts, strict=True):
            buffer[begin:end] = np.frombuffer(part, np.uint8)
        return buffer

    return load


def _obstore_alone(url: str) -> Side:
    store = _obstore(url)

    def load(key: str) -> Any:
        begins, ends = _spans(store.head(key)["size"])
        buffer = np.empty(ends[-1], np.uint8)
        # Ranges that touch are one request unless that is told not to be.
        parts = store.get_ranges(key, starts=begins, ends=ends, coalesce=0)
        for begin, end, part in zip(begins, ends, parts, strict=True):
            buffer[begin:end] = np.frombuffer(part, np.uint8)
        return buffer

    return load


OPENED: Final[dict[str, Callable[[str], Side]]] = {
    "safejax, s3fs": _ours_s3fs,
    "safejax, obstore": _ours_obstore,
    "download, load": _download,
    "s3fs alone": _s3fs_alone,
    "obstore alone": _obstore_alone,
}
