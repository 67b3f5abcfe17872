"""Save and load, serialize and deserialize, materialize, abstract, metadata."""

import errno
import gc
import os
import resource
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax import (
    InvalidFileError,
    LazyArray,
    LeafError,
    Leaves,
    MismatchError,
    PrecisionError,
    PrecisionWarning,
    ReadError,
    ShardingError,
    TransformError,
    cast,
    chain,
    decode,
    encode,
    flatten,
    load,
    materialize,
    observe_reads,
    rename,
    save,
    serialize,
    sharding_rules,
    transpose,
    unflatten,
)
from safejax.testing import (
    assert_reads,
    assert_round_trip,
    assert_same_bits,
    assert_trees_identical,
)
from tests.support.files import header_of, open_below

DEVICES = jax.devices()
GRID = np.arange(64 * 16, dtype=np.float32).reshape(64, 16)


def params() -> Any:
    return {
        "emb": jnp.asarray(GRID),
        "layers": [
            {"w": jnp.full((8, 8), float(i)), "b": jnp.arange(8, dtype=jnp.bfloat16)}
            for i in range(3)
        ],
        "key": jax.random.key(3),
        "step": 7,
        "none": None,
    }  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    save(params(), path)
    return path


# ---- round trip

TREES: dict[str, Callable[[], Any]] = {
    "parameters": params,
    "a bare array": lambda: jnp.ones(3),
    "a bare scalar": lambda: -0.0,
    "none": lambda: None,
    "empty": lambda: {"a": [], "b": {}, "c": ()},
    "ordered": lambda: OrderedDict([("b", jnp.ones(2)), ("a.b", {1: jnp.zeros(1), 2: 1j})]),
    "numpy": lambda: [np.arange(3, dtype=np.int8), np.float16(1), np.zeros((0, 3), np.uint16)],
    "keys": lambda: (jax.random.key(1, impl="rbg"), jax.random.split(jax.random.key(2), (2, 2))),
}


@pytest.mark.parametrize("case", TREES)
def test_a_saved_tree_is_loaded_identically(case: str, tmp_path: Path) -> None:
    tree = TREES[case]()
    path = tmp_path / "m"
    save(tree, path)
    assert_trees_identical(load(path), tree)
    assert_trees_identical(load(str(path), like=tree), tree)
    assert_trees_identical(load(path, like=safejax.abstract(tree)), tree)
    assert_trees_identical(materialize(load(path)), jax.tree.map(jnp_or_scalar, tree))
    assert_round_trip(tree)
    assert path.read_bytes() == serialize(tree)
    save(load(path), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def jnp_or_scalar(leaf: Any) -> Any:
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray | np.generic) else leaf


def test_serialization_is_one_chain_of_steps() -> None:
    to_bytes = chain(flatten, cast("bfloat16", source="float32"), encode)
    tree = {"mlp": {"w": jnp.asarray(GRID), "n": [1, None]}}
    data = to_bytes(tree)
    assert isinstance(data, bytes)
    assert data == serialize(tree, transform=cast("bfloat16", source="float32"))
    again = to_bytes.inverse(data)
    assert repr(to_bytes) == "chain(flatten, cast('bfloat16', source='float32'), encode)"
    assert repr(to_bytes.inverse) == "chain(decode, cast('float32', source='bfloat16'), unflatten)"
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    expected = jnp.asarray(GRID).astype(jnp.bfloat16).astype(jnp.float32)
    assert_same_bits(again["mlp"]["w"], expected)
    assert to_bytes(again) == data


def test_a_transform_is_applied_in_the_direction_of_the_data(tmp_path: Path) -> None:
    theirs = {"encoder.layer.0.weight": GRID, "encoder.layer.1.weight": GRID + 1}
    (tmp_path / "theirs").write_bytes(safetensors.numpy.save(theirs))
    t = chain(rename({"encoder.layer.{i}.weight": "layers.{i}.kernel"}), transpose("*.kernel"))
    tree = load(tmp_path / "theirs", transform=t)
    assert_same_bits(tree["layers"]["1"]["kernel"], (GRID + 1).T)
    save(tree, tmp_path / "ours", transform=t.inverse)
    exported = safetensors.numpy.load_file(tmp_path / "ours")
    assert sorted(exported) == sorted(theirs)
    for name, array in theirs.items():
        assert_same_bits(exported[name], array)


