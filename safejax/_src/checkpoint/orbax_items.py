"""Orbax's checkpoints as Leaves: those of an item, unread."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from safejax._src.arrays.content import Content, key_data_shape
from safejax._src.arrays.lazy import LazyArray
from safejax._src.arrays.placing import default_placement
from safejax._src.arrays.precision import NarrowingNotice
from safejax._src.checkpoint.orbax_folders import listed
from safejax._src.dtypes import stored_as
from safejax._src.format.orbax_tree import (
    ARRAYS,
    EMPTY_KINDS,
    KEYS_NAME,
    MANIFEST_NAME,
    SCALAR,
    STRING,
    STRINGS_NAME,
    TREE_NAME,
    Entry,
    TreeTable,
    Tuples,
    read_keys,
    read_strings,
    read_tree,
    string_of,
)
from safejax._src.leaves.flatten import flatten
from safejax._src.leaves.leaf import Unsupported
from safejax._src.leaves.leaves import Leaves
from safejax._src.pytrees.extent import check_extent
from safejax._src.pytrees.structure import MAX_DEPTH
from safejax._src.pytrees.walk import walk
from safejax._src.reading.chunked import ChunkCache, ChunkedSource, Chunks
from safejax._src.reading.view import Strided
from safejax._src.reading.windows import Window
from safejax.errors import InvalidFileError


class Opener(Protocol):
    """Opens the arrays of an item."""

    def __call__(
        self,
        folder: Any,
        parameters: list[str],
        *,
        in_ocdbt: bool,
        in_zarr3: bool,
        has_all_chunks: bool,
    ) -> Mapping[str, Chunks]: ...


def open_item(folder: Any, open_arrays: Opener, cache_bytes: int) -> Leaves:
    """The Leaves of an item, whose unread arrays are for JAX's default device.

    Scalars and strings are read. Raises `InvalidFileError`.
    """
    file = repr(folder)
    data = folder.read(TREE_NAME)
    if data is None:
        raise InvalidFileError(
            f"{file}: expected an item of Orbax with the file {TREE_NAME}, which Orbax has written "
            f"since 2023, got {listed(sorted(folder.names()))}: restore it with Orbax, and save it"
        )
    table = read_tree(data, file)
    in_ocdbt = table.in_ocdbt
    if in_ocdbt is None:
        in_ocdbt = folder.read(MANIFEST_NAME) is not None
    stored = [each.parameter for each in table.entries if each.kind in {*ARRAYS, SCALAR}]
    arrays = open_arrays(
        folder,
        stored,
        in_ocdbt=in_ocdbt,
        in_zarr3=table.in_zarr3,
        has_all_chunks=table.has_all_chunks,
    )
    described = folder.below(KEYS_NAME)
    keys: dict[str, str] = {}
    for process in sorted(described.names()):
        keys.update(read_keys(described.read(process) or b"", file))
    strings = folder.read(STRINGS_NAME)
    reader = _Reader(
        file,
        table.entries,
        arrays,
        keys,
        {} if strings is None else read_strings(strings, file),
        ChunkCache(cache_bytes),
    )
    return _leaves(table, reader.leaf, file)


class _Reader:
    """Makes the leaves of an item."""

    def __init__(
        self,
        file: str,
        entries: Iterable[Entry],
        arrays: Mapping[str, Chunks],
        keys: Mapping[str, str],
        strings: dict[str, Any],
        cache: ChunkCache,
    ) -> None:
        self._file = file
        self._arrays = arrays
        self._keys = keys
        self._strings = strings
        self._cache = cache
        self._notice, self._placement = NarrowingNotice(), default_placement()
        self._begun = {
            each.parameter: arrays[each.parameter].begin(())
            for each in entries
            if each.kind == SCALAR and arrays[each.parameter].shape == ()
        }

    def leaf(self, entry: Entry) -> Any:
        """The leaf of an entry: an unread array, a scalar, a string, or nothing."""
        name = entry.parameter
        if entry.kind in EMPTY_KINDS:
            return EMPTY_KINDS[entry.kind]
        if entry.kind == STRING:
            found = string_of(self._strings, name)
            if found is None:
                raise self._error(name, f"a string in {STRINGS_NAME}", "none")
            return found
        if name not in self._arrays:
            return Unsupported(self._file, name, entry.kind, (), "Orbax")
        chunks = self._arrays[name]
        if entry.kind == SCALAR:
            if chunks.shape != ():
                raise self._error(name, "a scalar", f"an array of shape {list(chunks.shape)}")
            return self._begun[name]().item()
        if stored_as(chunks.dtype, chunks.shape) is None:
            return Unsupported(self._file, name, str(chunks.dtype), chunks.shape, "Orbax")
        source = ChunkedSource(chunks, f"{self._file}/{name}", self._cache)
        view = Strided(source, 0, chunks.dtype, Window.whole(chunks.shape))
        key = self._keys.get(name)
        if key is not None:
            self._check_key(name, key, chunks)
        return LazyArray(Content(view, key), name, self._placement, self._notice)

    def _check_key(self, name: str, key: str, chunks: Chunks) -> None:
        try:
            data = key_data_shape(key)
        except ValueError:
            raise self._error(
                name, "keys of an implementation that this JAX has", f"{key!r}: register it first"
            ) from None
        if chunks.dtype.name != "uint32" or chunks.shape[len(chunks.shape) - len(data) :] != data:
            raise self._error(
                name, f"{key} keys, uint32[…,{','.join(map(str, data))}]",
                f"{chunks.dtype}{list(chunks.shape)}",
            )  # fmt: skip

    def _error(self, name: str, expected: str, got: str) -> InvalidFileError:
        return InvalidFileError(f"{self._file}: leaf {name!r}: expected {expected}, got {got}")


class _Node(dict[str, Any]):
    """A container under construction."""

    in_sequence = False


def _leaves(table: TreeTable, leaf: Callable[[Entry], Any], file: str) -> Leaves:
    """The leaves of a table by name, with the structure of its tree."""
    root = _Node()
    for entry in table.entries:
        if len(entry.path) > MAX_DEPTH:
            raise InvalidFileError(
                f"{file}: expected at most {MAX_DEPTH} nested containers, got {len(entry.path)}"
            )
        if not entry.path:
            return flatten(leaf(entry))
        node = root
        for key in entry.path[:-1]:
            node.in_sequence = key.in_sequence
            inner = node.setdefault(key.text, _Node())
            if not isinstance(inner, _Node):
                # Orbax's partial saves leave the empty container, which was filled later.
                inner = node[key.text] = _Node()
            node = inner
        last = entry.path[-1]
        node.in_sequence = last.in_sequence
        if not isinstance(node.get(last.text), _Node):
            node[last.text] = leaf(entry)
    tree = _built(root, table.tuples)
    check_extent(tree, file)
    walked = walk(tree, lambda node: isinstance(node, Unsupported))
    return Leaves(walked.entries, walked.structure)


def _built(root: _Node, tuples: Tuples) -> Any:
    """The tree of the nodes: lists, tuples where they are known as such, and dicts."""
    order: list[tuple[_Node, Tuples | None, str, _Node | None]] = []
    pending: list[tuple[_Node, Tuples | None, str, _Node | None]] = [(root, tuples, "", None)]
    while pending:
        order.append(pending.pop())
        node, known, _, _ = order[-1]
        for key, child in node.items():
            if isinstance(child, _Node):
                pending.append((child, None if known is None else known.inside.get(key), key, node))
    built: Any = {}
    # Parents come before the containers in them.
    for node, known, key, parent in reversed(order):
        built = dict(node)
        if node.in_sequence and node.keys() == {str(n) for n in range(len(node))}:
            built = [node[str(n)] for n in range(len(node))]
            built = tuple(built) if known is not None and known.is_tuple else built
        if parent is not None:
            parent[key] = built
    return built
