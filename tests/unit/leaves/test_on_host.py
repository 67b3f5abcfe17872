"""NumPy in `like` gives NumPy back: read at once, exact, and never placed (R10)."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from jax.sharding import NamedSharding, PartitionSpec

import safejax
from safejax import ChecksumError, LazyArray, LeafError, Leaves, MismatchError, unflatten
from safejax.testing import ALL_DTYPES, assert_same_bits
from tests.support.leaves import stored

MESH = jax.make_mesh((8,), ("x",))
ROWS = NamedSharding(MESH, PartitionSpec("x"))
MANY = 5_000_000_000
STATE = {
    "w": jnp.arange(16.0),
    "tokens": np.int64(MANY),
    "seen": np.arange(3) + MANY,
    "zero_d": np.asarray(MANY),
    "rate": np.float64(0.1),
    "half": np.ones((2, 2), ml_dtypes.bfloat16),
    "step": 3,
}


def is_own(array: Any) -> bool:
    return type(array) is np.ndarray and array.flags.owndata and array.flags.writeable


@pytest.mark.parametrize("x64", [False, True])
def test_a_training_state_with_numbers_of_numpy_survives(tmp_path: Path, x64: bool) -> None:
    safejax.save(STATE, tmp_path / "m")
    with jax.enable_x64(x64):
        state = safejax.materialize(safejax.load(tmp_path / "m", like=STATE))
    assert {name: type(leaf) for name, leaf in state.items() if name != "w"} == {
        name: type(leaf) for name, leaf in STATE.items() if name != "w"
    }
    assert state["tokens"] == MANY
    assert state["rate"] == 0.1
    for name, leaf in STATE.items():
        assert_same_bits(state[name], leaf)
    assert all(is_own(state[name]) for name in ("seen", "zero_d", "half"))
    # What is read is saved again as it was.
    assert safejax.serialize(state) == (tmp_path / "m").read_bytes()


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_every_dtype_comes_back_as_an_array_and_as_a_scalar(dtype: np.dtype[Any]) -> None:
    array = np.ones((2, 3), dtype)
    tree = {"a": array, "s": array[0, 0], "none": array[:0]}
    found = safejax.deserialize(safejax.serialize(tree), like=tree)
    assert is_own(found["a"])
    assert type(found["s"]) is type(tree["s"])
    for name, leaf in tree.items():
        assert_same_bits(found[name], leaf)


def test_the_byte_order_is_the_own_one() -> None:
    big = np.arange(3, dtype=">i8")
    found = unflatten(stored({"w": big}), like={"w": big})["w"]
    assert found.dtype == np.dtype("int64")
    assert found.dtype.isnative
    assert found.tolist() == [0, 1, 2]


def test_only_leaves_for_the_host_are_read(tmp_path: Path) -> None:
    safejax.save(STATE, tmp_path / "m")
    with safejax.observe_reads() as log:
        state = safejax.load(tmp_path / "m", like=STATE)
        assert log.nbytes == sum(
            leaf.nbytes for name, leaf in STATE.items() if name not in ("w", "step")
        )
    assert isinstance(state["w"], LazyArray)
    assert not state["w"].is_placed
    with safejax.observe_reads() as log:
        safejax.load(tmp_path / "m", like=safejax.abstract(STATE))
        assert not log.reads


def test_a_leaf_that_is_given_a_sharding_is_placed() -> None:
    like = {"w": np.zeros(16, np.float32), "v": np.zeros(16, np.float32)}
    leaves = stored({"w": np.ones(16, np.float32), "v": np.ones(16, np.float32)})
    data = safejax.encode(leaves)
    for sharding in ({"w": ROWS, "v": None}, lambda name, aval: ROWS if name == "w" else None):
        found = safejax.deserialize(data, like=like, sharding=sharding)
        assert isinstance(found["w"], LazyArray)
        assert found["w"].sharding == ROWS
        assert is_own(found["v"])
    found = safejax.deserialize(data, like=like, sharding=ROWS)
    assert all(leaf.sharding == ROWS for leaf in found.values())


def test_a_mesh_for_the_other_leaves_is_enough() -> None:
    abstract = NamedSharding(MESH.abstract_mesh, PartitionSpec("x"))
    like = {"w": jax.ShapeDtypeStruct((8,), "float32", sharding=abstract), "n": np.int64(0)}
    data = safejax.serialize({"w": jnp.ones(8), "n": np.int64(MANY)})
    for found in (
        safejax.deserialize(data, like=like, sharding=MESH),
        safejax.deserialize(data, like=like, sharding={"w": ROWS, "n": None}),
    ):
        assert type(found["n"]) is np.int64
        assert found["n"] == MANY
        assert found["w"].sharding == ROWS
    with pytest.raises(safejax.ShardingError, match="a mesh needs a spec"):
        safejax.deserialize(data, like={**like, "w": np.ones(8, np.float32)}, sharding=MESH)


# stored, like
OTHERS: dict[str, tuple[Any, Any]] = {
    "narrower": (np.arange(3) + MANY, np.zeros(3, np.int32)),
    "wider": (jnp.arange(3), np.zeros(3, np.int64)),
    "float64 in like": (jnp.ones(3), np.zeros(3)),
    "float64 in the file": (np.ones(3), np.zeros(3, np.float32)),
    "a scalar": (np.int64(3), np.int32(0)),
    "a scalar of Python": (0.1, np.float32(0)),
    "complex": (np.ones(3, np.complex128), np.zeros(3, np.complex64)),
    "a kind of its own": (np.ones(3, np.int8), np.zeros(3, np.uint8)),
    "a key": (jax.random.key(0), np.zeros((), np.uint32)),
    "a shape": (np.ones(4), np.ones(3)),
}


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("case", OTHERS)
def test_dtypes_of_numpy_are_compared_exactly_and_the_remedy_works(case: str, x64: bool) -> None:
    value, expected = OTHERS[case]
    data, like = safejax.serialize({"a": value}), {"a": expected}
    with jax.enable_x64(x64):
        with pytest.raises(MismatchError, match=r"mismatched 'a': expected") as caught:
            safejax.deserialize(data, like=like)
        assert caught.value.mismatched == ("a",)
        told = re.search(r"pass transform=(cast\(.*?\))$", str(caught.value))
        if np.shape(value) == expected.shape and isinstance(value, jax.Array | np.ndarray):
            assert (told is None) == (case == "a key")
        if told is not None:
            dtype = np.asarray(value).dtype
            assert f"got {dtype}[" in str(caught.value)
            transform = eval(told[1], {"cast": safejax.cast})
            found = safejax.deserialize(data, like=like, transform=transform)["a"]
            assert found.dtype == expected.dtype
            assert_same_bits(found, np.asarray(value).astype(expected.dtype))


def test_a_number_of_python_becomes_one_of_numpy_if_it_is_exact() -> None:
    data = safejax.serialize({"n": MANY, "x": 0.5})
    found = safejax.deserialize(data, like={"n": np.int64(0), "x": np.float16(0)})
    assert found == {"n": np.int64(MANY), "x": np.float16(0.5)}
    assert {type(leaf) for leaf in found.values()} == {np.int64, np.float16}
    with pytest.raises(MismatchError, match="expected int32"):
        safejax.deserialize(data, like={"n": np.int32(0), "x": np.float16(0)})


def test_what_a_transform_gives_comes_back_as_numpy() -> None:
    layers = {str(number): {"w": np.full((2, 3), number, np.float32)} for number in range(4)}
    transform = safejax.chain(
        safejax.stack("{i}.w", "w"), safejax.transpose("w", axes=(0, 2, 1)),
        safejax.reshape("w", (3, 8)),
        safejax.cast("float64", source="float32"),
    )  # fmt: skip
    expected = np.stack([layers[str(i)]["w"] for i in range(4)]).transpose(0, 2, 1).reshape(3, 8)
    found = safejax.deserialize(
        safejax.serialize(layers), like={"w": np.zeros((3, 8))}, transform=transform
    )
    assert is_own(found["w"])
    assert_same_bits(found["w"], expected.astype(np.float64))


def test_leaves_in_memory_are_copied() -> None:
    own = np.arange(3)
    leaves = Leaves({"np": own, "jax": jnp.asarray([1, 2], "int32"), "weak": jnp.asarray(2.0)})
    like = {"np": own, "jax": np.zeros(2, np.int32), "weak": np.float32(0)}
    found = unflatten(leaves, like=like)
    assert all(is_own(found[name]) for name in ("np", "jax"))
    assert not np.shares_memory(found["np"], own)
    assert type(found["weak"]) is np.float32
    leaves["jax"].delete()
    with pytest.raises(LeafError, match=r"leaf 'jax': .*deleted"):
        unflatten(leaves, like=like)


def test_what_has_no_values_stays_as_it_is() -> None:
    like = {"w": np.zeros(3, np.float32)}
    spec = jax.ShapeDtypeStruct((3,), "float32")
    assert unflatten(Leaves({"w": spec}), like=like)["w"] == spec
    traced = jax.jit(lambda x: unflatten(Leaves({"w": x}), like=like)["w"] + 1)(jnp.ones(3))
    assert traced.tolist() == [2, 2, 2]


def test_what_strict_false_takes_from_like_is_the_same_object() -> None:
    like = {"a": np.zeros(3), "b": np.zeros(3)}
    with pytest.warns(safejax.PartialLoadWarning, match="1 missing"):
        found = safejax.deserialize(safejax.serialize({"a": np.ones(3)}), like=like, strict=False)
    assert is_own(found["a"])
    assert found["b"] is like["b"]


def test_damage_is_found_when_the_leaf_is_read_and_the_error_names_it(tmp_path: Path) -> None:
    path = tmp_path / "m"
    safejax.save(STATE, path, checksum=True)
    data = bytearray(path.read_bytes())
    at = data.index((np.arange(3) + MANY).tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(ChecksumError, match="'seen'"):
        safejax.load(path, like=STATE, verify=True)
    path.write_bytes(data[:-1] + b"..")
    with pytest.raises(safejax.InvalidFileError):
        safejax.load(path, like=STATE)


def test_an_error_of_a_read_names_the_leaf() -> None:
    def fail(block: Any) -> Any:
        if block.size == 3:  # And not the few values that a function is tried on.
            raise FloatingPointError("no")
        return block

    fails = safejax.elementwise(fail, where="w")
    data = safejax.serialize({"w": np.ones(3, np.float32)})
    with pytest.raises(Exception, match="no") as caught:
        safejax.deserialize(data, like={"w": np.zeros(3, np.float32)}, transform=fails)
    assert "'w'" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


def test_large_and_remote_leaves_are_read_in_parallel_to_their_own_places() -> None:
    store = MemoryFileSystem(skip_instance_cache=True)
    tree = {f"{number:03}": np.full(1 << 19, number, np.int32) for number in range(8)}
    tree |= {f"small{number}": np.full(3, number, np.int64) for number in range(20)}
    safejax.save(tree, "on_host", fs=store)
    for source, fs in (("on_host", store), (store.cat_file("on_host"), None)):
        load = safejax.deserialize if fs is None else safejax.load
        found = load(source, like=tree, **({} if fs is None else {"fs": fs}))
        assert list(found) == sorted(tree)
        assert all(is_own(leaf) and np.array_equal(leaf, tree[k]) for k, leaf in found.items())


def test_a_plan_reads_nothing_and_says_what_the_load_reads(tmp_path: Path) -> None:
    path = tmp_path / "m"
    safejax.save(STATE, path)
    with safejax.observe_reads() as log:
        planned = safejax.plan(path, like=STATE)
        text = str(planned)
        assert not log.reads
    leaves = {leaf.name: leaf for leaf in planned.leaves}
    assert leaves.keys() == STATE.keys() - {"step"}
    assert [name for name, leaf in leaves.items() if not leaf.on_host] == ["w"]
    for name in leaves.keys() - {"w"}:
        leaf = leaves[name]
        assert (leaf.dtype, leaf.sharding, leaf.in_place) == (STATE[name].dtype, None, False)
        (block,) = leaf.blocks
        assert block.devices == ()
        assert block.processes == {0}
        assert (block.reads.nbytes, block.nbytes) == (STATE[name].nbytes,) * 2
    with safejax.observe_reads() as log:
        safejax.load(path, like=STATE)["w"].placed()
        assert planned.reads.nbytes == log.nbytes
    on_host = sum(STATE[name].nbytes for name in leaves.keys() - {"w"})
    assert planned.processes[0].copies >= on_host
    assert planned.processes[0].peak_host_bytes >= on_host
    assert sum(device.places for device in planned.devices.values()) == 64
    assert "read at once, as NumPy arrays: 'half', 'rate', 'seen', 'tokens', 'zero_d'" in text
    # NumPy keeps the 64 bits that JAX might not.
    assert planned.problems == planned.warnings == ()
    assert safejax.plan(path).warnings
    given = safejax.plan(path, like=STATE, sharding=jax.devices()[1])
    assert not any(leaf.on_host for leaf in given.leaves)
