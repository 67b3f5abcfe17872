"""Faults: killed saves, files that change while a tree uses them, threads, and leaked resources."""

import errno
import gc
import itertools
import os
import random
import resource
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax import InvalidFileError, ReadError, load, materialize, observe_reads, save, serialize
from safejax._src.reading.patience import Patience
from safejax._src.storage.files import write_atomically
from safejax.testing import assert_same_bits, assert_trees_identical
from tests.support.children import CHILDREN
from tests.support.effort import LARGE
from tests.support.files import names_in, open_below

# Children are forked from a process that has imported this module without starting JAX's threads,
# so nothing in this module may use a device when it is imported.

NOBODY = 65534
PAGE = 4096
GRID = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)


def in_a_child(task: Callable[..., Any], *arguments: Any) -> tuple[int | None, list[Any]]:
    """Run `task(send, *arguments)` in a process; return its exit code and what it sent."""
    receiver, sender = CHILDREN.Pipe(duplex=False)
    process = CHILDREN.Process(target=task, args=(sender, *arguments))
    process.start()
    sender.close()
    sent = []
    with receiver:
        while True:
            try:
                sent.append(receiver.recv())
            except EOFError:
                break
    process.join()
    return process.exitcode, sent


def outcome(call: Callable[..., Any], *arguments: Any) -> tuple[str, str]:
    """What a call returns, or the class and the message of its error."""
    try:
        return "gave", repr(call(*arguments))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is compared
        return type(error).__name__, str(error)


