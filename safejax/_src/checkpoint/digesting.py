"""The digests of a file that several processes write together.

A block that one process has written may have bytes of others, so all blocks are read again once
everything is written. The digests lie behind the end of the file until process 0 has put them
into the header.
"""

from safejax._src.checkpoint.layout import Layout
from safejax._src.checkpoint.ours import Share
from safejax._src.processes.agreement import Round
from safejax._src.reading.digests import DIGEST_BYTES, BlockHasher, hasher
from safejax._src.storage.together import SharedFile


def full_size(layout: Layout) -> int:
    """The size of a file that is being written: the digests are behind its end."""
    return layout.nbytes + _digests_size(layout)


def _digests_size(layout: Layout) -> int:
    digests = layout.record.digests
    return 0 if digests is None else sum(map(len, digests.of.values()))


def write_digests(layout: Layout, ours: list[Share], file: SharedFile, across: Round) -> None:
    """Hash the blocks that are ours, and put the digests behind the end of the file."""
    digests = layout.record.digests
    if digests is None:
        return
    new, block_bytes = hasher(), digests.block_bytes
    places = _places_of_digests(layout)
    for share in ours:
        extent = share.extent
        for number, begin in enumerate(range(0, extent.nbytes, block_bytes)):
            length = min(block_bytes, extent.nbytes - begin)
            # Somewhere in the block, so that the owners of columns have equal parts.
            if not share.has(begin + number * 0x9E3779B1 % length):
                continue
            block = BlockHasher(new, length)
            block.update(memoryview(file.read(extent.begin + begin, length)))
            file.write(places[extent.name] + number * DIGEST_BYTES, memoryview(block.digests()))
            across.alive()
    file.flush()


def _places_of_digests(layout: Layout) -> dict[str, int]:
    """Where the digests of each tensor are, behind the end of the file."""
    digests = layout.record.digests
    places: dict[str, int] = {}
    at = layout.nbytes
    for name, each in ({} if digests is None else digests.of).items():
        places[name] = at
        at += len(each)
    return places


def finish_head(layout: Layout, file: SharedFile) -> None:
    digests = layout.record.digests
    if digests is None:
        return
    places = _places_of_digests(layout)
    found = {name: file.read(places[name], len(each)) for name, each in digests.of.items()}
    file.write(0, memoryview(layout.head_with(found)))
    file.cut(layout.nbytes)
    file.flush()
