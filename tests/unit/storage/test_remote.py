"""Remote files: only the needed bytes are requested, and no failure leaves an incomplete file."""

import hashlib
import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from fsspec.implementations.dirfs import DirFileSystem
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax._src.reading.file import MappedSource
from safejax._src.reading.patience import Patience
from safejax._src.reading.remote import HEAD, RemoteSource
from safejax._src.storage.local import LocalStore
from safejax._src.storage.location import locate

W = np.arange(64 * 16, dtype=np.float32).reshape(64, 16)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed request is made again after a moment; a private name, since it would be seconds."""
    monkeypatch.setattr("safejax._src.reading.patience.PATIENCE", Patience(pause=0.001))


class Upload(io.BytesIO):
    """A file that is being written: it exists once it is committed, and is gone if discarded."""

    def __init__(self, store: "Store", path: str, autocommit: bool) -> None:
        super().__init__()
        self.store, self.path, self.autocommit = store, path, autocommit

    def write(self, data: Any) -> int:
        if self.store.room is not None and self.tell() + len(data) > self.store.room:
            raise OSError("no space left in the store")
        return super().write(data)

    def close(self) -> None:
        if not self.closed:
            self.written = self.getvalue()
            super().close()
            if self.autocommit:
                self.commit()

    def commit(self) -> None:
        self.store.files[self.path] = self.written

    def discard(self) -> None:
        self.store.discarded.append(self.path)


class Store(fsspec.AbstractFileSystem):
    """An object store that records its requests, and fails on demand."""

    protocol = "store"
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[int, int]] = []
        self.discarded: list[str] = []
        self.fault: Callable[[bytes], bytes] | None = None
        self.room: int | None = None
        self.lock = threading.Lock()

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        if path not in self.files:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(self.files[path]), "type": "file"}

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        assert start is not None
        assert end is not None
        with self.lock:
            self.requests.append((start, end))
        data = self.files[path][start:end]
        return data if self.fault is None else self.fault(data)

    def _open(self, path: str, mode: str = "rb", autocommit: bool = True, **options: Any) -> Upload:
        assert mode == "wb"
        return Upload(self, path, autocommit)

    def asked(self) -> int:
        return sum(end - begin for begin, end in self.requests)


def saved(tree: Any) -> Store:
    store = Store()
    store.files["w.safetensors"] = safejax.serialize(tree)
    return store


def opened(tree: Any, **options: Any) -> tuple[Store, Any]:
    """The store, after only the header has been requested, and the tree."""
    store = saved(tree)
    loaded = safejax.load("w.safetensors", fs=store, **options)
    assert store.requests == [(0, min(HEAD, len(store.files["w.safetensors"])))]
    store.requests.clear()
    return store, loaded


# ---- the needed bytes


def test_a_leaf_is_one_request() -> None:
    store, tree = opened({"a": W, "b": W + 1})
    assert tree["b"].shape == W.shape
    assert store.requests == []
    with safejax.observe_reads() as log:
        assert np.asarray(tree["b"]).tobytes() == (W + 1).tobytes()
    assert len(store.requests) == 1
    assert store.asked() == log.nbytes == W.nbytes


TALL = np.arange(64 * 4096, dtype=np.float32).reshape(64, 4096)  # 16 KiB in each row


@pytest.mark.parametrize(
    ("index", "requests", "excess"),
    [
        (np.s_[3], 1, 0),
        (np.s_[8:16], 1, 0),
        (np.s_[::16], 4, 0),  # 240 KiB between two
        (np.s_[::8], 1, 7 * 112),  # dense: an eighth is needed
        (np.s_[::8, :2048], 8, 0),  # 120 KiB between two, and less than an eighth is needed
        (np.s_[:, 4:6], 1, 63 * 16 - 63 / 128),
        (np.s_[::-1, ::-8], 1, 64 * 14 - 7 / 256),
        (np.s_[5:5], 0, 0),
    ],
)
def test_a_part_is_its_ranges_or_one_of_all_that_are_near(
    index: Any, requests: int, excess: float
) -> None:
    """Excess is in KiB: what is read since a request more would take longer."""
    store, tree = opened({"w": TALL})
    with safejax.observe_reads() as log:
        part = tree["w"][index]
        assert store.requests == []
        assert np.asarray(part).tobytes() == TALL[index].tobytes()
    assert len(store.requests) == requests == len(log.reads)
    assert store.asked() == log.nbytes
    assert log.needed == TALL[index].nbytes
    assert log.excess == excess * 1024
    # The tensor begins where the data begins.
    begin = store.files["w.safetensors"].index(TALL.tobytes())
    asked = np.zeros(TALL.nbytes, int)
    for low, high in store.requests:
        asked[low - begin : high - begin] += 1
    assert asked.max() <= 1
    places = np.arange(TALL.nbytes).reshape(64, 4096, 4)[index].reshape(-1)
    assert (asked[places] == 1).all()


@pytest.mark.parametrize("spec", [P("x"), P(None, "x"), P(), P("x", None)])
def test_the_shards_of_all_devices_are_requested_together(spec: P) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    store, tree = opened({"w": W}, sharding=NamedSharding(mesh, spec))
    with safejax.observe_reads() as log:
        assert jax.block_until_ready(tree["w"]).sharding.spec == spec
    assert len(store.requests) == len(log.reads) == 1
    assert store.asked() == log.nbytes == log.needed == W.nbytes
    assert np.asarray(tree["w"].placed()).tobytes() == W.tobytes()


def test_an_eighth_of_a_renamed_transposed_cast_leaf_needs_an_eighth_of_the_bytes() -> None:
    transform = safejax.chain(
        safejax.rename({"w": "v"}), safejax.transpose("v"), safejax.cast("bfloat16")
    )
    store, tree = opened({"w": W}, transform=transform)
    with safejax.observe_reads() as log:
        assert np.asarray(tree["v"][:2]).tobytes() == W.T[:2].astype(ml_dtypes.bfloat16).tobytes()
    assert log.needed == W.nbytes // 8
    assert len(store.requests) == 1
    assert store.asked() == log.nbytes < W.nbytes


def test_layers_that_are_stacked_are_requested_together() -> None:
    layers = {f"layer.{k}.w": W + k for k in range(20)}
    stacked = safejax.stack("layer.{i}.w")
    store, tree = opened(layers, transform=safejax.chain(stacked, safejax.cast("float16")))
    expected = np.stack([W + k for k in range(20)]).astype(np.float16)
    (leaf,) = jax.tree.leaves(tree)
    planned = safejax.plan(leaf)
    with safejax.observe_reads() as log:
        assert np.asarray(leaf).tobytes() == expected.tobytes()
        assert np.asarray(leaf + 0).tobytes() == expected.tobytes()
    assert len(store.requests) == 2
    assert log.nbytes == log.needed == 2 * planned.reads.nbytes == 2 * 20 * W.nbytes


def test_leaves_without_elements_request_nothing() -> None:
    store, tree = opened({"empty": np.zeros((3, 0), np.float32), "scalar": 3, "nothing": None})
    assert np.asarray(tree["empty"]).shape == (3, 0)
    assert (tree["scalar"], tree["nothing"]) == (3, None)
    assert store.requests == []


def test_packed_and_recorded_dtypes() -> None:
    tree = {
        "f4": np.arange(8).astype(ml_dtypes.float4_e2m1fn).reshape(2, 4),
        "i4": np.arange(-4, 4).astype(ml_dtypes.int4),
        "key": jax.random.key(3),
        "flag": np.array([True, False]),
    }
    store, loaded = opened(tree)
    assert np.asarray(loaded["f4"][1]).tobytes() == tree["f4"][1].tobytes()
    assert store.asked() == 2
    assert np.asarray(loaded["i4"]).astype(np.int8).tolist() == list(range(-4, 4))
    assert jax.random.key_data(loaded["key"]).tolist() == [0, 3]
    assert np.asarray(loaded["flag"]).tolist() == [True, False]


def test_a_tree_is_materialized_by_few_requests_and_each_byte_is_read_once() -> None:
    tree = {f"w{k}": W + k for k in range(20)}
    store, loaded = opened(tree)
    planned = safejax.plan(loaded).reads
    with safejax.observe_reads() as log:
        placed = safejax.materialize(loaded)
    assert len(store.requests) == len(log.reads) == planned.requests == 1
    assert store.asked() == log.nbytes == planned.nbytes == 20 * W.nbytes
    assert all(np.asarray(placed[name]).tobytes() == tree[name].tobytes() for name in tree)


def test_a_tree_is_materialized_in_groups_of_bounded_bytes(monkeypatch: Any) -> None:
    # A private name, since groups that are as large as they are would make a slow test.
    monkeypatch.setattr("safejax._src.arrays.together.GROUP_BYTES", 5 * W.nbytes)
    tree = {f"w{k:02}": W + k for k in range(20)} | {"wide": np.arange(9.0)}
    store, loaded = opened(tree)
    first, steps = safejax.materialize(loaded["w00"]), []
    with pytest.warns(safejax.PrecisionWarning):
        placed = safejax.materialize(loaded, progress=lambda done, _: steps.append(done))
    # Four times five of twenty, and what is read in the x64 mode; one was placed before.
    assert len(store.requests) == 1 + 4 + 1
    assert store.asked() == 20 * W.nbytes + 72
    assert np.asarray(first).tobytes() == W.tobytes()
    assert all(np.array_equal(placed[name], tree[name]) for name in tree)
    assert sorted(steps) == steps


def test_a_packed_leaf_and_a_checked_one_are_requested_together_for_all_devices() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    values = np.arange(64 * 64).reshape(64, 64)
    tree = {"four": (values % 7).astype(ml_dtypes.float4_e2m1fn), "w": values.astype(np.int32)}
    store = Store()
    store.files["w.safetensors"] = safejax.serialize(tree, checksum=True)
    for verify in (False, True):
        for spec in (P(None, "x"), P("x"), P()):
            sharding = NamedSharding(mesh, spec)
            loaded = safejax.load("w.safetensors", fs=store, sharding=sharding, verify=verify)
            planned = safejax.plan(loaded)
            store.requests.clear()
            with safejax.observe_reads() as log:
                placed = safejax.materialize(loaded)
            assert len(store.requests) == len(log.reads) == 1 == planned.reads.requests
            assert log.nbytes == planned.reads.nbytes == 64 * 32 + 64 * 64 * 4
            for name, array in tree.items():
                assert np.asarray(placed[name]).tobytes() == array.tobytes()


def test_copying_a_remote_file_streams_it() -> None:
    store, loaded = opened({"w": W, "v": W + 1})
    safejax.save(loaded, "copy.safetensors", fs=store)
    assert store.files["copy.safetensors"] == store.files["w.safetensors"]
    assert store.asked() == 2 * W.nbytes


# ---- URLs and file systems of fsspec


def test_urls_and_file_systems(memory: Any) -> None:
    safejax.save({"w": W}, "memory://deep/w.safetensors", metadata={"step": "3"})
    assert memory.ls("/deep", detail=False) == ["/deep/w.safetensors"]
    for path, fs in [
        ("memory://deep/w.safetensors", None),
        ("/deep/w.safetensors", memory),
        ("memory://deep/w.safetensors", memory),
        (Path("/deep/w.safetensors"), memory),
        ("w.safetensors", DirFileSystem("/deep", memory)),
        ("simplecache::memory://deep/w.safetensors", None),
    ]:
        assert np.asarray(safejax.load(path, fs=fs)["w"]).tobytes() == W.tobytes()
        assert safejax.metadata(path, fs=fs) == {"step": "3"}
    assert safetensors.numpy.load(memory.cat("/deep/w.safetensors"))["w"].tobytes() == W.tobytes()


def test_local_files_are_mapped_and_written_whole(tmp_path: Path) -> None:
    local = fsspec.filesystem("file")
    for number, (path, fs) in enumerate(
        [
            (f"file://{tmp_path}/0.safetensors", None),
            (f"{tmp_path}/1.safetensors", local),
            (f"local://{tmp_path}/2.safetensors", None),
            (f"file://{tmp_path}/3.safetensors", local),
            ("4.safetensors", DirFileSystem(str(tmp_path), local)),
        ]
    ):
        safejax.save({"w": W}, path, fs=fs)
        leaf = safejax.load(path, fs=fs)["w"]
        assert [type(source) for source in leaf.content.view.sources] == [MappedSource]
        assert leaf.placed().unsafe_buffer_pointer() == np.asarray(leaf).ctypes.data
        assert (tmp_path / f"{number}.safetensors").read_bytes() == safejax.serialize({"w": W})
    assert len(list(tmp_path.iterdir())) == 5
    with pytest.raises(safejax.InvalidFileError, match="one safetensors file, got 0"):
        safejax.load(f"file://{tmp_path}")


def test_zip_archives_are_written_and_read(tmp_path: Path) -> None:
    """Its members cannot be committed later."""
    archive = str(tmp_path / "w.zip")
    fs = fsspec.filesystem("zip", fo=archive, mode="w")
    safejax.save({"w": W}, "w.safetensors", fs=fs)
    fs.close()
    loaded = safejax.load(f"zip://w.safetensors::{archive}")
    assert np.asarray(loaded["w"][3]).tobytes() == W[3].tobytes()


@pytest.mark.parametrize("wrong", ["memory", fsspec, fsspec.AbstractFileSystem, 3])
def test_anything_but_a_file_system_is_refused(wrong: Any) -> None:
    for call in (lambda: safejax.load("w", fs=wrong), lambda: safejax.save({}, "w", fs=wrong)):
        with pytest.raises(TypeError, match="fs: expected a file system of fsspec"):
            call()


def test_an_unknown_protocol() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        safejax.load("nowhere://w.safetensors")


@pytest.mark.skipif(find_spec("gcsfs") is not None, reason="the package is there")
@pytest.mark.parametrize("url", ["gs://b/w.safetensors", "gcs://b/w?token=S3CR3T"])
def test_a_scheme_whose_package_is_missing_names_its_extra(url: str) -> None:
    with pytest.raises(ImportError, match=r"gcsfs.*pip install 'safejax\[gcs\]'") as raised:
        safejax.load(url)
    assert "S3CR3T" not in str(raised.value)


def test_a_file_system_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits longer than is stated, and nothing is left that the process waits for."""
    store, tree = opened({"w": W})
    patience = Patience(attempts=2, longest=0.2, pause=0.001)
    monkeypatch.setattr("safejax._src.reading.patience.PATIENCE", patience)
    answer = threading.Event()
    store.fault = lambda data: data if answer.wait(60) else b""
    with pytest.raises(safejax.ReadError, match=r"after 2 attempts: TimeoutError: no answer in"):
        np.asarray(tree["w"].__array__())
    assert len(store.requests) == 2
    answer.set()
    assert np.asarray(tree["w"]).tobytes() == W.tobytes()


