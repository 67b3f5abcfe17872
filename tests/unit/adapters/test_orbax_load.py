"""Orbax's own checkpoints, read lazily: every layout of them, onto any mesh, by chunks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
import safejax.orbax
from safejax._src.checkpoint.orbax_folders import find_item
from safejax._src.tensorstores import Folder
from safejax.orbax import load
from safejax.testing import assert_same_bits, assert_trees_identical
from tests.support.leaves import arrays_of, host_bytes, is_unread

OPTIMIZER = optax.adamw(1e-3)


def mesh_of(*sizes: int) -> Any:
    names = ("x", "y")[: len(sizes)]
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes))


def state() -> dict[str, Any]:
    """A training state on 8 devices: rows, columns, replicas; several dtypes, keys, scalars."""
    mesh = mesh_of(8)
    rng = np.random.default_rng(0)

    def on(values: Any, *spec: Any) -> jax.Array:
        return jax.device_put(values, NamedSharding(mesh, P(*spec)))

    params = {
        "rows": on(rng.normal(size=(64, 24)).astype(np.float32), "x"),
        "columns": on(rng.normal(size=(16, 64)).astype(jnp.bfloat16), None, "x"),
        "layers": [{"b": on(np.arange(i + 3, dtype=np.int32))} for i in range(3)],
        "dotted.name": on(np.float16([1.5])),
    }
    return {
        "params": params,
        "optimizer": OPTIMIZER.init(params["rows"]),
        "key": jax.random.split(jax.random.key(5), 4),
        "host": np.arange(5, dtype=np.int8),
        "step": 7,
        "rate": 0.25,
        "on": True,
        "name": "a run",
        "none": None,
        "empty": {},
    }


def pytree(folder: Path, tree: Any, **options: Any) -> None:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(tree))


def standard(folder: Path, tree: Any) -> None:
    tree = {name: leaf for name, leaf in tree.items() if name != "name"}  # It takes no strings.
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)


def composite(folder: Path, tree: Any) -> None:
    with ocp.CheckpointManager(folder) as manager:
        for step in (1, 12):
            params = ocp.args.PyTreeSave(tree)
            args = ocp.args.Composite(state=params, config=ocp.args.JsonSave({"width": step}))
            manager.save(step, args=args)


WRITERS: dict[str, Callable[[Path, Any], None]] = {
    "ocdbt": pytree,
    "zarr": lambda folder, tree: pytree(folder, tree, use_ocdbt=False),
    "zarr3": lambda folder, tree: pytree(folder, tree, use_zarr3=True),
    "zarr3 without ocdbt": lambda folder, tree: pytree(
        folder, tree, use_ocdbt=False, use_zarr3=True
    ),
    "standard": standard,
    "composite": composite,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each layout; the standard handler has no strings."""
    folder = tmp_path_factory.mktemp("orbax")
    tree = state()
    for number, write in enumerate(WRITERS.values()):
        write(folder / str(number) / "it", tree)
    return {name: folder / str(number) / "it" for number, name in enumerate(WRITERS)}


# ---- what comes back


@pytest.mark.parametrize("layout", WRITERS)
def test_a_checkpoint_comes_back_bit_by_bit(saved: dict[str, Path], layout: str) -> None:
    expected = state()
    if layout == "standard":
        del expected["name"]
    with safejax.observe_reads() as log:
        found = load(saved[layout])
    assert log.reads == []
    assert all(map(is_unread, arrays_of(found)))
    assert found["optimizer"][0].keys() == {"count", "mu", "nu"}
    assert [type(found[name]) for name in ("step", "rate", "on")] == [int, float, bool]
    assert (found["none"], found["empty"]) == (None, {})
    assert found.get("name") == expected.get("name")
    assert found["key"].dtype == expected["key"].dtype
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for leaf, right in pairs:
        assert isinstance(leaf, int | float | str) or leaf.dtype == right.dtype
        assert isinstance(leaf, str) or host_bytes(leaf) == host_bytes(right)


@pytest.mark.parametrize("layout", ["ocdbt", "zarr", "composite"])
def test_like_gives_its_own_containers(saved: dict[str, Path], layout: str) -> None:
    expected = state()
    assert_trees_identical(load(saved[layout], like=expected), expected)
    with pytest.raises(safejax.MismatchError, match="host"):
        load(saved[layout], like={**expected, "host": np.zeros(6, np.int8)})


