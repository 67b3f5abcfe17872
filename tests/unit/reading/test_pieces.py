"""Of a file that is not in memory, what is needed comes from the disk, and next to nothing else.

How much the system reads ahead differs from machine to machine. The bounds hold on all of them, or
are those of a plain mapping there.
"""

import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import safejax
from safejax._src.reading import pieces
from safejax._src.reading.descriptors import Descriptor, LocalFile
from safejax._src.reading.file import FileSource, MappedSource
from safejax._src.reading.memory import address
from safejax._src.reading.pieces import Pieces
from safejax._src.reading.windows import Window
from safejax._src.storage.store import Access
from safejax.testing import assert_same_bits
from tests.support.cold import (
    PAGE,
    brought_in,
    chilled,
    mapped,
    pages,
    sparse_file,
    waits,
    waits_of_plain_mapping,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="others read ahead otherwise")

KIB, MIB = 1 << 10, 1 << 20
MORE = 128 * KIB
"""Bytes that may come with those of a piece."""

FLOAT = np.dtype(np.float32)
ROWS, WIDTH = 1024, 16384  # 64 MiB, in rows of 64 KiB
ROW = 4 * WIDTH


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """A cold file with a large leaf between two others."""
    shapes = {"before": (2048, 1024), "w": (ROWS, WIDTH), "z": (2048, 1024)}
    path = sparse_file(tmp_path / "m.safetensors", shapes)
    yield path
    os.unlink(path)


# ---- headers


@pytest.mark.parametrize("access", ["map", "copy", "read"])
def test_of_files_that_are_opened_their_headers_come_in(tmp_path: Path, access: Access) -> None:
    paths = [
        sparse_file(tmp_path / f"{n}.safetensors", {f"{n}.{k}": (64, 8192) for k in range(8)})
        for n in range(100)
    ]
    tree = safejax.load(paths, access=access)
    assert len(tree) == 100
    headers = sum(8 + int.from_bytes(Path(path).read_bytes()[:8], "little") for path in paths[:1])
    del tree
    paths = [chilled(path) for path in paths]
    leaves = safejax.flatten(safejax.load(paths, access=access))
    assert len(leaves) == 800
    assert sum(map(brought_in, paths)) <= 100 * headers + MIB


def test_a_long_header_comes_in_alone(tmp_path: Path) -> None:
    path = sparse_file(tmp_path / "m.safetensors", {f"w{k}": (64, 1024) for k in range(2000)})
    assert len(safejax.load(path)) == 2000
    header = int.from_bytes(mapped(path)[:8].tobytes(), "little") + 8
    assert 100 * KIB < header <= brought_in(path) <= header + 10 * KIB


def test_what_is_no_header_is_read_as_far_as_the_file_goes(tmp_path: Path) -> None:
    (tmp_path / "ten").write_bytes(b"0123456789")
    for kind in (MappedSource, FileSource):
        source = kind(str(tmp_path / "ten"))
        assert [source.prefix(2, 5), source.prefix(8, 99), source.prefix(4, 4)] == [
            b"234", b"89", b"",
        ]  # fmt: skip


# ---- pieces

PIECES: dict[str, tuple[Callable[[Any], Any], int]] = {
    "a row": (lambda w: np.array(w[700]), ROW),
    "a row on a device": (lambda w: w[700].sum(), ROW),
    "a part of a row": (lambda w: np.array(w[700, 5:50]), PAGE),
    "an element": (lambda w: np.array(w[700, 50]), PAGE),
    "rows": (lambda w: np.array(w[2:5]), 3 * ROW),
    "the last rows": (lambda w: np.array(w[-3:]), 3 * ROW),
    "rows far apart": (lambda w: np.array(w[::100]), 11 * ROW),
    "rows backwards": (lambda w: np.array(w[900:100:-100]), 8 * ROW),
    "a column": (lambda w: np.array(w[:, 77]), ROWS * PAGE),
    "some columns": (lambda w: np.array(w[:, 1024:2048]), ROWS * PAGE),
    "some columns of some rows": (lambda w: np.array(w[100:200, 1000:1100]), 100 * 2 * PAGE),
    "some columns on a device": (lambda w: w[:, 1024:2048].sum(), ROWS * PAGE),
}