def test_plain_paths_need_no_fsspec() -> None:
    assert locate("models/w.safetensors") == (LocalStore(), "models/w.safetensors")
    assert locate("C:\\w.safetensors") == (LocalStore(), "C:\\w.safetensors")


# ---- reads that fail


def raising(data: bytes) -> bytes:
    raise ConnectionError("the line is dead")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (raising, r"\[\d+, \d+\) failed after 5 attempts: ConnectionError: the line is dead"),
        (lambda data: data[:-1], r"got \d+ bytes: it was cut short since"),
        (lambda data: b"", r"got 0 bytes"),
        (lambda data: data * 2, r"or its file system cannot read ranges"),
    ],
)
@pytest.mark.parametrize("index", [np.s_[:], np.s_[:, 2:4]])
def test_a_range_that_fails(fault: Any, message: str, index: Any) -> None:
    store, tree = opened({"w": W})
    part = tree["w"][index]
    store.fault = fault
    for use in (np.asarray, lambda leaf: leaf + 1, jax.jit(jnp.sum), safejax.materialize):
        with pytest.raises(safejax.ReadError, match=f"w.safetensors: .*{message}"):
            use(part)
        assert not part.is_placed
    # The leaf stays usable: the next attempt reads it.
    store.fault = None
    assert np.asarray(part + 0).tobytes() == W[index].tobytes()


