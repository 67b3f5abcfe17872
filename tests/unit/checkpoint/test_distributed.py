"""Saves by several processes: the bytes of a single process, and errors that all raise.

Each task runs in all processes at once. What they agree on is compared there or here.
"""

import hashlib
import inspect
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax._src.storage.litter import is_temporary
from tests.support.together import (
    Together,
    devices_together,
    keys_in_the_service,
    raised,
    wait_for_a_decision,
)

TIMEOUT = 40.0
"""Seconds; far more than any task takes in which no process has to be given up."""

HOST = np.arange(64 * 48, dtype=np.float32).reshape(64, 48)


def mesh(shape: tuple[int, ...], order: Callable[[Any], Any] = lambda devices: devices) -> Mesh:
    devices = np.array(order(devices_together())).reshape(shape)
    return Mesh(devices, ("x", "y")[: len(shape)], axis_types=(AxisType.Auto,) * len(shape))


def spread(values: Any, over: Mesh, *spec: Any) -> jax.Array:
    values = np.asarray(values)
    sharding = NamedSharding(over, P(*spec))
    return jax.make_array_from_callback(
        values.shape, sharding, lambda index: values[index], dtype=values.dtype
    )


def reverse(devices: Any) -> Any:
    return devices[::-1]


def alternate(devices: Any) -> Any:
    return [*devices[::2], *devices[1::2]]


# ---- the same bytes as those of a single process


def every_dtype() -> dict[str, Any]:
    """Arrays of 64 elements, of every dtype that JAX has without its x64 mode."""
    names = (
        "bool int8 uint8 int16 uint16 int32 uint32 float16 float32 bfloat16 complex64 int4 uint4"
    )
    names += " float8_e4m3fn float8_e5m2 float8_e4m3b11fnuz float8_e8m0fnu float4_e2m1fn"
    values = (np.arange(64) % 5).reshape(8, 8)
    return {name: values.astype(getattr(ml_dtypes, name, None) or name) for name in names.split()}


def lay_out(layout: str, folder: Path) -> tuple[Any, Any]:
    """A tree that spans the processes, and the same tree in this process alone."""
    flat, square = mesh((4,)), mesh((2, 2))
    one: dict[str, Callable[[], jax.Array]] = {
        "rows": lambda: spread(HOST, flat, "x"),
        "columns": lambda: spread(HOST, flat, None, "x"),
        "both": lambda: spread(HOST, square, "x", "y"),
        "exchanged": lambda: spread(HOST, square, "y", "x"),
        "two axes on one": lambda: spread(HOST, square, None, ("x", "y")),
        "replicated": lambda: spread(HOST, flat),
        "partly replicated": lambda: spread(HOST, square, "x"),
        "otherwise partly replicated": lambda: spread(HOST, square, None, "y"),
        "reversed devices": lambda: spread(HOST, mesh((4,), reverse), "x"),
        "alternating devices": lambda: spread(HOST, mesh((4,), alternate), "x"),
        "alternating columns": lambda: spread(HOST, mesh((4,), alternate), None, "x"),
    }
    if layout in one:
        return {"w": one[layout]()}, {"w": HOST}
    if layout == "dtypes":
        alone = every_dtype()
        return {name: spread(each, square, "x", "y") for name, each in alone.items()}, alone
    assert layout == "mixed"
    keys = jax.random.split(jax.random.key(1), 8)
    data = np.asarray(jax.random.key_data(keys))
    spread_keys = jax.random.wrap_key_data(spread(data, flat, "x"))
    alone = {
        "w": HOST,
        "keys": keys,
        "own keys": jax.random.key(3),
        "numpy": HOST.T * 2,
        "scalar": 7,
        "text": "text",
        "none": None,
        "empty": np.zeros((0, 4), np.float16),
        "number": np.float32(3),
        "local": jnp.arange(5),
        "weak": jnp.asarray(2.0) * 3,
        "list": [HOST[0], {}, (1, 2)],
        "lazy": HOST + 1,
        "lazy rows": HOST + 2,
        "lazy placed": HOST + 3,
    }
    file = folder / f"lazy-{jax.process_index()}"
    safejax.save({name: alone[name] for name in alone if "lazy" in name}, file)
    lazy = safejax.load(file)
    rows = NamedSharding(flat, P("x"))
    placed = safejax.load(file, sharding=rows)["lazy placed"]
    jax.block_until_ready(placed.addressable_shards[0].data)
    tree = {
        **alone,
        "w": spread(HOST, flat, "x"),
        "keys": spread_keys,
        "empty": spread(alone["empty"], flat, None, "x"),
        "number": spread(alone["number"], flat),
        "lazy": lazy["lazy"],
        "lazy rows": safejax.load(file, sharding=rows)["lazy rows"],
        "lazy placed": placed,
    }
    return tree, alone