@pytest.mark.parametrize("access", ["map", "copy"])
@pytest.mark.parametrize("part", PIECES)
def test_of_a_piece_only_its_own_pages_come_in(path: str, part: str, access: Access) -> None:
    read, nbytes = PIECES[part]
    read(safejax.load(path, access=access)["w"])
    assert nbytes / 2 <= brought_in(path) <= PAGE + nbytes + MORE


def test_rows_and_columns_of_a_transposed_leaf(path: str) -> None:
    turned = safejax.load(path, transform=safejax.transpose("w"))["w"]
    np.array(turned[:, 700])
    assert brought_in(path) <= PAGE + ROW + MORE
    np.array(turned[77])
    assert brought_in(path) <= PAGE + ROW + MORE + ROWS * PAGE + MORE


def test_rows_within_a_page_come_in_by_their_pages(tmp_path: Path) -> None:
    leaf = safejax.load(sparse_file(tmp_path / "m.safetensors", {"w": (1 << 18, 64)}))["w"]
    for number in range(5, 1 << 18, 1 << 14):
        np.array(leaf[number])
    assert 16 * PAGE <= brought_in(str(tmp_path / "m.safetensors")) <= PAGE + 16 * PAGE + MORE


def test_one_row_of_each_of_many_leaves(tmp_path: Path) -> None:
    path = sparse_file(tmp_path / "m.safetensors", {f"w{k:02}": (64, 8192) for k in range(50)})
    tree = safejax.load(path)
    for leaf in tree.values():
        np.array(leaf[30])
    assert brought_in(path) <= PAGE + 50 * 4 * 8192 + MORE


def test_rows_of_a_stack_of_leaves(tmp_path: Path) -> None:
    path = sparse_file(tmp_path / "m.safetensors", {f"w.{k}": (512, 8192) for k in range(4)})
    tree = safejax.load(path, transform=safejax.stack("w.{i}", "w"))
    np.array(tree["w"][:, 300])
    assert brought_in(path) <= PAGE + 4 * 4 * 8192 + MORE