@pytest.mark.parametrize("sizes", [(2, 4), (8,), (1, 1)])
def test_onto_other_meshes(saved: dict[str, Path], sizes: tuple[int, ...]) -> None:
    mesh = mesh_of(*sizes)
    spec = P(*reversed(mesh.axis_names))
    expected = state()["params"]

    def sharding(name: str, aval: Any) -> NamedSharding:
        return NamedSharding(mesh, spec if len(aval.shape) == 2 else P())

    found = load(saved["ocdbt"], sharding=sharding)["params"]
    assert found["rows"].sharding.spec == spec
    for name in ("rows", "columns"):
        right = jax.device_put(expected[name], NamedSharding(mesh, spec))
        assert_same_bits(safejax.materialize(found[name]), right)


def test_transforms_are_pushed_down(saved: dict[str, Path]) -> None:
    expected = np.asarray(state()["params"]["rows"])
    transform = safejax.chain(
        safejax.select("params.rows"),
        safejax.rename({"params.rows": "w"}),
        safejax.reshape("w", (64, 4, 6)),
        safejax.transpose("w", axes=(1, 0, 2)),
        safejax.cast("bfloat16"),
    )
    w = load(saved["zarr"], transform=transform)["w"]
    with safejax.observe_reads() as log:
        part = np.asarray(w[2, 8:16])
    # A chunk has the 8 rows of a device, of which 6 columns of 24 are needed.
    assert (log.nbytes, log.needed) == (8 * 24 * 4, 8 * 6 * 4)
    right = expected.reshape(64, 4, 6).transpose(1, 0, 2)[2, 8:16].astype(jnp.bfloat16)
    assert_same_bits(part, right)


def test_tuples_are_tuples_if_orbax_stores_rich_types(tmp_path: Path) -> None:
    """The option for that has no public name in Orbax, so its table is written here."""
    tree = {"t": (jnp.ones(2), [jnp.zeros(1)]), "pair": OPTIMIZER.init(jnp.ones(2))}
    pytree(tmp_path / "it", tree)
    path = tmp_path / "it" / "_METADATA"
    table = json.loads(path.read_text())
    leaf = {
        "category": "custom", "clazz": "ValueMetadataEntry",
        "data": {"value_type": "jax.Array", "skip_deserialize": False},
    }  # fmt: skip
    rich = {"t": {"category": "custom", "clazz": "tuple", "entries": [leaf, [leaf]]}}
    table["value_metadata_tree"] = json.dumps(rich)
    path.write_text(json.dumps(table))
    found = load(tmp_path / "it")
    assert (type(found["t"]), type(found["t"][1]), type(found["pair"])) == (tuple, list, list)


# ---- what is read


def stored_bytes_read() -> int:
    """What tensorstore has read of files so far, as it counts itself."""
    metrics = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(value["value"] for metric in metrics for value in metric["values"])


def test_each_chunk_is_read_once_for_all_devices(tmp_path: Path) -> None:
    """Chunks of rows, for devices that hold columns."""
    values = np.random.default_rng(1).bytes(1 << 20)
    array = np.frombuffer(values, np.uint8).reshape(1024, 1024)
    pytree(tmp_path / "it", {"w": jax.device_put(array, NamedSharding(mesh_of(8), P("x")))})
    columns = NamedSharding(mesh_of(8), P(None, "x"))
    w = load(tmp_path / "it", sharding=columns)["w"]
    plan = safejax.plan({"w": w})
    assert (plan.reads.nbytes, plan.reads.requests, plan.reads.needed) == (1 << 20, 8, 1 << 20)
    # By itself, each device would read every chunk.
    assert {each.reads.nbytes for each in plan.devices.values()} == {1 << 20}
    before = stored_bytes_read()
    with safejax.observe_reads() as log:
        safejax.materialize(w)
    assert (log.nbytes, len(log.reads), log.excess) == (1 << 20, 8, 0)
    # Bytes at random are stored in little more than their own number.
    assert (1 << 20) <= stored_bytes_read() - before < 1.1 * (1 << 20)
    assert_same_bits(safejax.materialize(w), jax.device_put(array, columns))


