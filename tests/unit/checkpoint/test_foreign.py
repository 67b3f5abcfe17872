"""Files of NumPy, Flax and Equinox by their paths: lazily, the same leaves, and never a pickle."""

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.serialization
import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import optax
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
import safejax.equinox
from safejax import ChecksumError, InvalidFileError, MismatchError, load
from safejax.testing import assert_same_bits, assert_trees_identical
from tests.support.leaves import arrays_of, is_unread

W = np.arange(24, dtype=np.float32).reshape(4, 6)
BF = np.arange(5).astype(ml_dtypes.bfloat16)
ARRAYS = {
    "w": W, "dense/kernel": W.astype(np.float16), "columns": np.asfortranarray(W),
    "scalar": np.float32(2.5), "none": np.zeros((0, 3), np.int8), "bf": BF,
    "swapped": W.astype(">f4"), "on": np.array([True, False]),
}  # fmt: skip


def native(array: Any) -> Any:
    return np.asarray(array).astype(np.asarray(array).dtype.newbyteorder("="))


# ---- NumPy


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_an_archive_of_numpy(write: Any, tmp_path: Path) -> None:
    write(tmp_path / "m.npz", **ARRAYS)
    with safejax.observe_reads() as log:
        found = load(tmp_path / "m.npz")
    assert log.reads == []
    assert all(map(is_unread, arrays_of(found)))
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert_same_bits(np.asarray(found[name]), native(array), name)


