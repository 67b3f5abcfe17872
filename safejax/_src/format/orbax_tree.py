"""Orbax's table of a tree, the file `_METADATA` of an item: which leaves there are, and where.

Each leaf has a path of keys, each in a sequence or in a dict, and the kind of its value. Its
parameter is stored under the keys joined by dots. Tuples and named tuples are known as such only
if Orbax was told to store rich types; otherwise they are sequences and dicts.
"""

from typing import Any, Final, NamedTuple, TypeAlias, cast, final

from safejax._src.format import strict_json
from safejax.errors import InvalidFileError

TREE_NAME: Final = "_METADATA"
KEYS_NAME: Final = "array_metadatas"
"""A folder, with a file of each process about the arrays of which it had a part."""
STRINGS_NAME: Final = "_strings.json"
MANIFEST_NAME: Final = "manifest.ocdbt"

ARRAYS: Final = frozenset({"jax.Array", "np.ndarray"})
SCALAR: Final = "scalar"
STRING: Final = "string"
EMPTY_KINDS: Final = {"None": None, "NamedTuple": None, "Dict": {}, "List": [], "Tuple": ()}
"""The kinds of values that are not stored, and what they are."""

_SEQUENCE: Final = 1


@final
class Key(NamedTuple):
    """A step to a leaf: a key of a dict, or a position in a sequence."""

    text: str
    in_sequence: bool


@final
class Entry(NamedTuple):
    """A leaf: the path to it, and the kind of its value as Orbax names it."""

    path: tuple[Key, ...]
    kind: str

    @property
    def parameter(self) -> str:
        """The name under which its value is stored."""
        return ".".join(key.text for key in self.path)


@final
class Tuples:
    """Whether a container is known to be a tuple, and what is known of those in it."""

    __slots__ = ("inside", "is_tuple")

    def __init__(self) -> None:
        self.is_tuple = False
        self.inside: dict[str, Tuples] = {}


@final
class TreeTable(NamedTuple):
    """What an item stores, and how.

    `in_ocdbt` is None if the table does not say whether the arrays are in an OCDBT store.
    `has_all_chunks` says that a chunk that is missing was lost; otherwise it has zeros. `tuples`
    says which sequences are known to be tuples.
    """

    entries: tuple[Entry, ...]
    in_ocdbt: bool | None
    in_zarr3: bool
    has_all_chunks: bool
    tuples: Tuples


def read_tree(data: bytes, file: str) -> TreeTable:
    """The table in the bytes of a file; `InvalidFileError` if there is none."""
    table = _parsed(data, file)
    try:
        entries = tuple(map(_entry, table["tree_metadata"].values()))
        rich = table.get("value_metadata_tree")
        tuples = _tuples(strict_json.parse(rich)) if isinstance(rich, str) else Tuples()
        return TreeTable(
            entries,
            table.get("use_ocdbt"),
            bool(table.get("use_zarr3", False)),
            bool(table.get("store_array_data_equal_to_fill_value", False)),
            tuples,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _invalid(file, f"{type(error).__name__}: {error}") from error


def read_keys(data: bytes, file: str) -> dict[str, str]:
    """The implementation of the keys of each parameter that has typed keys, by its name."""
    table = _parsed(data, file)
    found: dict[str, str] = {}
    try:
        for each in table["array_metadatas"]:
            array = each["array_metadata"]
            implementation = (array.get("ext_metadata") or {}).get("random_key_impl")
            if implementation:
                found[str(array["param_name"])] = str(implementation)
    except (KeyError, TypeError, AttributeError) as error:
        raise _invalid(file, f"{type(error).__name__}: {error}") from error
    return found


def read_strings(data: bytes, file: str) -> dict[str, Any]:
    """The strings of an item, as Orbax nests them."""
    return _parsed(data, file)


def string_of(strings: dict[str, Any], parameter: str) -> str | None:
    """The string that a parameter holds; None if there is none."""
    found: Any = strings
    # Orbax takes the name for a JSON pointer.
    for part in parameter.split("/"):
        if not isinstance(found, dict):
            return None
        found = cast("dict[str, Any]", found).get(part)
    return found if isinstance(found, str) else None


def _parsed(data: bytes, file: str) -> dict[str, Any]:
    try:
        table = strict_json.parse(data.decode())
    except ValueError as error:
        raise _invalid(file, str(error)) from error
    if not isinstance(table, dict):
        raise _invalid(file, type(table).__name__)
    return cast("dict[str, Any]", table)


def _invalid(file: str, found: str) -> InvalidFileError:
    return InvalidFileError(
        f"{file}: expected a table that Orbax has written, in JSON, got {found:.200}: copy the "
        "checkpoint again, or restore it with Orbax"
    )


def _entry(entry: dict[str, Any]) -> Entry:
    path = tuple(
        Key(str(key["key"]), int(key["key_type"]) == _SEQUENCE) for key in entry["key_metadata"]
    )
    return Entry(path, str(entry["value_metadata"]["value_type"]))


_Link: TypeAlias = "tuple[_Link, str] | None"
"""A path from its end: the path above it, and its last key."""


def _tuples(tree: Any) -> Tuples:
    """The tuples in a tree of rich types."""
    root = Tuples()
    pending: list[tuple[_Link, Any]] = [(None, tree)]
    while pending:
        path, node = pending.pop()
        children: Any = node
        if isinstance(node, dict) and "category" in node:
            known = cast("dict[str, Any]", node)
            if known["category"] == "custom" and known["clazz"] == "tuple":
                _place(root, path).is_tuple = True
                children = known["entries"]
            elif known["category"] == "namedtuple":
                children = {entry["key"]: entry["value"] for entry in known["entries"]}
            else:
                continue
        if isinstance(children, dict):
            items = cast("dict[str, Any]", children).items()
        elif isinstance(children, list):
            items = ((str(n), child) for n, child in enumerate(cast("list[Any]", children)))
        else:
            continue
        pending.extend(
            ((path, key), child) for key, child in items if isinstance(child, dict | list)
        )
    return root


def _place(root: Tuples, path: _Link) -> Tuples:
    """What is known of the container at a path."""
    keys: list[str] = []
    while path is not None:
        path, key = path
        keys.append(key)
    node = root
    for key in reversed(keys):
        inner = node.inside.get(key)
        if inner is None:
            inner = node.inside[key] = Tuples()
        node = inner
    return node
