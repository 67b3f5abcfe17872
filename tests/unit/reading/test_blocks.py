"""Blocks: what is needed is in the reads, and what is in the reads is where it is said to be."""

import random
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

import safejax
from safejax._src.reading.blocks import MOST_AT_A_TIME, Blocks, touched_blocks, whole_blocks
from safejax._src.reading.requests import byte_spans
from safejax._src.reading.windows import Spans, Window

SIZE = 4096
DATA = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
DTYPES = [np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float64)]


def windows() -> Iterator[tuple[int, np.dtype, Window]]:
    """Parts of tensors that begin anywhere in the data, none of them empty."""
    chance = random.Random(0)
    while True:
        dtype = chance.choice(DTYPES)
        shape = tuple(chance.randint(1, 7) for _ in range(chance.randint(0, 3)))
        window = Window.whole(shape)
        axes = list(range(len(shape)))
        chance.shuffle(axes)
        window = window.transpose(tuple(axes))
        index = tuple(
            slice(*sorted(chance.sample(range(size + 1), 2)), chance.choice([1, 1, 2, 3]))
            for size in window.shape
        )
        window = window.index(index)
        if chance.random() < 0.3:
            window = window.expand(0, chance.randint(1, 3))
        if window.size:
            yield chance.randint(0, 500), dtype, window


def examples(count: int = 300) -> list[tuple[int, np.dtype, Window]]:
    return list(islice(windows(), count))


def needed_bytes(begin: int, dtype: np.dtype, window: Window) -> set[int]:
    """The positions of the bytes that a window shows, found by NumPy."""
    count = (SIZE - begin) // dtype.itemsize
    flat = np.arange(begin, begin + count * dtype.itemsize).reshape(count, dtype.itemsize)
    strides = [*(stride * flat.strides[0] for stride in window.strides), flat.strides[1]]
    shown = np.lib.stride_tricks.as_strided(
        flat[window.offset :], (*window.shape, dtype.itemsize), strides
    )
    return set(shown.reshape(-1).tolist())


def all_read(blocks: Blocks) -> np.ndarray:
    """What the reads of a source that holds `DATA` return, one after another."""
    return np.concatenate([DATA[begin:end] for begin, end in blocks.ranges])


def assert_holds_its_spans(blocks: Blocks) -> None:
    """The laws of all blocks."""
    spans, ranges = blocks.spans, blocks.ranges
    assert all(begin < end for begin, end in ranges)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(ranges))
    assert blocks.nbytes == sum(end - begin for begin, end in ranges)
    assert blocks.excess == blocks.nbytes - spans.count >= 0
    # Each span is in one read.
    for start in spans.starts.tolist():
        assert any(begin <= start <= start + spans.length <= end for begin, end in ranges)
    # And is found in what was read.
    expected = np.concatenate([DATA[at : at + spans.length] for at in spans.starts.tolist()])
    assert blocks.joined(all_read(blocks)).tobytes() == expected.tobytes()


def test_byte_spans_are_the_bytes_that_a_window_shows() -> None:
    for begin, dtype, window in examples():
        spans = byte_spans(begin, dtype, window)
        runs = [range(at, at + spans.length) for at in spans.starts.tolist()]
        assert sorted(at for run in runs for at in run) == sorted(
            needed_bytes(begin, dtype, window)
        )


@pytest.mark.parametrize("size", [1, 2, 7, 64, SIZE])
@pytest.mark.parametrize("limited", [False, True])
def test_blocks_are_whole_and_only_those_that_are_touched(size: int, limited: bool) -> None:
    several = 0
    for begin, dtype, window in examples(150):
        spans = byte_spans(begin, dtype, window)
        last = int(spans.starts[-1]) + spans.length
        blocks = whole_blocks(spans, size, last if limited else None)
        assert_holds_its_spans(blocks)
        touched = {at // size for at in needed_bytes(begin, dtype, window)}
        found: list[int] = []
        for low, high in blocks.ranges:
            assert low % size == 0
            assert high % size == 0 or (limited and high == last)
            found += range(low // size, -(-high // size))
        assert found == sorted(touched)
        # Adjacent blocks are one read.
        ranges = blocks.ranges
        assert all(end < begin for (_, end), (begin, _) in pairwise(ranges))
        several += len(ranges) > 1
    assert several or size == SIZE


def test_spans_of_one_block_are_one_read() -> None:
    blocks = whole_blocks(Spans(np.array([3, 9, 18, 40, 61]), 2), 10, 64)
    assert blocks.ranges == [(0, 20), (40, 50), (60, 64)]
    assert (blocks.nbytes, blocks.excess) == (34, 24)


def test_blocks_that_several_windows_touch_are_read_once() -> None:
    wanted = [Spans(np.array([3, 9, 18]), 2), Spans(np.array([15]), 30), Spans(np.array([61]), 2)]
    touched = touched_blocks(wanted, 10, 64)
    assert list(zip(touched.begins.tolist(), touched.ends.tolist(), strict=True)) == [
        (0, 50), (60, 64),
    ]  # fmt: skip
    assert touched.needed == 2 + 2 + 30 + 2


def test_blocks_are_read_in_bounded_pieces_that_hold_whole_ones() -> None:
    size = 3 << 20
    whole = Spans(np.zeros(1, np.int64), 200 << 20)
    touched = touched_blocks([whole], size, 200 << 20)
    sizes = touched.ends - touched.begins
    assert max(sizes) <= MOST_AT_A_TIME
    assert not (touched.begins % size).any()
    assert touched.nbytes == 200 << 20


# ---- needed and requested are counted apart


def test_whole_blocks_are_requested_for_the_few_bytes_that_are_needed(tmp_path: Path) -> None:
    path = str(tmp_path / "w.safetensors")
    array = np.arange(3 << 18, dtype=np.float32).reshape(3, -1)  # three blocks of 1 MiB
    safejax.save({"w": array}, path, checksum=True)
    for access in ("map", "read"):
        for verify, nbytes in ((True, 2 << 20), (False, 16)):
            leaf = safejax.load(path, verify=verify, access=access)["w"]
            with safejax.observe_reads() as log:
                part = np.asarray(leaf[::2, 5:7])
                assert part.tobytes() == array[::2, 5:7].tobytes()
            assert (log.nbytes, log.needed, log.excess) == (nbytes, 16, nbytes - 16)
            log.clear()
            assert (log.nbytes, log.needed, log.excess) == (0, 0, 0)
