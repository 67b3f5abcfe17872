"""Rows: the tensors of a tree, and its containers with what is in them, in one column of names."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol, final

_ROOT: Final = ""


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
        # A name that extends another one is a row of its own.
        tree[name] = tensor
    rows: list[Row] = []
    _add(rows, tree, 0, _ROOT)
    return rows


def _add(rows: list[Row], tree: dict[str, Any], depth: int, prefix: str) -> None:
    for segment, node in tree.items():
        label = f"{prefix}{segment}"
        if not isinstance(node, dict):
            rows.append(Row(depth, label, 1, node.nbytes, node))
        elif len(node) == 1:
            _add(rows, node, depth, f"{label}.")
        else:
            at = len(rows)
            _add(rows, node, depth + 1, _ROOT)
            inside = [row.tensor for row in rows[at:] if row.tensor is not None]
            nbytes = sum(tensor.nbytes for tensor in inside)
            rows.insert(at, Row(depth, label, len(inside), nbytes))
