"""What the adapters share: bytes and paths, options, and errors that say what to do."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from types import ModuleType
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import objax
import pytest
from flax import nnx
from flax.core import FrozenDict
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
import safejax.equinox
import safejax.flax
import safejax.haiku
import safejax.objax
from safejax.testing import assert_same_bits

W = np.arange(16, dtype=np.float32).reshape(8, 2)


@dataclass(frozen=True)
class Case:
    """A framework, a tree of its kind, the name of `W` in its file, and how to get `W` back."""

    adapter: ModuleType
    make: Callable[[], Any]
    name: str
    weight: Callable[[Any], Any]
    needs_like: bool = False

    def options(self) -> dict[str, Any]:
        return {"like": self.make()} if self.needs_like else {}


def _linear() -> eqx.nn.Linear:
    linear = eqx.nn.Linear(2, 8, use_bias=False, key=jax.random.key(0))
    return eqx.tree_at(lambda module: module.weight, linear, jnp.asarray(W))


def _nnx_linear() -> nnx.Linear:
    linear = nnx.Linear(8, 2, use_bias=False, rngs=nnx.Rngs(0))
    linear.kernel[...] = jnp.asarray(W)
    return linear


CASES = {
    "flax": Case(
        safejax.flax,
        lambda: {"params": {"dense": {"kernel": jnp.asarray(W)}}},
        "params.dense.kernel",
        lambda tree: tree["params"]["dense"]["kernel"],
    ),
    "nnx": Case(
        safejax.flax,
        _nnx_linear,
        "kernel",
        lambda model: nnx.to_pure_dict(nnx.state(model))["kernel"],
        needs_like=True,
    ),
    "haiku": Case(
        safejax.haiku,
        lambda: {"net/~/linear": {"w": jnp.asarray(W)}},
        "net/~/linear.w",
        lambda tree: tree["net/~/linear"]["w"],
    ),
    "objax": Case(
        safejax.objax,
        lambda: objax.VarCollection({"(Net)[0](Linear).w": objax.TrainVar(jnp.asarray(W))}),
        "(Net)[0](Linear).w::TrainVar",
        lambda variables: variables["(Net)[0](Linear).w"].value,
    ),
    "equinox": Case(
        safejax.equinox, _linear, "weight", lambda model: model.weight, needs_like=True
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


# ---- bytes and paths


@pytest.mark.parametrize("kind", [str, Path])
def test_bytes_without_a_filename_and_the_path_with_one(
    case: Case, tmp_path: Path, kind: type
) -> None:
    path = kind(tmp_path / "params.safetensors")
    data = case.adapter.serialize(case.make())
    assert type(data) is bytes
    assert case.adapter.serialize(case.make(), filename=path) is path
    assert Path(path).read_bytes() == data
    assert set(safejax.decode(data)) == {case.name}


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, "str", "path"])
def test_reads_bytes_and_paths(case: Case, tmp_path: Path, kind: Any) -> None:
    data = case.adapter.serialize(case.make())
    path = tmp_path / "params.safetensors"
    path.write_bytes(data)
    source = {"str": str(path), "path": path}[kind] if isinstance(kind, str) else kind(data)
    with safejax.observe_reads() as log:
        tree = case.adapter.deserialize(source, **case.options())
        weight = case.weight(tree)
        assert isinstance(weight, safejax.LazyArray)
        assert log.nbytes == 0
    assert type(tree) is type(case.make())
    assert_same_bits(weight, W)


def test_arguments_in_the_order_of_safejax_0_5(case: Case, memory: Any) -> None:
    assert case.adapter.serialize(case.make(), "/p.safetensors", {"step": "3"}, memory) == (
        "/p.safetensors"
    )
    assert safejax.metadata("/p.safetensors", fs=memory) == {"step": "3"}
    tree = case.adapter.deserialize("/p.safetensors", memory, **case.options())
    assert_same_bits(case.weight(tree), W)
    assert_same_bits(
        case.weight(case.adapter.deserialize("memory://p.safetensors", **case.options())), W
    )


# ---- the options of load


def test_sharding(case: Case) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P("x"))
    data = case.adapter.serialize(case.make())
    seen: list[str] = []

    def choose(name: str, aval: jax.ShapeDtypeStruct) -> NamedSharding:
        seen.append(name)
        return rows

    for sharding in (rows, choose):
        weight = case.weight(case.adapter.deserialize(data, sharding=sharding, **case.options()))
        assert weight.sharding == rows
        assert_same_bits(weight.addressable_shards[3].data, W[3:4])
    assert seen == [case.name]


def test_transform(case: Case) -> None:
    data = case.adapter.serialize(case.make())
    # Equinox and NNX have no array whose dtype differs from that of `like`.
    transform = safejax.chain(safejax.cast("bfloat16"), safejax.cast("float32", source="bfloat16"))
    weight = case.weight(case.adapter.deserialize(data, transform=transform, **case.options()))
    assert_same_bits(weight, W.astype(ml_dtypes.bfloat16).astype(np.float32))
    odd = safejax.step(lambda leaves: leaves.map(lambda name, leaf: leaf + 1))
    assert_same_bits(
        case.weight(case.adapter.deserialize(data, transform=odd, **case.options())), W + 1
    )


def test_like_reports_every_mismatch(case: Case) -> None:
    data = safejax.serialize({"one": W, "two": W})
    with pytest.raises(safejax.MismatchError) as report:
        case.adapter.deserialize(data, like=case.make())
    for name in (case.name, "one", "two"):
        assert repr(name) in str(report.value)


def test_strict_false_leaves_out_what_like_has_not(case: Case) -> None:
    stored = dict(safejax.decode(case.adapter.serialize(case.make())))
    data = safejax.serialize(safejax.unflatten(safejax.Leaves({**stored, "other": W})))
    with pytest.warns(safejax.PartialLoadWarning, match="1 unexpected, not loaded: 'other'"):
        tree = case.adapter.deserialize(data, like=case.make(), strict=False)
    assert_same_bits(case.weight(tree), W)


def test_strict_false_does_not_hide_that_nothing_fits(case: Case) -> None:
    data = safejax.serialize({"other": W})
    with pytest.raises(safejax.MismatchError, match="unexpected 'other'"):
        case.adapter.deserialize(data, like=case.make(), strict=False)


# ---- parameters below `params`, and without it

BARE = {"dense": {"kernel": jnp.asarray(W), "bias": jnp.zeros(2)}}


@pytest.mark.parametrize("adapter", [safejax.flax, safejax.haiku])
@pytest.mark.parametrize(
    ("saved", "like"), [(BARE, {"params": BARE}), ({"params": BARE}, BARE), (BARE, BARE)]
)
def test_parameters_and_variables(adapter: ModuleType, saved: Any, like: Any) -> None:
    data = adapter.serialize(saved)
    for wanted in (like, jax.eval_shape(lambda: like)):
        with safejax.observe_reads() as log:
            decoded = adapter.deserialize(data, like=wanted)
        assert log.nbytes == 0
        assert jax.tree.structure(decoded) == jax.tree.structure(like)
        assert_same_bits((decoded.get("params") or decoded)["dense"]["kernel"], W)
    cast = safejax.cast("float32", source="bfloat16")
    half = adapter.serialize(jax.tree.map(lambda leaf: leaf.astype("bfloat16"), saved))
    decoded = adapter.deserialize(half, like=like, transform=cast)
    assert jax.tree.structure(decoded) == jax.tree.structure(like)


@pytest.mark.parametrize("adapter", [safejax.flax, safejax.haiku])
def test_what_is_beside_the_parameters_is_not_dropped(adapter: ModuleType) -> None:
    both = {"params": BARE, "state": {"mean": jnp.ones(2)}}
    with pytest.raises(safejax.MismatchError, match=r"unexpected 'state\.mean'") as said:
        adapter.deserialize(adapter.serialize(both), like=BARE)
    assert "kernel" not in str(said.value)
    with pytest.warns(safejax.PartialLoadWarning, match=r"state\.mean"):
        decoded = adapter.deserialize(adapter.serialize(both), like=BARE, strict=False)
    assert_same_bits(decoded["dense"]["kernel"], W)
    with pytest.raises(safejax.MismatchError, match=r"missing 'state\.mean'") as said:
        adapter.deserialize(adapter.serialize(BARE), like=both)
    assert "kernel" not in str(said.value)


# ---- errors


@pytest.mark.parametrize("wrong", [3, None, {"p.safetensors"}, {"w": W}])
def test_anything_but_bytes_and_paths_is_refused(case: Case, wrong: Any) -> None:
    with pytest.raises(TypeError, match="expected the path or the bytes of a safetensors file"):
        case.adapter.deserialize(wrong, **case.options())
    if wrong is not None:
        with pytest.raises(TypeError, match="expected a path"):
            case.adapter.serialize(case.make(), filename=wrong)


def test_a_file_system_without_a_path(case: Case, memory: Any) -> None:
    with pytest.raises(TypeError, match="fs: expected a filename"):
        case.adapter.serialize(case.make(), fs=memory)
    with pytest.raises(TypeError, match="fs: expected a path with it, got bytes"):
        case.adapter.deserialize(case.adapter.serialize(case.make()), fs=memory, **case.options())


def test_a_file_that_is_not_there(case: Case, tmp_path: Path, memory: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        case.adapter.deserialize(tmp_path / "none.safetensors", **case.options())
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        case.adapter.deserialize("/none.safetensors", memory, **case.options())


def test_anything_but_a_safetensors_file_is_refused(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "params.safetensors"
    path.write_bytes(b"not a safetensors file at all")
    with pytest.raises(safejax.InvalidFileError, match=r"params\.safetensors"):
        case.adapter.deserialize(path, **case.options())


def test_metadata_must_be_strings(case: Case) -> None:
    with pytest.raises(safejax.LeafError, match="metadata 'step'"):
        case.adapter.serialize(case.make(), metadata={"step": 3})


class Mlp(eqx.Module):
    """A user's own Equinox module, which is not in a Python module of that name."""

    w: jax.Array


