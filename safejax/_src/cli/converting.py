"""Convert: the tensors of one checkpoint into another, block by block."""

from collections.abc import Mapping, Sequence

from safejax._src.api.saving import save
from safejax._src.checkpoint.finding import Path
from safejax._src.checkpoint.opening import open_path
from safejax._src.leaves.steps import Transform, chain
from safejax._src.storage.location import locate
from safejax._src.transforms.cast import cast
from safejax._src.transforms.prefix import prefix as prefixed
from safejax._src.transforms.rename import rename as renamed
from safejax._src.transforms.select import drop as dropped
from safejax._src.transforms.select import select as selected


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
        open_path(source, verify=is_verified),
        target,
        transform=chain(*steps) if steps else None,
        metadata=metadata or None,
        max_shard_bytes=max_shard_size,
        checksum=checksum,
        progress=progress,
    )
