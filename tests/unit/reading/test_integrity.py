"""Checksums: recorded when a file is saved, and checked block by block when it is read."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import objax
import pytest
import safetensors
import safetensors.numpy
import xxhash
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
import safejax._src.format.record
import safejax.equinox
import safejax.flax
import safejax.haiku
import safejax.objax
from safejax import ChecksumError, InvalidFileError
from safejax._src.reading.buffer import BufferSource
from safejax._src.reading.digests import BlockHasher, Digests, chosen_block_bytes, digests_size
from safejax._src.reading.verified import VerifiedSource
from safejax._src.reading.windows import Window
from safejax.testing import ALL_DTYPES, assert_trees_identical
from tests.support.files import data_begin, header_of, with_header

MIB = 1 << 20
LARGE = np.arange(5 * MIB // 4, dtype=np.int32).reshape(5, -1)  # a row is 1 MiB, which is a block

TREE = {
    "w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "layers": [np.int8([1, -1]), None, 3],
    "flag": np.array([True, False, True]),
    "empty": np.zeros((0, 4), np.float32),
    "int4": jnp.arange(-2, 3, dtype=jnp.int4),
    "packed": jnp.arange(4).astype(jnp.float4_e2m1fn),
    "bias": np.float32(1.5) * np.ones(()),
}


def record_of(data: bytes) -> dict[str, Any]:
    return json.loads(header_of(data)["__metadata__"]["safejax"])


def with_record(data: bytes, record: dict[str, Any]) -> bytes:
    """The file with another record, whose digests are stored as they are given."""
    header = header_of(data)
    header["__metadata__"]["safejax"] = json.dumps(record)
    return with_header(data, header)


# ---- recorded digests


def test_a_tree_is_loaded_with_verified_bytes(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safejax.save(TREE, path, checksum=True)
    assert path.read_bytes() == safejax.serialize(TREE, checksum=True)
    assert_trees_identical(safejax.load(path, verify=True), TREE)
    assert_trees_identical(safejax.load(path), TREE)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_every_dtype_is_verified_as_it_is_stored(dtype: np.dtype[Any]) -> None:
    tree = {"w": np.zeros((3, 2), dtype), "odd": np.zeros(3, dtype)}
    data = safejax.serialize(tree, checksum=True)
    assert_trees_identical(safejax.deserialize(data, verify=True), tree)


def test_the_digests_are_those_of_xxhash() -> None:
    data = safejax.serialize({"w": LARGE}, checksum=True)
    rows = [xxhash.xxh3_64_digest(row.tobytes()) for row in LARGE]
    header = safejax._src.format.record.read_record(
        {"safejax": json.dumps(record_of(data))}, "file"
    )[1]
    assert header.digests == Digests(MIB, {"w": b"".join(rows)})


def test_the_same_tree_gives_the_same_bytes_and_any_reader_reads_them() -> None:
    data = safejax.serialize(TREE, metadata={"step": "3"}, checksum=True)
    assert data == safejax.serialize(TREE, metadata={"step": "3"}, checksum=True)
    assert safejax.metadata(data) == {"step": "3"}
    plain = safejax.serialize(TREE, metadata={"step": "3"})
    assert dict(safetensors.deserialize(data)) == dict(safetensors.deserialize(plain))
    # Saved again without checksums, the file has none.
    again = safejax.deserialize(data, verify=True)
    assert safejax.serialize(again, metadata={"step": "3"}) == plain


def test_digests_belong_to_the_names_in_the_file() -> None:
    swap = safejax.rename({"w": "bias", "bias": "w"})
    data = safejax.serialize(TREE, transform=swap, checksum=True)
    assert_trees_identical(safejax.deserialize(data, transform=swap.inverse, verify=True), TREE)


def test_progress_ends_at_the_size_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    seen: list[tuple[int, int]] = []
    safejax.save(TREE, path, checksum=True, progress=lambda *at: seen.append(at))
    assert seen[-1] == (path.stat().st_size,) * 2


def test_the_steps_of_encoding_and_decoding() -> None:
    checked = safejax.encode(checksum=True)
    assert checked.inverse == safejax.decode(verify=True)
    assert checked.inverse.inverse == checked != safejax.encode
    assert repr(safejax.chain(safejax.flatten, checked)).endswith("encode(checksum=True))")
    assert repr(checked.inverse) == "decode(verify=True)"
    to_bytes = safejax.chain(safejax.flatten, checked)
    assert to_bytes(TREE) == safejax.serialize(TREE, checksum=True)
    assert_trees_identical(to_bytes.inverse(to_bytes(TREE)), TREE)
    plain = safejax.serialize(TREE)
    with pytest.raises(ChecksumError, match="without digests"):
        checked.inverse(plain)
    assert checked(safejax.flatten(TREE), checksum=False) == plain
    with pytest.raises(TypeError, match="expected Leaves, got NoneType"):
        safejax.encode(None)  # pyright: ignore
    with pytest.raises(TypeError, match="expected the bytes of a safetensors file, got NoneType"):
        safejax.decode(None)  # pyright: ignore


@pytest.mark.parametrize("total", [0, 1, 64 << 30, (64 << 30) + 1, 1 << 40, 1 << 50])
def test_there_are_not_too_many_blocks_for_a_header(total: int) -> None:
    block = chosen_block_bytes(total)
    assert digests_size(total, block) <= 8 << 16
    assert block == MIB or digests_size(total, block // 2) > 8 << 16


# ---- damage is detected


def test_every_flipped_bit_of_a_small_file_is_reported_for_its_leaf() -> None:
    data = safejax.serialize(TREE, checksum=True)
    tensors = {
        name: np.asarray(value) for name, value in safejax.decode(data).items()
        if isinstance(value, jax.Array)
    }  # fmt: skip
    begin = data_begin(data)
    header = json.loads(data[8:begin])
    found: set[str] = set()
    for at in range(begin, len(data)):
        (name,) = [
            name for name, info in header.items() if name != "__metadata__"
            and info["data_offsets"][0] <= at - begin < info["data_offsets"][1]
        ]  # fmt: skip
        found.add(name)
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            leaves = safejax.decode(bytes(damaged), verify=True)
            with pytest.raises(ChecksumError, match=f"leaf '{name}': expected the digest"):
                np.asarray(leaves[name])
    assert found == {name for name, array in tensors.items() if array.size}


def test_a_flipped_bit_of_a_large_file_is_reported_for_its_block() -> None:
    small = np.ones(3, np.float32)
    whole = safejax.serialize({"w": LARGE, "b": small}, checksum=True)
    begin = data_begin(whole)
    begin += json.loads(whole[8:begin])["w"]["data_offsets"][0]
    random = np.random.default_rng(0)
    for at in [0, LARGE.nbytes - 1, *random.integers(0, LARGE.nbytes, 40).tolist()]:
        data = bytearray(whole)
        data[begin + at] ^= 1 << int(random.integers(8))
        tree = safejax.deserialize(data, verify=True)
        row = at // MIB
        for other in {*range(5)} - {row}:
            assert np.array_equal(np.asarray(tree["w"][other]), LARGE[other])
        assert np.array_equal(np.asarray(tree["b"]), small)
        span = rf"bytes \[{begin + row * MIB}, {begin + (row + 1) * MIB}\)"
        with pytest.raises(ChecksumError, match=span):
            np.asarray(tree["w"][row, at % MIB // 4])
        with pytest.raises(ChecksumError, match="leaf 'w'"):
            np.asarray(tree["w"][:, 0])
        with pytest.raises(ChecksumError, match="leaf 'w'"):
            safejax.materialize(tree)


def test_two_exchanged_leaves_are_detected() -> None:
    one, other = (np.full(16, value, np.float32) for value in (1, 2))
    data = safejax.serialize({"a": one, "b": other}, checksum=True)
    swapped = data.replace(one.tobytes() + other.tobytes(), other.tobytes() + one.tobytes())
    assert swapped != data
    tree = safejax.deserialize(swapped, verify=True)
    for name in tree:
        with pytest.raises(ChecksumError, match=f"leaf '{name}'"):
            tree[name].sum()


@pytest.mark.parametrize(
    "use",
    [
        np.asarray,
        lambda leaf: leaf + 1,
        lambda leaf: jax.jit(lambda x: x)(leaf),
        lambda leaf: jax.jit(lambda: leaf * 2)(),
        safejax.materialize,
        lambda leaf: safejax.serialize({"w": leaf}),
        lambda leaf: np.asarray(leaf.T[0]),
        hasattr,
    ],
)
def test_damage_is_reported_by_every_use_that_reads_it(use: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safejax.save({"w": np.ones((2, 8), np.float32)}, path, checksum=True)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    leaf = safejax.load(path, verify=True)["w"]
    with pytest.raises(ChecksumError, match=r"m\.safetensors: leaf 'w'.*restore it from a copy"):
        use(leaf, "T") if use is hasattr else use(leaf)
    assert safejax.load(path)["w"].shape == (2, 8)


def test_the_blocks_of_each_device_are_verified() -> None:
    mesh = jax.make_mesh((5,), ("x",), devices=jax.devices()[:5])
    data = bytearray(safejax.serialize({"w": LARGE}, checksum=True))
    tree = safejax.deserialize(data, sharding=NamedSharding(mesh, P("x")), verify=True)
    with safejax.observe_reads() as log:
        assert np.array_equal(np.asarray(tree["w"].placed()), LARGE)
    assert log.nbytes == LARGE.nbytes
    data[-1] ^= 1
    tree = safejax.deserialize(data, sharding=NamedSharding(mesh, P("x")), verify=True)
    with pytest.raises(ChecksumError, match="'w'"):
        tree["w"].placed()


def test_verified_leaves_are_used_in_place_too(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safejax.save({"w": LARGE}, path, checksum=True)
    leaf = safejax.load(path, verify=True)["w"]
    addresses = {np.asarray(leaf).__array_interface__["data"][0] for _ in range(2)}
    assert len(addresses) == 1
    assert leaf.placed().unsafe_buffer_pointer() in addresses


# ---- windows on verified blocks


@pytest.mark.parametrize("block_bytes", [1, 3, 4, 7, 8, 64, 1000])
def test_a_window_reads_the_same_with_and_without_verification(block_bytes: int) -> None:
    array = np.arange(120, dtype=np.int32)
    raw = b"head" + array.tobytes() + b"tail"
    hashes = BlockHasher(xxhash.xxh3_64, block_bytes)
    hashes.update(memoryview(array.tobytes()))
    digests = Digests(block_bytes, {"w": hashes.digests()})
    assert len(digests.of["w"]) == digests_size(array.nbytes, block_bytes)
    plain = BufferSource(raw, "f")
    random = np.random.default_rng(block_bytes)
    for _ in range(200):
        checked = VerifiedSource(plain, "w", (4, 4 + array.nbytes), digests)
        window = Window.whole((4, 5, 6)).transpose(tuple(random.permutation(3)))
        steps = random.choice([-3, -2, -1, 1, 2, 3], 3).tolist()
        window = window.index(tuple(slice(None, None, step) for step in steps))
        window = window.index((slice(*sorted(random.integers(0, 6, 2).tolist())),))
        dtype = np.dtype(np.int32)
        with safejax.observe_reads() as log:
            assert np.array_equal(checked.read(4, dtype, window), plain.read(4, dtype, window))
        assert log.nbytes >= 2 * window.distinct * 4  # requested from both
        assert np.array_equal(checked.read(4, dtype, window), plain.read(4, dtype, window))


def test_a_part_requests_the_blocks_that_it_touches() -> None:
    tree = safejax.deserialize(safejax.serialize({"w": LARGE}, checksum=True), verify=True)
    for index, blocks in [((2, 5), 1), (slice(1, 3), 2), ((slice(None, None, 4), 7), 2)]:
        with safejax.observe_reads() as log:
            assert np.array_equal(np.asarray(tree["w"][index]), LARGE[index])
        assert log.nbytes == blocks * MIB


def test_adjacent_blocks_are_one_request() -> None:
    tree = safejax.deserialize(safejax.serialize({"w": LARGE}, checksum=True), verify=True)
    for index, requests in [((slice(None), 3), [5]), ((slice(1, None, 3), 3), [1, 1])]:
        with safejax.observe_reads() as log:
            assert np.array_equal(np.asarray(tree["w"][index]), LARGE[index])
        assert [read.nbytes for read in log.reads] == [blocks * MIB for blocks in requests]


def test_a_short_last_block_of_a_large_leaf_is_verified() -> None:
    array = np.arange(MIB + 5, dtype=np.uint8)
    data = bytearray(safejax.serialize({"w": array}, checksum=True))
    data[-1] ^= 1
    leaf = safejax.deserialize(data, verify=True)["w"]
    assert np.array_equal(np.asarray(leaf[:MIB]), array[:MIB])
    for index in (-1, slice(MIB, None), slice(None), slice(None, None, MIB)):
        with pytest.raises(ChecksumError, match=rf"bytes \[{len(data) - 5}, {len(data)}\)"):
            np.asarray(leaf[index])


def test_chunks_of_any_size_give_the_same_digests() -> None:
    data = bytes(range(256)) * 5
    expected = b"".join(xxhash.xxh3_64_digest(data[at : at + 100]) for at in range(0, 1280, 100))
    for size in (1, 7, 99, 100, 101, 250, 1280):
        hashes = BlockHasher(xxhash.xxh3_64, 100)
        for at in range(0, len(data), size):
            hashes.update(memoryview(data)[at : at + size])
        assert hashes.digests() == expected


# ---- files elsewhere


def test_remote_files_are_checked() -> None:
    fs = fsspec.filesystem("memory")
    tree = {"w": LARGE, "b": np.ones(3, np.float32)}
    safejax.save(tree, "/m.safetensors", fs=fs, checksum=True)
    try:
        assert fs.cat("/m.safetensors") == safejax.serialize(tree, checksum=True)
        loaded = safejax.load("/m.safetensors", fs=fs, verify=True)
        with safejax.observe_reads() as log:
            assert np.array_equal(np.asarray(loaded["w"][::2, 0]), LARGE[::2, 0])
        assert log.nbytes == 3 * MIB
        # Blocks are verified each time they are fetched, since they may have been damaged. The
        # file system does not know of it: it reports no other file.
        begin = data_begin(fs.cat("/m.safetensors"))
        fs.store["/m.safetensors"].getbuffer()[begin] ^= 1
        with pytest.raises(ChecksumError, match="leaf 'w'"):
            np.asarray(loaded["w"][0])
        assert np.array_equal(np.asarray(loaded["w"][1]), LARGE[1])
    finally:
        fs.rm("/m.safetensors")


# ---- no digests, or those of another file


def test_a_file_without_digests_cannot_be_checked(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for data in (safejax.serialize(TREE), safetensors.numpy.save({"w": np.ones(3)})):
        path.write_bytes(data)
        with pytest.raises(
            ChecksumError, match=r"m\.safetensors: verify: expected a file that was"
        ):
            safejax.load(path, verify=True)


@pytest.mark.parametrize("change", ["missing", "unknown", "unknown and empty", "short", "long"])
def test_digests_of_other_tensors_are_an_error(change: str) -> None:
    data = safejax.serialize({"a": np.float32([1, 2]), "b": np.float32([1, 2])}, checksum=True)
    record = record_of(data)
    digests = record["digests"]["tensors"]
    if change == "missing":
        del digests["b"]
    elif change == "unknown":
        digests["c"] = digests["b"]
    elif change == "unknown and empty":
        digests["c"] = ""
    else:
        digests["b"] = "" if change == "short" else "A" * 22 + "=="
    data = with_record(data, record)
    assert safejax.deserialize(data)["b"].sum() == 3
    with pytest.raises(ChecksumError, match=r"leaf '[bc]': expected \d+ bytes of digests"):
        safejax.deserialize(data, verify=True)


FORGED: dict[str, Any] = {
    "a list": [],
    "no fields": {},
    "another field": {"algorithm": "xxh3_64", "block_bytes": 8, "tensors": {}, "key": ""},
    "an unknown algorithm": {"algorithm": "md5", "block_bytes": 8, "tensors": {}},
    "an algorithm that is no string": {"algorithm": ["xxh3_64"], "block_bytes": 8, "tensors": {}},
    "blocks of nothing": {"algorithm": "xxh3_64", "block_bytes": 0, "tensors": {}},
    "blocks of less": {"algorithm": "xxh3_64", "block_bytes": -8, "tensors": {}},
    "blocks of half a byte": {"algorithm": "xxh3_64", "block_bytes": 0.5, "tensors": {}},
    "blocks of a truth value": {"algorithm": "xxh3_64", "block_bytes": True, "tensors": {}},
    "endless blocks": {"algorithm": "xxh3_64", "block_bytes": 2**63, "tensors": {}},
    "tensors in a list": {"algorithm": "xxh3_64", "block_bytes": 8, "tensors": []},
    "a digest that is a number": {"algorithm": "xxh3_64", "block_bytes": 8, "tensors": {"w": 1}},
    "a digest in no base64": {"algorithm": "xxh3_64", "block_bytes": 8, "tensors": {"w": "?"}},
    "a digest of four bytes": {
        "algorithm": "xxh3_64", "block_bytes": 8, "tensors": {"w": "AAAAAA=="}},
}  # fmt: skip


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("case", FORGED)
def test_forged_digests_are_refused(case: str, verify: bool) -> None:
    data = safejax.serialize({"w": np.ones(1), "s": 1})
    data = with_record(data, {**record_of(data), "digests": FORGED[case]})
    with pytest.raises(InvalidFileError, match="invalid 'safejax' record"):
        safejax.deserialize(data, verify=verify)


def test_small_blocks_make_no_more_work_than_there_are_digests() -> None:
    data = safejax.serialize({"w": np.ones(1 << 16)}, checksum=True)
    record = record_of(data)
    record["digests"]["block_bytes"] = 1
    with pytest.raises(ChecksumError, match="expected 4194304 bytes of digests for 524288 bytes"):
        safejax.deserialize(with_record(data, record), verify=True)


# ---- without xxhash


def test_without_xxhash_only_checksums_are_missing(tmp_path: Path) -> None:
    safejax.save({"w": np.ones(3)}, tmp_path / "checked.safetensors", checksum=True)
    program = """
