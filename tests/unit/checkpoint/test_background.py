"""Saves in the background: what they hold, their order, their errors, and their handles."""

import contextlib
import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax import LeafError, SaveHandle, TransformError, save, save_async
from safejax._src.checkpoint.layout import layout
from safejax._src.checkpoint.shards import folder_of
from safejax._src.checkpoint.snapshot import copied_bytes, snapshot
from safejax._src.leaves.flatten import flatten
from safejax.testing import assert_trees_identical

LONG = 300.0
"""Seconds after which a test that waits fails."""


class Gate:
    """The `progress` of a save that stops in the middle until it is let through."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None

    def __call__(self, done: int, total: int) -> None:
        self.thread = threading.current_thread()
        self.reached.set()
        assert self.opened.wait(LONG)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.safetensors"


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


@pytest.fixture
def busy(path: Path, gate: Gate) -> SaveHandle:
    """A save to `path` that is stopped, so that the next one there has to wait for it."""
    handle = save_async({"first": np.zeros(3)}, path, progress=gate)
    assert gate.reached.wait(LONG)
    return handle


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """The errors that nobody asked for."""
    found: list[BaseException] = []
    # The hook of Python is there to be replaced; pytest does so as well.
    monkeypatch.setattr(threading, "excepthook", lambda args: found.append(args.exc_value))
    return found


def fresh(value: float = 1.0) -> Any:
    """A tree of arrays on one device and on several, all of which are new."""
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    grid = jnp.arange(64.0).reshape(8, 8) + value
    return {
        "one": jnp.full((5, 3), value),
        "rows": jax.device_put(grid, NamedSharding(mesh, P("x"))),
        "blocks": jax.device_put(grid, NamedSharding(mesh, P("y", "x"))),
        "replicated": jax.device_put(grid, NamedSharding(mesh, P())),
        "int4": jnp.array([1, -3, 7], "int4"),
        "bfloat16": jnp.full((4, 4), value, "bfloat16"),
        "keys": jax.random.split(jax.random.key(int(value)), 3),
        "empty": jnp.zeros((0, 3)),
        "step": int(value),
        "name": "a string",
        "none": None,
    }


# ---- what is saved


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"checksum": True, "metadata": {"step": "3"}},
        {"max_shard_bytes": 200},
        {"max_shard_bytes": 200, "checksum": True},
        {"transform": safejax.chain(safejax.cast("bfloat16"), safejax.prefix("m"))},
        {"max_host_bytes": 0},
        {"max_host_bytes": 1 << 30},
    ],
    ids=str,
)  # fmt: skip
def test_the_bytes_are_those_of_save(tmp_path: Path, options: dict[str, Any]) -> None:
    lazy = safejax.deserialize(safejax.serialize({"a": np.arange(9.0), "b": np.ones((3, 2))}))
    tree = {**fresh(), "lazy": lazy, "numpy": [np.arange(6.0), np.float32(2)]}
    save_async(tree, tmp_path / "async", **options).result(LONG)
    save(tree, tmp_path / "sync", **{k: v for k, v in options.items() if k != "max_host_bytes"})
    assert contents(tmp_path / "async") == contents(tmp_path / "sync")
    assert len(os.listdir(tmp_path)) == 2


def contents(path: Path) -> dict[str, bytes]:
    files = path.iterdir() if path.is_dir() else [path]
    return {file.name if path.is_dir() else "": file.read_bytes() for file in files}


def test_arrays_may_be_donated_deleted_and_changed_after_the_call(
    path: Path, gate: Gate, busy: SaveHandle
) -> None:
    tree = fresh()
    handle = save_async(tree, path)
    arrays = {name: leaf for name, leaf in tree.items() if isinstance(leaf, jax.Array)}
    keys, empty = arrays.pop("keys"), arrays.pop("empty")
    step = jax.jit(
        lambda x: jax.tree.map(lambda a: (a * 0 - 1).astype(a.dtype), x), donate_argnums=0
    )
    arrays = step(step(step(arrays)))
    for array in (keys, empty, *tree.values()):
        if isinstance(array, jax.Array) and not array.is_deleted():
            array.delete()
    # New arrays, for which freed memory would be taken.
    others = [jax.block_until_ready(jnp.full((8, 8), -1.0)) for _ in range(50)]
    assert not handle.done()
    gate.opened.set()
    handle.result(LONG)
    assert busy.done()
    assert path.read_bytes() == safejax.serialize(fresh())
    assert len(others) == 50
    assert all(np.all(np.asarray(leaf) == -1) for leaf in arrays.values())


def held_numpy() -> dict[str, np.ndarray[Any, Any]]:
    base = np.arange(60.0).reshape(5, 12)
    return {
        "plain": base.copy(),
        "transposed": base.copy().T,
        "a part": base.copy()[1:4, ::2],
        "big-endian": base.astype(">f4"),
        "0-d": np.array(3.0),
        "empty": np.zeros((0, 4)),
        "integers": np.arange(7, dtype=np.int8),
    }


@pytest.mark.parametrize("transform", [None, safejax.cast("float32", where="p*"),
    safejax.chain(safejax.transpose("plain"), safejax.reshape("plain", (60,)))])  # fmt: skip
def test_numpy_arrays_may_be_changed_after_the_call(
    path: Path, gate: Gate, busy: SaveHandle, transform: Any
) -> None:
    tree = held_numpy()
    expected = safejax.serialize(held_numpy(), transform=transform)
    handle = save_async(tree, path, transform=transform)
    for array in tree.values():
        array[...] = 99
    gate.opened.set()
    handle.result(LONG)
    assert path.read_bytes() == expected
    assert busy.done()


def test_what_cannot_be_written_to_may_share_memory_that_can(
    path: Path, tmp_path: Path, gate: Gate, busy: SaveHandle
) -> None:
    base = np.arange(8.0)
    view = base.view()
    view.flags.writeable = False
    mapped = np.memmap(tmp_path / "map", np.float64, "w+", shape=(8,))
    mapped[...] = base
    tree = {"view": view, "of bytes": np.frombuffer(bytearray(base.tobytes())), "mapped": mapped}
    expected = safejax.serialize(tree)
    handle = save_async(tree, path)
    for array in (base, tree["of bytes"], mapped):
        array[...] = 99
    gate.opened.set()
    handle.result(LONG)
    assert path.read_bytes() == expected
    assert busy.done()


@pytest.mark.skipif(not hasattr(jax, "new_ref"), reason="this JAX has no references")
def test_a_reference_holds_something_else_later(path: Path, gate: Gate, busy: SaveHandle) -> None:
    values = jnp.arange(1024.0)
    ref = jax.new_ref(values)
    handle = save_async({"ref": ref}, path)
    ref[...] = values * 0 - 1
    jax.jit(lambda ref: ref.__setitem__(..., ref[...] - 1))(ref)
    gate.opened.set()
    handle.result(LONG)
    assert np.array_equal(np.asarray(safejax.load(path)["ref"]), np.arange(1024.0))
    assert busy.done()


@pytest.mark.parametrize("access", ["map", "read", "copy"])
def test_lazy_leaves_of_the_file_that_is_replaced_keep_their_values(
    path: Path, access: Any
) -> None:
    save({"w": np.arange(100.0), "b": np.ones(3)}, path)
    tree = safejax.load(path, access=access)
    save_async({"w": tree["b"]}, path).result(LONG)
    handle = save_async({**tree, "c": np.zeros(2)}, path)
    handle.result(LONG)
    expected = {"w": np.arange(100.0), "b": np.ones(3), "c": np.zeros(2)}
    assert path.read_bytes() == safejax.serialize(expected)


def test_a_training_loop_saves_its_state_at_each_step(tmp_path: Path) -> None:
    @lambda function: jax.jit(function, donate_argnums=0)
    def step(state: Any) -> Any:
        weights = state["w"] - 0.125 * (state["w"] - state["target"])
        return {"w": weights, "target": state["target"], "step": state["step"] + 1}

    def start() -> Any:
        mesh = jax.make_mesh((8,), ("x",))
        rows = NamedSharding(mesh, P("x"))
        grid = jnp.arange(8 * 512.0).reshape(8, 512)
        return {
            "w": jax.device_put(grid, rows),
            "target": jax.device_put(grid * 0 + 3, rows),
            "step": jnp.array(0),
        }

    state, handles = start(), []
    for number in range(12):
        handles.append(save_async(state, tmp_path / f"{number}", metadata={"at": str(number)}))
        state = step(state)
    expected = start()
    for number, handle in enumerate(handles):
        handle.result(LONG)
        save(expected, tmp_path / "expected", metadata={"at": str(number)})
        assert (tmp_path / f"{number}").read_bytes() == (tmp_path / "expected").read_bytes()
        expected = step(expected)
    assert_trees_identical(state, expected)


# ---- what is copied


def test_a_numpy_array_is_copied_once_however_many_leaves_show_it() -> None:
    array = np.arange(600.0).reshape(6, 100)
    tree = {"layers": array, "again": array[:], "tied": array}
    leaves = safejax.unstack("layers", "layers.{i}")(flatten(tree))
    plan = layout(leaves, "m")
    assert len(plan.extents) == 8
    assert copied_bytes(plan) == 2 * array.nbytes  # array[:] is another array.
    held = snapshot(plan)
    assert held.nbytes == plan.nbytes
    assert copied_bytes(held) == 2 * array.nbytes
    assert not any(
        np.shares_memory(extent.view.read(), array)
        for extent in snapshot(plan).extents  # pyright: ignore[reportAttributeAccessIssue]
    )


def test_jax_arrays_on_the_cpu_are_held_in_place() -> None:
    tree = fresh()
    plan = folder_of(flatten(tree), "m", 200, checksum=False)
    # NumPy has a byte for each element of int4.
    assert copied_bytes(plan) == 3
    held: Any = snapshot(plan)
    (one,) = (e for each in held.files.values() for e in each.extents if e.name == "one")
    assert one.view.read().ctypes.data == tree["one"].unsafe_buffer_pointer()
    (rows,) = (e for each in held.files.values() for e in each.extents if e.name == "rows")
    pointers = {shard.data.unsafe_buffer_pointer() for shard in tree["rows"].addressable_shards}
    assert {np.asarray(array).ctypes.data for array in rows.view.arrays} < pointers


def test_lazy_leaves_of_a_file_are_not_copied(path: Path) -> None:
    save({"a": np.arange(100.0), "b": np.ones(3)}, path)
    leaves = flatten(safejax.load(path, transform=safejax.cast("bfloat16")))
    assert copied_bytes(layout(leaves, "m")) == 0


def test_a_call_waits_until_there_is_room_for_its_copies(tmp_path: Path, gate: Gate) -> None:
    first = save_async({"w": np.zeros(100)}, tmp_path / "first", progress=gate, max_host_bytes=1000)
    assert gate.reached.wait(LONG)
    # No copies, or few enough: nothing to wait for.
    save_async({"w": jnp.zeros(1000)}, tmp_path / "x", max_host_bytes=800).result(LONG)
    save_async({"w": np.zeros(25)}, tmp_path / "y", max_host_bytes=1000).result(LONG)
    returned, seen = threading.Event(), list[bool]()

    def second() -> None:
        handle = save_async({"w": np.zeros(50)}, tmp_path / "second", max_host_bytes=1000)
        seen.append((tmp_path / "first").exists())
        returned.set()
        handle.result(LONG)

    thread = threading.Thread(target=second)
    thread.start()
    assert not returned.wait(0.1)
    gate.opened.set()
    thread.join(LONG)
    assert seen == [True]
    first.result(LONG)
    assert (tmp_path / "second").exists()


def test_a_tree_that_has_no_room_at_all_is_saved_before_the_call_returns(path: Path) -> None:
    threads: set[threading.Thread] = set()

    def progress(done: int, total: int) -> None:
        threads.add(threading.current_thread())

    tree = {"w": np.zeros(100)}
    handle = save_async(tree, path, max_host_bytes=799, progress=progress)
    assert handle.done()
    assert threads == {threading.current_thread()}
    assert path.read_bytes() == safejax.serialize(tree)
    threads.clear()
    save_async(tree, path, max_host_bytes=800, progress=progress).result(LONG)
    assert threads != {threading.current_thread()}
    missing = save_async(tree, path / "missing", max_host_bytes=0)
    assert isinstance(missing.exception(), NotADirectoryError | FileNotFoundError)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_async({"w": np.ones(100)}, path, max_host_bytes=0, progress=interrupt)
    assert path.read_bytes() == safejax.serialize(tree)
    save_async(tree, path).result(LONG)


@pytest.mark.parametrize("is_same_place", [False, True])
def test_a_save_from_within_one_does_not_wait_for_the_room_that_it_has(
    tmp_path: Path, is_same_place: bool
) -> None:
    inner: list[tuple[SaveHandle, bool]] = []
    where = "outer" if is_same_place else "inner"

    def progress(done: int, total: int) -> None:
        if not inner:
            handle = save_async({"w": np.ones(50)}, tmp_path / where, max_host_bytes=1000)
            inner.append((handle, handle.done()))

    tree = {"w": np.zeros(100)}
    save_async(tree, tmp_path / "outer", progress=progress, max_host_bytes=1000).result(LONG)
    ((handle, was_done),) = inner
    assert was_done  # It was written block by block, before the call returned.
    handle.result(LONG)
    assert (tmp_path / "outer").read_bytes() == safejax.serialize(tree)


# ---- order


def test_saves_to_one_path_go_in_order(
    path: Path, tmp_path: Path, gate: Gate, busy: SaveHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[int] = []
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "linked").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    places = [path, "link", path.name, tmp_path / "linked" / path.name, f"file://{path}", str(path)]
    handles = [
        save_async({"w": np.full(3, i)}, each, progress=lambda *_, i=i: began.append(i))
        for i, each in enumerate(places)
    ]
    monkeypatch.chdir("/")  # A relative path is that of the time of the call.
    assert not any(handle.done() for handle in handles)
    assert "waiting" in repr(handles[-1])
    assert "writing" in repr(busy)
    gate.opened.set()
    for handle in handles:
        handle.result(LONG)
    assert sorted(set(began)) == list(range(6))
    assert began == sorted(began)
    assert np.asarray(safejax.load(path)["w"]).tolist() == [5, 5, 5]
    assert (tmp_path / "link").is_symlink()


def test_a_save_waits_for_those_in_the_background(path: Path, gate: Gate, busy: SaveHandle) -> None:
    seen: list[bool] = []

    def progress(done: int, total: int) -> None:
        del done, total
        seen.append(busy.done())

    with ThreadPoolExecutor(1) as other:
        second = other.submit(save, {"second": np.ones(3)}, path, progress=progress)
        wait([second], 0.2)
        gate.opened.set()
        second.result(LONG)
    assert seen
    assert all(seen)
    assert list(safejax.load(path)) == ["second"]


def test_a_save_to_the_same_path_from_within_one_does_not_wait_for_it(path: Path) -> None:
    def progress(done: int, total: int) -> None:
        if done == total:
            save({"inner": np.ones(3)}, path)

    save_async({"outer": np.ones(3)}, path, progress=progress).result(LONG)
    assert list(safejax.load(path)) == ["outer"]


def test_a_save_from_within_one_does_not_wait_for_those_that_wait_for_that_one(
    tmp_path: Path,
) -> None:
    later: list[SaveHandle] = []

    def progress(done: int, total: int) -> None:
        if not later:
            later.append(save_async({"w": np.ones(3)}, tmp_path / "at"))
            save({"w": np.ones(4)}, tmp_path / "at" / "another")

    (tmp_path / "at").mkdir()
    save_async({"w": np.ones(3)}, tmp_path / "at" / "one", progress=progress).result(LONG)
    assert isinstance(later[0].exception(LONG), OSError)  # A folder is no file.
    assert (tmp_path / "at" / "another").exists()


def test_a_relative_path_is_that_of_the_call_also_for_a_save_that_waits(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    first = save_async({"first": np.zeros(3)}, "m", progress=gate)
    second = save_async({"second": np.zeros(3)}, "m")
    monkeypatch.chdir(tmp_path / "other")
    gate.opened.set()
    first.result(LONG)
    second.result(LONG)
    assert list(safejax.load(tmp_path / "m")) == ["second"]
    assert os.listdir() == []


def test_saves_to_a_folder_and_to_what_is_in_it_go_in_order(tmp_path: Path, gate: Gate) -> None:
    folder = tmp_path / "model"
    first = save_async({"w": np.zeros(3)}, folder, max_shard_bytes=100, progress=gate)
    assert gate.reached.wait(LONG)
    inside = save_async({"w": np.ones(3)}, folder / "extra.safetensors")
    again = save_async({"w": np.ones(4)}, folder, max_shard_bytes=100)
    save_async({"w": np.ones(3)}, tmp_path / "model2").result(LONG)  # Not in it.
    assert not inside.done()
    gate.opened.set()
    for handle in (first, inside, again):
        handle.result(LONG)
    assert sorted(os.listdir(folder)) == ["extra.safetensors", "model.safetensors"]


def test_saves_to_different_paths_go_side_by_side(tmp_path: Path) -> None:
    all_at_once = threading.Barrier(4)

    def progress(done: int, total: int) -> None:
        if done == total:
            all_at_once.wait(LONG)

    handles = [
        save_async({"w": np.full(3, i)}, tmp_path / f"{i}", progress=progress) for i in range(4)
    ]
    for number, handle in enumerate(handles):
        handle.result(LONG)
        assert np.asarray(safejax.load(tmp_path / f"{number}")["w"]).tolist() == [number] * 3


def test_a_remote_file(memory: Any, gate: Gate) -> None:
    tree = {"w": np.arange(5.0)}
    first = save_async({"a": np.ones(3)}, "memory://m", progress=gate)
    assert gate.reached.wait(LONG)
    second = save_async(tree, "/m", fs=memory, checksum=True)
    tree["w"][...] = 0
    assert not second.done()
    gate.opened.set()
    first.result(LONG)
    second.result(LONG)
    assert memory.cat_file("m") == safejax.serialize({"w": np.arange(5.0)}, checksum=True)
    save_async(tree, "memory://folder", max_shard_bytes=10).result(LONG)
    assert np.array_equal(safejax.load("memory://folder")["w"], tree["w"])


# ---- errors


def test_an_error_is_raised_by_the_result_and_the_next_save_goes_on(
    path: Path, gate: Gate, busy: SaveHandle, reported: list[BaseException]
) -> None:
    def stop(done: int, total: int) -> None:
        raise ZeroDivisionError("in progress")

    failing = save_async({"w": np.ones(3)}, path, progress=stop)
    assert not failing.done()
    with pytest.raises(TimeoutError, match=r"state\.safetensors: expected the save to be over"):
        failing.result(0)
    with pytest.raises(TimeoutError):
        failing.exception(0.001)
    gate.opened.set()
    with pytest.raises(ZeroDivisionError, match="in progress"):
        failing.result(LONG)
    assert isinstance(failing.exception(), ZeroDivisionError)
    assert failing.done()
    assert repr(failing) == f"SaveHandle({str(path)!r}, failed: ZeroDivisionError)"
    assert failing.path == str(path)
    assert path.read_bytes() == safejax.serialize({"first": np.zeros(3)})
    after = save_async({"w": np.ones(3)}, path)
    assert after.exception(LONG) is None
    assert repr(after) == f"SaveHandle({str(path)!r}, saved)"
    assert busy.done()
    del failing
    gc.collect()
    assert reported == []


@pytest.mark.parametrize("wait", [None, 0, LONG])
def test_a_save_that_waits_for_itself_is_an_error(path: Path, wait: float | None) -> None:
    handles: list[SaveHandle] = []
    is_there = threading.Event()

    def progress(done: int, total: int) -> None:
        assert is_there.wait(LONG)
        assert not handles[0].done()
        handles[0].result(wait)

    handles.append(save_async({"w": np.ones(3)}, path, progress=progress))
    is_there.set()
    with pytest.raises(RuntimeError, match=r"m?: .* a call from within it, .* ask the handle"):
        handles[0].result(LONG)
    assert not path.exists()


@pytest.mark.parametrize("is_held", [True, False])
def test_a_save_that_waits_for_a_later_one_to_its_place_is_an_error(
    path: Path, is_held: bool
) -> None:
    """The later one waits for it, also if another one is between them."""
    later: list[SaveHandle] = []

    def progress(done: int, total: int) -> None:
        if not later:
            later.append(save_async({"w": np.ones(3)}, path.parent))
            later.append(save_async({"w": np.ones(3)}, path.with_name("another")))
            later[1].result(LONG)

    with pytest.raises(RuntimeError, match=r"an earlier one to the same place, got a call"):
        save_async(
            {"w": np.ones(3)}, path, progress=progress, max_host_bytes=None if is_held else 0
        ).result(LONG)
    for handle in later:
        with contextlib.suppress(OSError):  # A folder is no file.
            handle.result(LONG)


def test_errors_of_the_system_name_the_file(tmp_path: Path) -> None:
    handle = save_async({"w": np.ones(3)}, tmp_path / "missing" / "m")
    with pytest.raises(FileNotFoundError, match="make the folder first") as caught:
        handle.result(LONG)
    assert caught.value.filename == str(tmp_path / "missing" / "m")


@pytest.mark.parametrize("is_kept", [True, False])
def test_an_error_that_nobody_asks_for_is_reported(
    path: Path, gate: Gate, busy: SaveHandle, reported: list[BaseException], is_kept: bool
) -> None:
    def stop(done: int, total: int) -> None:
        raise ZeroDivisionError

    handle = save_async({"w": np.ones(3)}, path, progress=stop)
    if is_kept:  # Until after the save has failed.
        gate.opened.set()
        save_async({"w": np.ones(3)}, path).result(LONG)
        assert handle.done()
        assert reported == []
    del handle
    gc.collect()
    gate.opened.set()
    save_async({"w": np.ones(3)}, path).result(LONG)
    (error,) = reported
    assert isinstance(error, ZeroDivisionError)
    (note,) = error.__notes__
    assert str(path) in note
    assert "call handle.result()" in note
    assert busy.done()


def test_a_with_statement_waits_and_raises(path: Path, gate: Gate, tmp_path: Path) -> None:
    with save_async({"w": np.ones(3)}, path, progress=gate) as handle:
        assert gate.reached.wait(LONG)
        assert not handle.done()
        gate.opened.set()
    assert handle.done()
    missing = tmp_path / "missing" / "m"
    with pytest.raises(FileNotFoundError), save_async({"w": np.ones(3)}, missing):
        pass
    with pytest.raises(KeyError) as caught, save_async({"w": np.ones(3)}, missing):
        raise KeyError("the user's own")
    (note,) = caught.value.__notes__
    assert note.startswith(f"{missing}: the save in the background failed, too: FileNotFoundError")
    with pytest.raises(KeyError) as caught, save_async({"w": np.ones(3)}, path):
        raise KeyError("the user's own")
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("fails", [False, True])
def test_a_handle_does_not_hold_what_was_saved(path: Path, fails: bool) -> None:
    class Half:
        def __call__(self, block: Any) -> Any:
            if fails and block.ndim == 1:  # Not when it is tried at the call.
                raise ZeroDivisionError
            return block / 2

    half = Half()
    alive = weakref.ref(half)
    handle = save_async({"w": np.ones(3)}, path, transform=safejax.elementwise(half, "w"))
    assert (handle.exception(LONG) is not None) == fails
    del half
    # The thread may not be at its end yet.
    for thread in threading.enumerate():
        if thread.name.startswith("safejax-save"):
            thread.join(LONG)
    gc.collect()
    assert alive() is None


def deleted(array: jax.Array) -> jax.Array:
    array.delete()
    return array


def fail(leaves: Any) -> Any:
    raise ZeroDivisionError("in a transform")


REFUSED: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "a leaf": (lambda path: save_async({"w": object()}, path), LeafError, "leaf 'w': expected"),
    "a deleted array": (
        lambda path: save_async({"w": deleted(jnp.ones(3))}, path),
        LeafError,
        "donated",
    ),
    "a path": (lambda path: save_async({}, 3), TypeError, "expected a path"),  # pyright: ignore
    "arguments": (
        lambda path: save_async(path, {}),  # pyright: ignore
        TypeError,
        r"save_async: expected the tree first .* safejax\.save_async\(tree, ",
    ),
    "a transform": (
        lambda path: save_async({}, path, transform=safejax.transpose("w")),
        TransformError,
        "'w'",
    ),
    "a function": (
        lambda path: save_async({}, path, transform=fail),
        ZeroDivisionError,
        "in a transform",
    ),
    "a limit": (
        lambda path: save_async({}, path, max_host_bytes=-1),
        ValueError,
        "max_host_bytes: expected a number of bytes, 0 or more, got -1",
    ),
    "a size": (lambda path: save_async({}, path, max_shard_bytes=0), ValueError, "1 or more"),
    "progress": (
        lambda path: save_async({}, path, progress=3),  # pyright: ignore
        TypeError,
        "save_async: progress",
    ),
    "a tracer": (
        lambda path: jax.jit(lambda x: save_async({"w": x}, path))(jnp.ones(3)),
        LeafError,
        "cannot be called inside",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_known_at_once_is_raised_by_the_call(path: Path, case: str) -> None:
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call(path)
    assert not path.exists()
    save_async({"w": np.ones(3)}, path, max_host_bytes=100).result(LONG)


def test_an_array_that_is_deleted_between_layout_and_snapshot_is_named(path: Path) -> None:
    array = jnp.ones(3)
    plan = layout(flatten({"a": {"w": array}}), "m")
    array.delete()
    with pytest.raises(LeafError, match=r"^leaf 'a\.w': expected an array with values, got one"):
        snapshot(plan)


# ---- threads


def test_the_thread_is_no_daemon_even_if_it_is_started_by_one(path: Path, gate: Gate) -> None:
    handles: list[SaveHandle] = []
    daemon = threading.Thread(
        target=lambda: handles.append(save_async({"w": np.ones(3)}, path, progress=gate)),
        daemon=True,
    )
    daemon.start()
    daemon.join(LONG)
    assert gate.reached.wait(LONG)
    assert gate.thread is not None
    assert not gate.thread.daemon
    assert gate.thread.name == f"safejax-save {path}"
    gate.opened.set()
    handles[0].result(LONG)


def test_without_another_thread_the_save_is_done_by_the_call(path: Path) -> None:
    # No system has room for so large a stack, so that no thread can be started.
    before = threading.stack_size(1 << 46)
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threading.Thread(target=print).start()
        handle = save_async({"w": np.ones(3)}, path)
    finally:
        threading.stack_size(before)
    assert handle.done()
    assert path.read_bytes() == safejax.serialize({"w": np.ones(3)})


def test_settings_of_the_callers_thread_hold_for_transforms(path: Path) -> None:
    transform = safejax.elementwise(lambda block: block / (block - 1), "w")
    with np.errstate(divide="ignore"):
        handle = save_async({"w": np.ones(3)}, path, transform=transform)
    handle.result(LONG)  # Else the warning would be an error.
    assert np.all(np.isinf(np.asarray(safejax.load(path)["w"])))


def test_many_threads_save_at_once(tmp_path: Path) -> None:
    def work(number: int) -> None:
        for at in range(5):
            handle = save_async(
                {"w": np.full(100, number)}, tmp_path / f"{at}", max_host_bytes=2000
            )
            if at % 2:
                handle.result(LONG)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    for at in range(5):
        save_async({"w": np.full(100, 99)}, tmp_path / f"{at}").result(LONG)
        assert np.asarray(safejax.load(tmp_path / f"{at}")["w"])[0] == 99
    assert sorted(os.listdir(tmp_path)) == [f"{at}" for at in range(5)]
