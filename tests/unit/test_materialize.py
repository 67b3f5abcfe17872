"""`materialize` in several processes: each byte is read by one of them, and arrives bit for bit."""

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax._src.arrays import read_once
from tests.support.servers import HttpServer
from tests.support.together import Together, devices_together, keys_in_the_service, raised

DTYPES = (
    "float32", "bfloat16", "float16", "int8", "bool", "complex64", "float8_e4m3fn", "float8_e5m2",
    "int4", "uint2", "int32", "uint16",
)  # fmt: skip
SHAPES = ((8, 4), (3, 5), ())
SPECS = (P(), P("x"), P("y"), P(None, "y"), P("x", "y"), P(None, ("x", "y")))


def mesh(axis_type: AxisType = AxisType.Auto) -> Mesh:
    devices = np.array(devices_together()).reshape(2, 2)
    return Mesh(devices, ("x", "y"), axis_types=(axis_type,) * 2)


def random_bits(name: str, shape: tuple[int, ...]) -> Any:
    """Values of a dtype of which any bits may be set: NaNs with payloads among them."""
    rng, dtype = np.random.default_rng(0), np.dtype(getattr(ml_dtypes, name, None) or name)
    if name in ("bool", "int4", "uint2"):
        low, high = {"bool": (0, 2), "int4": (-8, 8), "uint2": (0, 4)}[name]
        return rng.integers(low, high, shape).astype(dtype)
    nbytes = dtype.itemsize * int(np.prod(shape))
    return np.frombuffer(rng.bytes(nbytes), dtype).reshape(shape)


def bits(array: jax.Array) -> list[bytes]:
    return [np.asarray(shard.data).tobytes() for shard in array.addressable_shards]


def compare_all(process: int) -> tuple[int, list[str]]:
    """The number of leaves that are the same, and what is wrong with others."""
    del process
    same, wrong = 0, list[str]()
    for axis_type, dtypes in ((AxisType.Auto, DTYPES), (AxisType.Explicit, DTYPES[:3])):
        for shape in SHAPES:
            values = {name: random_bits(name, shape) for name in dtypes}
            data = safejax.serialize(values)
            for spec in SPECS:
                sharding = NamedSharding(mesh(axis_type), spec)
                try:
                    plain, once = (safejax.deserialize(data, sharding=sharding) for _ in "ab")
                except safejax.ShardingError:
                    continue
                materialized = safejax.materialize(once, read_once=True)
                for name in dtypes:
                    got, expected = materialized[name], plain[name].placed()
                    if (got.aval, got.sharding, bits(got)) == (
                        expected.aval, expected.sharding, bits(expected),
                    ):  # fmt: skip
                        same += 1
                    else:
                        wrong.append(f"{name}{shape} {spec} {axis_type}")
    return same, wrong


def test_every_bit_arrives(pair: Together) -> None:
    for same, wrong in pair.run(compare_all):
        assert not wrong
        # The six specs for the first shape, and one for each of the others.
        assert same == 8 * (len(DTYPES) + 3)


def read_bytes(process: int) -> dict[str, int]:
    """The bytes that this process reads of a leaf of 512 bytes, for each way to divide it."""
    read: dict[str, int] = {}
    data = safejax.serialize({"w": np.arange(128, dtype=np.float32).reshape(16, 8)})
    for once in (False, True):
        for spec in SPECS:
            tree = safejax.deserialize(data, sharding=NamedSharding(mesh(), spec))
            planned = safejax.plan(tree, read_once=once)
            with safejax.observe_reads() as log:
                safejax.materialize(tree, read_once=once)
            assert planned.processes[process].reads.nbytes == log.nbytes
            held = math.prod(tree["w"].sharding.shard_shape((16, 8))) * 4
            assert {each.places for each in planned.devices.values()} == {held}
            read[f"{spec} {once}"] = log.nbytes
    # Ten elements in four parts are twelve, of which two are padding.
    data = safejax.serialize({"w": np.arange(10, dtype=np.float32)})
    odd = safejax.deserialize(data, sharding=NamedSharding(mesh(), P()))
    with safejax.observe_reads() as log:
        safejax.materialize(odd, read_once=True)
    read["odd"] = log.nbytes
    return read


def test_each_byte_is_read_by_one_process(pair: Together) -> None:
    first, second = pair.run(read_bytes)
    for spec in SPECS:
        assert first[f"{spec} True"] == second[f"{spec} True"] == 256
    for spec in (P(), P("y"), P(None, "y")):  # "x" is the axis of the processes.
        assert first[f"{spec} False"] == 512
    assert (first["odd"], second["odd"]) == (24, 24)


SIDE, COUNT = 512, 4


