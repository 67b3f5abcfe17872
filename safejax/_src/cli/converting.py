"""Convert: the tensors of one checkpoint into another, block by block."""

import importlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from safejax._src.api.saving import save
from safejax._src.checkpoint.finding import Path
from safejax._src.checkpoint.opening import open_path
from safejax._src.leaves.flatten import flatten
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import Transform, chain
from safejax._src.storage.location import locate
from safejax._src.transforms.cast import cast
from safejax._src.transforms.prefix import prefix as prefixed
from safejax._src.transforms.rename import rename as renamed
from safejax._src.transforms.select import drop as dropped
from safejax._src.transforms.select import select as selected

_MSGPACK: Final = (".msgpack", ".flax")


def convert(
    source: Path,
    target: str,
    *,
    select: Sequence[str],
    drop: Sequence[str],
    rename: Sequence[tuple[str, str]],
    prefix: str | None,
    dtype: str | None,
    where: str | None,
    metadata: Mapping[str, str],
    max_shard_size: int | None,
    checksum: bool,
    is_verified: bool,
    overwrite: bool,
    progress: bool,
) -> None:
    """Save the leaves of `source`, transformed, to `target`; their values are not placed."""
    if not overwrite:
        store, path = locate(target)
        if store.exists(path):
            raise FileExistsError(
                f"{target}: expected a path at which there is nothing, or --overwrite"
            )
    steps: list[Transform] = []
    if select:
        steps.append(selected(*select))
    if drop:
        steps.append(dropped(*drop))
    if rename:
        steps.append(renamed(dict(rename)))
    if prefix is not None:
        steps.append(prefixed(prefix))
    if dtype is not None:
        steps.append(cast(dtype, where=where))
    save(
        _leaves(source, is_verified),
        target,
        transform=chain(*steps) if steps else None,
        metadata=metadata or None,
        max_shard_bytes=max_shard_size,
        checksum=checksum,
        progress=progress,
    )


def _leaves(source: Path, is_verified: bool) -> Leaves:
    if isinstance(source, str) and source.endswith(".npz"):
        store, path = locate(source)
        with np.load(io.BytesIO(store.read(path)), allow_pickle=False) as arrays:
            return Leaves(dict(arrays))
    if isinstance(source, str) and source.endswith(_MSGPACK):
        # Imported by name: only such files need Flax.
        flax: Any = importlib.import_module("flax.serialization")
        store, path = locate(source)
        return flatten(flax.msgpack_restore(store.read(path)))
    return open_path(source, verify=is_verified)
