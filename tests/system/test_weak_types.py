"""Weakly typed arrays (S2): they are traced, and promoted, after a load as before the save."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import find
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import safejax
from safejax import LazyArray
from safejax._src.arrays import jax_private
from safejax.errors import TransformError
from safejax.testing import arrays, assert_same_bits, assert_trees_identical
from tests.support.files import header_of
from tests.support.leaves import weakly_typed as weak


def state() -> dict[str, Any]:
    return {"w": jnp.arange(4, dtype=jnp.bfloat16), "lr": jnp.asarray(0.1), "n": jnp.asarray(3)}


def reloaded(tree: Any, **options: Any) -> Any:
    return safejax.deserialize(safejax.serialize(tree), **options)


def recorded(data: bytes) -> Any:
    return json.loads(header_of(data).get("__metadata__", {}).get("safejax", "{}"))


# ---- as before the save

WAYS: dict[str, Callable[[Any], Any]] = {
    "loaded": reloaded,
    "loaded like itself": lambda tree: reloaded(tree, like=tree),
    "loaded like its abstract form": lambda tree: reloaded(tree, like=safejax.abstract(tree)),
    "like the abstract form of what was loaded": lambda tree: reloaded(
        tree, like=safejax.abstract(reloaded(tree))
    ),
    "materialized": lambda tree: safejax.materialize(reloaded(tree)),
    "saved again": lambda tree: reloaded(reloaded(tree)),
    "flattened and unflattened": lambda tree: safejax.unflatten(safejax.flatten(tree)),
    "copied": lambda tree: copy.deepcopy(reloaded(tree)),
    "pickled": lambda tree: pickle.loads(pickle.dumps(reloaded(tree))),
    "put on a device": lambda tree: jax.device_put(reloaded(tree)),
    "in the file's digests": lambda tree: safejax.deserialize(
        safejax.serialize(tree, checksum=True), verify=True
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_state_is_the_same_after_a_load(way: str) -> None:
    before = state()
    after = WAYS[way](before)
    traces: list[Any] = []

    @jax.jit
    def update(tree: Any) -> Any:
        traces.append(jax.tree.map(jax.typeof, tree))
        return {**tree, "w": tree["w"] - tree["lr"] * tree["w"], "n": tree["n"] + 1}

    expected = update(before)
    assert expected["w"].dtype == jnp.bfloat16
    assert_trees_identical(update(after), expected)
    assert len(traces) == 1
    assert_trees_identical(after, before)
    assert (after["w"] - after["lr"] * after["w"]).dtype == jnp.bfloat16
    assert jax.eval_shape(update, after) == jax.eval_shape(update, before)


def test_a_scan_carries_a_loaded_scalar() -> None:
    def body(carry: Any, x: Any) -> Any:
        return carry * 0.5, x * carry

    xs = jnp.ones(3, jnp.bfloat16)
    expected = jax.lax.scan(body, jnp.asarray(1.0), xs)
    assert_trees_identical(jax.lax.scan(body, reloaded(jnp.asarray(1.0)), xs), expected)
    # A strongly typed carry of float32 stays one as well.
    strong = jnp.float32(1.0)
    assert_trees_identical(jax.lax.scan(body, reloaded(strong), xs), jax.lax.scan(body, strong, xs))


def test_what_is_known_of_a_leaf_reads_nothing(tmp_path: Path) -> None:
    safejax.save(state(), tmp_path / "f")
    with safejax.observe_reads() as log:
        tree = safejax.load(tmp_path / "f")
        for name, leaf in state().items():
            assert tree[name].weak_type == leaf.weak_type
            assert tree[name].aval == leaf.aval
            assert jax.typeof(tree[name]) == jax.typeof(leaf)
        assert safejax.abstract(tree) == safejax.abstract(state())
        planned = {leaf.name: leaf.weak_type for leaf in safejax.plan(tmp_path / "f").leaves}
        assert planned == {"w": False, "lr": True, "n": True}
    assert not log.nbytes


# ---- the file


def test_only_files_with_weak_types_have_a_record_of_version_2() -> None:
    data = safejax.serialize(state())
    assert recorded(data) == {"version": 2, "weak": ["lr", "n"], "format": "default"}
    assert recorded(safejax.serialize({"w": jnp.ones(2), "l": [np.float32(1)]}))["version"] == 1
    assert not recorded(safejax.serialize({"w": jnp.ones(2), "one": jnp.asarray(True)}))


def test_what_numpy_has_is_strongly_typed() -> None:
    tree = {"a": np.float32(0.1), "b": np.asarray(0.1), "c": np.asarray(jnp.asarray(0.1))}
    assert not any(leaf.weak_type for leaf in map(jnp.asarray, reloaded(tree).values()))

    def with_numpy(leaves: safejax.Leaves) -> safejax.Leaves:
        return leaves.map(lambda _, leaf: np.asarray(leaf))

    assert not reloaded({"lr": jnp.asarray(0.1)}, transform=with_numpy)["lr"].weak_type


def test_weak_types_in_a_folder_are_recorded_in_the_file_of_the_tensor(tmp_path: Path) -> None:
    tree = {"a": jnp.asarray(0.1), "b": jnp.float32(0.1), "c": [weak(jnp.arange(3.0)), None]}
    safejax.save(tree, tmp_path / "d", max_shard_bytes=4)
    assert_trees_identical(safejax.load(tmp_path / "d"), tree)
    versions = [
        recorded(path.read_bytes()).get("version")
        for path in sorted((tmp_path / "d").glob("*.safetensors"))
    ]
    assert versions == [2, None, 2]
    index = json.loads((tmp_path / "d" / "model.safetensors.index.json").read_text())
    assert json.loads(index["metadata"]["safejax"])["version"] == 1


def test_many_leaves_of_one_shape_keep_their_own_types() -> None:
    tree = [jnp.asarray(0.5) if number % 3 else jnp.float32(0.5) for number in range(50)]
    loaded = reloaded(tree)
    assert [leaf.weak_type for leaf in loaded] == [leaf.weak_type for leaf in tree]
    assert safejax.serialize(loaded) == safejax.serialize(tree)


def test_64_bit_scalars_are_weakly_typed_with_and_without_x64() -> None:
    with jax.enable_x64(True):
        tree = {"x": jnp.asarray(0.5), "n": jnp.asarray(2)}
        assert tree["x"].dtype == jnp.float64
        data = safejax.serialize(tree)
        assert_trees_identical(safejax.deserialize(data), tree)
    narrow = safejax.deserialize(data)
    assert narrow["n"].aval == jnp.asarray(2).aval
    assert (narrow["n"] * jnp.ones(2, jnp.int8)).dtype == jnp.int8
    assert safejax.serialize(narrow) == data


# ---- like

LIKE: dict[str, tuple[Any, bool]] = {
    "a weakly typed array": (jnp.asarray(1.5), True),
    "a strongly typed array": (jnp.float32(1.5), False),
    "a weakly typed aval": (jax.ShapeDtypeStruct((), "float32", weak_type=True), True),
    "a strongly typed aval": (jax.ShapeDtypeStruct((), "float32"), False),
    "a weakly typed lazy array": (reloaded(jnp.asarray(1.5)), True),
    "a strongly typed lazy array": (reloaded(jnp.float32(1.5)), False),
    "an array of NumPy": (np.asarray(1.5, np.float32), False),
    "a scalar of NumPy": (np.float32(1.5), False),
    "a float": (1.5, True),
}


@pytest.mark.parametrize("like", LIKE)
@pytest.mark.parametrize("stored", [jnp.asarray(0.5), jnp.float32(0.5), np.float32(0.5), 0.5])
def test_the_type_is_that_of_like(stored: Any, like: str) -> None:
    expected, is_weak = LIKE[like]
    data = safejax.serialize({"x": stored})
    found = [
        safejax.deserialize(data, like={"x": expected})["x"],
        safejax.unflatten(safejax.flatten({"x": stored}), like={"x": expected})["x"],
    ]
    for each in found:
        if isinstance(stored, float) and isinstance(expected, float):
            assert each == stored
            continue
        if isinstance(each, np.ndarray | np.generic):  # Kept as it was given.
            assert not is_weak
        else:
            assert each.weak_type == is_weak
        assert_same_bits(each, np.float32(0.5))


def test_a_number_in_like_that_jax_would_take_for_another_dtype_decides_nothing() -> None:
    # What JAX makes of a bool is strong.
    for stored, number in [(jnp.asarray(True), True), (jnp.bfloat16(1), 1.0), (jnp.int32(1), 1.0)]:
        assert not reloaded(stored, like=number).weak_type
    assert reloaded(jnp.asarray(3), like=2.0).weak_type
    assert reloaded(jnp.int32(3), like=2).weak_type
    assert jnp.asarray(2).weak_type
    assert not jnp.asarray(True).weak_type


def test_like_leaves_arrays_where_they_are() -> None:
    device = jax.devices()[-1]
    array = jax.device_put(jnp.float32(1), device)
    found = safejax.unflatten(safejax.flatten([array]), like=[jnp.asarray(2.0)])[0]
    assert found.weak_type
    assert found.devices() == {device}
    assert found.committed
    assert_same_bits(found, array)


# ---- placing


def placements() -> list[Any]:
    devices = np.asarray(jax.devices()[:4]).reshape(2, 2)
    found: list[Any] = [None, SingleDeviceSharding(jax.devices()[-1])]
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = Mesh(devices, ("x", "y"), axis_types=(kind, kind))
        found += [NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ("x",), ("x", "y"))]
    return found


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("sharding", placements(), ids=str)
def test_what_is_placed_is_what_jax_places(
    sharding: Any, batched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not batched:  # As on a JAX that lacks it.
        monkeypatch.setattr(jax_private, "_batched_device_put", None)
    plain = weak(jnp.arange(8.0).reshape(4, 2))
    expected = plain if sharding is None else jax.device_put(plain, sharding)
    leaf = reloaded({"x": plain}, sharding=sharding)["x"]
    placed = leaf.placed()
    assert placed.aval == leaf.aval == expected.aval
    assert placed.committed == expected.committed
    assert placed.sharding == expected.sharding
    assert_trees_identical(placed, expected)
    assert (leaf * jnp.bfloat16(2)).dtype == jnp.bfloat16


# ---- indices


@pytest.mark.parametrize("index", [0, -1, ..., slice(1, 3), (slice(None), 0), (1, 1), (..., 1)])
@pytest.mark.parametrize("array", [jnp.float32([[1, 2], [3, 4]]), weak(jnp.ones((3, 2)))])
def test_a_part_has_the_type_of_the_whole(array: Any, index: Any) -> None:
    part = reloaded(array)[index]
    assert isinstance(part, LazyArray)
    assert_trees_identical(part, array[index])
    assert_trees_identical(part + jnp.bfloat16(1), array[index] + jnp.bfloat16(1))


def test_rows_have_the_type_of_the_whole() -> None:
    array = weak(jnp.arange(6.0).reshape(3, 2))
    loaded = reloaded(array)
    for number in range(3):
        assert_trees_identical(loaded[number], array[number])
    assert_trees_identical(list(loaded), list(array))


# ---- transforms do what JAX does

X, Y, S = weak(jnp.arange(6.0).reshape(2, 3)), weak(jnp.ones((2, 3))), jnp.zeros((2, 3))

TRANSFORMS: dict[str, tuple[Any, Any, Any]] = {
    "cast": (safejax.cast("bfloat16"), {"x": X}, {"x": X.astype("bfloat16")}),
    "cast to its dtype": (safejax.cast("float32"), {"x": X}, {"x": X.astype("float32")}),
    "cast of others": (safejax.cast("int8", source="int32"), {"x": X}, {"x": X}),
    "transpose": (safejax.transpose("x"), {"x": X}, {"x": X.T}),
    "reshape": (safejax.reshape("x", (3, -1)), {"x": X}, {"x": X.reshape(3, -1)}),
    "rename": (safejax.rename({"x": "y"}), {"x": X}, {"y": X}),
    "prefix": (safejax.prefix("p"), {"x": X}, {"p": {"x": X}}),
    "select": (safejax.select("x"), {"x": X, "y": Y}, {"x": X}),
    "stack": (safejax.stack("{i}", "all"), {"0": X, "1": Y}, {"all": jnp.stack([X, Y])}),
    "stack of both": (safejax.stack("{i}", "all"), {"0": X, "1": S}, {"all": jnp.stack([X, S])}),
    "unstack": (safejax.unstack("x", "{i}"), {"x": X}, {"0": X[0], "1": X[1]}),
    "split": (
        safejax.split("x", ["a", "b", "c"], axis=1), {"x": X},
        dict(zip("abc", jnp.split(X, 3, axis=1), strict=True)),
    ),
    "concat": (
        safejax.split("xy", ["x", "y"], axis=0).inverse, {"x": X, "y": Y},
        {"xy": jnp.concatenate([X, Y])},
    ),
    "concat of both": (
        safejax.split("xs", ["x", "s"], axis=0).inverse, {"x": X, "s": S},
        {"xs": jnp.concatenate([X, S])},
    ),
    "pad": (
        safejax.pad("x", axis=0, to=4), {"x": X}, {"x": jnp.pad(X, ((0, 2), (0, 0)))}
    ),
    "crop": (safejax.crop("x", axis=1, to=2), {"x": X}, {"x": X[:, :2]}),
    "correspond": (
        safejax.correspond([("{i}", "all", "r c -> c r")]), {"0": X, "1": Y},
        {"all": jnp.stack([X.T, Y.T])},
    ),
    "correspond of both": (
        safejax.correspond([("{i}", "all")]), {"0": X, "1": S}, {"all": jnp.stack([X, S])},
    ),
    "tie": (safejax.tie({"y": "x"}), {"x": X}, {"x": X, "y": X}),
    "elementwise": (safejax.elementwise(lambda x: x * 2, "x"), {"x": X}, {"x": X * 2}),
    "elementwise to a dtype": (
        safejax.elementwise(lambda x: x.astype(np.float16), "x"), {"x": X},
        {"x": X.astype("float16")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TRANSFORMS)
def test_a_transform_gives_the_type_that_jax_gives(case: str) -> None:
    transform, tree, expected = TRANSFORMS[case]
    assert_trees_identical(reloaded(tree, transform=transform), expected)
    through_file = safejax.serialize(tree, transform=transform)
    assert_trees_identical(safejax.deserialize(through_file), expected)
    abstract = safejax.unflatten(transform(safejax.flatten(safejax.abstract(tree))))
    assert jax.tree.map(lambda x: x.weak_type, abstract) == jax.tree.map(
        lambda x: x.weak_type, expected
    )


def test_tied_leaves_of_two_types_are_not_one() -> None:
    untie = safejax.tie({"y": "x"}).inverse
    assert list(untie(safejax.flatten({"x": X, "y": X + 0}))) == ["x"]
    with pytest.raises(TransformError, match=r"~float32\[2,3\], got others, float32"):
        untie(safejax.flatten({"x": X, "y": X.astype("float32")}))


def test_assertions_tell_weak_types_apart() -> None:
    with pytest.raises(AssertionError, match="leaf 'x': expected a weakly typed array, ~float32"):
        assert_trees_identical({"x": jnp.float32(0.1)}, {"x": jnp.asarray(0.1)})
    with pytest.raises(AssertionError, match="expected a strongly typed array, float32"):
        assert_trees_identical({"x": jnp.asarray(0.1)}, {"x": np.float32(0.1)})


@pytest.mark.parametrize("is_weak", [True, False])
def test_the_strategy_draws_arrays_of_both_types(is_weak: bool) -> None:
    found = find(
        arrays("float32", (2,)),
        lambda array: isinstance(array, jax.Array) and array.weak_type == is_weak,
    )
    assert_trees_identical(reloaded(found), found)