def test_a_users_function_is_a_transform(tmp_path: Path) -> None:
    def doubled(leaves: Leaves) -> Leaves:
        return leaves.map(lambda name, leaf: np.asarray(leaf) * 2)

    save({"w": GRID, "n": 3}, tmp_path / "m", transform=doubled)
    tree = load(tmp_path / "m", transform=doubled)
    assert isinstance(tree["w"], LazyArray)
    assert_same_bits(tree["w"], GRID * 4)
    assert tree["n"] == 3
    with pytest.raises(TransformError, match="expected it to return Leaves, got dict"):
        load(tmp_path / "m", transform=dict)
    with pytest.raises(TransformError, match="expected a function"):
        save({}, tmp_path / "n", transform="cast")
    assert os.listdir(tmp_path) == ["m"]


def test_leaves_can_be_saved_as_they_are(tmp_path: Path) -> None:
    leaves = flatten({"a": [GRID]}).replace(metadata={"k": "v"})
    save(leaves, tmp_path / "m", metadata={"l": "w"})
    assert safejax.metadata(tmp_path / "m") == {"k": "v", "l": "w"}
    assert serialize(leaves) == encode(leaves)
    assert isinstance(load(tmp_path / "m")["a"], list)


def test_the_callers_tree_does_not_change(tmp_path: Path) -> None:
    array = GRID.copy()
    tree = {"b": array, "a": [jnp.ones(2), {"x": 1}]}
    metadata = {"k": "v"}
    kept = array.copy(), jax.tree.leaves(tree), jax.tree.structure(tree)
    save(tree, tmp_path / "m", transform=cast("bfloat16"), metadata=metadata)
    load(tmp_path / "m", like=jax.tree.map(lambda x: x, tree), transform=cast("float32"))
    assert_same_bits(array, kept[0])
    assert array.flags.writeable
    assert all(a is b for a, b in zip(jax.tree.leaves(tree), kept[1], strict=True))
    assert (jax.tree.structure(tree), list(tree), metadata) == (kept[2], ["b", "a"], {"k": "v"})


# ---- nothing is read before it is needed

