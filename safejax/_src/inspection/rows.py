"""Rows: the tensors of a tree, and its containers with what is in them, in one column of names."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, final


class Sized(Protocol):
    """What a row needs to know of a tensor."""

    @property
    def nbytes(self) -> int: ...


@final
class Row(NamedTuple):
    """A row: how deep it is, its label, and the tensors and bytes in it.

    `tensor` is None for a container.
    """

    depth: int
    label: str
    tensors: int
    nbytes: int
    tensor: Any = None


def rows_of(tensors: Mapping[str, Sized]) -> list[Row]:
    """The tree of the names, in their order; a container with one child shares its row."""
    tree: dict[str, Any] = {}
    alone: dict[str, Any] = {}
    for name, tensor in tensors.items():
        node = tree
        *path, last = name.split(".")
        for segment in path:
            node = node.setdefault(segment, {})
            if not isinstance(node, dict):
                break
        else:
            if last not in node:
                node[last] = tensor
                continue
        # A name that extends another one, or that others extend, is a row of its own.
        (alone if name in tree else tree)[name] = tensor
    return _rows([*tree.items(), *alone.items()])


def _rows(entries: Iterable[tuple[str, Any]]) -> list[Row]:
    """The rows, without recursion: a name may have any number of segments."""
    rows: list[Row] = []
    # Of each open container: the row that it has, its children, and the tensors and bytes in it.
    opened: list[list[Any]] = [[None, iter(entries), 0, 0]]
    while opened:
        at, children, tensors, nbytes = opened[-1]
        entry = next(children, None)
        if entry is None:
            opened.pop()
            if opened:
                rows[at] = rows[at]._replace(tensors=tensors, nbytes=nbytes)
                opened[-1][2] += tensors
                opened[-1][3] += nbytes
            continue
        segment, node = entry
        label = [segment]
        while isinstance(node, dict) and len(node) == 1:
            ((segment, node),) = node.items()
            label.append(segment)
        depth = len(opened) - 1
        if isinstance(node, dict):
            opened.append([len(rows), iter(node.items()), 0, 0])
            rows.append(Row(depth, ".".join(label), 0, 0))
        else:
            rows.append(Row(depth, ".".join(label), 1, node.nbytes, node))
            opened[-1][2] += 1
            opened[-1][3] += node.nbytes
    return rows
