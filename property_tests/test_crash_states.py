"""Whatever a power cut leaves of a save is the old version or the new one, and is saved over.

All states of small saves are made, and each is read by safejax and by the `safetensors` package.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.crashes.calls import UnknownCallError, parse
from tests.support.crashes.disk import Disk, Resize, Write, disk_of, tree_at
from tests.support.crashes.history import History, history
from tests.support.crashes.kinds import KINDS, UNSAFE_KINDS, Kind
from tests.support.crashes.recording import can_record, recorded
from tests.support.crashes.states import SECTOR, STALE, Contents
from tests.support.crashes.trying import fast_folder, histories, try_states
from tests.support.crashes.unsafe import by_copying, by_mapping, by_several_parts
from tests.support.together import Together

needs_strace = pytest.mark.skipif(not can_record(), reason="needs strace, as Debian has it")


@pytest.fixture(scope="module")
def together() -> Iterator[Together]:
    with Together() as together:
        yield together


@pytest.fixture(scope="module")
def saves(together: Together, request: pytest.FixtureRequest) -> Mapping[str, tuple[Kind, History]]:
    """The kinds of saves that tests are about, and what each of them does."""
    ids = {item.name for item in request.session.items if item.path == request.path}
    kinds = [
        kind
        for kind in (*KINDS.values(), *UNSAFE_KINDS.values())
        if any(f"[{kind.unsafe or kind.name}]" in each for each in ids)
    ]
    found = histories(together, kinds)
    return {kind.name: (kind, found[kind.name]) for kind in kinds}


@needs_strace
@pytest.mark.parametrize("name", KINDS)
def test_each_state_is_the_old_version_or_the_new_one(
    name: str, saves: Mapping[str, tuple[Kind, History]]
) -> None:
    tried = try_states(*saves[name], limit=20_000)
    assert tried.faults == []
    assert tried.sampled == 0
    assert tried.states["new"] >= 1
    assert tried.saved_again == tried.states.total()


@needs_strace
@pytest.mark.parametrize("kind", UNSAFE_KINDS.values(), ids=lambda kind: kind.unsafe)
def test_states_show_what_is_lost_by_saves_that_are_not_safe(
    kind: Kind, saves: Mapping[str, tuple[Kind, History]]
) -> None:
    assert try_states(*saves[kind.name], limit=20_000).faults != []


@needs_strace
@pytest.mark.parametrize("way", [by_mapping, by_several_parts])
def test_what_the_record_does_not_show_is_an_error(
    way: Callable[[int, Path], None], together: Together
) -> None:
    with fast_folder() as folder:
        (folder / "file").write_bytes(b"seven bytes")
        with pytest.raises(UnknownCallError, match=r"mmap|writev"):
            recorded_once(way, folder, together)


@needs_strace
def test_what_is_copied_without_its_bytes_in_the_record_is_replayed(together: Together) -> None:
    with fast_folder() as folder:
        (folder / "file").write_bytes(b"seven bytes")
        seen = recorded_once(by_copying, folder, together)
        assert seen.after.tree() == tree_at(folder)
        assert seen.after.tree()["copy"] == b"ven bevese"


def recorded_once(way: Callable[[int, Path], None], folder: Path, together: Together) -> History:
    before = disk_of(folder)
    with recorded([process.pid for process in together.processes]) as record:
        together.run(way, folder / "file")
    return history(record, folder, before)


def test_calls_of_threads_are_in_the_order_of_their_ends() -> None:
    lines = [
        '7  pwrite64(4, "\\x61\\x62", 2, 3 <unfinished ...>',
        "8  +++ exited with 0 +++",
        '9  mkdir("\\x2f\\x61", 0777) = -1 EEXIST (File exists)',
        "7  <... pwrite64 resumed>)           = 2",
        "7  close(4)                          = 0",
    ]
    calls = list(parse(lines))
    assert [(call.thread, call.name, call.result) for call in calls] == [
        (9, "mkdir", -1), (7, "pwrite64", 2), (7, "close", 0),
    ]  # fmt: skip
    assert (calls[0].path(0), calls[1].text(1), calls[1].number(3)) == ("/a", b"ab", 3)
    assert [(call.begun, call.ended) for call in calls] == [(2, 2), (0, 3), (4, 4)]
    with pytest.raises(UnknownCallError, match="whole string"):
        next(parse(['7  write(1, "\\x61"..., 9) = 9'])).text(1)


@st.composite
def writings(draw: Any) -> tuple[bytes, list[Write | Resize]]:
    """What a file has, and what is written to it: whole sectors' worth, and parts of them."""
    flushed = bytes([9]) * draw(st.integers(0, 3 * SECTOR))
    size = len(flushed)
    since: list[Write | Resize] = []
    for number in range(draw(st.integers(0, 3))):
        if draw(st.booleans()):
            size += draw(st.integers(0, SECTOR))
            since.append(Resize(1, size))
        else:
            begin = draw(st.integers(0, size))
            data = bytes([number + 1]) * draw(st.integers(1, SECTOR + 1))
            since.append(Write(1, begin, data))
            size = max(size, begin + len(data))
    return flushed, since


@given(writings(), st.randoms(use_true_random=False))
def test_the_contents_of_a_file_are_what_it_had_and_what_is_made_of_that(
    writing: tuple[bytes, list[Write | Resize]], of: Any
) -> None:
    flushed, since = writing
    contents = Contents(flushed, since)
    every = list(contents.all())
    assert len(every) == contents.count
    disk = Disk(files={1: bytearray(flushed)})
    assert flushed in every
    for action in since:
        disk.apply(action)
        assert bytes(disk.files[1]) in every
    for _ in range(5):
        sample = contents.sample(of)
        assert sample.replace(STALE, bytes(SECTOR)).replace(STALE[:1], b"\0") in every
