"""History: what processes did to the files below one folder, replayed from the record of calls.

A call that has to do with these files is one of those that change something, for which there is a
method here, or one of a list of calls that do not. Any other one is an error, so that none is
overlooked, and so are shared mappings, by which a file may be written without a call.
"""

import os
from pathlib import Path
from typing import Any, Final, NamedTuple, final

from tests.support.crashes.calls import Call, UnknownCallError
from tests.support.crashes.disk import Action, Disk, Mark, Mode, Names, Resize, Sync, Write
from tests.support.crashes.recording import Record

MARK: Final = "@"
"""What a name begins with that a program asks for so that the record says when that was."""

_CHANGE_NOTHING: Final = frozenset({
    "access", "faccessat", "faccessat2", "fadvise64", "fgetxattr", "flock", "flistxattr", "fstat",
    "fstatfs", "getdents64", "getxattr", "lgetxattr", "listxattr", "llistxattr", "lstat",
    "newfstatat", "pread64", "preadv", "preadv2", "readlink", "readlinkat", "stat", "statfs",
    "statx",
})  # fmt: skip

_ATTRIBUTES: Final = frozenset({
    "chown", "fchown", "fchownat", "lchown", "utimensat",
})  # fmt: skip
"""Owners and times are not modelled."""

_PROMISES_NOTHING: Final = "sync_file_range"
"""It sends data on its way to the disk, and nothing is sure to be there."""

_DESCRIPTORS: Final = {
    "mmap": (4,), "sendfile": (0, 1), "copy_file_range": (0, 2), "splice": (0, 2), "tee": (0, 1),
    "linkat": (0, 2), "renameat": (0, 2), "renameat2": (0, 2), "symlinkat": (1,),
}  # fmt: skip
"""Which arguments are descriptors, where it is not the first one."""

_IGNORED: Final = _CHANGE_NOTHING | _ATTRIBUTES | {_PROMISES_NOTHING}


@final
class Step(NamedTuple):
    """An action, and the lines of the record at which its call began and ended."""

    begun: int
    ended: int
    action: Action


@final
class History(NamedTuple):
    """What was there before, the steps in the order of their ends, and what was there after."""

    before: Disk
    steps: list[Step]
    after: Disk


def history(record: Record, folder: Path, before: Disk) -> History:
    """What a record says about what is below `folder`, which is a real path."""
    replay = _Replay(str(folder), before.copy(), record)
    for call in record.calls:
        replay.see(call)
    return History(before, replay.steps, replay.disk)


@final
class _Opened:
    """An open file, which duplicates of its descriptor share."""

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.position = 0


