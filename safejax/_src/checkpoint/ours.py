"""What one process writes of a file that several write together: its share of each tensor."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, final

from safejax._src import dtypes
from safejax._src.checkpoint.layout import Extent, Layout
from safejax._src.checkpoint.shards import Folder
from safejax._src.checkpoint.stream import BLOCK_BYTES
from safejax._src.reading.shares import Region, Stripes, shares
from safejax._src.reading.source import HostArray
from safejax._src.storage.together import SharedFile
from safejax.errors import LeafError


@final
class Share(NamedTuple):
    """The regions of a tensor that this process writes."""

    extent: Extent
    regions: list[Region]

    @property
    def bits(self) -> int:
        """The size of an element in the file."""
        return self.extent.nbytes * 8 // self.extent.size

    @property
    def size(self) -> int:
        """The number of elements."""
        return sum(region.at.size for region in self.regions)

    @property
    def nbytes(self) -> int:
        return self.size * self.bits // 8

    @property
    def is_whole(self) -> bool:
        """Whether all of the tensor is in this share."""
        return self.size == self.extent.size

    def has(self, byte: int) -> bool:
        """Whether this process writes a byte of the tensor."""
        return any(_contains(region, byte * 8 // self.bits) for region in self.regions)


@final
@dataclass(frozen=True, slots=True)
class Ours:
    """What this process writes: the shares of each file, by its name, which is empty if it is one.

    If each file has one writer, what this process gives to the writer. `nbytes` counts the bytes
    of tensors of this process, `bits` their bits, and `of_all` the bits of all processes.
    """

    plan: Layout | Folder
    shares: Mapping[str, list[Share]]

    @property
    def files(self) -> Mapping[str, Layout]:
        return self.plan.files if isinstance(self.plan, Folder) else {"": self.plan}

    @property
    def nbytes(self) -> int:
        return sum(share.nbytes for each in self.shares.values() for share in each)

    @property
    def bits(self) -> int:
        return sum(share.size * share.bits for each in self.shares.values() for share in each)

    @property
    def of_all(self) -> int:
        return 8 * sum(layout.nbytes - len(layout.head) for layout in self.files.values())

    def with_arrays(self, instead: Callable[[HostArray], HostArray]) -> "Ours":
        """The same with the values of `instead(array)` for each array."""

        def of_share(share: Share) -> Share:
            regions = [Region(view.with_arrays(instead), at) for view, at in share.regions]
            return Share(share.extent.with_arrays(instead), regions)

        shares = {name: list(map(of_share, each)) for name, each in self.shares.items()}
        return Ours(self.plan.with_arrays(instead), shares)


def ours_of(plan: Layout | Folder, process: int, processes: int) -> Ours:
    files = plan.files if isinstance(plan, Folder) else {"": plan}
    writers = plan.writers if isinstance(plan, Folder) else None

    def shares_of(name: str, layout: Layout) -> list[Share]:
        writer = None if writers is None else writers[name]
        found = [extent for extent in layout.extents if extent.nbytes]
        return [_share(extent, process, processes, writer) for extent in found]

    return Ours(plan, {name: shares_of(name, layout) for name, layout in files.items()})


def _share(extent: Extent, process: int, processes: int, writer: int | None) -> Share:
    view = extent.view
    stripes = Stripes(extent.begin, extent.nbytes, extent.nbytes * 8 // view.size)
    try:
        share = Share(extent, list(shares(view, stripes, process, processes, writer)))
    except LeafError as error:
        raise LeafError(f"leaf {extent.name!r}: {error}") from error
    if writer is None and dtypes.is_packed(extent.stored.code):
        _check_whole_bytes(share)
    return share


def _check_whole_bytes(share: Share) -> None:
    for _, at in share.regions:
        firsts, length = at.runs()
        moving = [s for n, s in zip(firsts.shape, firsts.strides, strict=True) if n > 1]
        if any(each % 2 for each in (firsts.offset, length, *moving)):
            raise LeafError(
                f"leaf {share.extent.name!r}: expected parts that begin and end with whole bytes, "
                f"got an odd number of elements of {share.extent.view.dtype}, of which a byte has "
                "two: give it a sharding that does not divide its last axis"
            )


def _contains(region: Region, element: int) -> bool:
    left = element - region.at.offset
    for size, stride in zip(region.at.shape, region.at.strides, strict=True):
        if size == 1:
            continue
        at = left // stride
        if not 0 <= at < size:
            return False
        left -= at * stride
    return left == 0


def write_share(share: Share, file: SharedFile) -> Iterator[int]:
    """Write the regions of a share; yields the number of bytes after each write."""
    extent = share.extent
    packed = dtypes.is_packed(extent.stored.code)
    for region in share.regions:
        with region.view.kept():
            for view, at in [region] if packed else blocks(region, BLOCK_BYTES):
                try:
                    values = view.read()
                except LeafError as error:  # It was deleted since the layout was made.
                    raise LeafError(f"leaf {extent.name!r}: {error}") from error
                data = dtypes.to_stored_bytes(values, extent.stored).data
                spans = at.spans()
                begins = extent.begin + spans.starts * share.bits // 8
                file.write_runs(begins.tolist(), data, spans.length * share.bits // 8)
                yield data.nbytes


def blocks(region: Region, nbytes: int) -> Iterator[Region]:
    """Parts of a region, in order, with at most about `nbytes` each."""
    if region.view.nbytes <= nbytes or region.at.size <= 1:
        yield region
        return
    axis = next(axis for axis, size in enumerate(region.at.shape) if size > 1)
    size = region.at.shape[axis]
    rows = max(1, nbytes // (region.view.nbytes // size))
    for begin in range(0, size, rows):
        rest = (slice(None),) * axis
        yield from blocks(region.part((*rest, slice(begin, begin + rows))), nbytes)
