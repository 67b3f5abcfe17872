"""States: what may be on the disk if the power is cut at a moment of a history.

The model is weaker than any file system that has a journal or copies on write, so that what holds
here holds there:

- What fsync(2) of a file has not flushed may be there or not, sector by sector (512 bytes) and in
  any order: lost, torn, or later writes without earlier ones. A file may have any size that it
  had, or a size between these at the end of a sector, and zeros where data has not arrived; in
  samples, whatever was on the disk there before.
- What fsync(2) of a folder has not flushed may be there or not, for each change of a name by
  itself: in any order, and whatever happened to the data. fsync(2) of a file flushes no name.
- Permissions are flushed with the file or folder that has them.
- One rename, exchange, link or removal is there or not, but not a half of it, and a sector is
  written as a whole.

Pillai and others, "All File Systems Are Not Created Equal" (OSDI 2014), found that the file systems
in use differ in just these: which updates are persisted atomically, and in which order. Their
ALICE enumerates states likewise; so do Mohan and others in CrashMonkey, "Finding Crash-Consistency
Bugs with Bounded Black-Box Crash Testing" (OSDI 2018), at each fsync. "Atomic Commit In SQLite"
assumes sectors written in any order, and sizes that change before the data.
"""

import itertools
import math
import random
from collections.abc import Iterator
from functools import cached_property
from typing import Final, NamedTuple, final

from tests.support.crashes.disk import (
    Disk,
    Mark,
    Mode,
    Names,
    Resize,
    Sync,
    Tree,
    Write,
    change_names,
    paths_of,
)
from tests.support.crashes.history import History, Step

SECTOR: Final = 512
"""Bytes that a disk writes as a whole."""

STALE: Final = b"\xa5" * SECTOR
"""What a sector that was never written may have of another file, which is gone."""

_MANY_NAMES: Final = 14
"""Changes of names of which not all subsets are taken any more."""

_MANY_SECTORS: Final = 40
"""Sectors of a file of which not all states are counted any more."""


