# pyright: strict, reportUnknownMemberType=false, reportMissingTypeStubs=false
# ruff: noqa: T201
"""A user's program that uses every public name, for type checkers; it is never run.

`tests/system/test_typing.py` checks that it leaves no name out, and CI that mypy and pyright,
both strict, accept it.
"""

import pathlib
import re
from collections.abc import Callable
from typing import Any, assert_type

import jax
import numpy as np
from flax import nnx
from hypothesis import strategies as st
from objax import VarCollection  # type: ignore[import-untyped]

import safejax
import safejax.equinox
import safejax.flax
import safejax.haiku
import safejax.nnx
import safejax.objax
import safejax.testing

Params = dict[str, dict[str, jax.Array]]


def storing(params: Params) -> None:
    safejax.save(params, "m.safetensors")
    safejax.save(
        params,
        pathlib.Path("folder"),
        transform=safejax.cast("bfloat16"),
        metadata={"step": "3"},
        max_shard_bytes=2**30,
        name="diffusion_pytorch_model",
        one_writer_per_file=True,
        checksum=True,
        progress=lambda done, total: print(done, total),
        fs=None,
    )
    with safejax.save_async(params, "m.safetensors") as saving:
        assert_type(saving, safejax.SaveHandle)
    assert_type(saving.done(), bool)
    assert_type(saving.exception(), BaseException | None)
    assert_type(saving.path, str)
    safejax.save_async(
        params,
        pathlib.Path("folder"),
        transform=safejax.cast("bfloat16"),
        metadata={"step": "3"},
        max_shard_bytes=2**30,
        name="diffusion_pytorch_model",
        one_writer_per_file=True,
        checksum=True,
        progress=lambda done, total: print(done, total),
        fs=None,
        max_host_bytes=2**35,
    ).result(timeout=60)
    data = safejax.serialize(params, transform=None, metadata=None, checksum=False)
    assert_type(data, bytes)
    assert_type(safejax.metadata(data), dict[str, str])
    assert_type(safejax.metadata("m.safetensors", fs=None), dict[str, str])


def looking(params: Params) -> None:
    found = safejax.inspect("m", where=["*.w", "b"], stats=True, progress=True, fs=None)
    assert_type(found, safejax.Inspection)
    assert_type(found.nbytes, int)
    assert_type(found.tensors["w"].shape, tuple[int, ...])
    assert_type(found.to_json(), str)
    statistics = safejax.inspect(params, where=lambda name: name != "b").tensors["w"].statistics
    assert statistics is not None
    assert_type(statistics.mean, float | None)
    difference = safejax.diff(pathlib.Path("a"), params, rtol=1e-3, atol=0.0, progress=True)
    assert_type(difference, safejax.Difference)
    assert_type(difference.is_same, bool)
    assert_type(difference.tensors[0].max_absolute, float | None)
    verification = safejax.verify(["a", "b"], digests=False, progress=lambda done, total: None)
    assert_type(verification, safejax.Verification)
    assert_type(verification.faults, tuple[str, ...])
    safejax.save(params, "m.safetensors", progress=True)
    safejax.materialize(params, progress=True)