def test_a_part_reads_the_chunks_that_it_is_in(tmp_path: Path) -> None:
    array = np.arange(64 * 32, dtype=np.float32).reshape(64, 32)
    pytree(tmp_path / "it", {"w": jax.device_put(array, NamedSharding(mesh_of(8), P("x")))})
    w = load(tmp_path / "it")["w"]
    with safejax.observe_reads() as log:
        row = np.asarray(w[9])
        again = np.asarray(w[10])
    assert np.array_equal(row, array[9])
    assert np.array_equal(again, array[10])
    # The second row is in the chunk of the first, which is kept.
    assert (log.nbytes, len(log.reads), log.needed) == (8 * 32 * 4, 1, 32 * 4)
    without = load(tmp_path / "it", cache_bytes=0)["w"]
    with safejax.observe_reads() as log:
        for number in (0, 8, 0):
            np.asarray(without[number])
    assert len(log.reads) == 3


@pytest.mark.parametrize("spec", [P("x"), P(None, "x")])
def test_a_conversion_reads_each_chunk_once(tmp_path: Path, spec: P) -> None:
    rng = np.random.default_rng(2)
    arrays = {f"w{i}": rng.integers(0, 9, (512, 4096), dtype=np.int32) for i in range(3)}
    mesh = mesh_of(8)
    tree = {name: jax.device_put(a, NamedSharding(mesh, spec)) for name, a in arrays.items()}
    pytree(tmp_path / "it", tree)
    done: list[tuple[int, int]] = []
    with safejax.observe_reads() as log:
        safejax.save(
            load(tmp_path / "it", cache_bytes=8 << 20),
            tmp_path / "new.safetensors",
            progress=lambda *at: done.append(at),
        )
    assert sum(read.nbytes for read in log.reads) == sum(a.nbytes for a in arrays.values())
    assert len(log.reads) == 24
    assert done[-1][0] == done[-1][1] > 24 << 20
    assert (tmp_path / "new.safetensors").read_bytes() == safejax.serialize(arrays)


# ---- which folder


def test_steps_and_items(saved: dict[str, Path]) -> None:
    folder = saved["composite"]
    for found in (
        load(folder),
        load(folder, step=1),
        load(folder, step=12, item="state"),
        load(folder / "12"),
        load(folder / "12" / "state"),
        load(f"{folder}/1", item="state"),
        load(f"file://{folder}/12/"),
    ):
        assert found["step"] == 7
    with pytest.raises(FileNotFoundError, match=r"step 3 .*1, 12"):
        load(folder, step=3)
    with pytest.raises(FileNotFoundError, match=r"'model'.*state"):
        load(folder, item="model")
    with pytest.raises(FileNotFoundError, match="there is nothing"):
        load(folder / "nothing")
    with pytest.raises(safejax.InvalidFileError, match="CheckpointManager, got"):
        load(folder.parent.parent)


def test_an_item_of_several_has_to_be_named(tmp_path: Path) -> None:
    with ocp.CheckpointManager(tmp_path / "steps") as manager:
        args = ocp.args.Composite(
            a=ocp.args.PyTreeSave({"w": jnp.ones(2)}), b=safejax.orbax.Save({"w": jnp.zeros(2)})
        )
        manager.save(0, args=args)
    with pytest.raises(safejax.InvalidFileError, match=r"a, b.*item='a'"):
        load(tmp_path / "steps")
    assert load(tmp_path / "steps", item="a")["w"].sum() == 2
    # Ours are loaded from the same place.
    assert load(tmp_path / "steps", item="b", step=0)["w"].sum() == 0


# ---- bad files


def test_a_lost_chunk_is_an_error(tmp_path: Path) -> None:
    pytree(tmp_path / "it", {"w": jnp.ones((8, 8))}, use_ocdbt=False)
    (tmp_path / "it" / "w" / "0.0").unlink()
    w = load(tmp_path / "it")["w"]
    with pytest.raises(safejax.ReadError, match=r"it: leaf 'w'.*copy the checkpoint"):
        safejax.materialize(w)


def test_damage_is_an_error(tmp_path: Path) -> None:
    pytree(tmp_path / "it", {"w": jnp.ones((8, 8)), "v": jnp.ones(3)}, use_ocdbt=False)
    for name in ("w/0.0", "v/.zarray"):
        broken = tmp_path / name.partition("/")[0]
        shutil.copytree(tmp_path / "it", broken)
        (broken / name).write_bytes(b"\x00damaged")
    with pytest.raises(safejax.ReadError):
        safejax.materialize(load(tmp_path / "w"))
    with pytest.raises(safejax.InvalidFileError, match="leaf 'v'"):
        load(tmp_path / "v")