@final
class _Replay:
    def __init__(self, folder: str, disk: Disk, record: Record) -> None:
        self.disk = disk
        self.steps: list[Step] = []
        self._folder = folder
        self._process_of = record.process_of
        self._umask_of = record.umask_of
        self._opened: dict[tuple[int, int], _Opened] = {}

    def see(self, call: Call) -> None:
        if call.name.startswith("io_"):
            raise UnknownCallError(f"{call.name} may write by other means than calls")
        mark = next(filter(None, map(self._mark, self._paths(call))), None)
        if mark is not None:
            self._do(call, Mark(mark))
        if call.result < 0 or not self._is_ours(call):
            return
        method: Any = getattr(self, f"on_{call.name}", None)
        if method is not None:
            method(call)
        elif call.name not in _IGNORED:
            raise UnknownCallError(f"{call!r:.500}")

    # ---- which files are meant

    def _paths(self, call: Call) -> list[str]:
        """The arguments that are absolute paths below the folder, or its own."""
        if not any(text.startswith('"\\x2f') for text in call.arguments):
            return []
        if call.name in ("write", "read", "pwrite64", "pread64"):
            return []
        found = [
            os.fsdecode(call.text(number))
            for number, text in enumerate(call.arguments)
            if text.startswith('"\\x2f')
        ]
        return [path for path in found if f"{path}/".startswith(f"{self._folder}/")]

    def _mark(self, path: str) -> str | None:
        name = os.path.basename(path)
        return name.removeprefix(MARK) if name.startswith(MARK) else None

    def _is_ours(self, call: Call) -> bool:
        numbers = _DESCRIPTORS.get(call.name, (0,))
        return bool(self._paths(call)) or any(self._file(call, number) for number in numbers)

    def _file(self, call: Call, number: int) -> _Opened | None:
        """The open file that an argument is the descriptor of."""
        text = call.arguments[number] if number < len(call.arguments) else ""
        if not text.isdigit():
            return None
        return self._opened.get((self._process_of[call.thread], int(text)))

    def _of(self, call: Call, number: int) -> _Opened:
        file = self._file(call, number)
        assert file is not None, call
        return file

    def _place(self, call: Call, number: int) -> tuple[int, str]:
        """The folder and the name that a path means; a descriptor is the argument before it."""
        path = call.path(number)
        if not path.startswith("/"):
            assert "/" not in path, call
            return self._of(call, number - 1).inode, path
        folder, name = os.path.split(os.path.relpath(path, self._folder))
        inode = self.disk.find(folder)
        assert inode is not None, call
        return inode, name

    def _inode(self, call: Call, number: int) -> int:
        folder, name = self._place(call, number)
        return folder if name == "." else self.disk.folders[folder][name]

    # ---- what they do

    def _do(self, call: Call, action: Action) -> None:
        self.disk.apply(action)
        self.steps.append(Step(call.begun, call.ended, action))

    def _name(self, call: Call, *changes: tuple[int, str, int | None]) -> None:
        self._do(call, Names(call.name, changes))

    def _mode(self, call: Call, inode: int, number: int) -> None:
        """What is made has the permissions of an argument, without those of the umask."""
        umask = self._umask_of[self._process_of[call.thread]]
        self._do(call, Mode(inode, int(call.arguments[number], 8) & ~umask, is_new=True))

    def on_openat(self, call: Call) -> None:
        folder, name = self._place(call, 1)
        flags = call.arguments[2].split("|")
        if not {"O_APPEND", "O_TMPFILE", "O_SYNC", "O_DSYNC"}.isdisjoint(flags):
            raise UnknownCallError(f"{call!r:.500}")
        inode = folder if name == "." else self.disk.folders[folder].get(name)
        if inode is None:
            inode = self.disk.new(is_folder=False)
            self._mode(call, inode, 3)
            self._name(call, (folder, name, inode))
        elif "O_TRUNC" in flags:
            self._do(call, Resize(inode, 0))
        self._opened[self._process_of[call.thread], call.result] = _Opened(inode)

    def on_close(self, call: Call) -> None:
        self._opened.pop((self._process_of[call.thread], call.number(0)), None)

    def on_fcntl(self, call: Call) -> None:
        if call.arguments[1].startswith("F_DUPFD"):
            self._opened[self._process_of[call.thread], call.result] = self._of(call, 0)

    def on_ioctl(self, call: Call) -> None:
        if not call.arguments[1].startswith("TC"):
            raise UnknownCallError(f"{call!r:.500}")

    def on_lseek(self, call: Call) -> None:
        self._of(call, 0).position = call.result

    def on_read(self, call: Call) -> None:
        self._of(call, 0).position += call.result

    def on_write(self, call: Call) -> None:
        file = self._of(call, 0)
        self._do(call, Write(file.inode, file.position, call.text(1)[: call.result]))
        file.position += call.result

    def on_pwrite64(self, call: Call) -> None:
        data = call.text(1)[: call.result]
        self._do(call, Write(self._of(call, 0).inode, call.number(3), data))

    def on_sendfile(self, call: Call) -> None:
        self._copied(call, self._of(call, 1), call.arguments[2], self._of(call, 0))

    def on_copy_file_range(self, call: Call) -> None:
        if call.arguments[3] != "NULL":
            raise UnknownCallError(f"{call!r:.500}")
        self._copied(call, self._of(call, 0), call.arguments[1], self._of(call, 2))

    def _copied(self, call: Call, source: _Opened, at: str, file: _Opened) -> None:
        begin = source.position if at == "NULL" else int(at.split("]")[0].removeprefix("["))
        data = bytes(self.disk.files[source.inode][begin : begin + call.result])
        self._do(call, Write(file.inode, file.position, data))
        file.position += call.result
        source.position += call.result if at == "NULL" else 0

    def on_ftruncate(self, call: Call) -> None:
        self._do(call, Resize(self._of(call, 0).inode, call.number(1)))

    def on_fallocate(self, call: Call) -> None:
        if call.number(1) != 0:
            raise UnknownCallError(f"{call!r:.500}")
        inode = self._of(call, 0).inode
        size = max(len(self.disk.files[inode]), call.number(2) + call.number(3))
        self._do(call, Resize(inode, size))

    def on_mmap(self, call: Call) -> None:
        if "PROT_WRITE" in call.arguments[2] and "MAP_SHARED" in call.arguments[3]:
            raise UnknownCallError(f"{call!r:.500}")

    def on_fsync(self, call: Call) -> None:
        self._do(call, Sync(self._of(call, 0).inode))

    def on_mkdir(self, call: Call) -> None:
        inode = self.disk.new(is_folder=True)
        self._mode(call, inode, 1)
        self._name(call, (*self._place(call, 0), inode))

    def on_chmod(self, call: Call) -> None:
        self._do(call, Mode(self._inode(call, 0), int(call.arguments[1], 8)))

    def on_fchmod(self, call: Call) -> None:
        self._do(call, Mode(self._of(call, 0).inode, int(call.arguments[1], 8)))

    def on_fchmodat(self, call: Call) -> None:
        self._do(call, Mode(self._inode(call, 1), int(call.arguments[2], 8)))

    def on_rmdir(self, call: Call) -> None:
        self._name(call, (*self._place(call, 0), None))

    def on_unlink(self, call: Call) -> None:
        self._name(call, (*self._place(call, 0), None))

    def on_unlinkat(self, call: Call) -> None:
        self._name(call, (*self._place(call, 1), None))

    def on_linkat(self, call: Call) -> None:
        self._name(call, (*self._place(call, 3), self._inode(call, 1)))

    def on_rename(self, call: Call) -> None:
        inode = self._inode(call, 0)
        self._name(call, (*self._place(call, 0), None), (*self._place(call, 1), inode))

    def on_renameat2(self, call: Call) -> None:
        if call.arguments[4] != "RENAME_EXCHANGE":
            raise UnknownCallError(f"{call!r:.500}")
        one, other = self._inode(call, 1), self._inode(call, 3)
        self._name(call, (*self._place(call, 1), other), (*self._place(call, 3), one))