def tree_of(version: int) -> Any:
    """A tree of several MB, every leaf of which differs from version to version."""
    layers = [
        {"w": np.full((64, 1024 + version), version + i, np.float32), "b": np.full(3, version)}
        for i in range(8)
    ]
    return {"layers": layers, "step": version, "name": f"version {version}", "none": None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    save({"w": GRID, "b": [GRID[0], jax.random.key(3), 7]}, path)
    return path


def expected() -> Any:
    return {"w": GRID, "b": [GRID[0], jax.random.key(3), 7]}


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may access."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o700)
    shutil.rmtree(folder)


# ---- saves that are killed

KILLS = 100 if LARGE else 25


def write_version(path: str, version: int) -> None:
    data = bytes([65 + version]) * (4_000_000 + version)
    parts = (memoryview(data)[at : at + 65536] for at in range(0, len(data), 65536))
    write_atomically(path, parts, lambda nbytes: None)


def save_version(path: str, version: int) -> None:
    save(tree_of(version), path)


def save_for_ever(send: Any, save_one: Callable[[str, int], None], path: str) -> None:
    send.send("ready")
    for version in itertools.cycle((1, 0)):
        save_one(path, version)


@pytest.mark.parametrize("save_one", [write_version, save_version])
def test_a_killed_save_leaves_the_old_file_or_the_new_one(
    save_one: Callable[[str, int], None], tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    whole: list[bytes] = []
    for version in (0, 1):
        save_one(str(path), version)
        whole.append(path.read_bytes())
    rng = random.Random(0)
    found: Counter[int] = Counter()
    in_the_middle = 0
    for kill in range(KILLS):
        receiver, sender = CHILDREN.Pipe(duplex=False)
        child = CHILDREN.Process(target=save_for_ever, args=(sender, save_one, str(path)))
        child.start()
        with receiver, sender:
            assert receiver.recv() == "ready"
            time.sleep(rng.uniform(0, 0.03))
            child.kill()
            child.join()
        assert child.exitcode == -signal.SIGKILL
        content = path.read_bytes()
        assert content in whole
        found[whole.index(content)] += 1
        in_the_middle += names_in(tmp_path) != [path.name]
        save_one(str(path), kill % 2)
        assert names_in(tmp_path) == [path.name]
        assert path.read_bytes() == whole[kill % 2]
    # Otherwise the test would have killed no save while it was writing, or always the same one.
    assert in_the_middle >= KILLS // 4
    assert set(found) == {0, 1}


# ---- files that are removed, cut short or made unreadable while a tree uses them


def touch(array: Any) -> bytes:
    return np.asarray(array).tobytes()


def rows() -> NamedSharding:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, P("x"))


# Uses of a tree whose leaves all equal GRID: "w" is on the default device, "rows" is split over
# eight devices, and "again" was placed once and then deleted.
ACCESSES: dict[str, Callable[[Any, Path], Any]] = {
    "numpy.asarray": lambda tree, path: touch(tree["w"]),
    "a row": lambda tree, path: touch(tree["w"][3]),
    "the first row, which may be there": lambda tree, path: touch(tree["w"][0]),
    "a part in steps": lambda tree, path: touch(tree["w"][::-7, 1:3]),
    "a row, placed": lambda tree, path: touch(tree["w"][63] + 1),
    "placed": lambda tree, path: touch(tree["w"].placed()),
    "placed on devices": lambda tree, path: touch(tree["rows"].placed()),
    "placed again": lambda tree, path: touch(tree["again"] + 1),
    "an operator": lambda tree, path: touch(tree["w"] @ tree["w"]),
    "jit": lambda tree, path: touch(jax.jit(jnp.sum)(tree["rows"])),
    "inside jit": lambda tree, path: touch(jax.jit(lambda: tree["w"].T)()),
    "device_put": lambda tree, path: touch(jax.device_put(tree["w"], jax.devices()[1])),
    "materialize": lambda tree, path: list(map(touch, jax.tree.leaves(materialize(tree)))),
    "a transform": lambda tree, path: touch(
        safejax.cast("float16")(safejax.flatten({"w": tree["w"]}))["w"]
    ),
    "serialize": lambda tree, path: serialize(tree),
    "saved over itself": lambda tree, path: save(tree, path),
    "saved elsewhere": lambda tree, path: save(tree, path.parent / "new"),
}


def looking_at(path: Path) -> Any:
    tree = load(path, sharding={"w": None, "rows": rows(), "again": None})
    tree["again"].placed()
    tree["again"].delete()
    return tree


def use_files_cut_short(send: Any, path: Path, sizes: list[int]) -> None:
    whole = path.read_bytes()
    for size in sizes:
        path.write_bytes(whole)
        tree = looking_at(path)
        os.truncate(path, size)
        for access, use in ACCESSES.items():
            send.send((access, size, outcome(use, tree, path), names_in(path.parent)))


def test_a_file_cut_short_is_an_error_whatever_the_access(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save({"w": GRID, "rows": GRID, "again": GRID}, path)
    size = path.stat().st_size
    header = size - 3 * GRID.nbytes
    sizes = [0, 4, header, header + 100, 2 * PAGE, size - PAGE, size - 1]
    code, told = in_a_child(use_files_cut_short, path, sizes)
    # A SIGBUS would end the child at the access that is missing here.
    assert [(access, cut) for access, cut, _, _ in told] == [
        (access, cut) for cut in sizes for access in ACCESSES
    ]
    assert code == 0
    for access, cut, (error, message), left in told:
        assert error == "ReadError", access
        assert message.startswith(f"{path}: expected the {size} bytes"), access
        assert f"got {cut}: it was cut short since; load it again" in message
        assert left == [path.name], access


def overwrite_by_other_content(path: Path) -> None:
    other = path.parent / "other"
    other.write_bytes(b"something else")
    os.replace(other, path)


LOSSES: dict[str, Callable[[Path], Any]] = {
    "deleted": Path.unlink,
    "replaced by another": overwrite_by_other_content,
    "replaced by a save": lambda path: save({"w": GRID[::-1]}, path),
    "moved away": lambda path: path.rename(path.parent / "moved"),
    "moved and a folder in its place": lambda path: (
        path.rename(path.parent / "moved"),
        path.mkdir(),
    ),
    "not to be read any more": lambda path: path.chmod(0),
    "gone with its folder": lambda path: shutil.rmtree(path.parent),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_tree_outlives_its_file(loss: str, path: Path, tmp_path_factory: Any) -> None:
    unread, half_read = load(path), load(path)
    half_read["w"].placed()
    data = serialize(unread)
    LOSSES[loss](path)
    for tree in (unread, half_read):
        assert_same_bits(np.asarray(tree["w"][::2, 5]), GRID[::2, 5])
        assert_trees_identical(tree, expected())
        assert_trees_identical(materialize(tree), materialize(expected()))
        elsewhere = tmp_path_factory.mktemp("new") / "m"
        save(tree, elsewhere)
        assert elsewhere.read_bytes() == data


def load_as_nobody(send: Any, path: Path) -> None:
    if os.getuid() == 0:
        os.setuid(NOBODY)
    for read in (load, safejax.metadata):
        send.send(outcome(read, path))


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_file_without_permission_to_read_is_an_error_that_names_it(
    what: str, open_folder: Path
) -> None:
    path = open_folder / "m.safetensors"
    save({"w": GRID}, path)
    (path if what == "file" else open_folder).chmod(0)
    code, told = in_a_child(load_as_nobody, path)
    open_folder.chmod(0o755)
    assert code == 0
    assert told == [("PermissionError", f"[Errno 13] Permission denied: '{path}'")] * 2


# ---- a file system that fails


class Broken(MemoryFileSystem):
    """A file system in memory of which one method fails."""

    cachable = False
    protocol = "broken"
    fault: str | None = None

    def _fail(self, method: str) -> None:
        if self.fault == method:
            raise ConnectionError(f"{method}: the line is dead")

    def info(self, path: str, **options: Any) -> Any:
        self._fail("info")
        return super().info(path, **options)

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        self._fail("cat_file")
        return super().cat_file(path, start=start, end=end, **options)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "wb":
            self._fail("open")
        return super()._open(path, mode, **options)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broken]:
    # A private name, since what fails for good would take seconds.
    monkeypatch.setattr("safejax._src.reading.patience.PATIENCE", Patience(pause=0.01))
    fs = Broken()
    fs.pipe_file("/m.safetensors", serialize({"w": GRID}))
    yield fs
    fs.store.clear()


@pytest.mark.parametrize("fault", ["info", "cat_file"])
def test_a_file_system_that_cannot_report_a_file_is_an_error_of_load(
    broken: Broken, fault: str
) -> None:
    broken.fault = fault
    for read in (load, safejax.metadata):
        with pytest.raises(OSError, match=f"{fault}: the line is dead"):
            read("/m.safetensors", fs=broken)
    broken.fault = None
    assert_same_bits(load("/m.safetensors", fs=broken)["w"], GRID)


@pytest.mark.parametrize("access", ACCESSES)
def test_a_file_system_that_cannot_be_read_is_an_error_of_every_use(
    broken: Broken, access: str, tmp_path: Path
) -> None:
    broken.pipe_file("/m.safetensors", serialize({"w": GRID, "rows": GRID, "again": GRID}))
    tree = load("/m.safetensors", fs=broken, sharding={"w": None, "rows": rows(), "again": None})
    broken.fault = "cat_file"
    path = tmp_path / "m.safetensors"
    with pytest.raises(ReadError, match=r"^/m\.safetensors: reading bytes .*the line is dead"):
        ACCESSES[access](tree, path)
    assert names_in(tmp_path) == []
    assert not any(leaf.is_placed for leaf in tree.values())
    broken.fault = None
    ACCESSES[access](tree, path)


def test_a_file_system_that_cannot_be_written_to_keeps_the_old_file(broken: Broken) -> None:
    before = broken.cat("/m.safetensors")
    broken.fault = "open"
    with pytest.raises(OSError, match=r"open: the line is dead: '/m\.safetensors'$"):
        save({"w": GRID[::-1]}, "/m.safetensors", fs=broken)
    assert broken.cat("/m.safetensors") == before


# ---- saves that fail


def save_as_nobody(send: Any, path: Path) -> None:
    if os.getuid() == 0:
        os.setuid(NOBODY)
    send.send(outcome(save, tree_of(1), path))


def test_a_save_into_a_folder_without_permission_is_an_error(open_folder: Path) -> None:
    path = open_folder / "m.safetensors"
    save(tree_of(0), path)
    before = path.read_bytes()
    open_folder.chmod(0o555)
    code, ((error, message),) = in_a_child(save_as_nobody, path)
    assert (code, error) == (0, "PermissionError")
    assert str(open_folder) in message
    assert path.read_bytes() == before
    assert names_in(open_folder) == [path.name]


def save_sets_as_nobody(send: Any, folder: Path) -> None:
    """Save twice for each mode of a folder in the one that is replaced."""
    if os.getuid() == 0:
        os.setuid(NOBODY)
    for mode in (0o555, 0o311):
        path = folder / f"{mode:o}"
        save(tree_of(0), path, max_shard_bytes=1 << 20)
        (path / "logs" / "old").mkdir(parents=True)
        (path / "logs" / "old" / "log").write_text("kept")
        (path / "logs" / "old").chmod(mode)
        send.send(outcome(lambda: save(tree_of(1), path, max_shard_bytes=1 << 20)))  # noqa: B023
        (path / "logs" / "old").chmod(0o755)
        assert (path / "logs" / "old" / "log").read_text() == "kept"
        assert_trees_identical(load(path), tree_of(1 if mode == 0o555 else 0))
    send.send(names_in(folder))


def test_folders_without_permissions_in_one_that_is_replaced(open_folder: Path) -> None:
    open_folder.chmod(0o777)
    code, (read_only, unreadable, names) = in_a_child(save_sets_as_nobody, open_folder)
    assert (code, read_only) == (0, ("gave", "None"))
    assert unreadable[0] == "PermissionError"
    assert "expected a folder that can be read" in unreadable[1]
    assert str(open_folder / "311" / "logs" / "old") in unreadable[1]
    assert names == ["311", "555"]  # And no litter.


def save_beyond_the_limit(send: Any, path: Path) -> None:
    tree = load(path)
    half_read = load(path)
    half_read["w"].placed()
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    # The tree is larger than the limit, and some of its leaves are from the file itself.
    send.send(outcome(save, {"a": tree, "big": np.zeros(100_000)}, path))
    send.send(names_in(path.parent))
    assert_trees_identical(tree, expected())
    assert_trees_identical(half_read, expected())
    assert_trees_identical(load(path), expected())
    save(half_read, path)
    assert_trees_identical(tree, expected())
    send.send("whole")


def test_a_full_disk_keeps_the_file_and_the_trees_that_use_it(path: Path) -> None:
    before = path.read_bytes()
    code, told = in_a_child(save_beyond_the_limit, path)
    (kind, message), names, whole = told
    assert (kind, names, whole) == ("OSError", [path.name], "whole")
    assert message.startswith(f"[Errno {errno.EFBIG}] File too large; ")
    assert "max_shard_bytes" in message
    assert str(path) in message
    assert code == 0
    assert path.read_bytes() == before
    assert names_in(path.parent) == [path.name]


def test_a_save_through_a_link_keeps_the_link_and_the_trees(path: Path) -> None:
    link = path.parent / "link"
    link.symlink_to(path.name)
    tree = load(link)
    save({"w": GRID[::-1]}, link)
    assert link.is_symlink()
    assert_same_bits(load(path)["w"], GRID[::-1])
    assert_trees_identical(tree, expected())
    save(tree, link)
    assert_trees_identical(load(path), expected())
    assert names_in(path.parent) == ["link", path.name]


# ---- many threads on the same leaves

THREADS = 16


def at_once(work: Callable[[int], Any]) -> list[Any]:
    """What `work(number)` returns in each of 16 threads that start together."""
    gate = threading.Barrier(THREADS)
    results: dict[int, Any] = {}

    def run(number: int) -> None:
        gate.wait(60)
        try:
            results[number] = work(number)
        except BaseException as error:  # noqa: BLE001 - a thread's own is lost
            results[number] = error

    # A deadlock between the threads must not block the tests.
    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    for result in results.values():
        if isinstance(result, BaseException):
            raise result
    return [results[number] for number in range(THREADS)]


# Each has a different number of bytes, so that a log of reads shows which leaf was read.
LEAVES = {f"leaf {n}": np.arange(8 * (n + 4), dtype=np.int32).reshape(8, -1) for n in range(6)}


def in_turn(number: int) -> list[str]:
    """The names of the leaves, in an order that starts with another one for each of six threads."""
    order = list(LEAVES)
    return order[number % 6 :] + order[: number % 6]


def test_threads_place_each_leaf_once(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save(LEAVES, path)
    total = jax.jit(lambda tree: sum(leaf.sum() for leaf in tree.values()))
    for sharding in (None, jax.devices()[5], rows()):
        tree = load(path, sharding=sharding)

        def work(number: int, tree: Any = tree) -> Any:
            if number % 4 == 0:
                return materialize(tree)
            if number % 4 == 1:
                total(tree)
            return {name: tree[name].placed() for name in in_turn(number)}

        with observe_reads() as log:
            results = at_once(work)
            assert log.nbytes == sum(leaf.nbytes for leaf in LEAVES.values())
        for result in results:
            for name, leaf in LEAVES.items():
                assert result[name] is results[0][name]
                assert_same_bits(result[name], leaf)


def test_threads_load_slice_and_place_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save(LEAVES, path)
    tree, spread = load(path), load(path, sharding=rows())

    def work(number: int) -> None:
        row, column = number % 8, number % 4
        own = load(path, sharding=rows() if number % 2 else None)
        for name in in_turn(number):
            whole = LEAVES[name]
            for lazy in (tree[name], spread[name], own[name]):
                assert_same_bits(np.asarray(lazy[row]), whole[row])
                assert_same_bits(np.asarray(lazy[::-2, column]), whole[::-2, column])
                assert_same_bits(np.asarray(lazy + 1), whole + 1)
                assert_same_bits(np.asarray(lazy[row]), whole[row])
        assert_trees_identical(materialize(own), materialize(LEAVES))
        assert_trees_identical(materialize([tree, spread]), [LEAVES, LEAVES])

    with observe_reads() as log:
        at_once(work)
        count = Counter(read.nbytes for read in log.reads if read.source == str(path))
    for name, leaf in LEAVES.items():
        # Each leaf of the shared tree and of the eight own trees was read once, as a whole.
        assert count[leaf.nbytes] == 1 + THREADS // 2, name


# ---- leaked resources


def mappings(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


_LOADS = 1000 if LARGE else 240


def test_many_loads_leave_no_descriptor_and_no_mapping(path: Path) -> None:
    spread = rows()
    uses: list[Callable[[Any], Any]] = [
        lambda tree: None,
        lambda tree: touch(tree["w"]),
        lambda tree: touch(tree["w"][::3, 1]),
        lambda tree: tree["w"].placed(),
        lambda tree: materialize(tree),
        lambda tree: touch(tree["b"][0] + 1),
        lambda tree: touch(jax.jit(jnp.negative, donate_argnums=0)(tree["w"])),
        lambda tree: serialize(tree),
    ]
    jax.block_until_ready([use(load(path)) for use in uses])
    gc.collect()
    for number in range(_LOADS):
        tree = load(path, sharding={"w": spread, "b": None} if number % 3 == 0 else None)
        uses[number % len(uses)](tree)
        assert mappings(path) or number % 8 not in (0, 1)
        del tree
    # XLA releases what its own threads hold when Python's garbage collector runs.
    gc.collect()
    assert (open_below(path.parent), mappings(path)) == ([], 0)


def test_many_failed_loads_leave_no_descriptor_and_no_mapping(path: Path) -> None:
    data = path.read_bytes()
    bad: list[tuple[Any, bytes, dict[str, Any]]] = [
        (InvalidFileError, b"hello, world", {}),
        (InvalidFileError, b"", {}),
        (InvalidFileError, data[:-1], {}),
        (InvalidFileError, data.replace(b'"version', b'"verzion'), {}),
        (InvalidFileError, data.replace(b"fry2x32", b"fry2x33"), {}),
        (safejax.MismatchError, data, {"like": {"other": GRID}}),
        (safejax.TransformError, data, {"transform": safejax.rename({"w": "b.0"})}),
        (safejax.ShardingError, data, {"sharding": {"w": rows()}}),
    ]
    for error, content, options in bad:
        path.write_bytes(content)
        for _ in range(_LOADS // len(bad)):
            with pytest.raises(error):
                load(path, **options)
        gc.collect()  # JAX's errors, which are the cause of some of ours, are in reference cycles.
        assert (open_below(path.parent), mappings(path)) == ([], 0), error


# ---- no device


def save_without_devices(folder: Path) -> None:
    tree = {"w": np.ones((300, 70)), "step": 3, "name": "x"}
    safejax.save(tree, folder / "one.safetensors", checksum=True)
    safejax.save(tree, folder / "many", max_shard_bytes=1 << 10)
    safejax.save_async(tree, folder / "later.safetensors").result()
    assert safejax.serialize(tree)
    # JAX refuses this once there are devices.
    jax.config.update("jax_num_cpu_devices", 3)


def test_values_of_numpy_are_saved_without_bringing_up_devices(tmp_path: Path) -> None:
    child = CHILDREN.Process(target=save_without_devices, args=(tmp_path,))
    child.start()
    child.join(300)
    assert child.exitcode == 0