import sys
sys.modules["xxhash"] = None
import numpy, safejax
for call in (
    lambda: safejax.save({"w": numpy.ones(3)}, "new.safetensors", checksum=True),
    lambda: safejax.serialize({}, checksum=True),
    lambda: safejax.load("checked.safetensors", verify=True),
):
    try:
        call()
    except ImportError as error:
        assert "pip install 'safejax[checksum]'" in str(error) and error.name == "xxhash"
    else:
        raise AssertionError
assert safejax.load("checked.safetensors")["w"].shape == (3,)
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checked.safetensors"]


# ---- frameworks


def of_flax(data: Any) -> Any:
    return safejax.flax.deserialize(data, verify=True)


def of_nnx(data: Any) -> Any:
    like = nnx.State({"w": nnx.Param(jnp.zeros(3))})
    return nnx.to_pure_dict(safejax.flax.deserialize(data, like=like, verify=True))


def of_module(data: Any) -> Any:
    model = nnx.Dict(w=nnx.Param(jnp.zeros(3)))
    safejax.flax.load_into(model, data, verify=True)
    return {"w": model["w"].get_value() if hasattr(model["w"], "get_value") else model["w"].value}


def of_haiku(data: Any) -> Any:
    return safejax.haiku.deserialize(data, verify=True)


