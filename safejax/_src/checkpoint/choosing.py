"""Choosing: which file of a folder is its checkpoint, by names alone where that is enough.

The canonical name comes first, a plain name before its variants (`model.fp16.safetensors` is one
of `model.safetensors`), and an index before the files that it names. One of several files
(`model-00001-of-00002.safetensors`) is not the whole, and is not chosen without their index. A file
whose name begins with a dot is none: macOS stores such files next to others.
"""

import re
from collections.abc import Callable, Collection, Iterable
from typing import Final

from safejax._src.format.index import index_stem

_CANONICAL: Final = ("model", "diffusion_pytorch_model")
"""The names, without what follows, that Hugging Face's libraries look for first."""

_SUFFIX: Final = ".safetensors"

_PART: Final = re.compile(
    r".*(-[0-9a-f]{16}-\d{5,}-of-\d{5,}|-\d{5,}-of-0*([2-9]|[1-9]\d+))(\..*)?", re.DOTALL
)
"""The names, without their ends, of files that are read with an index only.

A single file may be `…-00001-of-00001`, but not with the token of a save that writes its index
last, and may have been cut off before that.
"""


def is_checkpoint(name: str) -> bool:
    """Whether the name is that of a safetensors file or of an index of such files."""
    return not name.startswith(".") and (name.endswith(_SUFFIX) or index_stem(name) is not None)


def is_part(name: str) -> bool:
    """Whether a file of this name has a part of a checkpoint, of which an index has the rest."""
    return _PART.fullmatch(name.removesuffix(_SUFFIX)) is not None


def choose(names: Iterable[str], named_by: Callable[[str], Collection[str]]) -> str | None:
    """The name of the file, or of the index, to load; None if that is not clear.

    `names` are those in the folder; `named_by(index)` returns the files that an index names.
    """
    found = _without_variants(_by_stem(names))
    indices = [name for name in found.values() if index_stem(name) is not None]
    canonical = [found[stem] for stem in _CANONICAL if stem in found]
    if len(canonical) == 1:
        (name,) = canonical
        # A file of this name may be a part of another set.
        if name in indices or not any(name in named_by(each) for each in indices):
            return name
    if len(indices) == 1:
        return indices[0]
    if indices or len(found) != 1:
        return None
    (name,) = found.values()
    return None if is_part(name) else name


def _by_stem(names: Iterable[str]) -> dict[str, str]:
    """The checkpoints by what their names begin with; an index comes before a file."""
    found: dict[str, str] = {}
    for name in sorted(filter(is_checkpoint, names)):
        stem = index_stem(name)
        if stem is None:
            found.setdefault(name.removesuffix(_SUFFIX), name)
        else:
            found[stem] = name
    return found


def _without_variants(found: dict[str, str]) -> dict[str, str]:
    return {
        stem: name
        for stem, name in found.items()
        if not any(stem.startswith(f"{other}.") for other in found)
    }