def test_one_range_of_many_that_fails() -> None:
    array = np.arange(8 << 16, dtype=np.float32).reshape(8, -1)
    store, tree = opened({"w": array})
    begin = store.files["w.safetensors"].index(array.tobytes()) + 5 * (1 << 18)
    store.fault = lambda data: raising(data) if data == array[5, :1].tobytes() else data
    with pytest.raises(safejax.ReadError) as said:
        # From Python 3.12 on, NumPy requests a buffer first, and calls `__array__` if that fails.
        tree["w"][:, 0].__array__()
    assert f"reading bytes [{begin}, {begin + 4}) failed after 5 attempts" in str(said.value)
    assert isinstance(said.value.__cause__, ConnectionError)


@pytest.mark.parametrize("fault", [raising, lambda data: data[:-1]])
def test_a_header_that_cannot_be_read(fault: Any) -> None:
    store = saved({"w": W})
    store.fault = fault
    with pytest.raises(safejax.ReadError, match=r"w\.safetensors"):
        safejax.load("w.safetensors", fs=store)


def test_a_file_that_is_replaced_by_a_shorter_one() -> None:
    store, tree = opened({"w": W})
    store.files["w.safetensors"] = safejax.serialize({"w": W[:2]})
    with pytest.raises(safejax.ReadError, match="cut short since"):
        np.asarray(tree["w"])


