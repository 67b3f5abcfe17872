"""Requests: what is needed is in the reads, and what is in the reads is where it is said to be."""

import random
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

import safejax
from safejax._src.reading.requests import (
    Requests,
    byte_spans,
    planned,
    planned_cost,
    whole_blocks,
)
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


def all_read(requests: Requests) -> np.ndarray:
    """What the reads of a source that holds `DATA` return, one after another."""
    memory = np.empty(requests.nbytes, np.uint8)
    for (begin, end), part in zip(requests.ranges, requests.parts(memory), strict=True):
        part[:] = DATA[begin:end]
    return memory


def assert_holds_its_spans(requests: Requests) -> None:
    """The laws of every list of requests, whoever planned it."""
    spans, ranges = requests.spans, requests.ranges
    assert all(begin < end for begin, end in ranges)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(ranges))
    assert requests.nbytes == sum(end - begin for begin, end in ranges)
    assert requests.excess == requests.nbytes - spans.count >= 0
    # Each span is in one read, and all spans are in one.
    held: list[int] = []
    numbers = np.arange(len(spans.starts))
    for number, (begin, end) in enumerate(ranges):
        of_read = numbers[requests.span_numbers(number)].tolist()
        assert of_read
        held += of_read
        for span in of_read:
            assert begin <= spans.starts[span] <= spans.starts[span] + spans.length <= end
    assert held == numbers.tolist()
    # And is found in what was read: from all at once, and read by read.
    expected = np.concatenate([DATA[at : at + spans.length] for at in spans.starts.tolist()])
    assert requests.joined(all_read(requests)).tobytes() == expected.tobytes()
    rows = [requests.rows(k, DATA[begin:end]) for k, (begin, end) in enumerate(ranges)]
    assert np.concatenate(rows).tobytes() == expected.tobytes()


def test_byte_spans_are_the_bytes_that_a_window_shows() -> None:
    for begin, dtype, window in examples():
        spans = byte_spans(begin, dtype, window)
        runs = [range(at, at + spans.length) for at in spans.starts.tolist()]
        assert sorted(at for run in runs for at in run) == sorted(
            needed_bytes(begin, dtype, window)
        )


def test_what_is_planned_is_each_span_and_nothing_else() -> None:
    for begin, dtype, window in examples():
        requests = planned(byte_spans(begin, dtype, window))
        assert_holds_its_spans(requests)
        assert requests.excess == 0
        assert {at for low, high in requests.ranges for at in range(low, high)} == needed_bytes(
            begin, dtype, window
        )
        # Nothing has to be copied out.
        memory = all_read(requests)
        assert requests.joined(memory) is memory


def test_the_cost_is_that_of_what_is_planned() -> None:
    for begin, dtype, window in examples():
        requests = planned(byte_spans(begin, dtype, window))
        assert planned_cost(dtype, window) == (requests.nbytes, len(requests.ranges))
    empty = Window.whole((3, 0))
    assert planned_cost(np.dtype(np.uint8), empty) == (0, 0)


@pytest.mark.parametrize("size", [1, 2, 7, 64, SIZE])
@pytest.mark.parametrize("limited", [False, True])
def test_blocks_are_whole_and_only_those_that_are_touched(size: int, limited: bool) -> None:
    several = 0
    for begin, dtype, window in examples(150):
        spans = byte_spans(begin, dtype, window)
        last = int(spans.starts[-1]) + spans.length
        requests = whole_blocks(spans, size, last if limited else None)
        assert_holds_its_spans(requests)
        touched = {at // size for at in needed_bytes(begin, dtype, window)}
        found: list[int] = []
        for low, high in requests.ranges:
            assert low % size == 0
            assert high % size == 0 or (limited and high == last)
            found += range(low // size, -(-high // size))
        assert found == sorted(touched)
        # Adjacent blocks are one read.
        ranges = requests.ranges
        assert all(end < begin for (_, end), (begin, _) in pairwise(ranges))
        several += len(ranges) > 1
    assert several or size == SIZE


def test_spans_of_one_block_are_one_read() -> None:
    requests = whole_blocks(Spans(np.array([3, 9, 18, 40, 61]), 2), 10, 64)
    assert requests.ranges == [(0, 20), (40, 50), (60, 64)]
    assert [requests.span_numbers(k) for k in range(3)] == [
        slice(0, 3), slice(3, 4), slice(4, None),
    ]  # fmt: skip
    assert (requests.nbytes, requests.excess) == (34, 24)


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
