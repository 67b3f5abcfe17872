"""The stream of a layout: a file's bytes in blocks, and the digests of what has passed."""

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import xxhash

from safejax import LeafError, Leaves, cast, decode, encode, flatten, observe_reads, transpose
from safejax._src.checkpoint.layout import Layout, layout
from safejax._src.checkpoint.stream import BLOCK_BYTES, JOINED_BYTES, Stream, final_chunks, to_bytes

LARGE = np.arange(BLOCK_BYTES // 4 + 10, dtype=np.int32)
TREE: dict[str, Any] = {
    "large": LARGE,
    "rows": np.arange(12, dtype=np.float32).reshape(3, 4),
    "packed": np.zeros((3, 2), ml_dtypes.float4_e2m1fn),
    "none": np.zeros((0, 3)),
    "scalar": np.int8(3),
    "steps": [3, None],
}


def lazy_leaves(tree: Any = TREE) -> Leaves:
    return decode(encode(flatten(tree)))


def sizes(chunks: Iterator[memoryview]) -> list[int]:
    return [chunk.nbytes for chunk in chunks]


# ---- chunks


def test_large_leaves_are_streamed_in_blocks() -> None:
    leaves = lazy_leaves({"w": LARGE})
    plan = layout(cast("uint32", source="int32")(leaves), "f")
    expected = [len(plan.head), BLOCK_BYTES, 40]
    assert sizes(Stream(plan).chunks()) == expected
    assert plan.nbytes == sum(expected)


@pytest.mark.parametrize("checksum", [False, True])
def test_a_chunk_is_read_when_it_is_taken(checksum: bool) -> None:
    leaves = cast("uint32", source="int32")(lazy_leaves({"w": LARGE}))
    chunks = Stream(layout(leaves, "f", checksum=checksum)).chunks()
    with observe_reads() as log:
        next(chunks)
        assert log.nbytes == 0
        next(chunks)
        assert log.nbytes == BLOCK_BYTES
        next(chunks)
        assert log.nbytes == LARGE.nbytes
    assert list(chunks) == []


@pytest.mark.parametrize("checksum", [False, True])
def test_small_leaves_are_one_chunk_and_a_large_one_is_never_copied_to_it(checksum: bool) -> None:
    large = np.arange(JOINED_BYTES // 4, dtype=np.int32)
    tree = {f"{number:05}": np.full(8, number, np.float32) for number in range(40_000)}
    plan = layout(Leaves({**tree, "0001_large": large}), "f", checksum=checksum)
    found = list(Stream(plan).chunks())
    before = next(extent.begin for extent in plan.extents if extent.name == "0001_large")
    small = 40_000 * 32
    # The large one comes first: its size is a multiple of 64 bytes.
    assert before == len(plan.head)
    assert sizes(iter(found)) == [
        len(plan.head),
        JOINED_BYTES,
        JOINED_BYTES,
        small - JOINED_BYTES,
    ]
    assert np.shares_memory(np.asarray(found[1]), large)
    assert b"".join(found[2:]) == b"".join(tree[name].tobytes() for name in sorted(tree))


def test_what_is_joined_keeps_the_order_of_the_layout() -> None:
    """Small leaves before, between and after those that are chunks of their own."""
    width = 1 << 16
    tree = {
        name: np.full(count, number, np.uint8)
        for number, (name, count) in enumerate(
            {"a": 64, "b": width, "c": 128, "d": 64, "e": 2 * width, "f": 5}.items(), 1
        )
    }
    plan = layout(Leaves(tree), "f")
    assert sizes(Stream(plan).chunks())[1:] == [64, width, 192, 2 * width, 5]
    data = to_bytes(plan)
    for extent in plan.extents:
        assert data[extent.begin : extent.end] == tree[extent.name].tobytes()


# ---- digests


def streamed(plan: Layout) -> bytes:
    """What a local file holds: all chunks, and then the late head over the first bytes."""
    stream = Stream(plan)
    data = bytearray().join(stream.chunks())
    if stream.late_head is not None:
        head = stream.late_head()
        data[: len(head)] = head
    return bytes(data)


@pytest.mark.parametrize("checksum", [False, True])
def test_every_way_gives_the_same_bytes(checksum: bool) -> None:
    plan = layout(transpose("rows")(lazy_leaves()), "f", checksum=checksum)
    data = to_bytes(plan)
    assert len(data) == plan.nbytes
    assert streamed(plan) == data
    assert b"".join(final_chunks(plan)) == data
    # A layout can be streamed again, since streams change nothing in it.
    assert to_bytes(plan) == data


def test_the_head_has_the_digests_of_the_data() -> None:
    plan = layout(lazy_leaves(), "f", checksum=True)
    data = to_bytes(plan)
    assert plan.block_bytes is not None
    expected = {
        extent.name: b"".join(
            xxhash.xxh3_64(data[begin : min(begin + plan.block_bytes, extent.end)]).digest()
            for begin in range(extent.begin, extent.end, plan.block_bytes)
        )
        for extent in plan.extents
        if extent.nbytes
    }
    assert len(expected["large"]) == 8 * 17
    assert data.startswith(plan.head_with(expected))
    assert not data.startswith(plan.head)


def test_without_digests_the_head_is_final() -> None:
    plan = layout(lazy_leaves(), "f")
    stream = Stream(plan)
    assert stream.late_head is None
    assert stream.head() == plan.head
    assert bytes(next(stream.chunks())) == plan.head


def test_the_head_is_not_there_before_all_data_has_passed() -> None:
    stream = Stream(layout(lazy_leaves(), "f", checksum=True))
    chunks = stream.chunks()
    with pytest.raises(ValueError, match="f: expected the digests of 20 blocks, got those of 0"):
        stream.head()
    next(chunks), next(chunks)
    with pytest.raises(ValueError, match="got those of 0"):
        stream.head()
    for _ in chunks:
        pass
    assert stream.head()


@pytest.mark.parametrize(("checksum", "times"), [(False, 1), (True, 2)])
def test_final_chunks_read_the_data_for_its_digests_first(checksum: bool, times: int) -> None:
    leaves = lazy_leaves()
    total = sum(leaf.nbytes for leaf in leaves.values() if hasattr(leaf, "nbytes"))
    packed = 3  # The nbytes of an array counts a byte for each of its elements.
    plan = layout(leaves, "f", checksum=checksum)
    with observe_reads() as log:
        chunks = final_chunks(plan)
        first = log.nbytes
        assert first == (times - 1) * (total - packed)
        for _ in chunks:
            pass
        assert log.nbytes == times * (total - packed)


@pytest.mark.parametrize("checksum", [False, True])
def test_bytes_are_made_of_one_reading(checksum: bool) -> None:
    plan = layout(lazy_leaves({"w": LARGE}), "f", checksum=checksum)
    with observe_reads() as log:
        to_bytes(plan)
        assert log.nbytes == LARGE.nbytes


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("nbytes", [80, 1 << 17])
def test_values_that_change_while_they_are_saved_with_digests_are_an_error(
    late: bool, nbytes: int
) -> None:
    """Or the file would be one that is damaged, for whoever verifies it."""
    array = np.zeros(nbytes, np.uint8)
    made = layout(flatten({"w": array}), "m", checksum=True)
    chunks = final_chunks(made) if late else Stream(made).chunks()
    next(chunks)
    if late:
        array[0] = 1
    elif nbytes == 80:  # It is copied when it is read, and read once.
        assert next(chunks).tobytes() == bytes(nbytes)
        assert not list(chunks)
        return

    def take_and_change() -> None:
        for _ in chunks:
            array[-1] += 1

    with pytest.raises(LeafError, match="leaf 'w': expected values that stay"):
        take_and_change()


# ---- bools


@pytest.mark.parametrize("count", [3, 100_000])
def test_bools_are_stored_as_0_and_1_whatever_their_bytes_are(count: int) -> None:
    odd = np.resize(np.array([0, 2, 255], np.uint8), count)
    expected = to_bytes(layout(Leaves({"w": odd != 0}), "f"))
    assert to_bytes(layout(Leaves({"w": odd.view(bool)}), "f")) == expected
