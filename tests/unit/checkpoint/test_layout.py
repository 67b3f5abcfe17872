"""The layout of a file: all of it is known before a leaf is read, and nothing changes it."""

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors

import safejax
from safejax import InvalidFileError, LeafError, Leaves, decode, encode, flatten, observe_reads
from safejax._src.checkpoint.layout import Layout, layout

TREE = {
    "grid": np.arange(12, dtype=np.float32).reshape(3, 4),
    "odd": np.arange(3, dtype=np.int8),
    "none": np.zeros((0, 3)),
    "narrow": np.arange(5).astype(ml_dtypes.int4),
    "packed": np.zeros((3, 2), ml_dtypes.float4_e2m1fn),
    "wide": np.arange(2, dtype=np.complex128),
    "key": jax.random.key(3),
    "steps": [3, "x", None],
}


def laid_out(*, checksum: bool = False, **metadata: str) -> Layout:
    return layout(flatten(TREE).replace(metadata=metadata), "f", checksum=checksum)


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("metadata", [{}, {"k": "v"}])
def test_extents_are_where_the_header_says(checksum: bool, metadata: dict[str, str]) -> None:
    plan = laid_out(checksum=checksum, **metadata)
    data = encode(flatten(TREE).replace(metadata=metadata), checksum=checksum)
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header.pop("__metadata__")
    assert len(plan.head) == begin
    assert plan.nbytes == len(data)
    assert [extent.name for extent in plan.extents] == list(header)
    for extent in plan.extents:
        assert [extent.begin - begin, extent.end - begin] == header[extent.name]["data_offsets"]
        assert extent.nbytes == extent.end - extent.begin
        assert list(extent.stored.shape) == header[extent.name]["shape"]
    # And the data is where the extents are.
    of = dict(safetensors.deserialize(data))
    for extent in plan.extents:
        assert data[extent.begin : extent.end] == bytes(of[extent.name]["data"])


def test_a_file_without_tensors_is_its_head() -> None:
    plan = layout(Leaves({"step": 3}), "f")
    assert plan.extents == ()
    assert plan.nbytes == len(plan.head)
    assert plan.head == encode(Leaves({"step": 3}))


def test_a_layout_reads_nothing_and_the_same_leaves_give_the_same() -> None:
    leaves = decode(encode(flatten(TREE)))
    with observe_reads() as log:
        one, other = (layout(leaves, "f", checksum=True) for _ in range(2))
        assert one.head == other.head
        assert one == other
        assert not log.reads
    # From avals alone, too: other values, and another order of the leaves.
    zeros = {name: np.zeros_like(leaf) if name == "grid" else leaf for name, leaf in leaves.items()}
    third = layout(leaves.replace(dict(reversed(zeros.items()))), "f", checksum=True)
    assert third.head == one.head


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Layout)])
def test_a_layout_cannot_be_changed(field: str) -> None:
    plan = laid_out(k="v")
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(plan, field, None)
    with pytest.raises(TypeError):
        plan.metadata["k"] = "w"  # type: ignore[index]


# ---- digests in the head


def digests_for(plan: Layout, byte: int) -> dict[str, bytes]:
    assert plan.record.digests is not None
    return {name: bytes([byte]) * len(zeros) for name, zeros in plan.record.digests.of.items()}


def test_there_is_room_for_a_digest_of_every_block() -> None:
    tree = {"large": np.zeros((5 << 18) + 1, np.float32), "small": np.int8(1), "none": np.zeros(0)}
    plan = layout(flatten(tree), "f", checksum=True)
    assert plan.block_bytes == 1 << 20
    assert plan.record.digests is not None
    assert plan.record.digests.of == {"large": bytes(8 * 6), "small": bytes(8)}


def test_the_head_with_digests_is_as_long_and_changes_nothing_else() -> None:
    plan = laid_out(checksum=True, k="v")
    before = plan.head
    assert plan.head_with(digests_for(plan, 0)) == before
    ones = plan.head_with(digests_for(plan, 1))
    assert len(ones) == len(before)
    assert ones != before
    assert plan.head_with(digests_for(plan, 1)) == ones
    assert plan.head == before

    def without_digests(head: bytes) -> Any:
        header = json.loads(head[8:])
        record = json.loads(header["__metadata__"].pop("safejax"))
        record["digests"].pop("tensors")
        return header, record

    assert without_digests(ones) == without_digests(before)


WRONG: dict[str, Callable[[dict[str, bytes]], dict[str, bytes]]] = {
    "none": lambda every: {},
    "one missing": lambda every: {name: each for name, each in every.items() if name != "grid"},
    "one too many": lambda every: {**every, "none": bytes(8)},
    "of another size": lambda every: {**every, "grid": bytes(16)},
    "of another name": lambda every: {name.replace("g", "h"): each for name, each in every.items()},
}


@pytest.mark.parametrize("case", WRONG)
def test_the_head_takes_the_digests_of_all_blocks_and_no_others(case: str) -> None:
    plan = laid_out(checksum=True)
    every = digests_for(plan, 1)
    with pytest.raises(ValueError, match=rf"^f: expected the digests of {len(every)} blocks, got"):
        plan.head_with(WRONG[case](every))


def test_a_layout_without_checksum_takes_no_digests() -> None:
    plan = laid_out()
    assert plan.block_bytes is None
    for digests in ({}, {"grid": bytes(8)}):
        with pytest.raises(ValueError, match="expected the digests of 0 blocks"):
            plan.head_with(digests)


def test_without_xxhash_it_fails_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xxhash", None)
    with observe_reads() as log, pytest.raises(ImportError, match=r"safejax\[checksum\]"):
        laid_out(checksum=True)
    assert not log.reads
    assert safejax.serialize(TREE)


def test_a_header_that_is_too_long_is_found_before_any_leaf_is_looked_at() -> None:
    """(R16)"""
    shared = np.zeros(1, "datetime64[s]")  # An error as soon as it is looked at.
    leaves = Leaves({f"{number:0>10000}": shared for number in range(10_000)})
    with pytest.raises(InvalidFileError, match=r"at most 100000000 .* for 10000 tensors"):
        layout(leaves, "m.safetensors")
    with pytest.raises(LeafError, match="expected an array of a dtype that JAX has"):
        layout(Leaves({"a": shared}), "m.safetensors")