TABLES: dict[str, Any] = {
    "no JSON": "{",
    "a list": [],
    "no tree": {},
    "entries that are none": {"tree_metadata": {"a": 3}},
    "keys that are none": {"tree_metadata": {"a": {"key_metadata": 3, "value_metadata": {}}}},
    "deep": {
        "tree_metadata": {
            "a": {
                "key_metadata": [{"key": "a", "key_type": 2}] * 600,
                "value_metadata": {"value_type": "None", "skip_deserialize": True},
            }
        }
    },
    "outside": {
        "use_ocdbt": False,
        "tree_metadata": {
            "a": {
                "key_metadata": [{"key": "../it", "key_type": 2}],
                "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False},
            }
        },
    },
}


@pytest.mark.parametrize("table", TABLES)
def test_a_forged_table_is_an_error(tmp_path: Path, table: str) -> None:
    (tmp_path / "it").mkdir()
    content = TABLES[table]
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "it" / "_METADATA").write_text(text)
    with pytest.raises(safejax.InvalidFileError, match="it: "):
        load(tmp_path / "it")


METADATA: dict[str, tuple[dict[str, Any], str]] = {
    # Tensorstore would end the process for want of memory.
    "a chunk larger than memory": ({"chunks": [1 << 40, 8]}, "fit into memory"),
    "more chunks than can be planned": ({"shape": [1 << 40, 8], "chunks": [1, 8]}, "at most"),
    "a dtype of text": ({"dtype": "|S4", "fill_value": None}, "read it with Orbax"),
}


@pytest.mark.parametrize("case", METADATA)
def test_forged_metadata_of_an_array_is_an_error(tmp_path: Path, case: str) -> None:
    pytree(tmp_path / "it", {"w": jnp.ones((8, 8))}, use_ocdbt=False)
    changes, said = METADATA[case]
    path = tmp_path / "it" / "w" / ".zarray"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises((safejax.ReadError, safejax.InvalidFileError), match=f"'w': .*{said}"):
        safejax.materialize(load(tmp_path / "it"))


def test_the_last_step_is_one_of_orbax_and_whole(tmp_path: Path) -> None:
    with ocp.CheckpointManager(tmp_path / "m") as manager:
        for step in (1, 2):
            manager.save(step, args=ocp.args.StandardSave({"w": jnp.full(2, step, jnp.int32)}))
    (tmp_path / "m" / "2026").touch()
    for copy in ("backup_7", "old_2"):
        shutil.copytree(tmp_path / "m" / "1", tmp_path / "m" / copy)
    for step in (None, 2):
        assert_trees_identical(load(tmp_path / "m", step=step), {"w": jnp.full(2, 2, jnp.int32)})
    folder = Folder(str(tmp_path / "m"))
    folder.is_renamed = False  # As on Google's storage, where a step is whole if a file says so.
    (tmp_path / "m" / "2" / "commit_success.txt").unlink(missing_ok=True)
    (tmp_path / "m" / "1" / "commit_success.txt").touch()
    assert find_item(folder, None, None).path == str(tmp_path / "m" / "1" / "default")
    with pytest.raises(FileNotFoundError, match="step 2 in it, whole"):
        find_item(folder, None, 2)
    (tmp_path / "m" / "2026").unlink()
    shutil.rmtree(tmp_path / "m" / "1")
    (tmp_path / "m" / "2").rename(tmp_path / "m" / "new_2")
    with pytest.raises(safejax.InvalidFileError, match="one folder of step 2, got new_2, old_2"):
        load(tmp_path / "m", step=2)


def test_keys_of_which_only_another_process_had_a_part(tmp_path: Path) -> None:
    tree = {"key": jax.random.key(3)}
    pytree(tmp_path / "it", tree)
    told = tmp_path / "it" / "array_metadatas"
    (told / "process_0").rename(told / "process_1")
    (told / "process_0").write_text('{"array_metadatas": []}')
    assert_trees_identical(load(tmp_path / "it"), tree)


def test_a_value_of_an_unknown_kind_can_be_left_out(tmp_path: Path) -> None:
    pytree(tmp_path / "it", {"w": jnp.ones(3), "own": jnp.ones(2)})
    path = tmp_path / "it" / "_METADATA"
    table = json.loads(path.read_text())
    table["tree_metadata"]["('own',)"]["value_metadata"]["value_type"] = "mine"
    path.write_text(json.dumps(table))
    with pytest.raises(safejax.InvalidFileError, match=r"'own'.*mine"):
        load(tmp_path / "it")
    found = load(tmp_path / "it", transform=safejax.drop("own"))
    assert_trees_identical(found, {"w": jnp.ones(3)})