class Versioned(Store):
    """An object store that reports more than sizes, by `told`, and keeps its listings."""

    def __init__(self, told: Callable[[bytes, int], dict[str, Any]]) -> None:
        super().__init__()
        self.told = told
        self.writes = 0
        self.listings: dict[str, dict[str, Any]] = {}
        self.infos = 0

    def put(self, path: str, data: bytes) -> None:
        self.files[path] = data
        self.writes += 1

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        if path not in self.listings:
            self.infos += 1
            told = self.told(self.files[path], self.writes)
            self.listings[path] = {**super().info(path), **told}
        return self.listings[path]

    def invalidate_cache(self, path: str | None = None) -> None:
        assert path is not None
        self.listings.pop(path, None)

    def modified(self, path: str) -> int:
        if self.told(b"", 0) != {}:
            raise NotImplementedError
        return self.writes


def digest(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


# What is told of the content of a file and of the number of writes, as these file systems do.
TOLD: dict[str, Callable[[bytes, int], dict[str, Any]]] = {
    "s3": lambda data, writes: {"ETag": digest(data), "LastModified": writes},
    "s3 with versions": lambda data, writes: {"ETag": "always", "VersionId": str(writes)},
    "gcs": lambda data, writes: {"generation": writes, "etag": str(writes), "md5Hash": ""},
    "azure": lambda data, writes: {"etag": str(writes), "last_modified": writes, "metadata": None},
    "http": lambda data, writes: {"ETag": digest(data), "mimetype": "binary"},
    "sftp": lambda data, writes: {"mtime": writes, "time": 0},
    "github": lambda data, writes: {"sha": digest(data), "mode": "100644"},
    "hub": lambda data, writes: {"blob_id": digest(data), "lfs": None, "last_commit": None},
    "webhdfs": lambda data, writes: {"modificationTime": writes},
    "nothing, but modified()": lambda data, writes: {},
}


def versioned(told: str) -> tuple[Versioned, Any]:
    store = Versioned(TOLD[told])
    store.put("w.safetensors", safejax.serialize({"w": W, "v": W}))
    return store, safejax.load("w.safetensors", fs=store)


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("index", [..., 3, np.s_[::16]])
def test_a_file_that_is_replaced_by_one_of_the_same_size(told: str, index: Any) -> None:
    """Old and new are never mixed, as far as the file system tells them apart (S6)."""
    store, tree = versioned(told)
    assert np.asarray(tree["v"][index]).tobytes() == W[index].tobytes()
    store.put("w.safetensors", safejax.serialize({"w": W + 1, "v": W}))
    for name in "wv":
        with pytest.raises(safejax.ReadError, match=r"w\.safetensors: .*since: .*; load it again"):
            np.asarray(tree[name][index])
    again = safejax.load("w.safetensors", fs=store)
    assert np.asarray(again["w"][index]).tobytes() == (W + 1)[index].tobytes()


def test_a_file_that_is_replaced_while_it_is_read() -> None:
    """The question whether a file is the same comes after the read (S6)."""
    store, tree = versioned("s3")

    def replaced(data: bytes) -> bytes:
        store.put("w.safetensors", safejax.serialize({"w": W + 1, "v": W}))
        return data

    store.fault = replaced
    with pytest.raises(safejax.ReadError, match="etag was"):
        safejax.materialize(tree)


@pytest.mark.parametrize("told", ["s3", "http", "github", "hub"])
def test_a_file_that_is_written_again_with_the_same_content_is_the_same(told: str) -> None:
    """Where a digest tells versions apart, times do not matter (S6)."""
    store, tree = versioned(told)
    store.put("w.safetensors", safejax.serialize({"w": W, "v": W}))
    assert np.asarray(tree["w"]).tobytes() == W.tobytes()


def test_reads_of_many_threads_share_the_question_and_its_answer() -> None:
    """One request for the state of a file serves all reads that ended before it (S6)."""
    store = Versioned(TOLD["s3"])
    tree = {f"w{k}": W + k for k in range(64)}
    store.put("w.safetensors", safejax.serialize(tree))
    loaded = safejax.load("w.safetensors", fs=store)
    before = store.infos
    barrier = threading.Barrier(16)

    def together(data: bytes) -> bytes:
        barrier.wait(60)
        return data

    store.fault = together
    with ThreadPoolExecutor(16) as pool:
        parts = list(pool.map(lambda name: np.asarray(loaded[name]), tree))
    assert all(
        part.tobytes() == tree[name].tobytes() for part, name in zip(parts, tree, strict=True)
    )
    assert 4 <= store.infos - before <= 64
    store.put("w.safetensors", safejax.serialize({**tree, "w0": W + 1}))

    def failed(name: str) -> bool:
        with pytest.raises(safejax.ReadError, match="etag was"):
            np.asarray(loaded[name])
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(failed, tree))


