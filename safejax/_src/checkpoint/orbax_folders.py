"""Where a checkpoint of Orbax's is: the folder of a manager, of a step, or of an item in it."""

import errno
import re
from collections.abc import Mapping
from typing import Any, Final, Protocol, Self

from safejax._src.checkpoint.choosing import is_checkpoint
from safejax._src.format.orbax_tree import TREE_NAME
from safejax.errors import InvalidFileError

_STEP: Final = re.compile(r"(?:.*_)?(\d+)")
_STEP_NAME: Final = "_CHECKPOINT_METADATA"
_WHOLE_NAME: Final = "commit_success.txt"
_DEFAULT_ITEM: Final = "default"
_SHOWN: Final = 8


class Place(Protocol):
    """A folder, local or not; its `repr` is what errors show.

    `is_renamed` says that Orbax gives a folder there its name once it is whole. Elsewhere, it
    writes a file into it then.
    """

    is_renamed: bool

    def below(self, name: str) -> Self: ...
    def names(self) -> set[str]: ...
    def read(self, name: str) -> bytes | None: ...


def is_item(folder: Place) -> bool:
    """Whether a folder is an item of Orbax's."""
    return folder.read(TREE_NAME) is not None


def find_item(folder: Any, item: str | None, step: int | None) -> Any:
    """The folder of an item: this one, or one in this step, or in a step of this manager's folder.

    Raises `FileNotFoundError` if there is no such step or item, and `InvalidFileError` if it is
    not clear which one is meant.
    """
    if step is None and item is None and is_item(folder):
        return folder
    names = folder.names()
    if step is not None:
        return find_item(_step(folder, _steps(names), step), item, None)
    if _STEP_NAME not in names and item not in names:
        steps = _steps(names)
        for number in sorted(steps, reverse=True):
            if any(_is_whole(folder.below(name)) for name in steps[number]):
                return find_item(_step(folder, steps, number), item, None)
    if item is not None:
        if item not in names:
            raise FileNotFoundError(
                f"{folder}: expected the item {item!r} in it, got {listed(sorted(names))}"
            )
        return folder.below(item)
    if any(map(is_checkpoint, names)):
        return folder
    items = sorted(name for name in names if name[0] not in "._" and _has_tree(folder.below(name)))
    if len(items) == 1:
        return folder.below(items[0])
    if _DEFAULT_ITEM in items:
        return folder.below(_DEFAULT_ITEM)
    if not names:
        reason = "expected a checkpoint of Orbax, there is nothing: name another folder"
        raise FileNotFoundError(errno.ENOENT, reason, repr(folder))
    if items:
        raise InvalidFileError(
            f"{folder}: expected one item, got {listed(items)}: say which, with item={items[0]!r}"
        )
    raise InvalidFileError(
        f"{folder}: expected a checkpoint of Orbax, a step of one, or the folder of a "
        f"CheckpointManager, got {listed(sorted(names))}: name another folder"
    )


def _steps(names: set[str]) -> dict[int, list[str]]:
    """The names that may be those of steps; with a prefix only where no name is a number."""
    plain = {name for name in names if name.isdecimal()}
    steps: dict[int, list[str]] = {}
    for name in sorted(plain or names):
        if found := _STEP.fullmatch(name):
            steps.setdefault(int(found[1]), []).append(name)
    return steps


def _step(folder: Any, steps: Mapping[int, list[str]], step: int) -> Any:
    """The folder of a step."""
    whole = [name for name in steps.get(step, ()) if _is_whole(folder.below(name))]
    if len(whole) > 1:
        raise InvalidFileError(
            f"{folder}: expected one folder of step {step}, got {listed(whole)}: load the folder "
            "of the one that is meant"
        )
    if not whole:
        raise FileNotFoundError(
            f"{folder}: expected step {step} in it, whole, got {listed(map(str, sorted(steps)))}"
        )
    return folder.below(whole[0])


def _is_whole(folder: Any) -> bool:
    """Whether a folder is there, and Orbax has written all of it."""
    names = folder.names()
    return bool(names) and (folder.is_renamed or _WHOLE_NAME in names)


def _has_tree(folder: Place) -> bool:
    names = folder.names()
    return TREE_NAME in names or any(map(is_checkpoint, names))


def listed(names: Any) -> str:
    """Some of the names, for an error."""
    found = list(names)
    return (", ".join(found[:_SHOWN]) + (" …" if len(found) > _SHOWN else "")) or "nothing"
