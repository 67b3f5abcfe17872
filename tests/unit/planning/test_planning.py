"""A plan says what a load will do: bytes, spans, devices, copies and problems."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax import InvalidFileError, Plan, plan
from safejax._src.reading.requests import FREE, Cost
from safejax.testing import arrays, pytrees, shardings
from safejax.testing.strategies import shapes

MESH = jax.make_mesh((2, 4), ("x", "y"))
BIG = np.arange(64 * 96, dtype=np.float32).reshape(64, 96)
TREE = {
    "w": BIG,
    "b": np.arange(96, dtype=np.int8),
    "bf": jnp.ones((8, 8), jnp.bfloat16),
    "four": jnp.arange(64).reshape(8, 8).astype(jnp.float4_e2m1fn),
    "key": jax.random.key(1),
    "none": np.zeros((0, 8), np.float32),
    "step": 3,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    safejax.save(TREE, path, checksum=True)
    return path


def where(spec: P) -> Any:
    """The sharding for the leaves that it divides."""

    def choose(name: str, aval: Any) -> NamedSharding:
        sharding = NamedSharding(MESH, spec if len(spec) <= aval.ndim else P())
        try:
            sharding.shard_shape(aval.shape)
        except ValueError:
            return NamedSharding(MESH, P())
        return sharding

    return choose


SHARDINGS = {
    "none": None,
    "a device": jax.devices()[3],
    "rows": where(P("x")),
    "columns": where(P(None, "y")),
    "both": where(P("y", "x")),
    "replicated": NamedSharding(MESH, P()),
}
TRANSFORMS: dict[str, Any] = {
    "none": None,
    "cast": safejax.cast("bfloat16", source="float32", where=["*", "!bf"]),
    "transpose": safejax.transpose("w"),
    "a reshape that copies": safejax.chain(
        safejax.transpose("w"), safejax.reshape("w", (-1, 64 * 48))
    ),
    "split and concat": safejax.chain(
        safejax.split("w", ["w1", "w2"], axis=1), safejax.concat(["w2", "w1"], "w", axis=1)
    ),
}


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("access", ["map", "copy", "read"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_load_does_what_its_plan_says(
    path: Path, sharding: str, transform: str, access: Any, verify: bool
) -> None:
    options: dict[str, Any] = {
        "sharding": SHARDINGS[sharding], "transform": TRANSFORMS[transform],
        "access": access, "verify": verify,
    }  # fmt: skip
    with safejax.observe_reads() as log:
        planned = plan(path, **options)
        assert str(planned)
        assert log.nbytes == 0
    tree = safejax.load(path, **options)
    leaves = safejax.flatten(tree)
    for leaf in planned.leaves:
        lazy = leaves[leaf.name]
        alone = plan(lazy).processes[0].reads if lazy.size else None
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (lazy.shape, lazy.dtype, lazy.sharding)
        with safejax.observe_reads() as log:
            placed = lazy.placed()
        if "copies" in transform and leaf.name == "w":
            # One read of the whole serves all blocks, but each is planned as if it were alone.
            assert log.nbytes == BIG.nbytes
            assert all(block.reads.nbytes == BIG.nbytes for block in leaf.blocks)
            assert all(block.whole for block in leaf.blocks)
        elif leaf.is_together:
            assert access == "read"
            assert alone is None or alone == Cost(log.nbytes, len(log.reads), log.needed)
            assert verify or log.nbytes <= BIG.nbytes
        else:
            assert sum(block.reads.nbytes for block in leaf.blocks) == log.nbytes
            assert sum(block.reads.needed for block in leaf.blocks) == log.needed
            assert not any(block.whole for block in leaf.blocks)
        on_devices = sum(len(block.devices) * block.nbytes for block in leaf.blocks)
        data = jax.random.key_data(placed) if leaf.name == "key" else placed
        assert on_devices == sum(shard.data.nbytes for shard in data.addressable_shards)
        if leaf.name == "w" and access != "map":
            assert not leaf.in_place
    assert planned.problems == ()
    assert {leaf.name for leaf in planned.leaves} == {
        name for name, leaf in leaves.items() if isinstance(leaf, jax.Array)
    }


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_tree_that_is_materialized_is_requested_as_planned(
    path: Path, sharding: str, transform: str, verify: bool
) -> None:
    """Leaves that are neighbours in a file are read together, and planned so."""
    options: dict[str, Any] = {
        "sharding": SHARDINGS[sharding], "transform": TRANSFORMS[transform], "access": "read",
        "verify": verify,
    }  # fmt: skip
    planned = plan(path, **options).processes[0].reads
    tree = safejax.load(path, **options)
    assert plan(tree).processes[0].reads == planned
    with safejax.observe_reads() as log:
        placed = safejax.materialize(tree)
    if transform == "a reshape that copies":
        assert planned.nbytes >= log.nbytes  # Each block is planned as if it were alone.
    else:
        assert planned == Cost(log.nbytes, len(log.reads), log.needed)
        assert planned.requests <= 2
    assert plan(tree).reads == FREE
    expected = safejax.materialize(safejax.load(path, **{**options, "access": "map"}))
    for name, leaf in safejax.flatten(placed).items():
        if isinstance(leaf, jax.Array) and name != "key":
            assert leaf.sharding == safejax.flatten(expected)[name].sharding
            assert np.asarray(leaf).tobytes() == np.asarray(expected[name]).tobytes()


def test_a_leaf_is_in_place_if_the_placed_array_is_the_file(path: Path, tmp_path: Path) -> None:
    stock = tmp_path / "stock.safetensors"
    safetensors.numpy.save_file({"w": BIG, "b": TREE["b"]}, stock, {"odd": "one"})
    for file in (path, stock):
        for spec in (P("x"), P(None, "y"), P()):
            sharding = where(spec)
            planned = {leaf.name: leaf for leaf in plan(file, sharding=sharding).leaves}
            tree = safejax.load(file, sharding=sharding)
            for name in ("w", "b"):
                host = np.asarray(tree[name])
                begin = host.__array_interface__["data"][0]
                shards = [
                    shard.data.unsafe_buffer_pointer()
                    for shard in tree[name].placed().addressable_shards
                ]
                looks = all(begin <= pointer < begin + host.nbytes for pointer in shards)
                assert planned[name].in_place == looks
    in_place = [
        [leaf.in_place for leaf in plan(file).leaves if leaf.name == "w"] for file in (path, stock)
    ]
    assert in_place == [[True], [False]]


@given(data=st.data())
def test_every_tree_is_read_as_planned(data: st.DataObject) -> None:
    tree = {"drawn": data.draw(pytrees())}
    shape = data.draw(shapes())
    tree["w"] = data.draw(arrays("float32", shape))
    sharding = data.draw(shardings(shape))
    blob = safejax.serialize(tree)
    loaded = safejax.deserialize(blob, sharding=lambda name, _: sharding if name == "w" else None)
    planned = plan(loaded["w"])
    with safejax.observe_reads() as log:
        safejax.materialize(loaded["w"])
    assert planned.reads.nbytes == log.nbytes == tree["w"].nbytes
    whole = plan(safejax.deserialize(blob))
    assert whole.nbytes == sum(
        leaf.nbytes for leaf in jax.tree.leaves(loaded) if isinstance(leaf, jax.Array)
    )


def test_devices_and_processes_add_up(path: Path) -> None:
    planned = plan(path, sharding=where(P("x", "y")))
    assert list(planned.devices) == jax.devices()
    assert list(planned.processes) == [0]
    (process,) = planned.processes.values()
    replicated = plan(path, sharding=NamedSharding(MESH, P()))
    # Replicas share a read, but each is placed.
    assert replicated.reads == process.reads or replicated.reads.nbytes == process.reads.nbytes
    assert all(each.reads.nbytes == replicated.reads.nbytes for each in replicated.devices.values())
    stored = safejax.load(path)
    assert (
        replicated.reads.nbytes
        == sum(
            leaf.content.view.nbytes
            for leaf in jax.tree.leaves(stored)
            if isinstance(leaf, jax.Array)
        )
        - 32
    )  # two elements of float4 share a byte
    assert process.copies >= BIG.nbytes  # columns are gathered
    assert process.peak_host_bytes == process.copies
    assert plan(path, access="copy").processes[0].copies == sum(
        block.nbytes for leaf in planned.leaves for block in leaf.blocks
    )


def test_placed_leaves_cost_nothing(path: Path) -> None:
    tree = safejax.load(path)
    before = plan(tree)
    tree["w"].placed()
    after = plan(tree)
    assert before.reads.nbytes - after.reads.nbytes == BIG.nbytes
    safejax.materialize(tree)
    assert plan(tree).reads.nbytes == 0
    assert plan({"w": jnp.ones(3), "n": BIG}).leaves == ()


def test_a_plan_reports_every_problem(path: Path) -> None:
    like = {**safejax.abstract(TREE), "w": jax.ShapeDtypeStruct((2, 2), "int8"), "more": BIG}
    bad = NamedSharding(MESH, P(("x", "y")))
    planned = plan(path, like=like, sharding=bad)
    assert len(planned.problems) == 2
    for text, names in zip(planned.problems, (["'w'", "'more'"], ["'b'"]), strict=False):
        assert all(name in text for name in names) or "divide" in text
    assert "divide" in str(planned)
    assert len(planned.leaves) == 6
    missing = plan(path, transform=safejax.cast("float32", where="gone"))
    assert "'gone' to match a leaf" in missing.problems[0]
    assert missing.leaves == ()
    clash = plan(path, transform=safejax.rename({"w": "b"}))
    assert "for both" in clash.problems[0]
    assert plan(path, like=like, strict=False).problems


def test_a_plan_reports_lost_bits(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safejax.save({"i": np.arange(3), "f": np.ones(2), "c": np.ones(2, complex), "w": BIG}, path)
    planned = plan(path)
    assert planned.problems == ()
    assert len(planned.warnings) == 2
    assert "'c', 'f'" in planned.warnings[0] or "'f', 'c'" in planned.warnings[0]
    assert "'i'" in planned.warnings[1]
    assert [line for line in str(planned).splitlines() if line.startswith("warning: ")] == [
        f"warning: {warning}" for warning in planned.warnings
    ]
    with jax.enable_x64(True):
        assert plan(path).warnings == ()


def test_a_plan_has_the_warning_of_a_partial_load_and_does_not_give_it(path: Path) -> None:
    like = {"w": jnp.asarray(BIG)}
    planned = plan(path, like=like, strict=False)
    assert planned.problems == ()
    assert [leaf.name for leaf in planned.leaves] == ["w"]
    with pytest.warns(safejax.PartialLoadWarning) as caught:
        safejax.load(path, like=like, strict=False)
    assert planned.warnings == tuple(str(warning.message) for warning in caught)


def test_the_table_is_readable(path: Path) -> None:
    planned = plan(path, sharding=where(P("x")), transform=TRANSFORMS["a reshape that copies"])
    lines = str(planned).splitlines()
    assert lines[0].startswith(f"{path}: 6 leaves, ")
    assert "bytes read" in lines[1]
    assert len([line for line in lines if line.startswith("device ")]) == 8
    assert any(line.startswith("process 0") for line in lines)
    assert lines[-1] == "read whole for any part of them: 'w'"
    many = {f"leaf {number}": np.zeros(1) for number in range(20)}
    narrowed = plan(safejax.deserialize(safejax.serialize(many)))
    assert "… 15 more" in str(narrowed)


def test_the_repr_of_a_plan_is_a_line() -> None:
    many = {f"leaf.{number}": np.zeros(2, np.float32) for number in range(5_000)}
    planned = plan(safejax.deserialize(safejax.serialize(many)))
    assert repr(planned) == "Plan('tree': 5,000 leaves, 40,000 bytes)"
    wide = plan(safejax.deserialize(safejax.serialize({"w": np.zeros(2)})))
    assert repr(wide) == "Plan('tree': 1 leaves, 8 bytes, 1 warning)"


def test_a_notebook_shows_the_table_with_nothing_of_the_names_taken_for_html() -> None:
    stored = {"<b>&": np.zeros(2), "w": BIG}
    planned = plan(safejax.deserialize(safejax.serialize(stored)))
    page = planned._repr_html_()  # pyright: ignore[reportPrivateUsage]
    root = ElementTree.fromstring(f"<div>{page.replace('<br>', '<br/>')}</div>")
    shown = [[cell.text or "" for cell in row] for row in root.iter("tr")]
    text = str(planned).splitlines()
    assert [" ".join(row).split() for row in shown] == [line.split() for line in text[1:4]]
    around = [line for part in root.iter("p") for line in part.itertext()]
    assert around == [text[0], *text[4:]]
    assert "<b>" in str(planned)
    assert "<b>" not in page


def test_a_leaf_that_stands_twice_in_the_tree_is_planned_once() -> None:
    leaf = safejax.deserialize(safejax.serialize({"w": BIG}))["w"]
    assert plan({"a": leaf, "b": [leaf]}).reads.nbytes == BIG.nbytes


def test_plan_accepts_the_options_of_load(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    safejax.save(TREE, folder, max_shard_bytes=1000)
    whole = plan(path)
    for source in (folder, str(folder), list(folder.glob("*.safetensors"))):
        assert plan(source).nbytes == whole.nbytes
    with pytest.raises(FileNotFoundError):
        plan(tmp_path / "gone")
    path.write_bytes(b"no file")
    with pytest.raises(InvalidFileError):
        plan(path)


def test_a_plan_is_a_value(path: Path) -> None:
    assert plan(path) == plan(path)
    assert isinstance(plan(path), Plan)
    assert plan(path).leaves[0].sharding == SingleDeviceSharding(jax.devices()[0])


def test_a_leaf_that_is_read_in_the_order_of_its_file_is_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    tree = {"a": np.ones((256, 128), np.float32), "b": np.ones((256, 512), np.float32)}
    safejax.save(tree, path)
    planned = safejax.plan(path, transform=safejax.transpose("*")).processes[0]
    assert planned.copies == tree["a"].nbytes + tree["b"].nbytes
    assert planned.peak_host_bytes == planned.copies + tree["b"].nbytes
    # Rows are read into the memory of the array.
    alone = safejax.plan(path, transform=safejax.transpose("a"), access="read").processes[0]
    assert alone.peak_host_bytes == alone.copies