LOOKS: dict[str, Callable[[Any], Any]] = {
    "repr": repr,
    "shapes": lambda tree: jax.tree.map(jnp.shape, tree),
    "dtypes": lambda tree: [leaf.dtype for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")],
    "leaves with paths": jax.tree_util.tree_leaves_with_path,
    "eval_shape": lambda tree: jax.eval_shape(lambda t: t["emb"].sum(), tree),
    "lower": lambda tree: jax.jit(lambda emb: emb.sum()).lower(tree["emb"]).as_text(),
    "compile": lambda tree: jax.jit(lambda emb: emb * 2).lower(tree["emb"]).compile(),
    "abstract": safejax.abstract,
    "flatten": lambda tree: repr(flatten(tree)),
    "transform": lambda tree: unflatten(cast("bfloat16")(flatten(tree))),
    "slice": lambda tree: tree["emb"][3:5, ::2].shape,
    "optimizer's shapes": lambda tree: jax.eval_shape(optax.adam(1e-3).init, tree["layers"]),
    "structure": jax.tree.structure,
}  # fmt: skip


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("options", [{}, {"sharding": DEVICES[3]}, {"transform": cast("float16")}],
                         ids=["plain", "sharding", "transform"])  # fmt: skip
def test_loading_and_inspecting_read_nothing(path: Path, look: str, options: Any) -> None:
    with observe_reads() as log:
        tree = load(path, **options)
        LOOKS[look](tree)
        assert not log.reads
    assert not any(leaf.is_placed for leaf in jax.tree.leaves(tree) if isinstance(leaf, LazyArray))


# ---- shardings


def mesh_of(shape: tuple[int, ...], axis_type: AxisType) -> jax.sharding.Mesh:
    names = ("x", "y")[: len(shape)]
    return jax.make_mesh(shape, names, axis_types=(axis_type,) * len(shape))


SHARDS: list[tuple[tuple[int, ...], P, int]] = [
    # The mesh, the spec, and the number of distinct blocks into which it splits a matrix.
    ((8,), P("x"), 8), ((8,), P(None, "x"), 8), ((8,), P(), 1), ((2, 4), P("x", "y"), 8),
    ((2, 4), P("y", "x"), 8), ((2, 4), P("x"), 2), ((2, 4), P(None, "y"), 4),
    ((2, 4), P(("x", "y")), 8), ((2, 4), P(None, ("y", "x")), 8), ((1,), P("x"), 1),
]  # fmt: skip


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(("shape", "spec", "blocks"), SHARDS, ids=str)
def test_each_distinct_block_is_read_once(
    tmp_path: Path, axis_type: AxisType, shape: tuple[int, ...], spec: P, blocks: int
) -> None:
    sharding = NamedSharding(mesh_of(shape, axis_type), spec)
    save({"w": GRID}, tmp_path / "m")
    leaf = load(tmp_path / "m", sharding=sharding)["w"]
    assert (leaf.sharding, leaf.committed, leaf.aval) == (
        sharding, True, jax.typeof(jax.device_put(GRID, sharding)),
    )  # fmt: skip
    with observe_reads() as log:
        placed = leaf.placed()
    assert [read.nbytes for read in log.reads] == [GRID.nbytes // blocks] * blocks
    for shard in placed.addressable_shards:
        assert_same_bits(shard.data, GRID[shard.index])
    assert_same_bits(jax.jit(lambda x: x + 1)(leaf), jnp.asarray(GRID) + 1)


def test_a_row_of_a_sharded_leaf_reads_only_its_bytes(tmp_path: Path) -> None:
    save({"w": GRID}, tmp_path / "m")
    leaf = load(tmp_path / "m", sharding=NamedSharding(mesh_of((8,), AxisType.Auto), P("x")))["w"]
    # A row of one shard.
    with observe_reads() as log:
        row = np.asarray(leaf[3])
        assert log.nbytes == GRID[3].nbytes
    assert_same_bits(row, GRID[3])


@pytest.mark.parametrize("spelling", ["sharding", "device", "prefix", "function", "rules"])
def test_every_form_of_sharding(path: Path, spelling: str) -> None:
    mesh = mesh_of((8,), AxisType.Auto)
    rows, everywhere = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())
    default = SingleDeviceSharding(DEVICES[0])
    spellings: dict[str, tuple[Any, list[Any]]] = {
        # Of emb, key and the first layer's b and w.
        "sharding": (everywhere, [everywhere] * 4),
        "device": (DEVICES[5], [SingleDeviceSharding(DEVICES[5])] * 4),
        "prefix": ({"emb": rows, "layers": everywhere, "key": None},
                   [rows, default, everywhere, everywhere]),
        "function": (lambda name, aval: rows if aval.ndim == 2 else None,
                     [rows, default, default, rows]),
        "rules": (sharding_rules(mesh, [("layers.{i}.w", P("x"))]),
                  [everywhere, everywhere, everywhere, rows]),
    }  # fmt: skip
    argument, expected = spellings[spelling]
    tree = load(path, sharding=argument)
    leaves = [tree["emb"], tree["key"], tree["layers"][0]["b"], tree["layers"][0]["w"]]
    assert [leaf.sharding for leaf in leaves] == expected
    assert [leaf.committed for leaf in leaves] == [sharding != default for sharding in expected]
    assert [leaf.placed().sharding for leaf in leaves] == expected
    assert_trees_identical(tree, params())


def test_shardings_that_do_not_fit_are_errors_of_load(path: Path) -> None:
    rows = NamedSharding(mesh_of((8,), AxisType.Auto), P("x"))
    with observe_reads() as log, pytest.raises(ShardingError) as caught:
        load(path, sharding=rows)
    assert not log.reads
    assert str(caught.value).startswith(f"{path}: the sharding does not fit 1 of 8 leaves:\n  ")
    assert "leaf 'key'" in str(caught.value)
    with pytest.raises(ShardingError, match="a PartitionSpec needs its mesh"):
        load(path, sharding=P("x"))


def test_a_leaf_on_the_default_device_combines_with_arrays_of_any_mesh(path: Path) -> None:
    other = jax.device_put(GRID, NamedSharding(mesh_of((8,), AxisType.Auto), P("x")))
    leaf = load(path)["emb"]
    assert not leaf.committed
    assert_same_bits(jax.jit(jnp.add)(leaf, other), GRID + GRID)


def test_the_default_device_is_that_of_the_load(path: Path) -> None:
    with jax.default_device(DEVICES[2]):
        leaf = load(path)["emb"]
    assert leaf.devices() == {DEVICES[2]} == leaf.placed().devices()
    assert not leaf.placed().committed


# ---- the order of a load


def test_a_load_applies_the_transform_then_like_then_the_sharding(tmp_path: Path) -> None:
    save({"enc": {"w": GRID}, "head": GRID, "n": 3}, tmp_path / "m")
    seen: dict[str, Any] = {}
    rows = NamedSharding(mesh_of((8,), AxisType.Auto), P("x"))

    def sharding(name: str, aval: jax.ShapeDtypeStruct) -> Any:
        seen[name] = (aval.shape, aval.dtype)
        return rows

    like = {"layers": {"kernel": jax.ShapeDtypeStruct((16, 64), jnp.bfloat16)}, "n": 0}
    transform = chain(
        rename({"enc.w": "layers.kernel"}), transpose("*.kernel"), cast("bfloat16"),
        lambda leaves: leaves.replace({k: v for k, v in leaves.items() if k != "head"}),
    )  # fmt: skip
    tree = load(tmp_path / "m", transform=transform, like=like, sharding=sharding)
    assert seen == {"layers.kernel": ((16, 64), jnp.bfloat16)}
    assert tree["layers"]["kernel"].sharding == rows
    assert_same_bits(tree["layers"]["kernel"], jnp.asarray(GRID.T).astype(jnp.bfloat16))
    with pytest.raises(MismatchError, match="unexpected 'head'"):
        load(tmp_path / "m", transform=rename({"enc.w": "layers.kernel"}), like=like)


def test_like_and_strict_are_passed_on(path: Path) -> None:
    with pytest.raises(MismatchError, match=f"^{path}: 8 leaves do not match like"):
        load(path, like={"emb": jnp.asarray(GRID)})
    with pytest.warns(safejax.PartialLoadWarning, match=f"^{path}: ") as caught:
        tree = load(path, like={"emb": jnp.asarray(GRID)}, strict=False)
    assert [warning.filename for warning in caught] == [__file__]
    assert_same_bits(tree["emb"], GRID)
    with pytest.warns(safejax.PartialLoadWarning, match="^<bytes>: ") as caught:
        safejax.deserialize(path.read_bytes(), like={"emb": jnp.asarray(GRID)}, strict=False)
    assert [warning.filename for warning in caught] == [__file__]


# ---- metadata

METADATA: list[dict[str, str]] = [
    {}, {"k": "v"}, {"format": "pt"}, {"format": "np", "step": "3"}, {"": "", "é🦎": "\n\"\x00"},
]  # fmt: skip


@pytest.mark.parametrize("metadata", METADATA)
@pytest.mark.parametrize("tree", [{"w": GRID}, [GRID, 1]], ids=["plain", "recorded"])
def test_metadata_comes_back_as_it_was(tmp_path: Path, metadata: Any, tree: Any) -> None:
    data = serialize(tree, metadata=metadata)
    save(tree, tmp_path / "m", metadata=metadata)
    assert (tmp_path / "m").read_bytes() == data
    with observe_reads() as log:
        for source in (
            data,
            bytearray(data),
            memoryview(data),
            tmp_path / "m",
            str(tmp_path / "m"),
        ):
            assert safejax.metadata(source) == metadata
        assert not log.reads
    stored = header_of(data).get("__metadata__", {})
    assert stored.get("format", "none") == metadata.get("format", "pt" if stored else "none")
    # Saving the Leaves again keeps it.
    assert encode(decode(data)) == data


def test_no_metadata_where_there_is_nothing_to_record() -> None:
    assert "__metadata__" not in header_of(serialize({"a": {"w": GRID}}))
    assert "__metadata__" not in header_of(serialize({"a": {"w": GRID}}, metadata={}))
    assert header_of(serialize([GRID]))["__metadata__"]["format"] == "pt"


@pytest.mark.parametrize("metadata", [{"k": 1}, {1: "v"}, {"safejax": "x"}, [("k", "v")], "kv"])
def test_wrong_metadata_is_an_error_and_nothing_is_written(tmp_path: Path, metadata: Any) -> None:
    with pytest.raises(LeafError, match="metadata"):
        save({"w": GRID}, tmp_path / "m", metadata=metadata)
    assert os.listdir(tmp_path) == []


# ---- wrong paths


def test_a_missing_path_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "no" / "m.safetensors"
    for call in (load, safejax.metadata, lambda path: save({}, path)):
        with pytest.raises(FileNotFoundError) as caught:
            call(path)
        assert str(path) in str(caught.value)


def test_saving_a_file_in_the_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="got a folder") as caught:
        save({}, tmp_path)
    assert str(tmp_path) in str(caught.value)


