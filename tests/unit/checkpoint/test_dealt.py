"""Saves by several processes into files that have one writer each, after an exchange of values.

Each task runs in all processes at once. What they agree on is compared there or here.
"""

import hashlib
import json
import os
import re
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax._src.arrays import all_to_all
from safejax._src.arrays.all_to_all import exchanging, first_devices, rounds
from safejax._src.checkpoint.ours import ours_of
from safejax._src.checkpoint.reshard import Outgoing
from safejax._src.checkpoint.saving import stored_leaves
from safejax._src.checkpoint.shards import folder_of
from safejax._src.checkpoint.stream import to_bytes
from tests.support.shared_files import SharedFiles
from tests.support.together import Together, devices_together, raised

TIMEOUT = 40.0
"""Seconds; far more than any task takes in which no process has to be given up."""

INDEX = "model.safetensors.index.json"
TOKEN = re.compile(r"(?<=model-)[0-9a-f]{16}-")
HOST = np.arange(64 * 48, dtype=np.float32).reshape(64, 48)
ELSEWHERE: dict[str, Any] = {"fs": SharedFiles(), "timeout": TIMEOUT}


ARRAYS = (
    "rows", "columns", "both", "exchanged", "replicated", "part", "parts", "turned", "other",
    "alone0", "alone1",
)  # fmt: skip


@pytest.fixture(scope="module")
def four() -> Iterator[Together]:
    with Together(4) as together:
        yield together


def spread(values: Any, *spec: Any, shape: tuple[int, ...] = (-1,), turn: int = 1) -> jax.Array:
    """An array over the devices of all processes, in their order, or in turn every `turn`th."""
    values = np.asarray(values)
    found = devices_together()
    devices = np.array([each for first in range(turn) for each in found[first::turn]])
    axes = ("x", "y")[: len(shape)]
    mesh = Mesh(devices.reshape(shape), axes, axis_types=(AxisType.Auto,) * len(axes))
    return jax.make_array_from_callback(
        values.shape, NamedSharding(mesh, P(*spec)), lambda index: values[index], dtype=values.dtype
    )


def in_one(values: Any, process: int) -> jax.Array:
    """An array on the devices of one process."""
    devices = np.array(jax.local_devices(process)[:2])
    sharding = NamedSharding(Mesh(devices, ("x",)), P(None, "x"))
    return jax.make_array_from_callback(
        values.shape, sharding, lambda index: values[index], dtype=values.dtype
    )


def every_dtype() -> dict[str, Any]:
    """Arrays of 64 elements, of every dtype that JAX has without its x64 mode."""
    names = (
        "bool int8 uint8 int16 uint16 int32 uint32 float16 float32 bfloat16 complex64 int4 uint4"
        " float8_e4m3fn float8_e5m2 float8_e4m3b11fnuz float8_e8m0fnu float4_e2m1fn"
    )
    values = (np.arange(64) % 5).reshape(8, 8)
    return {name: values.astype(getattr(ml_dtypes, name, None) or name) for name in names.split()}