def loading(
    params: Params, device: Any, mesh: jax.sharding.Mesh, spec: jax.sharding.PartitionSpec
) -> None:
    assert_type(safejax.load("m.safetensors"), Any)
    assert_type(safejax.load("m.safetensors", like=None), Any)
    assert_type(safejax.load(pathlib.Path("m"), like=params), Params)
    assert_type(safejax.deserialize(b""), Any)
    assert_type(safejax.deserialize(memoryview(b""), like=params, strict=False), Params)
    assert_type(safejax.materialize(params), Params)
    assert_type(safejax.prefetch(params, max_bytes=1 << 30), Params)
    assert_type(safejax.materialize(params, progress=lambda done, total: None), Params)
    assert_type(safejax.load("m", like=safejax.abstract(params)), Any)
    strings: list[str] = ["a", "b"]
    paths = sorted(pathlib.Path("folder").glob("*.safetensors"))
    safejax.load(strings)
    safejax.load(paths)
    safejax.load(("a", pathlib.Path("b")))

    rows = jax.sharding.NamedSharding(mesh, spec)
    rules = safejax.sharding_rules(mesh, [("*", spec), ("b", None)], must_match=False)

    def chosen(name: str, aval: jax.ShapeDtypeStruct) -> jax.sharding.Sharding | None:
        return rows if aval.ndim and name else None

    tree = {"embedding": rows, "mlp": {"w": rows}, "layers": [rows, None]}
    sharded = safejax.load("m", like=params, sharding=rows)
    assert_type(sharded, Params)
    safejax.load("m", sharding=device)
    safejax.load("m", sharding=rules)
    safejax.load("m", sharding=chosen)
    safejax.load("m", sharding=tree)
    safejax.load("m", sharding=None, transform=None, strict=True, verify=True)
    safejax.load("m", transform=lambda leaves: leaves.replace({}), access="copy", fs=None)
    safejax.load("m", sharding=mesh)
    safejax.load("m", sharding=rows.spec)
    safejax.load("m", sharding=3)  # type: ignore[call-overload]  # pyright: ignore
    safejax.load("m", shardings=rows)  # type: ignore[call-overload]  # pyright: ignore
    safejax.load("m", access="mapped")  # type: ignore[call-overload]  # pyright: ignore
    safejax.load(3)  # type: ignore[call-overload]  # pyright: ignore
    safejax.deserialize(b"", access="map")  # type: ignore[call-overload]  # pyright: ignore

    plan = safejax.plan("m", like=params, sharding=rows, access="read")
    assert_type(plan, safejax.Plan)
    assert_type(plan.nbytes, int)
    assert_type(plan.problems, tuple[str, ...])
    assert_type(plan.warnings, tuple[str, ...])
    print(plan.reads.requests, plan.leaves[0].name, plan.devices[device].places, plan.processes[0])
    safejax.plan(params)
    with safejax.observe_reads() as log:
        assert_type(log, safejax.ReadLog)
        assert_type(log.nbytes, int)
    array = safejax.load("m")["w"]
    if isinstance(array, safejax.LazyArray):
        assert_type(array.name, str)
        assert_type(array.is_placed, bool)
        assert_type(array.shape, tuple[int, ...])
        also: jax.Array = array
        print(also)


def pieces(params: Params) -> None:
    leaves = safejax.flatten(params)
    assert_type(leaves, safejax.Leaves)
    assert_type(safejax.unflatten(leaves), Any)
    assert_type(safejax.unflatten(leaves, like=params), Params)
    assert_type(safejax.unflatten(like=params)(leaves), Params)
    assert_type(safejax.flatten.inverse(leaves), Any)
    assert_type(safejax.encode(leaves), bytes)
    assert_type(safejax.decode(b""), safejax.Leaves)
    assert_type(safejax.encode.inverse(b""), safejax.Leaves)
    built = safejax.Leaves({"w": np.ones(3), "none": safejax.EMPTY}, metadata={"a": "b"})
    assert_type(built.replace({"w": 1}), safejax.Leaves)
    assert_type(built.map(lambda name, leaf: leaf), safejax.Leaves)


Array = np.ndarray[Any, Any]


def scaled(q: Array, scale: Array) -> Array:
    return q * scale


def halved_twice(w: Array) -> tuple[Array, Array]:
    return w / 2, w / 2


