"""The ways to read local files: each gives the same bits, and one place chooses between them."""

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import jax
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
import safejax._src.arrays.placing
import safejax.flax
from safejax import ReadError
from safejax._src.reading.file import FileSource, MappedSource
from safejax._src.reading.memory import ALIGNMENT, Arena, address, aligned_empty, is_aligned
from safejax._src.reading.windows import Window
from safejax._src.storage import local, network
from safejax.testing import ALL_DTYPES, assert_reads, assert_same_bits, assert_trees_identical
from tests.support.children import CHILDREN
from tests.support.files import open_below

WAYS: tuple[local.Access, ...] = ("auto", "map", "copy", "read")
BIG = np.arange(3 << 18, dtype=np.int32).reshape(1024, 768)
TREE = {
    "big": BIG,
    "bits": np.array([True, False, True]),
    "none": np.zeros((0, 3), np.float32),
    "one": np.array(2.5, np.float32),
    "odd": np.arange(7, dtype=np.int8),
}


@pytest.fixture(params=["ours", "stock"])
def path(request: Any, tmp_path: Path) -> Path:
    """A file of safejax, which is aligned, and one of the safetensors package, which is not."""
    path = tmp_path / "m.safetensors"
    if request.param == "ours":
        safejax.save(TREE, path)
    else:
        safetensors.numpy.save_file(TREE, path, {"k": "v" * 11})
    return path


def source_of(leaf: Any) -> Any:
    (source,) = leaf.content.view.sources
    return source


# ---- the same bits


@pytest.mark.parametrize("way", WAYS)
def test_every_access_gives_the_same_bits(path: Path, way: local.Access) -> None:
    tree = safejax.load(path, access=way)
    assert_trees_identical(tree, TREE)
    mesh = jax.make_mesh((2, 4), ("x", "y"))
    for spec in (P("x"), P(None, "y"), P("y", "x"), P()):
        big = safejax.load(path, access=way, sharding=NamedSharding(mesh, P()))["big"]
        big = big.at_placement(
            safejax._src.arrays.placing.Placement(NamedSharding(mesh, spec), True)
        )
        assert_reads({"big": big}, BIG.nbytes)
        assert_same_bits(big.placed(), BIG)
    for index in [(3,), (slice(2, 900, 7), 5), (slice(None, None, -1),), (..., slice(0, 768, 2))]:
        with safejax.observe_reads() as log:
            part = np.asarray(tree["big"][index])
        assert np.array_equal(part, BIG[index])
        assert log.needed == part.nbytes
        assert log.nbytes == part.nbytes or (way == "read" and log.nbytes <= BIG.nbytes)
    step = safejax.cast("float32", source="int32", where=lambda _, aval: aval.dtype == np.int32)
    cast = safejax.load(path, access=way, transform=step)
    assert_same_bits(cast["big"].placed(), BIG.astype(np.float32))


@pytest.mark.parametrize("way", WAYS)
def test_placed_blocks_are_aligned_so_that_a_device_uses_them(
    path: Path, way: local.Access
) -> None:
    for leaf in jax.tree.leaves(safejax.materialize(safejax.load(path, access=way))):
        assert not leaf.size or leaf.unsafe_buffer_pointer() % ALIGNMENT == 0


def test_random_windows_of_a_file_that_is_read(path: Path) -> None:
    random = np.random.default_rng(0)
    read, mapped = (source_of(safejax.load(path, access=way)["big"]) for way in ("read", "map"))
    begin = safejax.load(path)["big"].content.view.begin
    dtype = np.dtype(np.int32)
    for _ in range(200):
        window = Window.whole((8, 16, 6)).transpose(tuple(random.permutation(3)))
        steps = random.choice([-3, -2, -1, 1, 2, 3], 3).tolist()
        window = window.index(tuple(slice(None, None, step) for step in steps))
        expected = mapped.read(begin, dtype, window)
        assert np.array_equal(read.read(begin, dtype, window), expected)
        for source in (read, mapped):
            out = np.empty(window.shape, dtype)
            source.read_into(begin, dtype, window, out)
            assert np.array_equal(out, expected)


# ---- the choice