def trees(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A tree that spans the processes, with leaves of each kind; and the same tree in this one."""
    two = (2, -1)
    nans = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16).reshape(256, 256)
    odd = np.arange(8 * 3).reshape(3, 8).astype(ml_dtypes.float4_e2m1fn)
    keys = jax.random.split(jax.random.key(1), 8)
    alone: dict[str, Any] = {name: HOST + number for number, name in enumerate(ARRAYS)}
    alone |= {
        "dtypes": every_dtype(), "nans": nans, "odd": odd, "keys": keys, "numpy": HOST.T * 2,
        "scalar": 7, "text": "text", "none": None, "empty": np.zeros((0, 4), np.float16),
        "number": np.float32(3), "local": jnp.arange(5), "weak": jnp.asarray(2.0) * 3,
        "wide": np.arange(3) * 1j, "list": [HOST[0], {}, (1, 2)], "lazy": HOST - 1,
        "lazy rows": HOST - 2,
    }  # fmt: skip
    file = folder / f"lazy-{jax.process_index()}"
    safejax.save({name: alone[name] for name in alone if "lazy" in name}, file)
    rows = spread(HOST, "x").sharding
    data = np.asarray(jax.random.key_data(keys))
    tree = {
        **alone,
        "rows": spread(alone["rows"], "x"),
        "columns": spread(alone["columns"], None, "x"),
        "both": spread(alone["both"], "x", "y", shape=two),
        "exchanged": spread(alone["exchanged"], "y", "x", shape=two),
        "replicated": spread(alone["replicated"]),
        "part": spread(alone["part"], "x", shape=two),
        "parts": spread(alone["parts"], None, "y", shape=two),
        "turned": spread(alone["turned"], None, "x", turn=2),
        "other": spread(alone["other"], ("y", "x"), shape=two),
        "alone0": in_one(alone["alone0"], 0),
        "alone1": in_one(alone["alone1"], 1),
        "dtypes": {
            name: spread(each, "x", "y", shape=two) for name, each in alone["dtypes"].items()
        },
        "nans": spread(nans, "x", turn=2),
        # A byte has elements of two processes.
        "odd": spread(odd, None, "x", turn=2) if jax.process_count() == 2 else spread(odd),
        "keys": jax.random.wrap_key_data(spread(data, "x")),
        "empty": spread(alone["empty"], None, "x") if jax.process_count() == 2 else alone["empty"],
        "number": spread(alone["number"]),
        "lazy": safejax.load(file)["lazy"],
        "lazy rows": safejax.load(file, sharding=rows)["lazy rows"],
    }
    return tree, alone


TURNED = safejax.chain(safejax.transpose("rows"), safejax.reshape("rows", (32, 96)))
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "checksum": {"checksum": True, "metadata": {"step": "3", "a": "é"}},
    "cast": {"transform": safejax.cast("bfloat16", where="rows")},
    "turned": {"transform": TURNED, "checksum": True},
}


def digests_of(path: Path) -> dict[str, str]:
    """The digest of each file of a folder, by its name without the token of the save."""
    files = {TOKEN.sub("", each.name): each.read_bytes() for each in path.iterdir()}
    files[INDEX] = TOKEN.sub("", files[INDEX].decode()).encode()
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def expected_digests(alone: Any, path: Path, **options: Any) -> dict[str, str]:
    """What `digests_of` finds if one process had written it all."""
    checksum = options.get("checksum", False)
    leaves = stored_leaves(alone, options.get("transform"), options.get("metadata"))
    most, count = options["max_shard_bytes"], jax.process_count()
    folder = folder_of(leaves, str(path), most, checksum=checksum, writers=count)
    assert folder.index is not None
    files = {INDEX: folder.index, **{name: to_bytes(each) for name, each in folder.files.items()}}
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def save_in_all_ways(process: int, folder: Path, buffer: int | None, local: bool) -> list[str]:
    """Save the tree with each of the options; the ones whose files are not as they should be."""
    before = all_to_all.BUFFER_BYTES
    if buffer is not None:
        # Else no array that is small enough for a test would be sent in several rounds.
        all_to_all.BUFFER_BYTES = buffer  # type: ignore[misc]
    tree, alone = trees(folder)
    place: dict[str, Any] = {"one_writer_per_file": True} if local else {"fs": SharedFiles()}
    wrong: list[str] = []
    for name, options in OPTIONS.items():
        given: dict[str, Any] = {"max_shard_bytes": 2 * HOST.nbytes, **options}
        safejax.save(tree, folder / "set", timeout=TIMEOUT, **place, **given)
        # The expected files are the same for all, and the next save comes after all have looked.
        if process == 0 and digests_of(folder / "set") != expected_digests(
            alone, folder / "set", **given
        ):
            wrong.append(name)
    all_to_all.BUFFER_BYTES = before  # type: ignore[misc]
    return wrong


CASES = [(None, True), (1 << 12, False)]


@pytest.mark.parametrize(("buffer", "local"), CASES)
def test_the_files_have_the_bytes_of_a_save_in_one_process(
    pair: Together, tmp_path: Path, buffer: int | None, local: bool
) -> None:
    assert pair.run(save_in_all_ways, tmp_path, buffer, local) == [[], []]
    tree = safejax.load(tmp_path / "set", verify=True)
    assert np.array_equal(np.asarray(tree["columns"]), HOST + 1)
    assert tree["scalar"] == 7


def save_one_file(process: int, folder: Path) -> bool:
    """Whether one file of all processes has the bytes of a save in this one."""
    del process
    tree, alone = trees(folder)
    safejax.save(tree, folder / "m", checksum=True, timeout=TIMEOUT)
    return (folder / "m").read_bytes() == safejax.serialize(alone, checksum=True)


def test_one_file_of_four_processes_has_them(four: Together, tmp_path: Path) -> None:
    assert four.run(save_one_file, tmp_path) == [True] * 4


@pytest.mark.parametrize(("buffer", "local"), CASES)
def test_so_they_have_if_there_are_four_processes(
    four: Together, tmp_path: Path, buffer: int | None, local: bool
) -> None:
    assert four.run(save_in_all_ways, tmp_path, buffer, local) == [[]] * 4


# ---- what is sent


def operations(process: int) -> tuple[bool, bool, int]:
    """Whether the exchange is compiled to an all-to-all, and to nothing that gathers."""
    devices = first_devices()
    exchange, sharding = exchanging(devices)
    count, nbytes = len(devices), 1 << 16
    rows = jax.ShapeDtypeStruct((count * count, nbytes), np.uint8, sharding=sharding)
    compiled = jax.jit(exchange).lower(rows).compile()
    text = compiled.as_text() or ""
    memory: Any = compiled.memory_analysis()
    return "all-to-all" in text, "all-gather" in text, memory.temp_size_in_bytes // nbytes


def test_the_exchange_is_an_all_to_all_in_memory_of_its_own_size(four: Together) -> None:
    for has_all_to_all, has_all_gather, rows in four.run(operations):
        assert has_all_to_all
        assert not has_all_gather
        assert rows <= 2 * 4


def sent_bytes(process: int) -> dict[str, int]:
    """The bytes that this process would send of single arrays to process 1."""
    big = np.ones((512, 512), np.float32)
    arrays: dict[str, Any] = {
        "replicated": spread(big), "numpy": big, "rows": spread(big, "x"), "its own": in_one(big, 1)
    }  # fmt: skip
    found: dict[str, int] = {}
    for name, array in arrays.items():
        leaves = safejax.Leaves({name: array, "a": np.ones((1024, 1024), np.float32)})
        plan = folder_of(leaves, "m", 1, checksum=False, by_all=True, writers=2)
        assert list((plan.writers or {}).values()) == [0, 1]
        ours = ours_of(plan, process, 2)
        ((_, shares),) = [each for each in ours.shares.items() if each[1][0].extent.name == name]
        found[name] = 0 if process == 1 else Outgoing(shares).nbytes
    return found


def test_only_what_its_writer_lacks_is_sent(pair: Together) -> None:
    sent, _ = pair.run(sent_bytes)
    assert sent["replicated"] == sent["numpy"] == sent["its own"] == 0
    half = 512 * 512 * 4 // 2
    assert half < sent["rows"] < half * 1.01


@pytest.mark.parametrize("processes", [2, 3, 16, 1000])
def test_each_call_sends_a_bounded_number_of_bytes(processes: int) -> None:
    assert rounds(0, processes) == []
    most = rounds(1 << 40, processes)[0]
    assert most * processes <= all_to_all.BUFFER_BYTES < 2 * most * processes
    for longest in (1, 1000, 5000, most - 1, most, most + 1, 3 * most + 5000, 10**9):
        *full, last = rounds(longest, processes)
        assert set(full) <= {most}
        assert last <= most
        assert last & (last - 1) == 0
        assert sum(full) < longest <= sum(full) + last


def written_bytes(process: int, folder: Path) -> tuple[int, int]:
    arrays = {f"w{n}": spread(np.ones((16, 64 * n), np.float32), "x") for n in range(1, 40)}
    calls: list[tuple[int, int]] = []
    options: dict[str, Any] = {
        **ELSEWHERE,
        "progress": lambda *at: calls.append(at),
        "max_shard_bytes": 1 << 18,
    }
    safejax.save(arrays, folder / "m", **options)
    assert calls == sorted(set(calls))
    assert calls[-1][0] == calls[-1][1]
    return calls[-1][0], sum(each.nbytes for each in arrays.values())


def test_each_process_writes_about_as_many_bytes(four: Together, tmp_path: Path) -> None:
    found = four.run(written_bytes, tmp_path)
    total = found[0][1]
    for written, _ in found:
        assert abs(written - total / 4) < total / 40
    sizes = [path.stat().st_size for path in (tmp_path / "m").glob("*.safetensors")]
    assert sum(sizes) == sum(written for written, _ in found)
    assert max(sizes) < (1 << 18) + 8192
    assert len(sizes) > 12


# ---- in the background


def state_at(step: int) -> dict[str, Any]:
    return {"w": HOST + step, "v": HOST.T - step}


@partial(jax.jit, donate_argnums=0)
def train(state: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
    """A step with a collective, which donates the state before."""
    return {"w": state["w"] + 1, "v": state["v"] - 1}, jnp.sum(state["w"]) + jnp.sum(state["v"])


def train_and_save(process: int, folder: Path, most: int | None) -> list[int]:
    state = {"w": spread(HOST, "x"), "v": spread(HOST.T, "x")}
    handles: list[safejax.SaveHandle] = []
    numpy = np.zeros(2000)
    for step in range(6):
        tree = {**state, "step": step, "numpy": numpy}
        # Some go to the same folder, and wait for each other.
        path = folder / f"m{step % 4}"
        handles.append(
            safejax.save_async(
                tree, path, max_shard_bytes=1 << 14, max_host_bytes=most, **ELSEWHERE
            )
        )
        numpy += 1
        state, loss = train(state)
        del loss
    for handle in handles:
        handle.result()
    wrong: list[int] = []
    for step in range(2, 6):
        found = safejax.load(folder / f"m{step % 4}", fs=SharedFiles())
        expected = {**state_at(step), "numpy": np.full(2000, float(step))}
        right = [np.array_equal(np.asarray(found[name]), expected[name]) for name in expected]
        if found["step"] != step or not all(right):
            wrong.append(step)
    return wrong


@pytest.mark.parametrize("most", [None, 0, 40_000])
def test_saves_in_the_background_next_to_steps_that_donate(
    pair: Together, tmp_path: Path, most: int | None
) -> None:
    assert pair.run(train_and_save, tmp_path, most) == [[], []]
    for folder in tmp_path.iterdir():
        index = json.loads((folder / INDEX).read_text())
        assert sorted(os.listdir(folder)) == sorted({*index["weight_map"].values(), INDEX})


# ---- errors


def bad_save(process: int, case: str, folder: Path) -> tuple[str, str]:
    """A save that fails, in one process or in all."""
    tree: dict[str, Any] = {"w": spread(HOST, "x"), "b": spread(HOST, None, "x"), "step": 2}
    options: dict[str, Any] = {**ELSEWHERE, "max_shard_bytes": 1 << 13}
    save: Any = safejax.save

    def fail(*_: Any) -> Any:
        raise OSError(5, "Input/output error", "disk")

    def interrupt(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def when_read(call: Any) -> Any:
        """A transform that calls it when the array is read, and not when it is probed."""

        def function(values: Any) -> Any:
            if np.max(values) > 3000:
                call()
            return values

        return safejax.elementwise(function, where="b")

    if case == "one file with one writer":
        del options["max_shard_bytes"], options["fs"]
        options["one_writer_per_file"] = True
    elif case == "one argument":
        options |= {"fs": None, "one_writer_per_file": process == 1}
    elif case.startswith("read in"):
        options["transform"] = when_read(fail if case.endswith(str(process)) else int)
    elif case == f"write of process {process}":
        options["progress"] = fail
    elif case == f"file of process {process}":
        options["fs"] = SharedFiles("-of-")
    elif case == f"index of process {process}":
        options["fs"] = SharedFiles(INDEX)
    elif case == f"background, file of process {process}":
        options["fs"] = SharedFiles("-of-")
    elif case == "own memory":
        options["fs"] = MemoryFileSystem()
    elif case == "transaction" and process == 1:
        options["fs"].start_transaction()
    elif case == "Ctrl-C in process 1":
        options["transform"] = when_read(interrupt if process == 1 else int)
    if case.startswith("background"):
        save = lambda *args, **kw: safejax.save_async(*args, **kw).result()  # noqa: E731
    try:
        return raised(lambda: save(tree, folder / "m", **options))
    finally:
        if case == "transaction" and process == 1:
            options["fs"].end_transaction()


DISK = r"\[Errno 5\] process {}: (saving to SharedFiles failed: .*)?Input/output error: '.*'"
REFUSED: dict[str, tuple[str, str]] = {
    "one file with one writer": ("ValueError", r"\S+m: one_writer_per_file: expected max_shard_.*"),
    "one argument": ("ProcessError", r"save to \S+m: the argument one_writer_per_file is not the "
                     r"same .*"),
    **{f"{what} {process}": ("OSError", DISK.format(process)) for process in (0, 1)
       for what in ("write of process", "file of process", "background, file of process")},
    **{f"read in process {process}": ("TransformError", rf"process {process}: .*Input/output.*")
       for process in (0, 1)},
    "index of process 0": ("OSError", DISK.format(0)),
    "own memory": ("FileNotFoundError", r"\[Errno 2\] process 0: expected the files that this "
                   r"save has written, got no such file: save to a folder that all processes .*"),
    "transaction": ("ValueError", r"process 1: \S+m: max_shard_bytes: expected to write to .*"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_all_raise_the_same_error_and_what_was_there_is_kept(
    pair: Together, case: str, tmp_path: Path
) -> None:
    safejax.save({"w": HOST, "step": 1}, tmp_path / "m", fs=SharedFiles(), max_shard_bytes=100)
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    one, other = pair.run(bad_save, case, tmp_path)
    assert one == other
    kind, text = REFUSED[case]
    assert one[0] == kind
    assert re.fullmatch(text, one[1], re.DOTALL), one[1]
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before
    # And the next one works.
    assert pair.run(bad_save, "none", tmp_path) == [("", "")] * 2
    assert safejax.load(tmp_path / "m", fs=SharedFiles())["step"] == 2


def test_ctrl_c_in_the_exchange_waits_for_its_end(pair: Together, tmp_path: Path) -> None:
    one, other = pair.run(bad_save, "Ctrl-C in process 1", tmp_path)
    assert one == ("ProcessError", "process 1: KeyboardInterrupt")
    assert other == ("KeyboardInterrupt", "")
    assert os.listdir(tmp_path / "m") == []


def killed(process: int, who: int, folder: Path) -> tuple[str, str]:
    """A save in which a process dies once it has written its file."""
    tree = {"w": spread(HOST, "x"), "b": spread(HOST, None, "x"), "step": 2}

    def die(done: int, total: int) -> None:
        if done == total:
            os.kill(os.getpid(), signal.SIGKILL)

    options: dict[str, Any] = {**ELSEWHERE, "timeout": 2, "max_shard_bytes": HOST.nbytes}
    progress = die if process == who else None
    return raised(lambda: safejax.save(tree, folder / "m", progress=progress, **options))


@pytest.mark.parametrize("who", [0, 1])
def test_if_a_process_dies_the_old_files_are_whole_and_the_next_save_removes_the_others(
    who: int, tmp_path: Path
) -> None:
    first = {"w": HOST, "step": 1}
    safejax.save(first, tmp_path / "m", fs=SharedFiles(), max_shard_bytes=100)
    before = set(os.listdir(tmp_path / "m"))
    with Together(2) as together:
        together.begin(killed, who, tmp_path)
        assert together.result(who) is None
        if who == 1:
            kind, text = together.result(0)
            assert kind == "ProcessError"
            assert text.endswith("; what was there before is unchanged")
    assert before <= set(os.listdir(tmp_path / "m"))
    assert safejax.load(tmp_path / "m", fs=SharedFiles())["step"] == 1
    safejax.save(first, tmp_path / "m", fs=SharedFiles(), max_shard_bytes=100)
    assert len(os.listdir(tmp_path / "m")) == len(before)