LAYOUTS = [
    "rows", "columns", "both", "exchanged", "two axes on one", "replicated", "partly replicated",
    "otherwise partly replicated", "reversed devices", "alternating devices",
    "alternating columns", "dtypes", "mixed",
]  # fmt: skip

TURNED = safejax.chain(safejax.transpose("w"), safejax.reshape("w", (32, 96)))
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "checksum": {"checksum": True},
    "metadata": {"metadata": {"step": "3", "a": "é"}},
    "cast": {"transform": safejax.cast("bfloat16")},
    "turned": {"transform": safejax.transpose("w")},
    "turned and joined": {"transform": TURNED, "checksum": True},
}


def save_in_all_ways(process: int, layout: str, folder: Path) -> list[str]:
    """Save the tree with each of the options; the ones whose file is not as it should be."""
    tree, alone = lay_out(layout, folder)
    wrong: list[str] = []
    for name, options in OPTIONS.items():
        if name.startswith("turned") and "w" not in tree:
            continue
        path = folder / "m.safetensors"
        safejax.save(tree, path, timeout=TIMEOUT, **options)
        expected = safejax.serialize(alone, **options)
        if hashlib.sha256(path.read_bytes()).digest() != hashlib.sha256(expected).digest():
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_file_has_the_bytes_of_a_save_in_one_process(
    pair: Together, layout: str, tmp_path: Path
) -> None:
    assert pair.run(save_in_all_ways, layout, tmp_path) == [[], []]
    assert [each for each in os.listdir(tmp_path) if is_temporary(each)] == []


def save_without_collectives(process: int, folder: Path) -> list[str]:
    """Save while every function raises by which JAX's processes meet on their devices."""
    del process
    tree, alone = lay_out("mixed", folder)
    called: list[str] = []

    def refuse(*_: Any, **__: Any) -> None:
        called.append("a collective")
        raise AssertionError

    functions = [name for name, each in vars(multihost_utils).items() if inspect.isfunction(each)]
    assert {"process_allgather", "sync_global_devices", "broadcast_one_to_all"} <= set(functions)
    with pytest.MonkeyPatch.context() as patch:
        for name in functions:
            patch.setattr(multihost_utils, name, refuse)
        safejax.save(tree, folder / "m", checksum=True, timeout=TIMEOUT)
        safejax.save_async(tree, folder / "n", checksum=True, timeout=TIMEOUT).result(TIMEOUT)
    expected = safejax.serialize(alone, checksum=True)
    return called + [name for name in "mn" if (folder / name).read_bytes() != expected]


def test_a_save_calls_no_collective(pair: Together, tmp_path: Path) -> None:
    assert pair.run(save_without_collectives, tmp_path) == [[], []]


def bytes_written(process: int, layout: str, folder: Path) -> tuple[int, int]:
    big = np.arange(1 << 18, dtype=np.float32).reshape(512, 512)
    over = {"rows": ("x",), "columns": (None, "x"), "replicated": ()}[layout]
    calls: list[tuple[int, int]] = []
    tree = {"w": spread(big, mesh((4,)), *over), "numpy": big}
    safejax.save(tree, folder / "m", progress=lambda *at: calls.append(at), timeout=TIMEOUT)
    assert calls == sorted(set(calls))
    assert calls[-1][0] == calls[-1][1]
    return calls[-1][0], 2 * big.nbytes


@pytest.mark.parametrize("layout", ["rows", "columns", "replicated"])
def test_each_process_writes_its_part_and_no_more(
    pair: Together, layout: str, tmp_path: Path
) -> None:
    (first, total), (second, _) = pair.run(bytes_written, layout, tmp_path)
    assert first + second == total
    assert abs(first - second) <= total / 16


def save_folder(process: int, folder: Path, options: dict[str, Any]) -> None:
    tree, _ = lay_out("mixed", folder)
    path = folder / "set"
    safejax.save(tree, path, max_shard_bytes=HOST.nbytes, timeout=TIMEOUT, **options)


