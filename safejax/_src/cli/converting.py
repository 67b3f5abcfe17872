"""Convert: the tensors of one checkpoint, of whichever program, into another, block by block."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from safejax._src.api.saving import save
from safejax._src.checkpoint.explaining import is_of_orbax
from safejax._src.checkpoint.finding import Path, shown_path
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
from safejax.errors import InvalidFileError


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
    item: str | None,
    step: int | None,
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
        _leaves(source, is_verified, item, step),
        target,
        transform=chain(*steps) if steps else None,
        metadata=metadata or None,
        max_shard_bytes=max_shard_size,
        checksum=checksum,
        progress=progress,
    )


def _leaves(source: Path, is_verified: bool, item: str | None, step: int | None) -> Leaves:
    if item is None and step is None:
        try:
            return open_path(source, verify=is_verified)
        except InvalidFileError:
            if not isinstance(source, str) or not is_of_orbax(*locate(source)):
                raise
    if is_verified:
        raise ValueError(
            f"{shown_path(source)}: --verify: expected safetensors files with digests, got a "
            "checkpoint of Orbax: leave out --verify"
        )
    # Imported by name: only such folders need Orbax.
    orbax: Any = importlib.import_module("safejax.orbax")
    return flatten(orbax.load(source, item=item, step=step))