NO_FILES = {"empty": b"", "short": b"abc", "zip": b"PK\x03\x04" * 50, "text": b"hello" * 9,
            "zeros": bytes(100), "cut": serialize({"w": GRID})[:-1]}  # fmt: skip


@pytest.mark.parametrize("case", NO_FILES)
def test_anything_but_a_safetensors_file_is_an_error_that_names_it(
    tmp_path: Path, case: str
) -> None:
    path = tmp_path / "m"
    path.write_bytes(NO_FILES[case])
    for call in (load, safejax.metadata):
        with pytest.raises(InvalidFileError, match=f"^{path}: "):
            call(path)
    with pytest.raises(InvalidFileError, match=r"^<bytes>: "):
        safejax.deserialize(NO_FILES[case])


def test_load_refuses_bytes_and_deserialize_refuses_paths(tmp_path: Path) -> None:
    data = serialize({})
    with pytest.raises(TypeError, match=r"safejax\.deserialize"):
        load(data)
    with pytest.raises(TypeError, match=r"safejax\.deserialize"):
        save({}, data)
    with pytest.raises(TypeError, match=r"safejax\.load\(path\)"):
        safejax.deserialize(str(tmp_path))


def test_a_leaf_that_cannot_be_saved_is_named_and_nothing_is_written(path: Path) -> None:
    before = path.read_bytes()
    for leaf in (object(), b"x", np.str_("x"), np.array(["x"]), jax.ShapeDtypeStruct((1,), "int8")):
        with pytest.raises(LeafError, match=r"leaf 'a\.1'"):
            save({"a": [1, leaf]}, path)
    deleted = jnp.ones(2)
    deleted.delete()
    with pytest.raises(LeafError, match=r"leaf 'w': .* deleted, or donated"):
        save({"w": deleted}, path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_inside_jit(path: Path) -> None:
    def saving(x: jax.Array) -> jax.Array:
        for call in (lambda: save({"w": x}, path), lambda: serialize([x])):
            with pytest.raises(LeafError, match=r"leaf .* tracer"):
                call()
        return x

    jax.jit(saving)(jnp.ones(2))
    assert_same_bits(jax.jit(lambda: load(path)["emb"] + 1)(), GRID + 1)
    doubled = jax.jit(
        lambda x: safejax.deserialize(serialize({"w": GRID}), like={"w": GRID})["w"] + x
    )
    assert_same_bits(doubled(jnp.asarray(GRID)), GRID + GRID)


# ---- files that change


def test_a_live_tree_keeps_its_values_when_its_file_is_saved_over(path: Path) -> None:
    tree, placed = load(path), load(path)
    array = placed["emb"].placed()
    save({"other": GRID[::-1]}, path)
    assert_same_bits(array, GRID)
    assert_trees_identical(tree, params())
    # It can even be saved to the file that it was loaded from.
    save(tree, path)
    again = load(path)
    save({"w": again["emb"][::-1]}, path)
    assert_same_bits(load(path)["w"], GRID[::-1])


def test_a_live_tree_keeps_its_values_when_its_file_is_removed(path: Path) -> None:
    tree = load(path)
    path.unlink()
    assert_trees_identical(tree, params())


@pytest.mark.parametrize("left", [0, 100, -1])
def test_a_file_that_is_cut_short_after_the_load_is_an_error(path: Path, left: int) -> None:
    tree = load(path)
    size = path.stat().st_size
    os.truncate(path, left if left >= 0 else size + left)
    for call in (
        lambda: tree["emb"] + 1,
        lambda: np.asarray(tree["emb"]),
        lambda: materialize(tree),
        lambda: serialize(tree),
        lambda: save(tree, path.parent / "new"),
    ):
        with pytest.raises(ReadError, match=f"{path}: expected the {size} bytes"):
            call()
    assert sorted(os.listdir(path.parent)) == [path.name]


def test_no_descriptor_is_left_open_by_loads(path: Path) -> None:
    for _ in range(300):
        tree = load(path)
        np.asarray(tree["layers"][0]["b"])
    assert open_below(path.parent)
    del tree
    gc.collect()
    assert not open_below(path.parent)


def test_trees_that_are_kept_keep_one_mapping_each(path: Path) -> None:
    trees = [load(path) for _ in range(50)]
    # One is kept for each, as long as they are few.
    assert open_below(path.parent) == [str(path)] * len(trees)
    assert_same_bits(trees[-1]["emb"], GRID)


def test_a_limit_on_the_file_size_keeps_the_old_file(path: Path) -> None:
    before, data = resource.getrlimit(resource.RLIMIT_FSIZE), path.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save({"w": np.zeros(1 << 20)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == data
    assert os.listdir(path.parent) == [path.name]


def test_saves_and_loads_of_one_file_by_many_threads(path: Path) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(5):
                save({"w": np.full((100, number + 1), number, np.int32)}, path)
                found = np.asarray(load(path)["w"])
                assert (found == found.shape[1] - 1).all()
        except BaseException as error:  # noqa: BLE001 - a thread's own is lost
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert os.listdir(path.parent) == [path.name]


# ---- the same bytes


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path) -> None:
    one = serialize(params(), metadata={"a": "1", "b": "2"})
    again = dict(reversed(params().items()))
    assert serialize(again, metadata={"b": "2", "a": "1"}) == one
    sharded = jax.tree.map(
        lambda leaf: jax.device_put(leaf, DEVICES[3]) if isinstance(leaf, jax.Array) else leaf,
        params(),
    )
    assert serialize(sharded, metadata={"a": "1", "b": "2"}) == one


# ---- progress


def test_save_reports_its_progress(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    save(params(), tmp_path / "m", progress=lambda done, total: told.append((done, total)))
    size = (tmp_path / "m").stat().st_size
    assert {total for _, total in told} == {size}
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (size, size)


def test_an_error_in_progress_stops_the_save(path: Path) -> None:
    before = path.read_bytes()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save({"w": GRID}, path, progress=stop)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


# ---- materialize


def test_materialize_places_every_leaf_once(path: Path) -> None:
    rows = NamedSharding(mesh_of((8,), AxisType.Auto), P("x"))
    tree = load(path, sharding=lambda name, aval: rows if aval.ndim == 2 else None)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(tree) if isinstance(leaf, LazyArray))
    told: list[tuple[int, int]] = []
    with observe_reads() as log:
        arrays = materialize(tree, progress=lambda done, total: told.append((done, total)))
        assert log.nbytes == total
        log.clear()
        assert_trees_identical(arrays, params())
        materialize(tree)
        assert jax.jit(lambda t: t["emb"].sum())(tree) == GRID.sum()
    assert not [read for read in log.reads if read.source == str(path)]
    assert not any(isinstance(leaf, LazyArray) for leaf in jax.tree.leaves(arrays))
    assert arrays["emb"].sharding == rows
    assert arrays["step"] == 7
    assert [total for _, total in told] == [told[-1][1]] * len(told)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1] == total


def test_materialize_keeps_shared_leaves_shared() -> None:
    leaf = safejax.deserialize(serialize({"w": GRID}))["w"]
    plain = np.ones(2)
    tree = materialize({"a": leaf, "b": [leaf, plain], "c": None, "d": "x"})
    assert tree["a"] is tree["b"][0]
    assert tree["a"] is leaf.placed()
    assert tree["b"][1] is plain
    assert (tree["c"], tree["d"]) == (None, "x")
    assert materialize({}) == {}
    assert materialize(leaf) is leaf.placed()


def test_materialize_names_the_leaf_that_failed(path: Path) -> None:
    tree = safejax.deserialize(serialize({"a": np.array([1, 2]), "b": np.array([2**40])}))
    with pytest.raises(PrecisionError, match="leaf 'b'"):
        materialize(tree)

    def stop(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        materialize(load(path), progress=stop)


def test_materialize_reads_only_the_leaves_of_its_tree() -> None:
    tree = safejax.deserialize(serialize({"w": GRID}))
    assert_reads({"part": tree["w"][:, 3], "row": tree["w"][5]}, GRID[:, 3].nbytes + GRID[5].nbytes)


# ---- abstract


def test_abstract_serves_as_like(path: Path) -> None:
    rows = NamedSharding(mesh_of((8,), AxisType.Auto), P("x"))
    with observe_reads() as log:
        like = safejax.abstract(
            load(path, sharding=lambda name, aval: rows if aval.ndim == 2 else None)
        )
        tree = load(path, like=like)
        assert not log.reads
    assert like["emb"] == jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=rows)
    assert like["layers"][0]["b"] == jax.ShapeDtypeStruct((8,), jnp.bfloat16)
    assert (like["step"], like["none"]) == (7, None)
    assert tree["emb"].sharding == rows
    assert not tree["layers"][0]["b"].committed
    assert_trees_identical(tree, params())


ABSTRACT: dict[str, tuple[Callable[[], Any], Any]] = {
    "numpy": (lambda: np.ones((2, 3)), jax.ShapeDtypeStruct((2, 3), jnp.float32)),
    "big-endian": (lambda: np.ones(3, ">i2"), jax.ShapeDtypeStruct((3,), jnp.int16)),
    "generic": (lambda: np.float16(1), jax.ShapeDtypeStruct((), jnp.float16)),
    "uncommitted": (lambda: jnp.ones(3), jax.ShapeDtypeStruct((3,), jnp.float32)),
    "committed": (
        lambda: jax.device_put(jnp.ones(3), DEVICES[2]),
        jax.ShapeDtypeStruct((3,), jnp.float32, sharding=SingleDeviceSharding(DEVICES[2])),
    ),
    "abstract": (
        lambda: jax.ShapeDtypeStruct((3,), jnp.int8, sharding=SingleDeviceSharding(DEVICES[2])),
        jax.ShapeDtypeStruct((3,), jnp.int8, sharding=SingleDeviceSharding(DEVICES[2])),
    ),
    "key": (lambda: jax.random.key(1), jax.ShapeDtypeStruct((), jax.random.key(1).dtype)),
    "scalar": (lambda: 3, 3),
    "string": (lambda: "x", "x"),
}


@pytest.mark.parametrize("case", ABSTRACT)
def test_abstract_gives_the_aval_that_an_array_would_have(case: str) -> None:
    make, expected = ABSTRACT[case]
    assert safejax.abstract({"a": [make()]}) == {"a": [expected]}


def test_abstract_inside_jit() -> None:
    def function(x: jax.Array) -> jax.Array:
        assert safejax.abstract([x]) == [jax.ShapeDtypeStruct((2,), jnp.float32)]
        return x

    jax.jit(function)(jnp.ones(2))


# ---- 64 bits


def test_64_bits_are_kept_from_file_to_file(tmp_path: Path) -> None:
    tree = {"i": np.array([2**40, -1]), "f": np.array([0.1]), "c": np.array([0.1j])}
    save(tree, tmp_path / "m")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load(tmp_path / "m")
        save(loaded, tmp_path / "again")
    assert (tmp_path / "m").read_bytes() == (tmp_path / "again").read_bytes()
    for name, array in tree.items():
        assert_same_bits(np.asarray(loaded[name]), array)
        assert loaded[name].dtype.itemsize * 2 == array.itemsize
    with pytest.raises(PrecisionError, match="leaf 'i'"):
        _ = loaded["i"] + 1
    with pytest.warns(PrecisionWarning, match="stored as float64") as caught:
        _ = loaded["f"] + 1, loaded["c"] + 1
    assert len(caught) == 1
    with jax.enable_x64(True):
        wide = materialize(load(tmp_path / "m"))
        assert [array.dtype for array in jax.tree.leaves(wide)] == [
            np.complex128,
            np.float64,
            np.int64,
        ]
        assert_trees_identical(wide, jax.tree.map(jnp.asarray, tree))


# ---- size


def test_twenty_thousand_leaves_are_saved_and_loaded() -> None:
    leaf = np.zeros(2, np.float32)
    tree = {f"model.layers.{i}.weight": leaf for i in range(20_000)}
    data = serialize(tree)
    with observe_reads() as log:
        again = safejax.deserialize(data, like=safejax.abstract(tree), sharding=DEVICES[1])
        assert not log.reads
    assert list(again) == sorted(tree)
    assert again["model.layers.77.weight"].sharding == SingleDeviceSharding(DEVICES[1])
