"""Trying: saves are recorded, and the states that a power cut may leave of them are made."""

import hashlib
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support.crashes.disk import Tree, disk_of, modes_at, tree_at
from tests.support.crashes.history import History, history
from tests.support.crashes.kinds import Kind, prepare, run
from tests.support.crashes.oracle import faults, faults_of_modes, faults_of_the_next_save
from tests.support.crashes.recording import recorded
from tests.support.crashes.states import Moment, States, moments
from tests.support.together import Together

_SHOWN: Final = 5


@contextmanager
def fast_folder() -> Generator[Path]:
    """A temporary folder, in memory where there is one: what is made there is not to stay."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(os.path.realpath(folder))


def histories(together: Together, kinds: Iterable[Kind]) -> dict[str, History]:
    """What saves of these kinds do, each recorded while it runs in real processes.

    What is replayed from the record is what is there in the end, or else calls are missing.
    """
    kinds = list(kinds)
    processes = [process.pid for process in together.processes]
    found: dict[str, History] = {}
    for refused in sorted({kind.refused or "" for kind in kinds}):
        with fast_folder() as root:
            places = {
                kind.name: (kind, root / str(number))
                for number, kind in enumerate(kinds)
                if (kind.refused or "") == refused
            }
            before = {}
            for name, (kind, folder) in places.items():
                folder.mkdir()
                prepare(kind, folder)
                before[name] = disk_of(folder)
            together.run(_nothing)  # What a process imports when it is first asked is done.
            with recorded(processes, refused or None) as record:
                for kind, folder in places.values():
                    together.run(run, kind, folder)
            for name, (_, folder) in places.items():
                found[name] = history(record, folder, before[name])
                assert found[name].after.tree() == tree_at(folder), name
                assert found[name].after.modes_by_path() == modes_at(folder), name
    return found


def _nothing(process: int) -> None:
    del process


@dataclass
class Tried:
    """What was tried of a kind of save, and what was seen."""

    steps: int = 0
    moments: int = 0
    sampled: int = 0
    """At how many moments there are more states than were tried."""
    states: Counter[str] = field(default_factory=Counter[str])
    """Different states, by the version that is seen in them."""
    saved_again: int = 0
    faults: list[str] = field(default_factory=list[str])
    """The first ones."""

    def add(self, other: "Tried") -> None:
        self.steps += other.steps
        self.moments += other.moments
        self.sampled += other.sampled
        self.states += other.states

    def found(self, number: int, moment: Moment, faults: Iterable[str]) -> None:
        for each in faults:
            if len(self.faults) < _SHOWN:
                self.faults.append(f"moment {number} {set(moment.marks)}: {each}")


def try_states(
    kind: Kind, of: History, limit: int = 1000, seed: int = 0, next_saves: int = 1
) -> Tried:
    """Make the states of a save and look at them, at most `limit` at each moment.

    The next save is tried over each `next_saves`th of them.
    """
    tried = Tried(steps=len(of.steps))
    known: set[bytes] = set()
    with fast_folder() as root:
        for number, moment in enumerate(moments(of)):
            states = States(of, moment, limit, random.Random(f"{seed} {kind.name} {number}"))
            tried.moments += 1
            tried.sampled += not states.are_all
            for modes in states.modes():
                tried.found(number, moment, faults_of_modes(kind, modes, moment.marks))
            for state in states:
                digest = _digest(state, moment.marks)
                if digest in known:
                    continue
                known.add(digest)
                folder = root / "state"
                folder.mkdir()
                version, wrong = faults(kind, state, moment.marks, folder)
                tried.states[version] += 1
                if len(known) % next_saves == 0:
                    tried.saved_again += 1
                    wrong += faults_of_the_next_save(kind, folder, moment.marks)
                shutil.rmtree(folder)
                sizes = {name: data and len(data) for name, data in state.items()}
                tried.found(number, moment, (f"{each}: {sizes}" for each in wrong))
    return tried


def _digest(state: Tree, marks: Iterable[str]) -> bytes:
    found = hashlib.blake2b(repr(sorted(marks)).encode())
    for path, data in state.items():
        found.update(f"{path}\0{-1 if data is None else len(data)}\0".encode())
        found.update(data or b"")
    return found.digest()


def table(tried: Mapping[str, Tried]) -> str:
    """What was tried, as a table in Markdown."""
    lines = [
        "| save | steps | moments | states | old | new | refused |",
        "|---|---|---|---|---|---|---|",
    ]
    sums = {"*all states*": Tried(), "*sampled*": Tried()}
    for name, each in tried.items():
        sums["*sampled*" if each.sampled else "*all states*"].add(each)
        lines.append(_row(name, each))
    lines += [_row(name, each) for name, each in sums.items()]
    return "\n".join(lines)


def _row(name: str, tried: Tried) -> str:
    states = tried.states
    kind = f"{states.total()}" + (" sampled" if tried.sampled and "*" not in name else "")
    cells = [name, tried.steps, tried.moments, kind, states["old"], states["new"], states["none"]]
    return f"| {' | '.join(map(str, cells))} |"
