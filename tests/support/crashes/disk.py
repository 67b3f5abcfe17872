"""A disk: names and contents, and the actions that change them."""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias, final

ROOT: Final = 0
"""The inode of the folder that is looked at."""

Tree: TypeAlias = dict[str, bytes | None]
"""The bytes of each file by its path; None for a folder."""


@final
class Write(NamedTuple):
    inode: int
    begin: int
    data: bytes


@final
class Resize(NamedTuple):
    """A file gets another size; what is new has zeros."""

    inode: int
    nbytes: int


@final
class Names(NamedTuple):
    """A change of names, in one step: each (folder, name) gets an inode, or None."""

    what: str
    changes: tuple[tuple[int, str, int | None], ...]


@final
class Mode(NamedTuple):
    """A file or a folder gets other permissions; or has them from its beginning, if `is_new`."""

    inode: int
    mode: int
    is_new: bool = False


@final
class Sync(NamedTuple):
    """A file or a folder is flushed: what had ended before this began is on the disk."""

    inode: int


@final
class Mark(NamedTuple):
    """A moment that the program has named."""

    name: str


Action: TypeAlias = Write | Resize | Names | Mode | Sync | Mark


@final
@dataclass
class Disk:
    """Names and contents: a folder is a dict of names, a file its bytes. Inodes stay for ever."""

    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    files: dict[int, bytearray] = field(default_factory=dict[int, bytearray])
    modes: dict[int, int] = field(default_factory=dict[int, int])
    count: int = 1

    def copy(self) -> "Disk":
        folders = {inode: dict(names) for inode, names in self.folders.items()}
        files = {inode: bytearray(data) for inode, data in self.files.items()}
        return Disk(folders, files, dict(self.modes), self.count)

    def new(self, *, is_folder: bool) -> int:
        """A new inode, which has no name."""
        number, self.count = self.count, self.count + 1
        if is_folder:
            self.folders[number] = {}
        else:
            self.files[number] = bytearray()
        return number

    def find(self, path: str) -> int | None:
        """The inode of a path that is relative to the root, or empty for it."""
        inode: int | None = ROOT
        for name in filter(None, path.split("/")):
            inode = None if inode is None else self.folders.get(inode, {}).get(name)
        return inode

    def apply(self, action: Action) -> None:
        match action:
            case Write(inode, begin, data):
                file = self.files[inode]
                file.extend(bytes(max(0, begin - len(file))))
                file[begin : begin + len(data)] = data
            case Resize(inode, nbytes):
                file = self.files[inode]
                file.extend(bytes(max(0, nbytes - len(file))))
                del file[nbytes:]
            case Names(_, changes):
                change_names(self.folders, changes)
            case Mode(inode, mode):
                self.modes[inode] = mode
            case Sync() | Mark():
                pass

    def tree(self) -> Tree:
        paths = paths_of(self.folders)
        return {
            path: None if inode in self.folders else bytes(self.files[inode])
            for path, inode in paths.items()
        }

    def modes_by_path(self) -> dict[str, int]:
        return {path: self.modes[inode] for path, inode in paths_of(self.folders).items()}


def change_names(
    folders: dict[int, dict[str, int]], changes: tuple[tuple[int, str, int | None], ...]
) -> None:
    for folder, name, inode in changes:
        if inode is None:
            folders[folder].pop(name, None)
        else:
            folders[folder][name] = inode


def paths_of(folders: dict[int, dict[str, int]]) -> dict[str, int]:
    """The inode of each path, of folders before what is in them."""
    found: dict[str, int] = {}

    def walk(folder: int, before: str) -> None:
        for name, inode in sorted(folders[folder].items()):
            found[before + name] = inode
            if inode in folders:
                walk(inode, f"{before}{name}/")

    walk(ROOT, "")
    return found


def disk_of(folder: Path) -> Disk:
    """What is in a folder now, in which no file has two names and nothing is a symbolic link."""
    disk = Disk()

    def walk(real: Path, inode: int) -> None:
        for entry in sorted(os.scandir(real), key=lambda each: each.name):
            is_folder = entry.is_dir(follow_symlinks=False)
            assert is_folder or entry.stat(follow_symlinks=False).st_nlink == 1
            own = disk.new(is_folder=is_folder)
            disk.modes[own] = stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode)
            disk.folders[inode][entry.name] = own
            if is_folder:
                walk(real / entry.name, own)
            else:
                disk.files[own][:] = Path(entry.path).read_bytes()

    walk(folder, ROOT)
    return disk


def tree_at(folder: Path) -> Tree:
    """What is really below a folder."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def modes_at(folder: Path) -> dict[str, int]:
    """The permissions of what is below a folder."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in paths}


def put(tree: Tree, folder: Path) -> None:
    """Make the files and folders of a tree, in a folder that is empty."""
    for path, data in tree.items():
        if data is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(data)