def of_objax(data: Any) -> Any:
    like = objax.VarCollection({"w": objax.TrainVar(jnp.zeros(3))})
    return {"w": safejax.objax.deserialize(data, like=like, verify=True)["w"].value}


def of_assigned(data: Any) -> Any:
    model = objax.VarCollection({"w": objax.TrainVar(jnp.zeros(3))})
    safejax.objax.deserialize_with_assignment(data, model, verify=True)
    return {"w": model["w"].value}


def of_equinox(data: Any) -> Any:
    return safejax.equinox.deserialize(data, like={"w": jnp.zeros(3)}, verify=True)


@pytest.mark.parametrize(
    "read", [of_flax, of_nnx, of_module, of_haiku, of_objax, of_assigned, of_equinox]
)
def test_adapters_verify_too(read: Any, tmp_path: Path) -> None:
    data = bytearray(safejax.serialize({"w": jnp.ones(3)}, checksum=True))
    paths = [tmp_path / "whole.safetensors", tmp_path / "damaged.safetensors"]
    paths[0].write_bytes(data)
    for source in (bytes(data), paths[0]):
        assert read(source)["w"].sum() == 3
    data[-1] ^= 1
    paths[1].write_bytes(data)
    for source in (bytes(data), paths[1]):
        with pytest.raises(ChecksumError, match="leaf 'w'"):
            read(source)["w"].sum()
