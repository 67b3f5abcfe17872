"""Arrays that tensorstore reads, and the folders that they are in: local, or at a URL."""

import math
import os
from collections.abc import Callable
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.adapter import explain_missing
from safejax._src.reading.chunked import Chunks
from safejax._src.reading.masking import masked
from safejax._src.reading.memory import aligned_empty
from safejax._src.storage.store import MAX_WHOLE_BYTES, too_large
from safejax.errors import InvalidFileError, ReadError

try:
    import tensorstore as ts
except ModuleNotFoundError as error:
    explain_missing(error, "orbax", {"tensorstore": "tensorstore"})
    raise

_CONTEXT: Final[dict[str, Any]] = {
    # Chunks are kept by us, who know which of them are needed again.
    "cache_pool": {"total_bytes_limit": 0},
    "cache_pool#ocdbt": {"total_bytes_limit": 16 << 20},
    # Each thread keeps memory that it has used once.
    "data_copy_concurrency": {"limit": max(2, min(8, (os.cpu_count() or 1) // 2))},
    "file_io_concurrency": {"limit": 4},
}

_MEMORY: Final = (
    os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 40
)
"""Bytes of this machine's memory. Tensorstore ends the process if it gets too little of it."""

_MOST_CHUNKS: Final = 1 << 20
"""Chunks of one array, each of which costs time and memory to plan."""

_AT_ONCE: Final = 128
"""How many arrays are opened at the same time."""


@final
class Folder:
    """A folder, at a local path or at a URL that tensorstore knows, for example `gs://`."""

    def __init__(self, path: str) -> None:
        self.is_local: Final = "://" not in path
        self.path: Final = path if self.is_local else path.rstrip("/")
        self.is_renamed = not path.startswith("gs://")
        self._read: dict[str, bytes | None] = {}

    def __repr__(self) -> str:
        return masked(self.path)

    def below(self, name: str) -> "Folder":
        """The folder of this name in it."""
        path = os.path.join(self.path, name) if self.is_local else f"{self.path}/{name}"
        folder = Folder(path)
        folder.is_renamed = self.is_renamed
        return folder

    def names(self) -> set[str]:
        """The names of what is in it; none if there is no such folder."""
        if self.is_local:
            return set(os.listdir(self.path)) if os.path.isdir(self.path) else set()
        try:
            keys = self._store().list().result()
        except (ValueError, OSError):  # Some places do not list what is a file.
            return set()
        return {key.decode().partition("/")[0] for key in keys}

    def read(self, name: str) -> bytes | None:
        """The bytes of the small file of this name, read once; None if there is none."""
        if name not in self._read:
            if self.is_local:
                self._check_size(os.path.join(self.path, name))
            try:
                found = self._store().read(name).result()
            except (ValueError, OSError) as error:
                raise ReadError(f"{self}: expected to read {name}, got: {error}") from error
            self._read[name] = bytes(found.value) if found.state == "value" else None
        return self._read[name]

    def _check_size(self, file: str) -> None:
        nbytes = os.path.getsize(file) if os.path.exists(file) else 0
        if nbytes > MAX_WHOLE_BYTES:
            raise too_large(file, nbytes)

    @property
    def spec(self) -> Any:
        """What tensorstore knows it by, in JSON."""
        if self.is_local:
            return {"driver": "file", "path": f"{os.path.abspath(self.path)}/"}
        return ts.KvStore.Spec(f"{self.path}/").to_json()

    def _store(self) -> Any:
        try:
            return ts.KvStore.open(self.spec).result()
        except (ValueError, OSError) as error:
            raise ReadError(
                f"{self}: expected a folder that tensorstore can open, got: {error}"
            ) from error


@final
class _Array(Chunks):
    """An array of tensorstore."""

    def __init__(self, array: Any, shown: str) -> None:
        self._array = array
        self._shown = shown
        self.shape = tuple(array.shape)
        # There is none for an array without axes.
        self.chunk = tuple(array.chunk_layout.read_chunk.shape or ())
        self.dtype = np.dtype(array.dtype.numpy_dtype)
        # The whole chunk, also where the array has less.
        self._decoded = math.prod(self.chunk) * self.dtype.itemsize

    def begin(
        self, slices: tuple[slice, ...], out: NDArray[Any] | None = None
    ) -> Callable[[], NDArray[Any]]:
        if self._decoded > _MEMORY:
            raise ReadError(
                f"{self._shown}: expected chunks that fit into memory, {_MEMORY} bytes, got chunks "
                f"{list(self.chunk)} of {self._decoded}: read it on a larger machine, or copy the "
                "checkpoint again if that cannot be"
            )
        shape = tuple(part.stop - part.start for part in slices)
        # In memory of ours, which is given back: what tensorstore's threads allocate, they keep.
        chunk = aligned_empty(shape, self.dtype) if out is None else out
        from_origin = self._array[slices][ts.d[:].translate_to[0]] if shape else self._array
        future = ts.array(chunk).write(from_origin)

        def wait() -> NDArray[Any]:
            try:
                future.result()
                return chunk
            except (ValueError, OSError) as error:
                raise ReadError(
                    f"{self._shown}: expected a chunk of it, got: {error}: copy the checkpoint "
                    "again"
                ) from error

        return wait


def open_arrays(
    folder: Folder,
    parameters: list[str],
    *,
    in_ocdbt: bool,
    in_zarr3: bool,
    has_all_chunks: bool,
) -> dict[str, Chunks]:
    """The arrays of an item by their parameters; only what describes them is read.

    Raises `InvalidFileError` for one that is not there, or that tensorstore cannot read.
    """
    context = ts.Context(_CONTEXT)
    found: dict[str, Chunks] = {}
    for begin in range(0, len(parameters), _AT_ONCE):
        some = parameters[begin : begin + _AT_ONCE]
        futures = [
            ts.open(
                {
                    "driver": "zarr3" if in_zarr3 else "zarr",
                    "kvstore": _store_of(folder, parameter, in_ocdbt),
                    "recheck_cached_data": False,
                    "recheck_cached_metadata": False,
                    "fill_missing_data_reads": not has_all_chunks,
                },
                open=True,
                read=True,
                context=context,
            )
            for parameter in some
        ]
        for parameter, future in zip(some, futures, strict=True):
            shown = f"{folder}: leaf {parameter!r}"
            try:
                array = _Array(future.result(), shown)
            except (ValueError, OSError, TypeError) as error:
                raise InvalidFileError(
                    f"{shown}: expected an array that tensorstore can open, got: {error!s:.500}: "
                    "copy the checkpoint again, or restore it with Orbax"
                ) from error
            count = math.prod(
                -(-size // chunk) for size, chunk in zip(array.shape, array.chunk, strict=True)
            )
            if count > _MOST_CHUNKS:
                raise InvalidFileError(
                    f"{shown}: expected at most {_MOST_CHUNKS} chunks, got {count} of shape "
                    f"{list(array.chunk)}: copy the checkpoint again, or restore it with Orbax"
                )
            found[parameter] = array
    return found


def _store_of(folder: Folder, parameter: str, in_ocdbt: bool) -> dict[str, Any]:
    """Where the values of a parameter are."""
    base = folder.spec
    if in_ocdbt:
        return {
            "driver": "ocdbt", "base": base, "path": f"{parameter}/",
            "cache_pool": "cache_pool#ocdbt",
        }  # fmt: skip
    if ".." in parameter.split("/") or parameter.startswith("/"):
        raise InvalidFileError(
            f"{folder}: expected names of parameters in the folder, got {parameter!r:.80}"
        )
    return {**base, "path": f"{base['path']}{parameter}/"}
