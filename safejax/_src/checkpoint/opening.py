"""Opening: the unread Leaves that are at a path: a file, a folder, an index, several files."""

from collections.abc import Sequence

from safejax._src.checkpoint.decoding import open_leaves
from safejax._src.checkpoint.finding import Opener, Path, find
from safejax._src.checkpoint.foreign import open_foreign
from safejax._src.checkpoint.stored import check_structure
from safejax._src.checkpoint.union import union
from safejax._src.format.index import Index
from safejax._src.leaves.leaf import is_tensor
from safejax._src.leaves.leaves import Leaves
from safejax._src.reading.filesystems import FileSystem
from safejax._src.reading.source import File
from safejax._src.storage.store import Access
from safejax.errors import InvalidFileError


def open_path(
    path: Path, fs: FileSystem = None, *, verify: bool = False, access: Access = "auto"
) -> Leaves:
    """The unread Leaves at a path, a URL, or a path on the fsspec file system `fs`.

    `access` says how the bytes of local files are obtained. `finding` says which files are opened.
    No two of several files may have a name in common, unless an index says which of them is meant.
    """

    def one(source: File) -> Leaves:
        return _opened(source, verify)

    def several(files: Sequence[tuple[str, File]], index: Index | None, name: str) -> Leaves:
        leaves = union([(file, one(source)) for file, source in files], index, name)
        if index is None or index.record is None:
            return leaves
        record = index.record
        check_structure(record, {each for each, leaf in leaves.items() if is_tensor(leaf)}, name)
        return Leaves({**leaves, **record.values}, record.structure, leaves.metadata)

    return find(path, fs, Opener(one, several, access))


def _opened(source: File, verify: bool) -> Leaves:
    """The Leaves of a safetensors file or, if its first bytes say so, of one of NumPy or Flax."""
    try:
        return open_leaves(source, verify=verify)
    except InvalidFileError as error:
        invalid = error
    leaves = open_foreign(source, verify=verify)
    if leaves is None:
        raise invalid
    return leaves