class Model(nnx.Module):
    """A user's own module of NNX."""

    def __init__(self) -> None:
        self.w = nnx.Param(jnp.ones(2))


FOREIGN = {
    "flax": [lambda: FrozenDict({"w": W}), Model, lambda: nnx.state(Model())],
    "haiku": [lambda: hk.data_structures.to_immutable_dict({"net": {"w": W}})],
    "objax": [
        lambda: objax.VarCollection({"w": objax.TrainVar(jnp.ones(2))}),
        lambda: objax.nn.Linear(2, 2),
    ],
    "equinox": [lambda: Mlp(jnp.ones(2)), _linear],
}


@pytest.mark.parametrize(("framework", "owner"), list(permutations(FOREIGN, 2)))
def test_a_tree_of_another_framework(framework: str, owner: str) -> None:
    # objax has only one container, and the error names it.
    message = (
        "expected an objax.VarCollection, for example model"
        if framework == "objax"
        else (
            f"expected a tree of {framework}, got .* which belongs to {owner}: use safejax.{owner}"
        )
    )
    for make in FOREIGN[owner]:
        with pytest.raises(safejax.LeafError, match=message):
            CASES[framework].adapter.serialize(make())


def test_a_foreign_tree_within_a_dict() -> None:
    inner = objax.VarCollection({"w": objax.TrainVar(jnp.ones(2))})
    with pytest.raises(safejax.LeafError, match=r"leaf 'params'.*VarCollection"):
        safejax.haiku.serialize({"params": inner})