def test_of_a_piece_whose_blocks_are_checked_these_come_in(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safejax.save({"w": np.zeros((512, 8192), np.float32)}, path, checksum=True)
    block = 4 * MIB
    tree = safejax.load(chilled(path), verify=True)
    np.array(tree["w"][300])
    assert brought_in(str(path)) <= PAGE + block + MORE


# ---- wholes


def few(path: str) -> int:
    """Waits for a whole file, if each brings 64 KiB on average; single pages would be 16 times."""
    return 16 + os.path.getsize(path) // (64 * KIB)


def test_a_whole_leaf_comes_in_large_reads(path: str) -> None:
    plain = waits_of_plain_mapping(path)
    tree = safejax.load(chilled(path))
    before = waits()
    np.asarray(tree["w"]).reshape(-1)[:: PAGE // 4].sum()
    assert waits() - before <= plain + few(path)
    begin = 8 + int.from_bytes(mapped(path)[:8].tobytes(), "little") + 2048 * 1024 * 4
    assert pages(mapped(path)[begin : begin + ROWS * ROW]).all()


def test_a_tree_that_is_placed_comes_in_large_reads(path: str) -> None:
    plain = waits_of_plain_mapping(path)
    tree = safejax.load(chilled(path))
    before = waits()
    assert sum(float(leaf.sum()) for leaf in safejax.materialize(tree).values()) == 0
    assert waits() - before <= plain + few(path)
    assert pages(mapped(path)).all()


def test_small_leaves_bring_their_neighbours(tmp_path: Path) -> None:
    path = sparse_file(tmp_path / "m.safetensors", {f"w{k}": (32, 32) for k in range(4000)})
    plain = waits_of_plain_mapping(path)
    tree = safejax.load(chilled(path))
    before = waits()
    for name in sorted(tree):  # Another order than that of the file.
        np.array(tree[name])
    assert waits() - before <= plain + few(path)


def by_rows(leaf: Any) -> None:
    for number in range(ROWS):
        np.array(leaf[number])


def by_slices(leaf: Any) -> None:
    for begin in range(0, ROWS, 8):
        np.array(leaf[begin : begin + 8])


@pytest.mark.parametrize("read", [by_rows, by_slices])
def test_pieces_that_follow_each_other_become_large_reads(
    path: str, read: Callable[[Any], None]
) -> None:
    plain = waits_of_plain_mapping(path)
    leaf = safejax.load(chilled(path))["w"]
    before = waits()
    read(leaf)
    # Up to where they are a stream, each is waited for once.
    assert waits() - before <= plain + few(path) + 2 * MIB // ROW
    assert brought_in(path) >= ROWS * ROW


# ---- the same values

VALUES = np.arange(3 * MIB // 4, dtype=np.int32).reshape(12, 32, 2048)


@pytest.fixture
def tree(tmp_path: Path) -> Any:
    path = tmp_path / "m.safetensors"
    safejax.save({"a": VALUES[0], "w": VALUES, "z": VALUES[1]}, path)
    return safejax.load(path)


def test_pieces_have_the_values_of_the_file(tree: Any) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        index = tuple(
            int(rng.integers(size))
            if rng.integers(3) == 0
            else slice(
                int(rng.integers(-size, size)),
                int(rng.integers(-size, size)),
                int(rng.choice([-3, -1, 1, 1, 2, 7])),
            )
            for size in VALUES.shape[: rng.integers(1, 4)]
        )
        assert_same_bits(np.asarray(tree["w"][index]), VALUES[index])
    for axes in [(2, 1, 0), (1, 0, 2), (0, 2, 1)]:
        turned = safejax.transpose("w", axes=axes)(safejax.flatten(tree))["w"]
        assert_same_bits(np.asarray(turned[3:5]), VALUES.transpose(axes)[3:5])
        for number in (3, 4, 1):
            assert_same_bits(np.asarray(turned[number]), VALUES.transpose(axes)[number])
    for number in (3, 11, 4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2):
        assert_same_bits(np.asarray(tree["w"][number]), VALUES[number])
        assert_same_bits(jnp.asarray(tree["w"][number]), VALUES[number])


def test_a_piece_is_used_in_place_by_a_device(tree: Any) -> None:
    row = tree["w"][5]
    host = np.asarray(row)
    assert row.unsafe_buffer_pointer() == address(host)
    assert not host.flags.writeable


def test_where_a_second_mapping_has_no_room_pieces_come_from_the_first(tmp_path: Path) -> None:
    path = sparse_file(tmp_path / "m.safetensors", {"w": (2 << 10, 1 << 20)})  # 8 GiB
    source = MappedSource(path)
    source.learn([_Extent(PAGE, source.nbytes)])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    part = (PAGE, FLOAT, Window(5 << 20, (100,), (1,)))
    resource.setrlimit(resource.RLIMIT_AS, (used + source.nbytes // 2, hard))
    try:
        array = source.read(*part)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert not array.any()
    assert np.shares_memory(array, source.read(PAGE, FLOAT, Window.whole((2 << 10, 1 << 20))))
    assert not np.shares_memory(array, source.read(*part))


def test_a_file_that_is_closed_and_replaced_has_no_pieces(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(MIB))
    file = LocalFile(str(path), Descriptor(str(path)))
    found = Pieces(file)
    found.learn([_Extent(0, MIB)])
    part = (0, FLOAT, Window(5, (100,), (1,)))
    file.close()
    (tmp_path / "other").write_bytes(bytes(MIB))
    os.replace(tmp_path / "other", path)
    assert found.memory(*part) is None


def test_other_systems_have_no_pieces(tree: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # The system that runs the tests is one that has.
    monkeypatch.setattr(pieces, "ADVISES", False)
    source = MappedSource(tree["w"].content.view.source.name)
    source.learn([_Extent(0, source.nbytes)])
    whole = source.read(0, FLOAT, Window.whole((1000,)))
    assert np.shares_memory(whole, source.read(0, FLOAT, Window(5, (100,), (1,))))


class _Extent:
    def __init__(self, begin: int, end: int) -> None:
        self.begin = begin
        self.end = end