@pytest.mark.parametrize("options", [{}, {"checksum": True}])
def test_a_folder_has_the_files_of_a_save_in_one_process(
    pair: Together, tmp_path: Path, options: dict[str, Any]
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes").write_text("kept")
    for _ in range(2):
        pair.run(save_folder, tmp_path, options)
    alone = tmp_path / "alone"
    alone.mkdir()
    # The local arrays of this process are those of the others.
    tree = safejax.load(tmp_path / "set")
    safejax.save(tree, alone / "set", max_shard_bytes=HOST.nbytes, **options)
    found, expected = (
        {path.name: path.read_bytes() for path in (each / "set").iterdir()}
        for each in (tmp_path, alone)
    )
    assert found.pop("notes") == b"kept"
    assert found == expected
    assert len(found) > 5
    assert np.array_equal(np.asarray(safejax.load(tmp_path / "set")["w"]), HOST)


def save_stages(process: int, folder: Path) -> bool:
    """A tree of which parts are on devices of one process, as in a pipeline of stages."""
    all_devices = devices_together()
    tree: dict[str, Any] = {"w": spread(HOST, mesh((4,)), "x"), "local": jnp.arange(5)}
    alone: dict[str, Any] = {"w": HOST, "local": jnp.arange(5)}
    keys = jax.random.key_data(jax.random.key(1))
    for number in range(6):
        stage = Mesh(np.array(all_devices[number % 2 * 2 :][:2]), ("x",))
        tree[f"layer{number}"] = spread(HOST + number, stage, None, "x")
        tree[f"bias{number}"] = spread(HOST[number], stage)
        alone |= {f"layer{number}": HOST + number, f"bias{number}": HOST[number]}
    tree["first"] = spread(keys, Mesh(np.array(all_devices[:1]), ("x",)))
    alone["first"] = keys
    safejax.save(tree, folder / "m", timeout=TIMEOUT, transform=safejax.transpose("layer1"))
    expected = safejax.serialize(alone, transform=safejax.transpose("layer1"))
    return (folder / "m").read_bytes() == expected


@jax.tree_util.register_pytree_node_class
class State:
    """A node with a function beside its leaf, as training states have: its text has an address."""

    def __init__(self, w: Any) -> None:
        self.w = w

    def __repr__(self) -> str:
        return f"<at {os.getpid()}>"

    def tree_flatten(self) -> tuple[tuple[Any], "State"]:
        return (self.w,), self

    @classmethod
    def tree_unflatten(cls, aux: "State", children: tuple[Any]) -> "State":
        del aux
        return cls(*children)


def save_with_functions(process: int, folder: Path) -> bool:
    state = State(spread(HOST, mesh((4,)), "x"))
    assert str(os.getpid()) in repr(jax.tree.structure(state))
    safejax.save(state, folder / "state", timeout=TIMEOUT)
    return np.array_equal(safejax.load(folder / "state")["0"], HOST)


def test_what_no_file_records_may_differ(pair: Together, tmp_path: Path) -> None:
    assert pair.run(save_with_functions, tmp_path) == [True, True]


def test_arrays_that_one_process_holds_alone(pair: Together, tmp_path: Path) -> None:
    assert pair.run(save_stages, tmp_path) == [True, True]


def save_arrays_of_one(process: int, folder: Path) -> list[tuple[str, str]]:
    """A tree whose arrays are all in process 1, and a save by both afterwards."""
    one = Mesh(np.array(devices_together()[2:]), ("x",))
    tree: dict[str, Any] = {"w": spread(HOST, one, "x"), "v": spread(HOST, one), "step": 1}
    both = {"w": spread(HOST, mesh((4,)), "x")}
    return [
        raised(lambda: safejax.save(tree, folder / "one", timeout=TIMEOUT)),
        raised(lambda: safejax.save_async(tree, folder / "one", timeout=TIMEOUT).result()),
        raised(lambda: safejax.save(both, folder / "both", timeout=TIMEOUT)),
    ]


def test_arrays_that_are_all_in_one_process_are_saved_by_that_one(
    pair: Together, tmp_path: Path
) -> None:
    first, second = pair.run(save_arrays_of_one, tmp_path)
    assert second == [("", "")] * 3
    assert first[2] == ("", "")
    for kind, text in first[:2]:
        assert kind == "ProcessError"
        assert "expected process 1 to save this tree" in text
    assert (tmp_path / "one").read_bytes() == safejax.serialize({"w": HOST, "v": HOST, "step": 1})


def resume(process: int, folder: Path) -> None:
    path = folder / "m"
    safejax.save({"w": spread(HOST, mesh((4,)), "x"), "step": 2}, path, timeout=TIMEOUT)
    columns = NamedSharding(mesh((2, 2)), P("y", "x"))
    tree = safejax.load(path, sharding=columns)
    for shard in tree["w"].addressable_shards:
        assert np.array_equal(np.asarray(shard.data), HOST[shard.index])
    # And what was loaded is saved again, over the file that it reads.
    safejax.save(tree, path, timeout=TIMEOUT)
    assert path.read_bytes() == safejax.serialize({"w": HOST, "step": 2})


def test_what_was_saved_is_loaded_on_another_mesh_and_saved_again(
    pair: Together, tmp_path: Path
) -> None:
    pair.run(resume, tmp_path)


def one_process_saves(process: int, folder: Path) -> int:
    if process == 0:
        safejax.save({"w": jnp.ones(3)}, folder / "m")
    safejax.save({"w": jnp.ones(3)}, folder / f"m{process}")
    return len(keys_in_the_service())


def test_a_tree_of_local_arrays_is_saved_alone(pair: Together, tmp_path: Path) -> None:
    before = pair.run(lambda_keys)
    assert pair.run(one_process_saves, tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["m", "m0", "m1"]


def lambda_keys(process: int) -> int:
    return len(keys_in_the_service())


def replace(process: int, folder: Path) -> None:
    safejax.save({"w": spread(HOST, mesh((4,)), "x")}, folder / "link", timeout=TIMEOUT)


def test_permissions_and_links_are_kept(pair: Together, tmp_path: Path) -> None:
    target = tmp_path / "m"
    target.write_bytes(b"old")
    target.chmod(0o640)
    (tmp_path / "link").symlink_to(target)
    pair.run(replace, tmp_path)
    assert (tmp_path / "link").is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert target.read_bytes() == safejax.serialize({"w": HOST})


# ---- errors


def bad_save(process: int, case: str, folder: Path) -> tuple[str, str]:
    """A save that fails, in one process or in all."""
    tree: dict[str, Any] = {"w": spread(HOST, mesh((4,)), "x"), "b": np.ones(3), "step": 1}
    options: dict[str, Any] = {"timeout": TIMEOUT}
    path: Any = folder / "m"

    def fail(*_: Any) -> Any:
        raise OSError(5, "Input/output error", "disk")

    if case == "leaf":
        tree["object"] = object()
    elif case == "transform":
        options["transform"] = safejax.cast("float16", where="nothing")
    elif case == "abstract":
        tree["b"] = jax.ShapeDtypeStruct((3,), np.float32)
    elif case == "remote":
        options["fs"] = MemoryFileSystem()
    elif case == "no folder":
        path = folder / "none" / "m"
    elif case == "timeout":
        options["timeout"] = -1
    elif case == "shard size":
        options["max_shard_bytes"] = 0
    elif case == "packed":
        values = np.ones((4, 4), ml_dtypes.float4_e2m1fn)
        tree["b"] = spread(values, mesh((4,), alternate), None, "x")
    elif case == "reshape":
        tree["w"] = spread(HOST, mesh((4,)), "x")
        turned = safejax.chain(
            safejax.transpose("w"),
            safejax.reshape("w", (64 * 48,)),
            safejax.split("w", into=["a", "c"], axis=0),
        )
        options["transform"] = turned
    elif case == "deleted":
        tree["w"].delete()
    elif case == "path" and process == 1:
        path = folder / "other"
    elif case == "one leaf" and process == 1:
        tree["object"] = object()
    elif case == "one transform" and process == 1:
        options["transform"] = lambda leaves: 1 / 0
    elif case == f"write of process {process}":
        options["progress"] = fail
    elif case == "one more" and process == 1:
        tree["c"] = np.ones(2)
    elif case == "one less" and process == 1:
        del tree["step"]
    elif case == "shape" and process == 1:
        tree["b"] = np.ones(4)
    elif case == "scalar" and process == 1:
        tree["step"] = 2
    elif case == "values" and process == 1:
        tree["b"] = np.zeros(3)
    elif case == "sharding" and process == 1:
        tree["w"] = spread(HOST, mesh((4,)), None, "x")
    elif case == "options" and process == 1:
        options["checksum"] = True
    elif case == "cast" and process == 1:
        options["transform"] = safejax.cast("bfloat16", where="w")
    elif case == "metadata" and process == 1:
        options["metadata"] = {"a": "b"}
    return raised(lambda: safejax.save(tree, path, **options))


NOT_THE_SAME = (
    r"save to \S+m: {} is not the same in all processes: expected {}, as in process 0, "
    r"got {} in process 1: call it with the same tree and the same arguments in all processes"
)
REFUSED: dict[str, tuple[str, str]] = {
    "leaf": ("LeafError", r"leaf 'object': expected an array, .* got builtins\.object.*"),
    "transform": ("TransformError", r"expected 'nothing' to match a leaf, .*"),
    "abstract": ("LeafError", r"leaf 'b': expected values to store, got ShapeDtypeStruct.*"),
    "remote": ("ValueError", r"\S+m: expected max_shard_bytes with a save by several processes to "
               r"MemoryFileSystem, where .* got none: pass for example max_shard_bytes=2.*"),
    "no folder": ("FileNotFoundError", r"\[Errno 2\] process 0: expected a path in an existing "
                  r"folder; make the folder first: '\S+/none/m'"),
    "timeout": ("ValueError", r"timeout: expected seconds, more than 0, got -1"),
    "shard size": ("ValueError", r"max_shard_bytes: expected a number of bytes, .* got 0"),
    "packed": ("LeafError", r"leaf 'b': expected parts that begin and end with whole bytes, .*"),
    "reshape": ("LeafError", r"leaf 'a': expected a part of an array that one process can read .*"),
    "deleted": ("LeafError", r"leaf 'w': expected an array with values, got one that was .*"),
    "path": ("ProcessError", r"save to \S+: the argument path .* expected '\S+/m', .* got "
             r"'\S+/other' in process 1: .*"),
    "one leaf": ("LeafError", r"process 1: leaf 'object': expected an array, .*"),
    "write of process 1": ("OSError", r"\[Errno 5\] process 1: Input/output error: 'disk'"),
    "write of process 0": ("OSError", r"\[Errno 5\] process 0: Input/output error: 'disk'"),
    "one more": ("ProcessError", NOT_THE_SAME.format("leaf 'c'", "none", r"float64\[2\] in .*")),
    "one less": ("ProcessError", NOT_THE_SAME.format("leaf 'step'", "int 1", "none")),
    "shape": ("ProcessError", NOT_THE_SAME.format(
        "leaf 'b'", r"float64\[3\].*", r"float64\[4\].*")),
    "scalar": ("ProcessError", NOT_THE_SAME.format("leaf 'step'", "int 1", "int 2")),
    "values": ("ProcessError", NOT_THE_SAME.format(
        "leaf 'b'", r"float64\[3\] in each process, with values \w+",
        r"float64\[3\] in each process, with values \w+")),
    "sharding": ("ProcessError", NOT_THE_SAME.format(
        "leaf 'w'", r"float32\[64,48\] over NamedSharding.*", r"float32\[64,48\] over .*")),
    "options": ("ProcessError", NOT_THE_SAME.format("the argument checksum", "False", "True")),
    "cast": ("ProcessError", NOT_THE_SAME.format(
        "the stored tensor 'w'", r"F32\[64,48\] at byte \d+", r"BF16\[64,48\] at byte \d+")),
    "metadata": ("ProcessError", NOT_THE_SAME.format("the header", r"\w+", r"\w+")),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_all_raise_the_same_error_and_what_was_there_is_kept(
    pair: Together, case: str, tmp_path: Path
) -> None:
    (tmp_path / "m").write_bytes(b"old")
    begun = time.monotonic()
    one, other = pair.run(bad_save, case, tmp_path)
    assert one == other
    kind, text = REFUSED[case]
    assert one[0] == kind
    assert re.fullmatch(text, one[1], re.DOTALL), one[1]
    assert time.monotonic() - begun < TIMEOUT
    assert os.listdir(tmp_path) == ["m"]
    assert (tmp_path / "m").read_bytes() == b"old"


def test_an_error_of_a_users_function_is_raised_as_it_is_where_it_was(
    pair: Together, tmp_path: Path
) -> None:
    assert pair.run(bad_save, "one transform", tmp_path) == [
        ("ProcessError", "process 1: ZeroDivisionError: division by zero"),
        ("ZeroDivisionError", "division by zero"),
    ]


def alone_with_arrays_of_others(process: int, folder: Path) -> list[tuple[str, str]]:
    tree = {"w": spread(HOST, mesh((4,)), "x")}
    return [
        raised(lambda: safejax.serialize(tree)),
        raised(lambda: safejax.encode(safejax.flatten(tree))),
    ]


def test_bytes_in_memory_need_all_values(pair: Together, tmp_path: Path) -> None:
    for outcomes in pair.run(alone_with_arrays_of_others, tmp_path):
        for kind, text in outcomes:
            assert kind == "LeafError"
            assert text.startswith(
                "leaf 'w': expected an array that this process holds all of, got float32[64,48], a "
                "part of which other processes hold: call safejax.save with it in all processes"
            )


def interrupted(process: int, who: int, folder: Path) -> tuple[str, str]:
    tree = {"w": spread(HOST, mesh((4,)), "x")}
    if process != who:
        wait_for_a_decision()
    else:  # It waits for the other one.
        threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()
    return raised(lambda: safejax.save(tree, folder / "m", timeout=TIMEOUT))


@pytest.mark.parametrize("who", [0, 1])
def test_ctrl_c_while_it_waits_ends_all(pair: Together, who: int, tmp_path: Path) -> None:
    outcomes = pair.run(interrupted, who, tmp_path)
    assert outcomes.pop(who) == ("KeyboardInterrupt", "")
    assert outcomes == [("ProcessError", f"process {who}: KeyboardInterrupt")]
    assert os.listdir(tmp_path) == []


def missing(process: int, folder: Path) -> tuple[str, str]:
    tree = {"w": spread(HOST, mesh((4,)), "x")}
    if process == 1:
        wait_for_a_decision()
    timeout = TIMEOUT if process == 1 else 1
    return raised(lambda: safejax.save(tree, folder / "m", timeout=timeout))


def test_a_process_that_does_not_come_in_time_is_an_error(pair: Together, tmp_path: Path) -> None:
    one, other = pair.run(missing, tmp_path)
    assert one == other
    assert one[0] == "ProcessError"
    assert "no sign of process 1 for 1 s" in one[1]
    assert one[1].endswith("; what was there before is unchanged")


def test_only_the_keys_of_the_last_save_are_left(pair: Together, tmp_path: Path) -> None:
    pair.run(replace, tmp_path)
    (keys, _) = pair.run(all_keys)
    assert len({key.split("/")[1] for key in keys}) == 1


def all_keys(process: int) -> list[str]:
    return keys_in_the_service()


# ---- processes that die


def killed_in(process: int, phase: str, who: list[int], folder: Path) -> tuple[str, str, float]:
    """A save in which a process dies: before it comes, while it writes, or once it has written."""
    tree = {"w": spread(HOST, mesh((4,)), "x")}
    old = {"w": spread(HOST + 1, mesh((4,)), "x")}
    safejax.save(old, folder / "m", timeout=TIMEOUT)

    def die(done: int = 0, total: int = 0) -> None:
        if phase == "while it writes" or done == total:
            os.kill(os.getpid(), signal.SIGKILL)

    begun = time.monotonic()
    if process in who and phase == "before it comes":
        die()
    progress = die if process in who else None
    outcome = raised(lambda: safejax.save(tree, folder / "m", timeout=2, progress=progress))
    return *outcome, time.monotonic() - begun


PHASES = ["before it comes", "while it writes", "once it has written"]


@pytest.mark.parametrize("phase", [PHASES[0], PHASES[2]])
def test_if_a_process_dies_the_other_one_raises_and_the_file_is_whole(
    phase: str, tmp_path: Path
) -> None:
    with Together(2) as together:
        together.begin(killed_in, phase, [1], tmp_path)
        assert together.result(1) is None
        kind, text, waited = together.result(0)
    assert kind == "ProcessError"
    assert "no sign of process 1 for 2 s" in text
    assert waited < TIMEOUT / 2
    assert (tmp_path / "m").read_bytes() == safejax.serialize({"w": HOST + 1})
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize(("phase", "who"), [(PHASES[1], [0, 1]), (PHASES[2], [0])])
def test_what_process_0_leaves_when_it_dies_is_removed_by_the_next_save(
    phase: str, who: list[int], tmp_path: Path
) -> None:
    with Together(2) as together:
        together.begin(killed_in, phase, who, tmp_path)
        # Where one is left, JAX ends it, since the service is in process 0.
        assert together.result(0) is None
    assert (tmp_path / "m").read_bytes() == safejax.serialize({"w": HOST + 1})
    litter = [name for name in os.listdir(tmp_path) if is_temporary(name)]
    assert len(litter) == 1 or who == [0]
    safejax.save({"w": HOST}, tmp_path / "m")
    assert os.listdir(tmp_path) == ["m"]