def test_a_file_system_that_no_longer_answers() -> None:
    """An error of the question is an error of the read (S6)."""
    store, tree = versioned("s3")
    told = store.told

    def refuse(data: bytes, writes: int) -> dict[str, Any]:
        raise TimeoutError("too late")

    store.told = refuse
    with pytest.raises(safejax.ReadError, match="failed: TimeoutError: too late"):
        np.asarray(tree["w"])
    store.told = told
    assert np.asarray(tree["w"]).tobytes() == W.tobytes()


def test_a_file_in_memory_that_is_replaced(memory: Any) -> None:
    """A file system of fsspec's own (S6)."""
    safejax.save({"w": W}, "memory://m.safetensors")
    tree = safejax.load("memory://m.safetensors")
    assert np.asarray(tree["w"][2]).tobytes() == W[2].tobytes()
    safejax.save({"w": W + 1}, "memory://m.safetensors")
    with pytest.raises(safejax.ReadError, match="modified was"):
        np.asarray(tree["w"])


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 100])
def test_anything_but_a_safetensors_file_is_refused(content: bytes) -> None:
    store = Store()
    store.files["w.safetensors"] = content
    with pytest.raises(safejax.InvalidFileError, match=r"w\.safetensors"):
        safejax.load("w.safetensors", fs=store)


