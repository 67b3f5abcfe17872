"""Read-ahead brings in the right pages, and no damaged file ends the process."""

import gc
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import safejax
import safejax._src.arrays.at_once
from safejax._src.reading import readahead
from safejax._src.reading.memory import address
from safejax._src.reading.readahead import _page_runs, read_ahead
from tests.support.cold import PAGE, chilled, mapped, resident


@pytest.mark.parametrize(
    ("spans", "runs"),
    [
        ([], []),
        ([(5, 1)], [(0, 1)]),
        ([(PAGE, PAGE)], [(1, 2)]),
        ([(PAGE - 1, 2)], [(0, 2)]),
        ([(0, 10), (PAGE + 3, 10)], [(0, 2)]),  # they meet at the end of a page
        ([(0, 10), (2 * PAGE, 10)], [(0, 1), (2, 3)]),
        ([(9 * PAGE, 10), (0, 10)], [(0, 1), (9, 10)]),  # sorted by address
        ([(0, 9 * PAGE), (PAGE, 10)], [(0, 9)]),
        ([(100, 10), (50, 10), (100, 10)], [(0, 1)]),
    ],
)
def test_spans_become_runs_of_pages(
    spans: list[tuple[int, int]], runs: list[tuple[int, int]]
) -> None:
    assert _page_runs(spans) == [(begin * PAGE, end * PAGE) for begin, end in runs]


@pytest.fixture
def cold(tmp_path: Path) -> str:
    """A file of 8 MiB of which nothing is in memory."""
    path = tmp_path / "cold"
    path.write_bytes(np.random.default_rng(0).bytes(8 << 20))
    return chilled(path)


def test_pages_that_are_read_ahead_are_in_memory(cold: str) -> None:
    whole = mapped(cold)
    assert resident(whole) == 0
    first, last = whole[100 : 1 << 20], whole[7 << 20 :]
    thread = read_ahead([first, last])
    assert thread is not None
    thread.join()
    assert resident(first) == resident(last) == 1


def test_materialize_reads_ahead_the_leaves_that_are_used_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Which memory is read ahead cannot be seen from outside: other pages may be there by chance.
    asked: list[Any] = []
    monkeypatch.setattr(
        safejax._src.arrays.at_once, "read_ahead", lambda blocks: asked.extend(blocks)
    )
    path = str(tmp_path / "model.safetensors")
    tree = {"a": jnp.arange(64.0), "b": jnp.ones((8, 16)), "c": jnp.arange(7)}
    safejax.save(tree, path)
    placed = safejax.materialize(safejax.load(path))
    expected = {leaf.unsafe_buffer_pointer(): leaf.nbytes for leaf in placed.values()}
    assert {address(block): block.nbytes for block in asked} == expected
    asked.clear()
    # Leaves that are copied have been read.
    safejax.materialize(safejax.load(path, access="copy"))
    safejax.materialize(safejax.load(path, transform=safejax.transpose("b"))["b"])
    assert asked == []


def test_a_file_that_was_cut_short_does_not_end_the_process(tmp_path: Path) -> None:
    path = str(tmp_path / "short")
    Path(path).write_bytes(bytes(64 * PAGE))
    whole = mapped(path)
    os.truncate(path, PAGE)
    thread = read_ahead([whole])
    assert thread is not None
    thread.join()


def test_the_arrays_are_kept_until_their_pages_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "kept")
    Path(path).write_bytes(bytes(4 << 20))
    go_on, begun = threading.Event(), threading.Event()

    def advise(begin: int, nbytes: int, advice: int | None) -> int:
        begun.set()
        assert go_on.wait(60)
        return 0

    # A real call cannot be held up until the caller has let go of the array.
    monkeypatch.setattr(readahead, "madvise", lambda: advise)
    array = mapped(path)
    kept = weakref.ref(array)
    thread = read_ahead([array])
    assert thread is not None
    del array
    assert begun.wait(60)
    gc.collect()
    # Otherwise the memory would be unmapped, or mapped again for something else.
    assert kept() is not None
    go_on.set()
    thread.join()
    assert kept() is None


def test_a_file_that_fails_does_not_prevent_others_from_being_read(
    cold: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "short")
    Path(path).write_bytes(bytes(64 * PAGE))
    short, whole = mapped(path), mapped(cold)
    os.truncate(path, PAGE)
    # Either may have the lower address.
    thread = read_ahead([short, whole, short])
    assert thread is not None
    thread.join()
    assert resident(whole) == 1


def test_the_memory_limit_of_a_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    # A test cannot set the limit of the container that it runs in.
    monkeypatch.setattr(readahead, "_CONTAINER_LIMITS", (str(limit),))
    unlimited = readahead._most()
    assert 1 << 20 < unlimited < os.sysconf("SC_PHYS_PAGES") * PAGE
    for text, most in [("max\n", unlimited), ("6000\n", 3000), (f"{1 << 63}\n", unlimited)]:
        limit.write_text(text)
        assert readahead._most() == most


def test_arrays_in_memory_are_not_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    # Which memory is read ahead cannot be seen from outside: other pages may be there by chance.
    asked: list[Any] = []
    monkeypatch.setattr(
        safejax._src.arrays.at_once, "read_ahead", lambda blocks: asked.extend(blocks)
    )
    safejax.materialize(safejax.deserialize(safejax.serialize({"a": jnp.ones((64, 64))})))
    assert asked == []


def test_nothing_to_read_starts_no_thread() -> None:
    assert read_ahead([]) is None


def test_more_than_half_of_memory_is_not_read_ahead(tmp_path: Path) -> None:
    path = str(tmp_path / "sparse")
    Path(path).touch()
    os.truncate(path, os.sysconf("SC_PHYS_PAGES") * PAGE)
    whole = mapped(path)
    assert read_ahead([whole]) is None
    assert resident(whole[:PAGE]) == 0
    thread = read_ahead([whole[:PAGE]])
    assert thread is not None
    thread.join()
    assert resident(whole[:PAGE]) == 1