def test_a_member_that_is_stored_is_read_in_part(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", **ARRAYS)
    found = load(tmp_path / "m.npz")
    with safejax.observe_reads() as log:
        row, column = np.asarray(found["w"][1]), np.asarray(found["columns"][:, 2])
    assert np.array_equal(row, W[1])
    assert np.array_equal(column, W[:, 2])
    assert log.nbytes == 6 * 4 + 4 * 4


def test_an_archive_onto_a_mesh_and_converted(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", w=W, b=W[0])
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    rows = NamedSharding(mesh, P("x"))
    like = {"w": jax.ShapeDtypeStruct((4, 6), jnp.float32, sharding=rows)}
    with pytest.raises(MismatchError, match="unexpected"):
        load(tmp_path / "m.npz", like=like)
    with pytest.warns(safejax.PartialLoadWarning, match="'b'"):
        found = load(tmp_path / "m.npz", like=like, strict=False)
    assert_same_bits(safejax.materialize(found["w"]), jax.device_put(W, rows))
    safejax.save(load(tmp_path / "m.npz"), tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == safejax.serialize({"w": W, "b": W[0]})
    reads = safejax.plan(tmp_path / "m.npz", sharding=rows).reads
    assert reads.nbytes == W.nbytes + W[0].nbytes


def test_an_array_alone_is_the_tree(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", W)
    assert_same_bits(np.asarray(load(tmp_path / "w.npy")), W)


def test_objects_are_never_read(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return exec, ("raise SystemExit('it was run')",)

    np.savez(tmp_path / "m.npz", w=W, o=np.array([Bomb()], object), s=np.array(["text"]))
    with pytest.raises(InvalidFileError, match=r"'o'.*pickles and never read.*drop\('o'\)"):
        load(tmp_path / "m.npz")
    assert_trees_identical(load(tmp_path / "m.npz", transform=safejax.drop("o", "s")), {"w": W})
    np.save(tmp_path / "o.npy", np.array([Bomb()], object))
    with pytest.raises(InvalidFileError, match="never read"):
        load(tmp_path / "o.npy")


def test_a_type_that_numpy_forgets_is_an_error_that_says_so(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", w=W[0].astype(ml_dtypes.float8_e4m3fn))
    with pytest.raises(InvalidFileError, match=r"\|V1, of which NumPy's format says no more"):
        load(tmp_path / "m.npz")


# ---- Flax


def trained() -> dict[str, Any]:
    params = {"dense": {"kernel": jnp.asarray(W), "bias": jnp.asarray(BF)}}
    return {"params": params, "optimizer": optax.adam(1e-3).init(params), "step": 7, "rate": 0.5}


def test_flax_msgpack(tmp_path: Path) -> None:
    state = {**trained(), "c": 1 + 2j, "s": np.float32(3), "none": None, "name": "ü", "on": True}
    (tmp_path / "m.msgpack").write_bytes(flax.serialization.to_bytes(state))
    with safejax.observe_reads() as log:
        found = load(tmp_path / "m.msgpack")
    assert log.reads == []
    expected = flax.serialization.msgpack_restore((tmp_path / "m.msgpack").read_bytes())
    assert_trees_identical(found, jax.tree.map(lambda x: x, expected))
    assert is_unread(load(tmp_path / "m.msgpack")["params"]["dense"]["kernel"])
    # The containers that Flax stores as dicts are those of like.
    assert_trees_identical(load(tmp_path / "m.msgpack", like=state), state)


def test_flax_stores_large_arrays_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its limit is a gibibyte.
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 40)
    (tmp_path / "m").write_bytes(flax.serialization.msgpack_serialize({"w": W.copy(), "v": W[0]}))
    found = load(tmp_path / "m")
    assert_same_bits(np.asarray(found["w"]), W)
    assert_same_bits(np.asarray(found["w"][2:3]), W[2:3])


def test_chunks_of_flax_in_whichever_order(tmp_path: Path) -> None:
    """Flax takes them by their keys; another writer may have sorted these, "10" before "2"."""
    order = sorted(map(str, range(12)))
    chunks = {key: flax.serialization.msgpack_serialize(np.int8([int(key)])) for key in order}
    array = {
        "__msgpack_chunked_array__": True,
        "shape": {"1": 4, "0": 3},
        "chunks": {key: msgpack.unpackb(chunk) for key, chunk in chunks.items()},
    }
    (tmp_path / "m").write_bytes(msgpack.packb({"w": array}))
    expected = np.arange(12, dtype=np.int8).reshape(3, 4)
    assert_same_bits(np.asarray(load(tmp_path / "m")["w"]), expected)


def test_every_dtype_of_flax(tmp_path: Path) -> None:
    names = ["bool_", "int4", "uint8", "int64", "float8_e5m2", "bfloat16", "float16", "complex64"]
    arrays = {n: np.arange(3).astype(getattr(ml_dtypes, n, None) or getattr(np, n)) for n in names}
    (tmp_path / "m").write_bytes(flax.serialization.msgpack_serialize(arrays))
    found = load(tmp_path / "m")
    for name, array in arrays.items():
        assert_same_bits(np.asarray(found[name]), array, name)


def test_what_no_leaf_can_be_is_left_out_by_name(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(msgpack.packb({"raw": b"bytes", "n": 1}))
    with pytest.raises(InvalidFileError, match=r"'raw'.*bytes.*drop\('raw'\).*Flax"):
        load(tmp_path / "m")
    assert load(tmp_path / "m", transform=safejax.drop("raw")) == {"n": 1}


HOSTILE = {
    "more items than bytes": b"\xdf\xff\xff\xff\xff\xa1a\x01",
    "a list of more": b"\x81\xa1a\xdd\xff\xff\xff\xff\x01",
    "deep": b"\x81\xa1a" + b"\x91" * 100_000 + b"\xc0",
    "a name of an unknown length": b"\x81\xdb\xff\xff\xff\xff",
    "an array longer than the file": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    "a dtype of many": b"\x81\xa1a\xc7\x0d\x01\x93\x91\x01\xa5f4,f4\xc4\x02ab",
    "a pickle's dtype": b"\x81\xa1a\xc7\x09\x01\x93\x91\x01\xa1O\xc4\x02ab",
    "a shape that is negative": b"\x81\xa1a\xc7\x0a\x01\x93\x91\xff\xa4int8\xc4\x00",
    "a shape of another size": b"\x81\xa1a\xc7\x0c\x01\x93\x91\x03\xa4int8\xc4\x02ab",
    "a key twice": b"\x82\xa1a\x01\xa1a\x02",
    "a key that is a list": b"\x82\xa1a\x01\x90\x02",
    "more after the end": b"\x81\xa1a\x01\x01",
    "extensions in each other": b"\x81\xa1a" + b"\xc9\0\0\xff\xff\x01" * 5000,
    "a shape beyond memory": b"\x81\xa1a\xc7\x13\x01\x93\x92\0\xcf\x80"
    + bytes(7)
    + b"\xa4int8\xc4\0",
    "a byte that means nothing": b"\x81\xa1a\xc1",
    "no string": b"\x81\xa1\xff\x01\x00\x00\x00\x00",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_msgpack_file_is_an_error(case: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(HOSTILE[case].ljust(9, b"\0"))
    with pytest.raises(InvalidFileError, match=r"m: expected"):
        load(tmp_path / "m")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of one file for all examples."""
    return tmp_path_factory.mktemp("damaged") / "m"


@given(data=st.data())
def test_damage_is_an_error_or_other_leaves(place: Path, data: st.DataObject) -> None:
    """No damaged byte of a header makes anything else than an error of ours, or a tree."""
    stream = io.BytesIO()
    np.savez(stream, w=W, b=BF)
    flax_bytes = flax.serialization.msgpack_serialize({"params": {"w": W[0], "b": 1, "c": 2j}})
    original = data.draw(st.sampled_from([stream.getvalue(), flax_bytes]))
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(9, len(damaged)))
    place.write_bytes(damaged[:end])
    try:
        tree = load(place, transform=lambda leaves: leaves)
        for leaf in arrays_of(tree):
            np.asarray(leaf)
    except safejax.SafejaxError:
        pass


def test_a_bomb_is_not_unpacked_by_opening_it(tmp_path: Path) -> None:
    """A member of a gigabyte of zeros in a megabyte, which its header says."""
    head = io.BytesIO()
    header = {"descr": "|i1", "fortran_order": False, "shape": (1 << 30,)}
    np.lib.format.write_array_header_1_0(head, header)
    with zipfile.ZipFile(tmp_path / "m.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", head.getvalue() + bytes(8 << 20))
    with pytest.raises(InvalidFileError, match="'w': expected 1073741824 bytes"):
        load(tmp_path / "m.npz")


def npy_of(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header) + 1) + f"{header}\n".encode() + data


def archive_of(member: bytes, method: int) -> bytearray:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("a.npy", member)
    return bytearray(stream.getvalue())


ZEROS = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"
NPZ: dict[str, tuple[bytes, int, int, bytes]] = {
    # The member, how it is stored, and bytes at a place that are others.
    "bzip2, which is not bounded": (npy_of(ZEROS % "(0,)"), zipfile.ZIP_BZIP2, 0, b""),
    "lzma, which is not bounded": (npy_of(ZEROS % "(0,)"), zipfile.ZIP_LZMA, 0, b""),
    "damaged at its begin": (npy_of(ZEROS % "(0,)"), zipfile.ZIP_DEFLATED, 36, b"\xff" * 20),
    "damaged data": (
        npy_of(ZEROS % "(9999,)", np.random.default_rng(0).bytes(39996)),
        zipfile.ZIP_DEFLATED, 30_000, b"\xff" * 40,
    ),
    "a shape beyond memory": (npy_of(ZEROS % f"(0, {1 << 80})"), zipfile.ZIP_STORED, 0, b""),
    "a shape of bools": (npy_of(ZEROS % "(True,)", bytes(4)), zipfile.ZIP_STORED, 0, b""),
    "a header that ends early": (npy_of("{'descr': [[["), zipfile.ZIP_STORED, 0, b""),
}  # fmt: skip


@pytest.mark.parametrize("case", NPZ)
def test_a_hostile_archive_is_an_error(case: str, tmp_path: Path) -> None:
    member, method, at, others = NPZ[case]
    data = archive_of(member, method)
    data[at : at + len(others)] = others
    (tmp_path / "m.npz").write_bytes(data)
    with pytest.raises(InvalidFileError, match=r"m\.npz: (member 'a': )?expected"):
        jax.tree.map(np.asarray, load(tmp_path / "m.npz"))


def test_a_name_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    data = archive_of(npy_of(ZEROS % "(0,)"), zipfile.ZIP_STORED)
    name = data.rindex(b"a.npy")
    data[name] = 0xFF
    data[name - 46 + 9] |= 8  # Says that it is in UTF-8.
    (tmp_path / "m.npz").write_bytes(data)
    with pytest.raises(InvalidFileError, match=r"m\.npz: expected an archive of NumPy"):
        load(tmp_path / "m.npz")


def test_a_zip_archive_of_something_else_is_none(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    with pytest.raises(InvalidFileError, match="PyTorch"):
        load(tmp_path / "m")
    (tmp_path / "m").write_bytes(struct.pack("<Q", 10) + b"{" + bytes(9))
    with pytest.raises(InvalidFileError, match="JSON"):
        load(tmp_path / "m")


def test_digests_are_of_safetensors_files_only(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", w=W)
    with pytest.raises(ChecksumError, match="without verify"):
        load(tmp_path / "m.npz", verify=True)


class Counting(MemoryFileSystem):
    """Counts the bytes that are requested."""

    nbytes = 0

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        data = super().cat_file(path, start, end, **options)
        Counting.nbytes += len(data)
        return data


def test_files_elsewhere(memory: Any) -> None:
    """Only headers are requested by the load, and then what is needed."""
    stream = io.BytesIO()
    np.savez(stream, large=np.zeros((1000, 1000), np.float32), **ARRAYS)
    memory.pipe("/m.npz", stream.getvalue())
    memory.pipe("/m", flax.serialization.msgpack_serialize({"a": {"w": W.copy()}, "n": 1}))
    found = load("/m.npz", fs=memory)
    with safejax.observe_reads() as log:
        assert np.array_equal(np.asarray(found["dense/kernel"]), W.astype(np.float16))
    assert log.nbytes == W.size * 2
    assert_trees_identical(load("/m", fs=memory), {"a": {"w": W}, "n": 1})
    load("/m.npz", fs=Counting(skip_instance_cache=True))
    # A file is opened by its first 256 KiB.
    assert 0 < Counting.nbytes < 300_000 < len(stream.getvalue())


# ---- Equinox


class Net(eqx.Module):
    layers: list[eqx.nn.Linear]
    table: np.ndarray
    low: jax.Array
    scale: float
    steps: int
    name: str = eqx.field(static=True)

    def __init__(self, seed: int) -> None:
        keys = jax.random.split(jax.random.key(seed), 2)
        self.layers = [eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.Linear(4, 2, key=keys[1])]
        self.table = np.arange(3, dtype=np.int32) + np.int32(seed)
        self.low = jnp.ones(3, jnp.bfloat16) * seed
        self.scale = 0.5 + seed
        self.steps = seed
        self.name = "net"


@pytest.mark.parametrize("line", [b"", b'{"width": 4}\n'])
def test_a_file_of_equinox(line: bytes, tmp_path: Path) -> None:
    net = Net(3)
    with (tmp_path / "m.eqx").open("wb") as file:
        file.write(line)
        eqx.tree_serialise_leaves(file, net)
    found = safejax.equinox.deserialize(tmp_path / "m.eqx", like=Net(0))
    assert is_unread(found.layers[1].weight)
    assert (found.scale, found.steps, type(found.steps)) == (3.5, 3, int)
    assert_trees_identical(found, net)
    abstract = eqx.filter_eval_shape(Net, 0)
    again = safejax.equinox.deserialize((tmp_path / "m.eqx").read_bytes(), like=abstract)
    assert_same_bits(np.asarray(again.layers[0].bias), np.asarray(net.layers[0].bias))


def test_equinox_with_another_model_is_one_report(tmp_path: Path) -> None:
    eqx.tree_serialise_leaves(tmp_path / "m.eqx", Net(0))
    with pytest.raises(InvalidFileError, match=r"without names.*safejax\.equinox\.deserialize"):
        load(tmp_path / "m.eqx")
    other = eqx.tree_at(lambda net: net.layers[1].weight, Net(0), jnp.zeros((2, 5)))
    with pytest.raises(MismatchError, match=r"layers\.1\.weight.*float32\[2,5\]"):
        safejax.equinox.deserialize(tmp_path / "m.eqx", like=other)
    with pytest.raises(MismatchError, match="expected the 4 arrays and numbers of like, got 8"):
        safejax.equinox.deserialize(tmp_path / "m.eqx", like=Net(0).layers)


@pytest.mark.parametrize(
    ("stored", "like"),
    [
        (2.5, 0),
        (5, True),
        (1j, 0.0),
        (np.array("abc"), 0),
        (np.ones(2), 0.0),
        (np.zeros(2, [("a", "<f2"), ("b", "<f2")]), W[0, :2]),
    ],
)
def test_equinox_never_makes_a_value_another(stored: Any, like: Any) -> None:
    """A number is no other one, rounded, and fields are not numbers of as many bytes."""
    stream = io.BytesIO()
    np.save(stream, stored)
    with pytest.raises(MismatchError, match=r"'x': expected"):
        safejax.equinox.deserialize(stream.getvalue(), like={"x": like})


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (8, 1, "got it encrypted"),
        (20, 0, "expected 32 bytes of data for float64"),
    ],
    ids=["encrypted", "of two sizes"],
)
def test_a_member_that_readers_of_zip_read_differently_is_refused(
    at: int, value: int, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.npz"
    np.savez(path, a=np.zeros(4))
    data = bytearray(path.read_bytes())
    # A field of the entry in the archive's table: its flags, or how many bytes are stored.
    entry = data.index(b"PK\x01\x02")
    data[entry + at : entry + at + 2] = value.to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(InvalidFileError, match=f"m.npz: member 'a': .*{message}"):
        safejax.load(path)