@pytest.fixture
def mount_as(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A function that sets the type that is reported for the file system of `path`.

    It writes another list of mounts, since a real mount needs root and a server.
    """
    mounts = path.parent / "mountinfo"
    device = path.stat().st_dev
    monkeypatch.setattr(network, "_MOUNTS", str(mounts))

    def mount(name: str) -> None:
        number = f"{os.major(device)}:{os.minor(device)}"
        mounts.write_text(f"36 35 {number} / / rw,noatime shared:1 - {name} source rw\n")
        network._type_of_device.cache_clear()

    yield mount
    network._type_of_device.cache_clear()


def test_local_files_are_mapped_and_files_on_a_network_are_read(
    path: Path, mount_as: Callable[[str], None]
) -> None:
    for name in ("nfs", "nfs4", "cifs", "lustre", "fuse.gcsfuse", "fuse", "9p", "ceph"):
        mount_as(name)
        assert network.is_on_network(str(path))
        tree = safejax.load(path)
        assert type(source_of(tree["big"])) is FileSource
        assert_trees_identical(tree, TREE)
        assert type(source_of(safejax.load(path, access="map")["big"])) is MappedSource
    for name in ("ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "fuseblk", "apfs", ""):
        mount_as(name)
        assert type(source_of(safejax.load(path)["big"])) is MappedSource


def test_files_of_this_machine_are_mapped(path: Path) -> None:
    assert type(source_of(safejax.load(path)["big"])) is MappedSource


@pytest.mark.skipif(not os.path.exists("/proc/self/mountinfo"), reason="Linux tells the types")
def test_types_of_file_systems_are_those_that_df_reports(tmp_path: Path) -> None:
    for folder in (str(tmp_path), "/", "/dev/shm", "/proc", tempfile.gettempdir()):
        done = subprocess.run(
            ["df", "--output=fstype", folder], capture_output=True, text=True, check=True
        )
        found = network._type_of_device(os.stat(folder).st_dev)
        assert found == done.stdout.split()[-1]


def test_without_a_list_of_mounts_files_are_local(
    path: Path, mount_as: Callable[[str], None]
) -> None:
    # The list that the fixture names does not exist before it is written.
    network._type_of_device.cache_clear()
    assert not network.is_on_network(str(path))


def test_only_mapped_and_aligned_leaves_are_used_in_place(path: Path) -> None:
    for way in WAYS:
        leaf = safejax.load(path, access=way)["big"]
        mapped = address(np.asarray(safejax.load(path, access="map")["big"]))
        in_place = leaf.placed().unsafe_buffer_pointer() == address(np.asarray(leaf))
        assert in_place == (way in ("auto", "map") and mapped % ALIGNMENT == 0)


@pytest.mark.parametrize("way", ["copy", "read"])
def test_copies_do_not_depend_on_the_file(path: Path, way: local.Access) -> None:
    tree = safejax.materialize(safejax.load(path, access=way))
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert_same_bits(tree["big"], BIG)


def test_a_file_that_is_read_is_not_mapped(path: Path) -> None:
    tree = safejax.load(path, access="read")
    safejax.materialize(tree)
    assert str(path) not in Path("/proc/self/maps").read_text()
    held = safejax.load(path, access="map")
    assert str(path) in Path("/proc/self/maps").read_text()
    assert held


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loss", ["deleted", "replaced", "moved"])
def test_the_file_that_was_opened_is_read_even_if_another_takes_its_name(
    path: Path, way: local.Access, loss: str
) -> None:
    tree = safejax.load(path, access=way)
    if loss == "deleted":
        path.unlink()
    elif loss == "moved":
        path.rename(path.with_name("other"))
    else:
        safejax.save({"big": BIG * 2}, path)
    assert_trees_identical(safejax.materialize(tree), jax.tree.map(np.asarray, TREE))


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_was_cut_short_is_an_error(path: Path, way: local.Access) -> None:
    tree = safejax.load(path, access=way)
    os.truncate(path, path.stat().st_size // 2)
    for use in (safejax.materialize, lambda tree: np.asarray(tree["big"])[::2].sum()):
        with pytest.raises(ReadError, match="it was cut short since"):
            use(tree)


def rewrite(path: Path, tree: Any) -> None:
    """Another file of the same size, written over the first one in place."""
    other = path.with_name("other")
    safejax.save(tree, other)
    data = other.read_bytes()
    with path.open("r+b") as file:
        file.write(data)
    # The clock of a file system may be slow.
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


USES: dict[str, Callable[[Any], Any]] = {
    "placed": lambda tree: tree["big"].placed(),
    "materialized": safejax.materialize,
    "on the host": lambda tree: np.asarray(tree["big"]),
    "small": lambda tree: np.asarray(tree["one"]),
    "a row": lambda tree: np.asarray(tree["big"][3]),
    "columns": lambda tree: np.asarray(tree["big"][:, ::5]),
    "saved": safejax.serialize,
    "computed": lambda tree: tree["big"] + 1,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("use", USES)
def test_a_file_that_was_rewritten_in_place_is_an_error(
    tmp_path: Path, way: local.Access, use: str
) -> None:
    """New bytes are not read under the old header, although there are as many (S5)."""
    path = tmp_path / "m.safetensors"
    safejax.save(TREE, path)
    tree, before = safejax.load(path, access=way), path.stat()
    part = safejax.load(path, access=way)["big"]
    assert np.array_equal(part[2], BIG[2])
    rewrite(path, {**TREE, "big": BIG + 1})
    assert (path.stat().st_size, path.stat().st_ino) == (before.st_size, before.st_ino)
    with pytest.raises(ReadError, match=r"it since it was opened .*load it again") as caught:
        USES[use](tree)
    assert str(path) in str(caught.value)
    with pytest.raises(ReadError, match="it since it was opened"):
        np.asarray(part)
    assert_same_bits(safejax.load(path, access=way)["big"], BIG + 1)


@pytest.mark.parametrize("way", WAYS)
def test_a_row_in_a_loop_is_of_the_file_that_was_opened(tmp_path: Path, way: local.Access) -> None:
    """A file that is rewritten while its rows are read is an error a millisecond later (S5)."""
    path = tmp_path / "m.safetensors"
    safejax.save(TREE, path)
    big = safejax.load(path, access=way)["big"]
    assert np.array_equal(np.asarray(big[0]), BIG[0])
    rewrite(path, {**TREE, "big": BIG + 1})
    time.sleep(0.002)
    with pytest.raises(ReadError, match="it since it was opened"):
        np.asarray(big[1])
    big = safejax.load(path, access=way)["big"]
    assert np.array_equal(np.asarray(big[0]), BIG[0] + 1)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ReadError, match="it was cut short since"):
        np.asarray(big[1])


@pytest.mark.parametrize("way", WAYS)
def test_other_permissions_names_and_links_do_not_change_a_file(
    path: Path, way: local.Access
) -> None:
    """Only its size and its time of modification say that a file was changed (S5)."""
    tree = safejax.load(path, access=way)
    path.chmod(0o600)
    os.link(path, path.with_name("link"))
    path.rename(path.with_name("other"))
    assert_trees_identical(safejax.materialize(tree), jax.tree.map(np.asarray, TREE))


# ---- many files

MANY = {f"w{number:03}": np.full(16, number, np.float32) for number in range(282)}


def use_many(folder: Path, way: local.Access, limit: int) -> None:
    """Load, plan, use and save more files than the process may have open."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    trees = [safejax.load(folder, access=way) for _ in range(3)]
    assert len(safejax.plan(folder, access=way).leaves) == len(MANY)
    for tree in trees:
        assert_trees_identical(tree, MANY)
    safejax.save(trees[0], folder.parent / "copy.safetensors")
    assert_trees_identical(safejax.materialize(trees[1]), jax.tree.map(jax.numpy.asarray, MANY))
    # Files that others opened leave no descriptors; some of ours are closed for the next one.
    held = []
    while True:
        try:
            held.append(os.open(folder, os.O_RDONLY))
        except OSError:
            break
    fresh = trees[2]
    os.close(held.pop())
    assert_trees_identical(fresh, MANY)
    assert held


@pytest.mark.parametrize("way", WAYS)
def test_more_files_than_a_process_may_have_open(tmp_path: Path, way: local.Access) -> None:
    """A folder of 282 files is loaded, planned and saved with 256 descriptors (R1)."""
    folder = tmp_path / "model"
    safejax.save(MANY, folder, max_shard_bytes=64)
    assert len(list(folder.glob("*.safetensors"))) == len(MANY)
    child = CHILDREN.Process(target=use_many, args=(folder, way, 256))
    child.start()
    child.join(300)
    assert child.exitcode == 0
    assert_trees_identical(safejax.load(tmp_path / "copy.safetensors"), MANY)


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_was_closed_and_replaced_is_an_error_unless_it_is_mapped(
    tmp_path: Path, way: local.Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is opened again by its path only if that is still its path (R1)."""
    # A process with so low a limit could not be a test.
    monkeypatch.setattr("safejax._src.reading.descriptors._MOST", 3)
    paths = [tmp_path / f"{number}.safetensors" for number in range(5)]
    for number, path in enumerate(paths):
        safejax.save({f"w{number}": BIG + number}, path)
    tree = safejax.load(paths, access=way)
    assert len(open_below(tmp_path)) <= 3
    assert_trees_identical(tree, {f"w{number}": BIG + number for number in range(5)})
    tree = safejax.load(paths, access=way)
    safejax.save({"w0": BIG * 2}, paths[0])
    rewrite(paths[1], {"w1": BIG * 2})
    safejax.save({"w4": BIG * 2}, paths[4])
    assert_same_bits(tree["w4"], BIG + 4)
    with pytest.raises(ReadError, match="it since it was opened"):
        np.asarray(tree["w1"])
    if way == "read":
        with pytest.raises(ReadError, match=r"it was replaced since.*load it again"):
            np.asarray(tree["w0"])
    else:
        assert_same_bits(tree["w0"], BIG)
        assert_same_bits(safejax.materialize(tree["w0"]), BIG)


def test_files_that_are_no_longer_used_do_not_close_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only files that are in use count (R1)."""
    # A process with so low a limit could not be a test.
    monkeypatch.setattr("safejax._src.reading.descriptors._MOST", 3)
    first, other = tmp_path / "first", tmp_path / "other"
    for path in (first, other):
        safejax.save({"w": BIG}, path)
    tree = safejax.load(first, access="read")
    for _ in range(20):
        safejax.load(other, access="read")
    first.unlink()
    assert_same_bits(tree["w"], BIG)


def test_a_system_without_preadv_maps(
    path: Path, mount_as: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mount_as("nfs")
    # The system that runs the tests has preadv.
    for module in ("reading.file", "storage.local"):
        monkeypatch.setattr(f"safejax._src.{module}.CAN_READ", False)
    assert_trees_identical(safejax.materialize(safejax.load(path)), safejax.load(path))
    assert type(source_of(safejax.load(path)["big"])) is MappedSource
    with pytest.raises(ValueError, match="this system has no preadv"):
        safejax.load(path, access="read")


# ---- wrong values of access


def test_other_values_of_access_are_errors(path: Path) -> None:
    for wrong in ("mmap", "", None, 3):
        with pytest.raises(ValueError, match="access: expected one of 'auto', 'map', 'copy'"):
            safejax.load(path, access=wrong)  # pyright: ignore
    fs = fsspec.filesystem("memory")
    safejax.save({"w": BIG}, "/a.safetensors", fs=fs)
    try:
        with pytest.raises(ValueError, match="access: expected 'auto' for a file that is requ"):
            safejax.load("/a.safetensors", fs=fs, access="map")
    finally:
        fs.rm("/a.safetensors")
    with pytest.raises(TypeError, match="access: expected a path with it, got bytes"):
        safejax.flax.deserialize(path.read_bytes(), access="read")
    assert safejax.flax.deserialize(path, access="read")["big"].shape == BIG.shape
    with pytest.raises(IsADirectoryError):
        FileSource(str(path.parent))


# ---- memory


@pytest.mark.parametrize("dtype", [d for d in ALL_DTYPES if d.itemsize > 1] + [np.dtype(np.int8)])
@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (1 << 20, 3)])
def test_memory_is_aligned(dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    held = [aligned_empty(shape, dtype) for _ in range(3)]
    for number, array in enumerate(held):
        assert (array.shape, array.dtype) == (shape, dtype)
        assert is_aligned(array) or not array.size
        array[...] = np.ones((), dtype) * number
    for number, array in enumerate(held):
        assert (array == np.ones((), dtype) * number).all()


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 1 << 20])
@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_the_arrays_of_an_arena_are_aligned_and_do_not_overlap(count: int, nbytes: int) -> None:
    arena = Arena(count, nbytes)
    held = [arena.empty((nbytes,), np.dtype(np.uint8)) for _ in range(count + 2)]
    held.append(arena.empty((2, nbytes), np.dtype(np.uint8)))
    for number, array in enumerate(held):
        array[...] = number
    for number, array in enumerate(held):
        assert (array == number).all()
        assert is_aligned(array) or not array.size
    if nbytes > 64:
        near = [abs(address(one) - address(held[0])) < count * 2 * nbytes for one in held[:count]]
        assert all(near)


def test_memory_is_freed_with_its_array() -> None:
    def mapped() -> int:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return sum("rw-p 00000000 00:00 0" in line for line in lines)

    arrays = [aligned_empty((8 << 20,), np.dtype(np.int8)) for _ in range(20)]
    many = mapped()
    del arrays
    few = mapped()
    assert few < many
