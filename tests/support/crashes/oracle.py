"""The oracle: which version is on a disk, as safejax and the `safetensors` package see it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.numpy

import safejax
from safejax._src.storage.litter import is_temporary
from tests.support.crashes.disk import Tree, put, tree_at
from tests.support.crashes.kinds import LATE, OTHERS, RETURNED, Kind

VERSIONS: Final = ("old", "new", "3rd")


def seen(kind: Kind, path: Path) -> str:
    """The version that `load` gives; `"none"` if it refuses, `"mixed"` if it gives none of them."""
    try:
        loaded = safejax.load(path, verify=kind.checksum)
        found = {name: _plain(leaf) for name, leaf in loaded.items()}
    except (FileNotFoundError, safejax.SafejaxError):
        return "none"
    return _version({name: kind.tree(name) for name in VERSIONS}, found)


def seen_by_safetensors(kind: Kind, path: Path) -> str:
    """The version that the `safetensors` package reads, of which it knows the arrays."""
    try:
        found: dict[str, Any] = {}
        for file in _files(path):
            found |= safetensors.numpy.load_file(file)
    except (FileNotFoundError, ValueError, safetensors.SafetensorError):
        return "none"
    trees = {name: kind.tree(name) for name in VERSIONS}
    for tree in trees.values():
        del tree["of"]
    return _version(trees, found)


def _files(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if index.exists():
        names = json.loads(index.read_bytes())["weight_map"].values()
        return [path / name for name in sorted(set(names))]
    return [path / "model.safetensors" if path.is_dir() else path]


def _plain(leaf: Any) -> Any:
    return leaf if isinstance(leaf, str) else np.asarray(leaf)


def _version(trees: Mapping[str, Mapping[str, Any]], found: Mapping[str, Any]) -> str:
    return next((name for name, tree in trees.items() if _same(tree, found)), "mixed")


def _same(tree: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    return tree.keys() == found.keys() and all(
        leaf == found[name]
        if isinstance(leaf, str)
        else (leaf.dtype, leaf.shape, leaf.tobytes())
        == (found[name].dtype, found[name].shape, found[name].tobytes())
        for name, leaf in tree.items()
    )


def allowed(kind: Kind, marks: frozenset[str]) -> set[str]:
    """The versions that may be there: after `save` has returned, the new one only."""
    if RETURNED in marks:
        return {"new"}
    had = kind.before in ("old", "old and litter")
    return {"new"} | ({"old"} if had else {"none"}) | ({"none"} if kind.moves else set())


def faults(kind: Kind, state: Tree, marks: frozenset[str], folder: Path) -> tuple[str, list[str]]:
    """The version that is seen in a state, and what is wrong with it.

    The state is made in `folder`, which is empty.
    """
    put(state, folder)
    path = folder / kind.target
    found = seen(kind, path)
    wrong: list[str] = []
    if found not in allowed(kind, marks):
        wrong.append(f"load sees {found}, expected {sorted(allowed(kind, marks))}")
    other = seen_by_safetensors(kind, path)
    if other != found:
        wrong.append(f"safetensors sees {other}, load sees {found}")
    return found, wrong + _lost(kind, state, marks)


def faults_of_modes(
    kind: Kind, modes: Mapping[str, set[int]], marks: frozenset[str]
) -> Iterator[str]:
    """Who may get rights that nobody had before or, after `save` has returned, does not get them.

    What is in a folder of which others have no rights is not for them either.
    """
    if kind.modes is None:
        return
    for path, possible in modes.items():
        top, *inside = path.split("/")
        wanted = kind.modes[bool(inside) or not kind.is_folder]
        hidden = bool(inside) and not any(mode & 0o077 for mode in modes[top])
        if not hidden and any(mode & 0o077 & ~wanted for mode in possible):
            yield f"{path} may have the modes {set(map(oct, possible))}, expected {oct(wanted)}"
        if RETURNED in marks and top == kind.target and possible != {wanted}:
            yield f"{path} is to have the mode {oct(wanted)}, not {set(map(oct, possible))}"


def faults_of_the_next_save(kind: Kind, folder: Path, marks: frozenset[str]) -> list[str]:
    """What is wrong after another save, to the folder of a state that was made."""
    path = folder / kind.target
    safejax.save(kind.tree("3rd"), path, **kind.options)
    wrong: list[str] = []
    for found in (seen(kind, path), seen_by_safetensors(kind, path)):
        if found != "3rd":
            wrong.append(f"{found} is seen after the next save")
    left = tree_at(folder)
    litter = [name for name in left if is_temporary(name)]
    if kind.is_folder:
        index = (
            json.loads((path / "model.safetensors.index.json").read_bytes())
            if (path / "model.safetensors.index.json").exists()
            else {"weight_map": {"": "model.safetensors"}}
        )
        own = {"model.safetensors.index.json", *index["weight_map"].values(), *OTHERS, LATE}
        inside = [name.removeprefix(f"{kind.target}/") for name in left if name != kind.target]
        litter += [name for name in inside if name not in own]
    if litter:
        wrong.append(f"the next save leaves {litter}")
    return wrong + _lost(kind, left, marks)


def _lost(kind: Kind, state: Tree, marks: frozenset[str]) -> list[str]:
    """The files of others that are not in the folder any more."""
    kept = dict(OTHERS) if kind.others else {}
    if LATE in marks:
        kept[LATE] = OTHERS["notes.txt"]
    if kind.moves and kind.target not in state:
        return []
    return [
        f"lost: {name}"
        for name, data in kept.items()
        if state.get(f"{kind.target}/{name}", b"") != data
    ]