def like_the_first(a: jax.ShapeDtypeStruct, b: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return a if b.ndim else b


def transforming(leaves: safejax.Leaves) -> safejax.Transform:
    found: list[safejax.Transform] = [
        safejax.cast("bfloat16", source="float32", where="*.kernel", must_match=False),
        safejax.concat(["a", "b"], "c", axis=1, sizes=(1, 2)),
        safejax.correspond(
            [("a.{i}", "a", "(h k) d -> d h k"), ("b", None), ("c", ("d", "e"), "(x + y) -> x, y")],
            sizes={"h": 2},
        ),
        safejax.crop("*.embedding", axis=0, to=50257, source=50304),
        safejax.drop("opt_state.*", ["a", "!*.b"], inverse={"opt_state.0": 1}),
        safejax.drop("a", inverse=lambda leaves: {"a": len(leaves)}),
        safejax.elementwise(lambda x: x + 1, "*.scale", inverse=lambda x: x - 1),
        safejax.keys("rng", impl="rbg"),
        safejax.merge(
            {"*.w": ["*.q", "*.scale"]},
            scaled,
            axes="i j, i/128 j/128 -> i j",
            inverse=halved_twice,
        ),
        safejax.merge({"w": ["a", "b"]}, np.add, aval=like_the_first),
        safejax.offset("*.scale", 1),
        safejax.pad("*.embedding", axis=0, to=50304, value=0.5),
        safejax.permute("*.q", 0, [0, 2, 1, 3]),
        safejax.prefix("model"),
        safejax.rename({"a.*": "b.*"}, strict=True),
        safejax.reshape("*.query", (-1, 4), source=[4, -1]),
        safejax.reshape("*.query", (32, -1), axis=0),
        safejax.scale(("*.embedding", "!*.b"), 0.5, exact=False),
        safejax.select("params.*", lambda name: name == "step"),
        safejax.select(re.compile(r"params\..*")),
        safejax.cast("bfloat16", where=lambda name, aval: aval.ndim > 1 and name != "a"),
        safejax.split("a", ["b", "c"]),
        safejax.stack("layers.{i}.*", start=1, count=4),
        safejax.stack(["a", "b"], "c"),
        safejax.tie({"head.weight": "embed.weight"}),
        safejax.transpose("*.kernel", axes=[1, 0]),
        safejax.unstack("layers.*", "layers.{i}.*"),
        safejax.unstack("a", ["b", "c"], axis=1),
    ]
    for transform in found:
        assert_type(transform(leaves), safejax.Leaves)
        assert_type(transform.inverse, safejax.Transform)
    chained = safejax.chain(*found, safejax.chain(safejax.prefix("a")))
    assert_type(chained(leaves), safejax.Leaves)
    assert_type(chained.inverse(leaves), safejax.Leaves)
    pipeline: safejax.Step[Any, Any] = safejax.chain(safejax.flatten, chained, safejax.encode)
    print(pipeline.inverse(pipeline({})))

    def doubled(leaves: safejax.Leaves) -> safejax.Leaves:
        return leaves.map(lambda name, leaf: leaf * 2)

    def halved(leaves: safejax.Leaves) -> safejax.Leaves:
        return leaves.map(lambda name, leaf: leaf / 2)

    pair = safejax.step(doubled, halved)
    assert_type(pair(leaves), safejax.Leaves)
    assert_type(pair.inverse(leaves), safejax.Leaves)
    argument: Callable[[safejax.Leaves], safejax.Leaves] = safejax.chain(chained, pair, doubled)
    safejax.load("m", transform=argument)
    safejax.load("m", transform=pair)
    safejax.load("m", transform=safejax.cast)  # type: ignore[arg-type]  # pyright: ignore
    return chained


class Doubling(safejax.Transform):
    """A transform of a user's own."""

    def __call__(self, leaves: safejax.Leaves, /) -> safejax.Leaves:
        return leaves.map(lambda name, leaf: leaf * 2)


def failing() -> None:
    errors: tuple[type[safejax.SafejaxError], ...] = (
        safejax.ChecksumError,
        safejax.InvalidFileError,
        safejax.LeafError,
        safejax.MismatchError,
        safejax.NotInvertibleError,
        safejax.PlacementError,
        safejax.PrecisionError,
        safejax.ProcessError,
        safejax.ReadError,
        safejax.ShardingError,
        safejax.TransformError,
        safejax.UnsupportedJaxError,
    )
    warnings: tuple[type[UserWarning], ...] = (
        safejax.PartialLoadWarning,
        safejax.PrecisionWarning,
    )
    try:
        safejax.load("m", transform=Doubling())
    except errors as error:
        told: safejax.SafejaxError = error
        print(told)
    print(warnings)


def adapters(
    params: Params, model: nnx.Linear, variables: VarCollection, shardings: nnx.State[Any, Any]
) -> None:
    assert_type(safejax.flax.serialize(params), bytes)
    assert_type(safejax.flax.serialize(params, "m"), str)
    assert_type(safejax.flax.serialize(model, pathlib.Path("m"), {"a": "b"}, None), pathlib.Path)
    assert_type(safejax.flax.deserialize("m"), Any)
    assert_type(safejax.flax.deserialize(b"", like=model, sharding=shardings), nnx.Linear)
    assert_type(safejax.flax.deserialize(b"", None, like=params, verify=True), Params)
    safejax.flax.load_into(model, "m", only=nnx.Param, strict=False)
    safejax.nnx.load_into(model, b"", transform=safejax.prefix("model"))
    assert_type(safejax.haiku.serialize(params), bytes)
    assert_type(safejax.haiku.serialize(params, filename="m"), str)
    assert_type(safejax.haiku.deserialize("m"), Any)
    assert_type(safejax.haiku.deserialize("m", like=params, access="copy"), Params)
    assert_type(safejax.objax.serialize(variables), bytes)
    assert_type(safejax.objax.serialize(variables, pathlib.Path("m"), fs=None), pathlib.Path)
    safejax.objax.deserialize("m", like=variables, strict=False).items()
    safejax.objax.deserialize_with_assignment("m", variables, sharding=None)
    assert_type(safejax.equinox.serialize(model), bytes)
    assert_type(safejax.equinox.serialize(model, "m"), str)
    assert_type(safejax.equinox.deserialize("m", like=model), nnx.Linear)
    safejax.flax.deserialize("m", stricter=True)  # type: ignore[call-overload]  # pyright: ignore
    safejax.equinox.deserialize("m")  # type: ignore[call-arg]  # pyright: ignore


def porting(mesh: jax.sharding.Mesh, config: dict[str, Any]) -> None:
    recipe = safejax.recipes.of(pathlib.Path("folder"))
    assert_type(recipe, safejax.recipes.Recipe)
    assert_type(safejax.recipes.of(config, names=["a.weight"]).model_type, str)
    assert_type(recipe.axes, dict[str, int | None])
    assert_type(safejax.recipes.MODEL_TYPES, tuple[str, ...])
    rules = recipe.rules(mesh, {"heads": "model", "mlp": ("data", "model"), "embed": None})
    params = safejax.load("folder", transform=recipe.transform, sharding=rules)
    safejax.save(params, "exported", transform=recipe.transform.inverse)


def harness(tree: Params, leaves: safejax.Leaves) -> None:
    safejax.testing.assert_trees_identical(tree, tree)
    safejax.testing.assert_same_bits(tree["a"]["b"], np.ones(3), "a.b")
    safejax.testing.assert_round_trip(tree)
    safejax.testing.assert_round_trip(tree, safejax.chain(safejax.flatten, safejax.encode))
    safejax.testing.assert_reads(tree, 12)
    assert_type(safejax.testing.ALL_DTYPES, tuple[np.dtype[Any], ...])
    assert_type(safejax.testing.dict_keys(), st.SearchStrategy[str])
    assert_type(safejax.testing.indices((2, 3)), st.SearchStrategy[tuple[Any, ...]])
    assert_type(safejax.testing.keys(shape=(2,)), st.SearchStrategy[jax.Array])
    assert_type(safejax.testing.pytrees(safejax.testing.scalars()), st.SearchStrategy[Any])
    assert_type(safejax.testing.pytrees_matching(["*.kernel"]), st.SearchStrategy[Any])
    assert_type(safejax.testing.shardings((4, 2)), st.SearchStrategy[jax.sharding.Sharding])
    assert_type(
        safejax.testing.transforms(leaves),
        st.SearchStrategy[Callable[[safejax.Leaves], safejax.Leaves]],
    )
    arrays: st.SearchStrategy[Any] = safejax.testing.arrays("float32", (2, 3))
    models: list[st.SearchStrategy[Any]] = [
        arrays,
        safejax.testing.equinox_models(),
        safejax.testing.flax_params(),
        safejax.testing.haiku_params(),
        safejax.testing.nnx_states(),
        safejax.testing.objax_variables(),
        safejax.testing.optax_states(),
    ]
    print(models)
