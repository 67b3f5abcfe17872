"""Explaining: what is at a path that is no checkpoint, and what to do about it."""

import contextlib
import errno
import re
from collections.abc import Collection, Iterable
from typing import Final

from safejax._src.checkpoint.choosing import is_checkpoint, is_part
from safejax._src.format.index import is_index
from safejax._src.reading.masking import masked
from safejax._src.storage.files import home_remedy
from safejax._src.storage.store import Store

_SHOWN: Final = 5
_LOOKED_AT: Final = 100

_ORBAX: Final = frozenset({"_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"})

_OF_ORBAX: Final = (
    "a checkpoint of Orbax: load it with safejax.orbax.load, or write it to a safetensors file "
    "with `safejax convert FOLDER FILE`"
)

_STEP: Final = re.compile(r"[/_\\]\d+$")
"""The end of a path that may be that of a step of Orbax's."""

_OTHERS: Final = {
    (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"): (
        "pickles, which may run code when they are loaded: get the safetensors files of the same "
        "model, or convert these where PyTorch is installed: "
        "safetensors.torch.save_file(torch.load(file, weights_only=True), 'model.safetensors')"
    ),
    (".msgpack",): "files of Flax: give the path of the file",
    (".npz",): "archives of NumPy: give the path of the file",
    (".h5", ".hdf5", ".keras"): "files of Keras or HDF5: load them with Keras or h5py, and save",
    (".gguf",): "GGUF files: get the safetensors files of the same model",
}
"""What other programs store, by the ends of names, with the remedy."""


def is_of_orbax(store: Store, folder: str) -> bool:
    """Whether a folder looks like an item or a step of Orbax's, or like a manager's, of steps."""

    def inside(each: str) -> list[str]:
        names = sorted(store.names_in(each)) if store.is_folder(each) else []
        return [store.join(each, name) for name in names[:_LOOKED_AT]]

    def has_mark(each: str) -> bool:
        return store.is_folder(each) and not _ORBAX.isdisjoint(store.names_in(each))

    children = inside(folder)
    steps = [each for each in children if _STEP.search(each)][:_SHOWN]
    items = [item for step in steps for item in inside(step)]
    return any(map(has_mark, (folder, *children, *items)))


def in_folder(store: Store, folder: str, names: list[str]) -> str:
    """What is in a folder that has no checkpoint to choose, and what to do."""
    names = sorted(name for name in names if not name.startswith("."))
    found = [name for name in names if is_checkpoint(name)]
    if found:
        indices = [name for name in found if is_index(name)]
        if len(found) == 1 and is_part(found[0]):
            return (
                f"{found[0]}, one of several files, whose index is not there: get the others and "
                "the index, save it again if its save was cut off, or name the file"
            )
        return f"{_listed(indices or found)}: name the file, or give a list of files"
    cached = [name for name in names if name.startswith("models--")]
    if cached:
        return (
            f"a cache of the Hugging Face Hub, with {_listed(cached)}: give the folder that "
            "huggingface_hub.snapshot_download('owner/name') returns"
        )
    if not _ORBAX.isdisjoint(names):
        return _OF_ORBAX
    below = store.join(folder, "snapshots") if "snapshots" in names else folder
    inside = _with_checkpoints(store, below)
    if inside:
        return f"none, but folders that have some: name one of {_listed(inside)}"
    if is_of_orbax(store, folder):
        return _OF_ORBAX
    for suffixes, remedy in _OTHERS.items():
        others = [name for name in names if name.endswith(suffixes)]
        if others:
            return f"none, but {_listed(others)}, which are {remedy}"
    shown = f", only {_listed(names)}" if names else ", since it is empty"
    return f"none{shown}: name another folder, or a file"


def not_there(store: Store, path: str, error: FileNotFoundError) -> FileNotFoundError:
    """The error for a path at which there is nothing, as `error` reports."""
    remedy = home_remedy(path)
    near = [] if remedy else _near(store, store.parent(path) or ".")
    if near:
        remedy = f"; its folder has {_listed(sorted(near))}"
    elif not remedy and store.is_far:
        remedy = f"; {error}" if error.errno is None else ""
    elif not remedy and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path):
        remedy = (
            "; if it is a repository of the Hugging Face Hub, give the folder that "
            f"huggingface_hub.snapshot_download({path!r}) returns"
        )
    reason = f"expected a safetensors file, a folder or an index, there is nothing{remedy}"
    return FileNotFoundError(errno.ENOENT, reason, masked(path))


def _near(store: Store, folder: str) -> list[str]:
    """The checkpoints in a folder, as far as its place tells."""
    with contextlib.suppress(OSError):
        if store.is_folder(folder):
            return list(filter(is_checkpoint, store.names_in(folder)))
    return []


def other_set(store: Store, folder: str, files: Collection[str]) -> str:
    """What to do about an index of `files` that are not there; empty if there are no others."""
    try:
        names = filter(is_checkpoint, store.names_in(folder or "."))
    except OSError:
        return ""  # The place does not tell what is there.
    others = sorted(name for name in names if not is_index(name) and name not in files)
    if not others:
        return ""
    remedy = "give that file" if len(others) == 1 else "give a list of these"
    return f"; the index may be stale: {_listed(others)} are there without one, {remedy}"


def _with_checkpoints(store: Store, folder: str) -> list[str]:
    """The folders in a folder that have checkpoints."""
    inside = [store.join(folder, name) for name in sorted(store.names_in(folder))[:_LOOKED_AT]]
    return [
        each
        for each in inside
        if store.is_folder(each) and any(map(is_checkpoint, store.names_in(each)))
    ]


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (" …" if len(listed) > _SHOWN else "")