def requests_of(process: int, url: str) -> tuple[list[int], bool]:
    """What reading each leaf in both, and then once, is planned and asked for; and if all is right.

    The server is told who asks.
    """
    asked: list[int] = []
    right = True
    for once in (False, True):
        headers = {"X-Who": f"{process} {once}"}
        fs = fsspec.filesystem("http", headers=headers, skip_instance_cache=True)
        tree = safejax.load(url, fs=fs, sharding=NamedSharding(mesh(), P()))
        planned = safejax.plan(tree, read_once=once).processes[process].reads
        with safejax.observe_reads() as log:
            placed = safejax.materialize(tree, read_once=once)
        asked += [planned.requests, planned.nbytes, len(log.reads), log.nbytes]
        for number in range(COUNT):
            values = np.asarray(placed[f"w{number}"].addressable_data(0))
            right &= bool((values == np.arange(SIDE * SIDE).reshape(SIDE, SIDE) + number).all())
    return asked, right


def test_a_file_elsewhere_is_requested_by_each_process_or_once(pair: Together) -> None:
    server = HttpServer()
    values = np.arange(SIDE * SIDE, dtype=np.int32).reshape(SIDE, SIDE)
    tree = {f"w{number}": values + number for number in range(COUNT)}
    nbytes = COUNT * values.nbytes
    server.files["/m.safetensors"] = safejax.serialize(tree)
    answers = pair.run(requests_of, f"{server.url}/m.safetensors")
    for process, (asked, right) in enumerate(answers):
        assert right
        # Neighbours are one request; if each byte is read once, a process reads half of each leaf.
        plain = [1, nbytes]
        assert asked == [*plain, *plain, *[COUNT, nbytes // 2] * 2]
        for once, number, total in ((False, *plain), (True, COUNT, nbytes // 2)):
            sent = [each.sent for each in server.requests if each.who == f"{process} {once}"]
            assert len(sent) == 1 + number  # That which opens it.
            assert sum(sent[1:]) == total
    server.close()


def collectives(process: int) -> tuple[int, list[str]]:
    """The number of gathers that reading once compiles, and what is wrong in the programs."""
    del process
    gathers, wrong = 0, list[str]()
    for shape in ((16, 8), (3, 5)):
        data = safejax.serialize({"w": np.zeros(shape, np.float32)})
        for spec in SPECS if shape == (16, 8) else (P(),):
            leaf = safejax.deserialize(data, sharding=NamedSharding(mesh(), spec))["w"]
            spread = read_once.spread_of(leaf)
            if spread is None:
                continue
            parts = jax.ShapeDtypeStruct(spread.content.shape, leaf.dtype, sharding=spread.sharding)
            flat = shape if spread.is_flat else None
            gather: Any = read_once.gathering(spread.sharding, spread.splits, flat, leaf.dtype)
            text = gather.lower(parts).compile().as_text()
            used = {name for entry in spec for name in np.ravel(entry) if name is not None}
            for line in text.splitlines():
                found = COLLECTIVE.search(line)
                if found is None:
                    continue
                groups = groups_in(line) if found[1] == "all-gather" else []
                # Devices that hold the same values have the same place along all other axes.
                places = np.indices((2, 2)).reshape(2, 4).T
                same = all(
                    (places[group][:, axis] == places[group[0], axis]).all()
                    for group in groups
                    for axis, name in enumerate("xy")
                    if name in used
                )
                held = int(np.prod(leaf.sharding.shard_shape(shape))) + 3  # The padding.
                sizes = [list(map(int, each.split(","))) for each in SIZES.findall(line)]
                gathers += 1
                if found[1] != "all-gather" or not same or max(map(np.prod, sizes)) > held:
                    wrong.append(f"{shape} {spec}: {line}")
    return gathers, wrong


COLLECTIVE = re.compile(
    r" (all-\w+(?:-\w+)?|collective-\w+|reduce-scatter|ragged-\w+|send|recv)(?:-start)?\("
)
SIZES = re.compile(r"\w\d+\[([\d,]+)\]")


def groups_in(line: str) -> list[list[int]]:
    """The groups of devices of a collective: axes of a mesh, listed, or a reshaped iota."""
    axes = re.search(r"replica_groups=mesh\['x'=2,'y'=2\] \{([^}]*)\}", line)
    if axes is not None:  # JAX 0.12
        groups = np.arange(4).reshape(2, 2)
        return {"'x'": groups.T, "'y'": groups}.get(axes[1], groups.reshape(1, 4)).tolist()
    listed = re.search(r"replica_groups=\{(\{[\d,{}]+\})\}", line)
    if listed is not None:
        return [list(map(int, each.split(","))) for each in re.findall(r"[\d,]+\d", listed[1])]
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    assert iota is not None, line
    shape, sizes = (list(map(int, iota[n].split(","))) for n in (1, 2))
    numbers = np.arange(np.prod(sizes)).reshape(sizes)
    if iota[3]:
        numbers = numbers.transpose(list(map(int, iota[3].split(","))))
    return numbers.reshape(shape).tolist()


def test_only_gathers_along_the_replicated_axes_are_compiled(pair: Together) -> None:
    for gathers, wrong in pair.run(collectives):
        assert not wrong
        # One for each replicated axis: two for P() and for the leaf that is flat, one for P("y")
        # and for P(None, "y"). With P("x"), no two processes hold the same.
        assert gathers == 2 + 2 + 1 + 1


def fail_in_one(process: int) -> list[tuple[str, str]]:
    """What is raised where one process has a damaged file, or another tree."""
    replicated = NamedSharding(mesh(), P())
    checked = bytearray(safejax.serialize({"w": np.ones(1024, np.float32)}, checksum=True))
    if process == 1:
        checked[-5] ^= 1
    damaged = safejax.deserialize(bytes(checked), sharding=replicated, verify=True)
    values = {"w": np.ones(8, np.float32), **({"more": np.ones(8, np.float32)} if process else {})}
    other = safejax.deserialize(safejax.serialize(values), sharding=replicated)
    used = safejax.deserialize(
        safejax.serialize({"w": np.ones(8, np.float32)}), sharding=replicated
    )
    if process == 0:
        used["w"].placed()
    order = -1 if process else 1
    turned = Mesh(mesh().devices[::order], ("x", "y"))
    in_order = safejax.deserialize(
        safejax.serialize({"w": np.ones(8, np.float32)}), sharding=NamedSharding(turned, P("y"))
    )
    errors = [
        raised(lambda tree=tree: safejax.materialize(tree, read_once=True))
        for tree in (damaged, other, used, in_order)
    ]
    # And the processes are still in step.
    whole = safejax.deserialize(
        safejax.serialize({"w": np.ones(8, np.float32)}), sharding=replicated
    )
    done = list[int]()
    safejax.materialize(whole, read_once=True, progress=lambda now, total: done.append(now))
    assert done == [32]
    # Process 0 deletes the keys of each round when all have come to the next.
    assert process or len({key.split("/")[1] for key in keys_in_the_service()}) == 1
    return errors


def test_an_error_in_one_process_is_raised_in_both(pair: Together) -> None:
    first, second = pair.run(fail_in_one)
    assert first == second
    damaged, other, used, in_order = first
    assert damaged[0] == "ChecksumError"
    assert "'w'" in damaged[1]
    for kind, message in (other, used, in_order):
        assert kind == "ProcessError"
        assert message.startswith("materialize: expected the same lazy leaves in all processes")


def stopped_by_progress(process: int) -> list[tuple[str, str]]:
    """What is raised if the `progress` of one process raises, for the first leaf and the last."""

    def stop(done: int, total: int, last: bool) -> None:
        if process == 1 and (done == total or not last):
            raise ValueError("stopped by progress")

    data = safejax.serialize({"a": np.ones(8, np.float32), "b": np.ones(8, np.float32)})
    errors: list[tuple[str, str]] = []
    for last in (False, True):
        tree = safejax.deserialize(data, sharding=NamedSharding(mesh(), P()))
        progress = partial(stop, last=last)
        errors.append(raised(partial(safejax.materialize, tree, read_once=True, progress=progress)))
    return errors


def test_no_process_waits_for_one_whose_progress_raises(pair: Together) -> None:
    first, second = pair.run(stopped_by_progress)
    assert first == [("", "")] * 2  # It had all of its values by then.
    assert second == [("ValueError", "process 1: stopped by progress")] * 2


def on_two_of_three(process: int, path: Path) -> list[Any]:
    """Leaves and arrays with devices in the first two processes only, or in the last one."""
    devices = np.array(devices_together())
    two, last, all_ = (Mesh(each, ("x",)) for each in (devices[:4], devices[4:], devices))
    values = np.arange(48, dtype=np.float32).reshape(12, 4)
    data = safejax.serialize({"w": values})
    tree = safejax.deserialize(data, sharding=NamedSharding(two, P()))
    placed = safejax.materialize(tree, read_once=True)["w"]
    shardings = {
        "all": NamedSharding(all_, P("x")), "empty": NamedSharding(two, P()),
        "last": NamedSharding(last, P("x")), "two": NamedSharding(two, P("x")),
    }  # fmt: skip
    host = {name: values[: 0 if name == "empty" else 12] for name in shardings}
    state = {
        name: jax.make_array_from_callback(
            host[name].shape, of, lambda index, name=name: host[name][index], dtype=values.dtype
        )
        for name, of in shardings.items()
    }
    safejax.save(state, path, checksum=True)
    saved = path.read_bytes()
    safejax.save_async(state, path, checksum=True).result(300)
    right = safejax.serialize(host, checksum=True)
    expected = [] if process == 2 else [values.tobytes()] * 2
    return [placed.shape, bits(placed) == expected, saved == right, path.read_bytes() == right]


def test_a_process_may_have_no_device_of_a_leaf(tmp_path: Path) -> None:
    with Together(3) as three:
        found = three.run(on_two_of_three, tmp_path / "m")
    assert found == [[(12, 4), True, True, True]] * 3


def test_in_one_process_nothing_is_different() -> None:
    data = safejax.serialize({"w": jnp.arange(8.0)})
    sharding = NamedSharding(jax.make_mesh((8,), ("x",)), P())
    tree = safejax.deserialize(data, sharding=sharding)
    assert read_once.spread_of(tree["w"]) is None
    placed = safejax.materialize(tree, read_once=True)["w"]
    assert placed.sharding == sharding
    np.testing.assert_array_equal(placed, np.arange(8.0))