@final
class Contents:
    """What a file may have: what was flushed, and some of what was written since."""

    def __init__(self, flushed: bytes, since: list[Write | Resize]) -> None:
        self._flushed = flushed
        self._since = since
        sizes = [len(flushed)]
        for action in since:
            if isinstance(action, Resize):
                sizes.append(action.nbytes)
            else:
                sizes.append(max(sizes[-1], action.begin + len(action.data)))
        shrunk = next((at for at, size in enumerate(sizes[1:], 1) if size < sizes[at - 1]), None)
        assert shrunk is None or sizes[shrunk:] == sorted(sizes[shrunk:], reverse=True), "regrown"
        between = range(math.ceil(min(sizes) / SECTOR) * SECTOR, max(sizes), SECTOR)
        self._sizes = sorted({*sizes, *between})
        self._most = max(sizes)

    @property
    def count(self) -> float:
        """How many contents `all` gives; some of them may be equal."""
        if self._most > _MANY_SECTORS * SECTOR:
            return math.inf if self._since else 1
        choices = list(map(len, self._versions))
        return sum(math.prod(choices[: math.ceil(size / SECTOR)]) for size in self._sizes)

    def all(self) -> Iterator[bytes]:
        versions = self._versions
        for size in self._sizes:
            for sectors in itertools.product(*versions[: math.ceil(size / SECTOR)]):
                yield b"".join(sectors)[:size]

    def sample(self, of: random.Random) -> bytes:
        """One of them, and now and then one with stale bytes where nothing was written."""
        newest = of.choice((0.0, 0.5, 0.9, 1.0))
        oldest = of.choice((0.5, 1.0))
        size = of.choice((self._sizes[0], self._sizes[-1], of.choice(self._sizes)))
        stale = of.random() < 0.3
        sectors: list[bytes] = []
        for number, versions in enumerate(self._versions):
            at = of.randrange(len(versions))
            if of.random() < newest:
                at = len(versions) - 1
            elif of.random() < oldest:
                at = 0
            is_new = number * SECTOR >= len(self._flushed)
            sectors.append(STALE if stale and is_new and at == 0 else versions[at])
        return b"".join(sectors)[:size]

    @cached_property
    def _versions(self) -> list[list[bytes]]:
        """What each sector may have: what it had at each time since it was flushed."""
        data = bytearray(self._flushed.ljust(self._most, b"\0"))
        found = [[bytes(data[at : at + SECTOR])] for at in range(0, self._most, SECTOR)]
        for action in self._since:
            if isinstance(action, Write):
                data[action.begin : action.begin + len(action.data)] = action.data
                for begin in _sectors(action):
                    sector = bytes(data[begin : begin + SECTOR])
                    if sector not in found[begin // SECTOR]:
                        found[begin // SECTOR].append(sector)
        return found


def _sectors(write: Write) -> range:
    first = write.begin // SECTOR * SECTOR
    return range(first, write.begin + len(write.data), SECTOR)


@final
class Moment(NamedTuple):
    """A moment at which the power may be cut, and what is on the disk then or may be there."""

    marks: frozenset[str]
    names: list[tuple[Names, bool]]
    """All changes of names until then, and whether each of them is flushed."""
    contents: dict[int, Contents]
    modes: dict[int, set[int]]
    """The permissions that each file and folder may have."""


def moments(history: History) -> Iterator[Moment]:
    """The moments before each flush and each mark, and the end.

    What may be on the disk at any other moment may be there at the next one of these, too: in
    between, there is only more that is not flushed.
    """
    steps = history.steps
    for number, step in enumerate(steps):
        if isinstance(step.action, Sync | Mark):
            yield _moment(history, number, step.ended)
    yield _moment(history, len(steps), steps[-1].ended + 1)


def _moment(history: History, number: int, line: int) -> Moment:
    ended = history.steps[:number]
    # Calls that are under way may have done their work.
    begun = [step for step in history.steps if step.begun < line]
    flushes = [(step.begun, step.action.inode) for step in ended if isinstance(step.action, Sync)]

    def is_flushed(step: Step, inode: int) -> bool:
        return any(flushed == inode and step.ended < at for at, flushed in flushes)

    names = [
        (step.action, all(is_flushed(step, folder) for folder, _, _ in step.action.changes))
        for step in begun
        if isinstance(step.action, Names)
    ]
    before = history.before.files
    flushed = Disk(
        files={inode: bytearray(before.get(inode, b"")) for inode in history.after.files}
    )
    since: dict[int, list[Write | Resize]] = {inode: [] for inode in flushed.files}
    for step in begun:
        if isinstance(step.action, Write | Resize):
            if is_flushed(step, step.action.inode):
                flushed.apply(step.action)
            else:
                since[step.action.inode].append(step.action)
    contents = {inode: Contents(bytes(flushed.files[inode]), since[inode]) for inode in since}
    marks = {step.action.name for step in ended if isinstance(step.action, Mark)}
    modes = {inode: {mode} for inode, mode in history.before.modes.items()}
    for step in begun:
        if isinstance(step.action, Mode):
            inode, mode, is_new = step.action
            is_sure = is_new or is_flushed(step, inode)
            modes[inode] = {mode} if is_sure else modes[inode] | {mode}
    return Moment(frozenset(marks), names, contents, modes)


@final
class States:
    """The states of a moment: all of them if they are at most `limit`, or else a sample."""

    def __init__(self, history: History, moment: Moment, limit: int, of: random.Random) -> None:
        self._history = history
        self._moment = moment
        self._limit = limit
        self._of = of
        self._waiting = [at for at, (_, flushed) in enumerate(moment.names) if not flushed]
        self.are_all = self._count() <= limit

    def _count(self) -> float:
        if len(self._waiting) > _MANY_NAMES:
            return math.inf
        return sum(
            math.prod(self._moment.contents[inode].count for inode in self._files(paths))
            for paths in self._distinct()
        )

    def __iter__(self) -> Iterator[Tree]:
        if self.are_all:
            for paths in self._distinct():
                files = self._files(paths)
                each = (self._moment.contents[inode].all() for inode in files)
                for chosen in itertools.product(*each):
                    yield self._tree(paths, dict(zip(files, chosen, strict=True)))
            return
        for number in range(self._limit):
            share = (0.0, 1.0, 0.5, 0.1, 0.9)[number % 5]
            chosen = {at for at in self._waiting if self._of.random() < share}
            paths = self._paths(chosen)
            contents = self._moment.contents
            data = {inode: contents[inode].sample(self._of) for inode in self._files(paths)}
            yield self._tree(paths, data)

    def _distinct(self) -> list[dict[str, int]]:
        """The paths after each subset of the changes of names, without doubles."""
        found: dict[tuple[tuple[str, int], ...], dict[str, int]] = {}
        for count in range(len(self._waiting) + 1):
            for chosen in itertools.combinations(self._waiting, count):
                paths = self._paths(set(chosen))
                found.setdefault(tuple(paths.items()), paths)
        return list(found.values())

    def _paths(self, chosen: set[int]) -> dict[str, int]:
        before = self._history.before.folders
        folders = {inode: dict(before.get(inode, {})) for inode in self._history.after.folders}
        for at, (names, flushed) in enumerate(self._moment.names):
            if flushed or at in chosen:
                change_names(folders, names.changes)
        return paths_of(folders)

    def _files(self, paths: dict[str, int]) -> list[int]:
        return sorted({inode for inode in paths.values() if inode in self._moment.contents})

    def modes(self) -> Iterator[dict[str, set[int]]]:
        """The permissions that there may be at each path, for different sets of paths."""
        if len(self._waiting) <= _MANY_NAMES:
            for paths in self._distinct():
                yield {path: self._moment.modes[inode] for path, inode in paths.items()}

    def _tree(self, paths: dict[str, int], data: dict[int, bytes]) -> Tree:
        return {path: data.get(inode) for path, inode in paths.items()}