def test_a_file_system_that_reports_no_size() -> None:
    class Sizeless(Store):
        def info(self, path: str, **options: Any) -> dict[str, Any]:
            return {**super().info(path), "size": None}

    store = Sizeless()
    store.files["w"] = b""
    with pytest.raises(safejax.ReadError, match="Sizeless reports none: download"):
        RemoteSource(store, "w")


def test_missing_files(memory: Any) -> None:
    with pytest.raises(FileNotFoundError):
        safejax.load("w.safetensors", fs=Store())
    with pytest.raises(FileNotFoundError):
        safejax.load("memory://w.safetensors")


# ---- writes that fail


def failing_tree() -> Any:
    """A tree whose second leaf can no longer be read."""
    store, tree = opened({"w": W})
    store.fault = raising
    return {"a": W, "b": tree["w"]}


@pytest.mark.parametrize("before", [None, b"the old file"])
@pytest.mark.parametrize("why", ["leaf", "store", "progress"])
def test_a_failed_write_leaves_no_incomplete_file(why: str, before: bytes | None) -> None:
    store = Store()
    if before is not None:
        store.files["w"] = before
    tree: Any = {"a": W, "b": W + 1}
    error: type[BaseException] = OSError
    progress = None
    if why == "leaf":
        tree = failing_tree()
    elif why == "store":
        store.room = 5000
    else:
        error = KeyboardInterrupt

        def progress(done: int, total: int) -> None:
            if done > 1000:
                raise KeyboardInterrupt

    with pytest.raises(error):
        safejax.save(tree, "w", fs=store, progress=progress)
    assert store.files.get("w") == before
    assert store.discarded == ["w"]
    # The file system is as usable as before.
    store.room = None
    safejax.save({"w": W}, "w", fs=store)
    assert store.files["w"] == safejax.serialize({"w": W})