@pytest.mark.parametrize(
    ("adapter", "tree", "name"),
    [
        (safejax.flax, {"params": {"dense": {"kernel": object()}}}, "params.dense.kernel"),
        (safejax.flax, {"params": {"dense": nn.Dense(3)}}, "params.dense"),
        (safejax.haiku, {"net": {"w": lambda: 1}}, "net.w"),
        (safejax.haiku, {"net": {"w": np.array(["a"])}}, "net.w"),
        (
            safejax.objax,
            objax.VarCollection({"w": objax.TrainVar(np.array([None]))}),
            "w::TrainVar",
        ),
        (safejax.equinox, Mlp(np.array(["a"])), "w"),
    ],
)
def test_a_leaf_that_is_not_an_array(adapter: ModuleType, tree: Any, name: str) -> None:
    with pytest.raises(safejax.LeafError, match=f"leaf '{name}': expected"):
        adapter.serialize(tree)


def test_within_a_trace(case: Case) -> None:
    like = case.make()

    def traced(w: jax.Array) -> int:
        if case is CASES["objax"]:
            tree: Any = objax.VarCollection({"w": objax.TrainVar(w)})
        elif case is CASES["nnx"]:
            tree = nnx.state(like)
            tree = jax.tree.map(lambda _: w, tree)
        else:
            tree = jax.tree.map(lambda _: w, like)
        return len(case.adapter.serialize(tree))

    with pytest.raises(safejax.LeafError, match="tracer"):
        jax.jit(traced)(jnp.asarray(W))


def test_frameworks_that_are_missing(tmp_path: Path) -> None:
    """`import safejax` imports none of them; an adapter says what to install and why it failed."""
    program = """
import importlib, importlib.abc, json, sys

BLOCKED = {"flax", "haiku", "objax", "equinox", "chex", "fsspec"}

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import safejax
said = {}
for name in ("flax", "haiku", "objax", "equinox", "testing"):
    try:
        importlib.import_module(f"safejax.{name}")
    except ImportError as error:
        said[name] = (str(error), error.name)
try:
    safejax.load("memory://w.safetensors")
except ImportError as error:
    said["remote"] = (str(error), error.name)
safejax.save({"w": 1.5}, sys.argv[1])
said["loaded"] = safejax.load(sys.argv[1])["w"]
json.dump(said, sys.stdout)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "w.safetensors")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    packages = {
        "flax": "flax", "haiku": "dm-haiku", "objax": "objax", "equinox": "equinox",
        "testing": "chex",
    }  # fmt: skip
    for extra, package in packages.items():
        message, module = said[extra]
        assert module.partition(".")[0] in (extra, package)
        assert f"safejax.{extra} needs {package}, which is not installed" in message
        assert f"No module named '{module}'" in message
        assert f"pip install 'safejax[{extra}]'" in message
    assert said["remote"] == [
        "memory://w.safetensors: the URL needs fsspec, which cannot be imported (No module named "
        "'fsspec'): pip install 'safejax[remote]'",
        "fsspec",
    ]
    assert said["loaded"] == 1.5