def test_a_failed_write_leaves_no_incomplete_file_in_memory(memory: Any) -> None:
    with pytest.raises(safejax.ReadError):
        safejax.save(failing_tree(), "memory://w")
    assert not memory.exists("/w")
    memory.pipe("/w", b"the old file")
    with pytest.raises(safejax.ReadError):
        safejax.save(failing_tree(), "memory://w")
    assert memory.cat("/w") == b"the old file"


def test_a_tree_that_cannot_be_stored_leaves_the_file(memory: Any) -> None:
    memory.pipe("/w", b"the old file")
    with pytest.raises(safejax.LeafError):
        safejax.save({"w": object()}, "/w", fs=memory)
    assert memory.cat("/w") == b"the old file"


def test_progress_counts_every_byte() -> None:
    store = Store()
    steps: list[tuple[int, int]] = []
    safejax.save({"w": W}, "w", fs=store, progress=lambda done, total: steps.append((done, total)))
    total = len(store.files["w"])
    assert steps[-1] == (total, total)
    assert {step[1] for step in steps} == {total}
    assert sorted(steps) == steps


def test_saves_of_two_threads_on_one_file_system() -> None:
    """A file system has one transaction at a time, and a save must not end that of another one."""
    store = Store()
    begun, ended = threading.Event(), threading.Event()

    def progress(done: int, total: int) -> None:
        begun.set()
        # The other save starts while this one is writing, and waits for its end.
        assert not ended.wait(0.1)

    def other() -> None:
        begun.wait()
        safejax.save({"w": W + 1}, "other", fs=store)
        ended.set()

    thread = threading.Thread(target=other)
    thread.start()
    safejax.save({"w": W}, "one", fs=store, progress=progress)
    thread.join()
    assert store.files["one"] == safejax.serialize({"w": W})
    assert store.files["other"] == safejax.serialize({"w": W + 1})


def test_within_a_transaction_of_the_caller() -> None:
    store = Store()
    with store.transaction:
        safejax.save({"w": W}, "one", fs=store)
        safejax.save({"w": W}, "two", fs=store)
        assert store.files == {}
    assert set(store.files) == {"one", "two"}
    store.start_transaction()
    safejax.save({"w": W}, "three", fs=store)
    store.transaction.complete(commit=False)
    assert set(store.files) == {"one", "two"}
    assert store.discarded == ["three"]
