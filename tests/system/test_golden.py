"""Golden files: every version reads what earlier versions wrote, and writes the same bytes.

`golden/v1/` holds a file for each of `TREES` (or a folder, or the first bytes of a large file),
written by a version of safejax that wrote records of version 1. `golden/v2/` holds those that are
new or written otherwise since there are records of version 2, and `golden/v2b/` those with indices
that have the number of all elements. A tree is written as in the newest generation that has it.
`golden/foreign/` holds files that other programs wrote. None of these files is ever written again.

To add one, add its tree to `TREES` and run

    SAFEJAX_WRITE_GOLDEN=1 python -m pytest tests/system/test_golden.py

This writes what is missing to the folder of `GENERATION` and refuses to overwrite what is there.
When the record gets a new version, or the bytes of a file change on purpose (or because a
framework moved a class, whose qualified name the record holds), set `GENERATION` to a new name
and run the same command, which writes the files that change. From then on the older folders are
only read.
"""

import hashlib
import inspect
import json
import math
import os
import subprocess
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import equinox
import flax.core
import haiku.data_structures
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import objax
import optax
import pytest
from flax import nnx

import safejax
import safejax.equinox
import safejax.flax
import safejax.haiku
import safejax.objax
from safejax._src.format.record import VERSION
from safejax.testing import assert_trees_identical
from tests.support.files import data_begin
from tests.support.leaves import float_of_bits, weakly_typed

GOLDEN = Path(__file__).parent.parent / "golden"
GENERATION = "v2b"
WRITE = os.environ.get("SAFEJAX_WRITE_GOLDEN") == "1"

# ---- leaves whose bits are the same in every version of JAX and NumPy


def ramp(*shape: int) -> np.ndarray:
    """Distinct multiples of a quarter, the first one negative."""
    return (np.arange(math.prod(shape), dtype=np.float32).reshape(shape) - 2) / 4


def pattern(dtype: Any, *shape: int) -> np.ndarray:
    """An array of distinct bytes, whatever values of the dtype they are."""
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    return (np.arange(nbytes) * 37 % 251).astype(np.uint8).view(dtype).reshape(shape)


def every(name: str) -> np.ndarray:
    """Every value of a narrow type, in the order of their bits."""
    dtype = np.dtype(getattr(ml_dtypes, name))
    if name.startswith(("int", "uint")):
        bits = int(name.lstrip("uint"))
        low = -(1 << bits - 1) if name.startswith("int") else 0
        return np.arange(low, low + (1 << bits), dtype=np.int8).astype(dtype)
    bits = int(name.removeprefix("float")[0])
    return np.arange(1 << bits, dtype=np.uint8).view(dtype)


def key(implementation: str, *shape: int) -> jax.Array:
    width = 2 if implementation == "threefry2x32" else 4
    data = np.arange(math.prod(shape) * width, dtype=np.uint32) * 0x01234567
    return jax.random.wrap_key_data(jnp.asarray(data.reshape(*shape, width)), impl=implementation)


# ---- node types that no file rebuilds without `like`. Their module is part of the file.

Pair = namedtuple("Pair", ["first", "second"], module="golden")


@partial(
    jax.tree_util.register_dataclass, data_fields=["kernel", "bias"], meta_fields=["activation"]
)
@dataclass
class Layer:
    """A dataclass with a static field."""

    kernel: Any
    bias: Any
    activation: str = "relu"


@jax.tree_util.register_pytree_node_class
class Opaque:
    """A node whose children JAX knows only by their positions."""

    def __init__(self, *children: Any) -> None:
        self.children = children

    def tree_flatten(self) -> tuple[Any, None]:
        return self.children, None

    @classmethod
    def tree_unflatten(cls, aux: None, children: Any) -> "Opaque":
        return cls(*children)


class Model(equinox.Module):
    """An Equinox module with arrays, a number and a function."""

    weight: Any
    layers: list[Any]
    rate: float
    activation: Any


Layer.__module__ = Opaque.__module__ = Model.__module__ = "golden"

# ---- trees

BITS_16 = ("float16", "bfloat16", "int16", "uint16")
BITS_32 = ("float32", "int32", "uint32")
BITS_64 = ("float64", "int64", "uint64", "complex64")
NARROW = (
    "int2", "int4", "uint2", "uint4", "float4_e2m1fn", "float8_e3m4", "float8_e4m3",
    "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
    "float8_e8m0fnu",
)  # fmt: skip


def dtypes() -> Any:
    wide = (*BITS_16, *BITS_32, *BITS_64, "complex128")
    plain = {name: pattern(getattr(ml_dtypes, name, name), 3, 5) for name in wide}
    return {
        **plain,
        **{name: every(name) for name in NARROW},
        "bool": np.array([[True, False, True]]),
        "int8": np.arange(-128, 128, dtype=np.int8),
        "uint8": np.arange(256, dtype=np.uint8).reshape(16, 16),
        "specials": {
            "float32": np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45], np.float32),
            "float64": np.array([-0.0, np.nan, -np.inf, 5e-324, 0.1]),
            "bfloat16": np.array([-0.0, np.nan, np.inf], ml_dtypes.bfloat16),
            "complex128": np.array([complex(-0.0, np.nan), complex(np.inf, -0.0), 1 - 2j]),
        },
        "an odd number of float4": every("float4_e2m1fn")[:15].reshape(3, 5),
        "jax": {
            "int4": jnp.arange(-8, 8, dtype=jnp.int4).reshape(4, 4),
            "bfloat16": jnp.linspace(-1, 1, 5, dtype=jnp.bfloat16),
            "weakly typed": jnp.asarray(2.5),
        },
    }


def rare_dtypes() -> Any:
    return {name: every(name) for name in ("int1", "uint1", "float6_e2m3fn", "float6_e3m2fn")}


def weak(dtype: str, *shape: int) -> jax.Array:
    return weakly_typed(jnp.asarray(pattern("i1", *shape), dtype))


def weak_types() -> Any:
    return {
        "int": jnp.asarray(-7),
        "float": jnp.asarray(0.1),
        "complex": jnp.asarray(1 - 2j),
        "bool, which is strong": jnp.asarray(True),
        "of NumPy, which is strong": np.float32(0.1),
        "arrays": [weak("float32", 3, 4), weak("int32", 0), weak("float32", 3, 4), ramp(3, 4)],
        "narrow": [weak("bfloat16", 2), weak("int4", 3)],
        "a.b": {"c": jnp.asarray(1.5), "": [key("rbg"), None, 2.5]},
    }


def keys() -> Any:
    return {
        name: {
            "one": key(name),
            "some": key(name, 2, 3),
            "none": key(name, 0),
            "raw": pattern("u4", 2),
        }
        for name in ("threefry2x32", "rbg", "unsafe_rbg")
    }


def containers() -> Any:
    x, y, z = ramp(2), ramp(3), ramp(4)
    return {
        "list": [x, [y, (z, [x])], {"w": y}],
        "long list": [ramp(1) + n for n in range(12)],
        "tuple": (x, y),
        "one": {"list": [x], "tuple": (y,)},
        "int keys": {0: x, 1: {-7: y, 10: z}},
        "keys of int and float": {0: x, 1.5: y, -math.inf: z},
        "keys of bool": {False: x, True: y},
        "keys of bytes": {b"": x, b"\xff\x00": y},
        "keys of tuples": {(0, "a"): x, (1, "b"): y, (1, "b", (2.5, None)): z},
        "key None": {None: x},
        "ordered": OrderedDict([("z", x), ("a", y), ("m", [z])]),
        "empty": {"dict": {}, "list": [], "tuple": (), "ordered": OrderedDict(), "in": [[], ()]},
        "None": {"leaf": None, "in list": [None, x, None]},
    }  # fmt: skip


def names() -> Any:
    x, y, z = ramp(2), ramp(3), ramp(4)
    return {
        "a": {"b": {"c": x}},
        "a.b": {"c": y},
        "a.b.c": z,
        "a.b.c~1": {"d": x},
        "__metadata__": x,
        "": y,
        ".": z,
        "..": {"": x, ".": y},
        "~": x,
        "a/b": {"~": y},
        "[": [x],
        '["a"]': {"b": y},
        "é🦎": {"\x00\n\"\\": z},
        "half \ud800": {"\udfff": x, "\\udfff": y},
        "same text": {"1": {"1": x}},
        "encoder": {"layer.0.weight": x, "layer.0.bias": y, "layer.10.weight": z},
        "deep": {"x.y": {"z": [x, {"p.q": {"r": (y,)}}]}},
    }  # fmt: skip


def hugging_face_names() -> Any:
    return {
        "model.layers.0.weight": ramp(2, 2),
        "model.layers.0.weight.absmax": ramp(2),
        "head": ramp(3),
    }


def scalars() -> Any:
    return {
        "bool": [True, False],
        "int": [0, -1, 7, 2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 2**200, 10**50],
        "float": [0.0, -0.0, 0.1, 1.0, 1e22, 1e300, 5e-324, math.inf, -math.inf, math.nan,
                  float_of_bits(0xFFF8DEADBEEF0001)],
        "complex": [1 + 2j, complex(-0.0, -0.0), complex(math.nan, -math.inf), 0j],
        "str": ["", "text", "é🦎", "\x00", "half \ud800", '{"empty":true}', "null"],
        "None": None,
        "numpy": [np.float32(1.5), np.int64(-(2**60)), np.bool_(True), np.float64(0.1)],
        "beside": ramp(3),
    }  # fmt: skip


def shapes() -> Any:
    # In the order of the file: empty ones, multiples of 64 bytes, the rest from wide to narrow;
    # then by name.
    return {
        "z empty": np.empty((0,), np.float32),
        "y empty": np.empty((3, 0, 2), np.int8),
        "x 64 bytes": ramp(4, 4),
        "w 128 bytes": pattern("u1", 128),
        "v wide": pattern("f8", 3),
        "u half": pattern("f2", 3),
        "t bytes": np.array([True, False, True]),
        "s scalar": np.float32(-0.0),
        "r many axes": pattern("u1", 1, 2, 1, 3, 1, 1, 2),
        "q empty bool": np.empty((0, 1), np.bool_),
        "p one": pattern("f4", 1, 1),
    }


def node_types() -> Any:
    return {
        "pair": Pair(ramp(2), Pair([ramp(3)], None)),
        "layers": [Layer(ramp(2, 2), ramp(2)), Layer(ramp(3, 2), None, "tanh")],
        "opaque": Opaque(ramp(1), {"w": ramp(2)}),
        "empty": Opaque(),
    }


def node_types_as_dicts() -> Any:
    return {
        "pair": {"first": ramp(2), "second": {"first": [ramp(3)], "second": None}},
        "layers": [{"kernel": ramp(2, 2), "bias": ramp(2)}, {"kernel": ramp(3, 2), "bias": None}],
        "opaque": {"0": ramp(1), "1": {"w": ramp(2)}},
        "empty": {},
    }


def optax_state() -> Any:
    params = {"w": ramp(3, 2), "b": ramp(2)}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale_by_schedule(jnp.cos)
    )
    return {"params": params, "opt": optimizer.init(params), "step": 3}


def optax_state_as_dicts() -> Any:
    params = {"w": ramp(3, 2), "b": ramp(2)}
    zeros = jax.tree.map(np.zeros_like, params)
    adam = {"count": np.zeros((), np.int32), "mu": zeros, "nu": zeros}
    return {"params": params, "opt": ({}, adam, {"count": np.zeros((), np.int32)}), "step": 3}


def frozen_dict() -> Any:
    return flax.core.freeze(
        {"params": {"Dense_0": {"kernel": ramp(3, 2), "bias": ramp(2)}}, "batch_stats": {}}
    )


def frozen_dict_within() -> Any:
    return {"variables": frozen_dict(), "rest": [frozen_dict(), ramp(2)]}


def linen_dict() -> Any:
    return {"params": {"Dense_0": {"kernel": ramp(3, 2), "bias": ramp(2)}}}


def nnx_model() -> Any:
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    values = {"kernel": ramp(2, 3), "bias": ramp(3)}
    nnx.update(model, nnx.State({name: nnx.Param(jnp.asarray(values[name])) for name in values}))
    return nnx.state({"layers": {0: model, 1: model}, "count": nnx.Variable(jnp.asarray(3))})


def nnx_model_as_dicts() -> Any:
    return {"layers": {0: {"kernel": ramp(2, 3), "bias": ramp(3)}}, "count": jnp.asarray(3)}


def haiku_params() -> Any:
    return {
        "params": {"mlp/~/linear_0": {"w": ramp(3, 2), "b": ramp(2)}, "a.b": {"w": ramp(1)}},
        "state": haiku.data_structures.to_immutable_dict(
            {"mlp/~/ema": {"counter": np.int32(3), "average": ramp(2)}, "empty": {}}
        ),
    }


def equinox_model() -> Any:
    return Model(ramp(3, 2), [ramp(2), Pair(key("threefry2x32"), 3)], 0.5, jnp.tanh)


def objax_variables() -> Any:
    weight = objax.TrainVar(jnp.asarray(ramp(3, 2)))
    noise = objax.random.Generator(0).key
    noise.assign(jnp.asarray([0, 7], jnp.uint32), check=False)
    return objax.VarCollection(
        [
            ("(Net).layers(ModuleList)[1](Linear).w", weight),
            ("(Net).layers(ModuleList)[0](Linear).b", objax.TrainVar(jnp.asarray(ramp(2)))),
            ("(Net).norm(BatchNorm0D).running_mean", objax.StateVar(jnp.asarray(ramp(1, 2)))),
            ("(Net).noise(Generator).key", noise),
            ("(Net).tied(Linear).w", weight),
            ("(Net).opt(Momentum).train_vars(ModuleList)[0]", objax.TrainRef(weight)),
        ]
    )


def a_bit_of_all() -> Any:
    return {
        "a": [ramp(5, 8), key("rbg", 2), 3],
        "b": {"int4": every("int4"), "int8": pattern("i1", 70)},
        "c.d": {0: ramp(4, 4), 1: None, 2: pattern("c16", 3)},
        "e": (OrderedDict([("y", ramp(3)), ("x", "text")]), [], -0.0),
        "f": Pair(np.empty((0, 2), np.float32), True),
    }


def a_bit_of_all_as_dicts() -> Any:
    return {**a_bit_of_all(), "f": dict(a_bit_of_all()["f"]._asdict())}


def large() -> Any:
    # More than 2.5 MiB, so that data begins on a page and tensors have several digests.
    return {
        "w": np.arange(5 << 17, dtype=np.float32).reshape(5, -1),
        "b": [pattern("f2", 7), pattern("u1", (1 << 20) + 3), 2],
    }


# An older ml_dtypes has no int1.
UNKNOWN = set() if hasattr(ml_dtypes, "int1") else {"rare_dtypes"}

TREES: dict[str, Callable[[], Any]] = {
    "arrays": lambda: {"w": ramp(3, 2), "b": ramp(2)},
    "nested": lambda: {"mlp": {"w": ramp(3, 2), "b": ramp(2)}, "scale": ramp(1)},
    "dtypes": dtypes,
    "rare_dtypes": rare_dtypes,
    "weak_types": weak_types,
    "weak_types_in_shards": weak_types,
    "keys": keys,
    "containers": containers,
    "names": names,
    "hugging_face_names": hugging_face_names,
    "scalars": scalars,
    "shapes": shapes,
    "node_types": node_types,
    "optax_state": optax_state,
    "frozen_dict": frozen_dict,
    "frozen_dict_within": frozen_dict_within,
    "linen_dict": linen_dict,
    "nnx": nnx_model,
    "haiku": haiku_params,
    "equinox": equinox_model,
    "objax": objax_variables,
    "bare_array": lambda: ramp(2, 2),
    "bare_scalar": lambda: 0.5,
    "bare_list": lambda: [ramp(2), ramp(3)],
    "none": lambda: None,
    "empty_dict": dict,
    "empty_list": list,
    "metadata": lambda: {"w": ramp(2)},
    "metadata_and_format": lambda: [ramp(2)],
    "checksums": a_bit_of_all,
    "shards": a_bit_of_all,
    "shards_with_all": a_bit_of_all,
    "large": large,
}
TREES = {name: tree for name, tree in TREES.items() if name not in UNKNOWN}

METADATA = {"step": "1000", "": 'é🦎\x00\n"\\', "config": '{"layers": 2}'}
OPTIONS: dict[str, dict[str, Any]] = {
    "metadata": {"metadata": METADATA},
    "metadata_and_format": {"metadata": {"format": "np", **METADATA}},
    "checksums": {"checksum": True},
    "weak_types_in_shards": {"max_shard_bytes": 64, "checksum": True},
    "shards": {"max_shard_bytes": 200},
    "shards_with_all": {"max_shard_bytes": 200, "checksum": True, "metadata": METADATA},
    "large": {"checksum": True},
}
"""The options of `save`. With `max_shard_bytes` the file is a folder."""

WITHOUT_LIKE: dict[str, Callable[[], Any]] = {
    "node_types": node_types_as_dicts,
    "optax_state": optax_state_as_dicts,
    "nnx": nnx_model_as_dicts,
    "checksums": a_bit_of_all_as_dicts,
    "shards": a_bit_of_all_as_dicts,
    "shards_with_all": a_bit_of_all_as_dicts,
}
"""What `load` returns without `like`, where that is not the tree."""

ADAPTERS: dict[str, ModuleType] = {
    "frozen_dict": safejax.flax,
    "linen_dict": safejax.flax,
    "nnx": safejax.flax,
    "haiku": safejax.haiku,
    "equinox": safejax.equinox,
    "objax": safejax.objax,
}
"""The adapter that writes and reads the file, where that is not `save` and `load`."""

HEADS = {"large"}
"""Files of which only the bytes before the data are kept."""

FOREIGN: dict[str, tuple[Callable[[], Any], ModuleType]] = {
    # Written by safejax 0.5.0 with safetensors 0.2.5, without alignment and without a record.
    "safejax-0.5-flax": (
        lambda: flax.core.freeze({
            "params": {
                "Dense_0": {"kernel": ramp(3, 2), "bias": ramp(2)},
                "hidden": {"layer": {"kernel": ramp(2, 2)}},
            },
            "batch_stats": {"BatchNorm_0": {"mean": ramp(3)}},
        }),
        safejax.flax,
    ),
    "safejax-0.5-haiku": (
        lambda: {
            "params": {"mlp/~/linear_0": {"w": ramp(3, 2), "b": ramp(2)}},
            "state": {"mlp/~/ema": {"counter": np.array(3, np.int32)}},
        },
        safejax.haiku,
    ),
    "safejax-0.5-objax": (
        lambda: objax.VarCollection([
            ("(Net).layer(Linear).b", objax.TrainVar(jnp.asarray(ramp(2)))),
            ("(Net).layer(Linear).w", objax.TrainVar(jnp.asarray(ramp(3, 2)))),
            ("(Net).noise(Generator).key", objax_variables()["(Net).noise(Generator).key"]),
            ("(Net).norm(BatchNorm).mean", objax.StateVar(jnp.asarray(ramp(1, 2)))),
            ("(Net).tied(Linear).w", objax.TrainVar(jnp.asarray(ramp(3, 2)))),
        ]),
        safejax.objax,
    ),
    # `"__metadata__": null`, as MLX writes it.
    "null-metadata": (lambda: {"layers": {"0": {"w": ramp(2)}}}, safejax),
    # Names that extend other names, without a record that distinguishes keys from containers.
    "extended-names": (
        lambda: {
            "0": {"w": ramp(2), "w.absmax": ramp(3), "w.map.0": ramp(4)},
            "1": ramp(3),
            "1.w": ramp(2),
        },
        safejax,
    ),
    # An index as Hugging Face's libraries write it, without a record.
    "hugging-face": (
        lambda: {"model": {"layers": {"0": {"w": ramp(2, 2)}, "1": {"w": ramp(2, 2)}}}},
        safejax,
    ),
}  # fmt: skip


# ---- writing and reading


def written(name: str, tree: Any, scratch: Path) -> dict[str, bytes]:
    """The files that the tree is stored as, by their names in `golden/<generation>/`."""
    options = OPTIONS.get(name, {})
    if name in HEADS:
        data = safejax.serialize(tree, **options)
        head = data[: data_begin(data)]
        assert data == whole(head, tree)
        return {f"{name}.head": head}
    if "max_shard_bytes" in options:
        safejax.save(tree, scratch / name, **options)
        return {f"{name}/{path.name}": path.read_bytes() for path in (scratch / name).iterdir()}
    serialize = ADAPTERS.get(name, safejax).serialize
    return {f"{name}.safetensors": serialize(tree, **options)}


def kept(folder: Path, name: str) -> dict[str, bytes]:
    """The existing files of that name."""
    paths = [*folder.glob(f"{name}.*"), *folder.glob(f"{name}/*")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def whole(head: bytes, tree: Any) -> bytes:
    """The file that begins with `head`, followed by the tree's data in the order of the header."""
    header = json.loads(head[8:])
    header.pop("__metadata__")
    leaves = safejax.flatten(tree)
    begins = {name: entry["data_offsets"][0] for name, entry in header.items()}
    data = [np.asarray(leaves[name]).tobytes() for name in sorted(begins, key=begins.__getitem__)]
    return head + b"".join(data)


def load(path: Path, name: str, scratch: Path, **options: Any) -> Any:
    """The tree in a golden file, read by the adapter that wrote it."""
    if name in ADAPTERS:
        return ADAPTERS[name].deserialize(path, **options)
    if name in HEADS:
        (scratch / "whole").write_bytes(whole(path.read_bytes(), TREES[name]()))
        path = scratch / "whole"
    return safejax.load(path, **options)


def comparable(tree: Any) -> Any:
    """A pytree that JAX can compare and that holds all that `tree` does."""
    if not isinstance(tree, objax.VarCollection):
        return tree
    first: dict[int, str] = {}
    return [
        (
            f"{name}: {type(variable).__name__}",
            first.setdefault(id(getattr(variable, "ref", variable)), name),
            variable.value,
        )
        for name, variable in tree.items()
    ]


def assert_same_tree(actual: Any, expected: Any) -> None:
    assert isinstance(actual, objax.VarCollection) == isinstance(expected, objax.VarCollection)
    assert_trees_identical(comparable(actual), comparable(expected))


@pytest.fixture(scope="session", autouse=True)
def _golden_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Write the missing files if the environment asks for it."""
    if not WRITE:
        return
    folder = GOLDEN / GENERATION
    for name, tree in TREES.items():
        found = written(name, tree(), tmp_path_factory.mktemp("golden"))
        newest = newest_with(name)
        if newest == GENERATION or (newest and kept(GOLDEN / newest, name) == found):
            continue
        for path, data in found.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with open(folder / path, "xb") as file:  # Existing files are never written again.
                file.write(data)


def generations() -> list[str]:
    return sorted(
        path.name for path in GOLDEN.iterdir() if path.is_dir() and path.name != "foreign"
    )


def paths_of(generation: str) -> dict[str, Path]:
    paths = {
        path.name.removesuffix(".safetensors").removesuffix(".head"): path
        for path in (GOLDEN / generation).iterdir()
    }
    return {name: path for name, path in paths.items() if name not in UNKNOWN}


def newest_with(name: str) -> str | None:
    """The newest generation that has a file of that name: the tree is written as there."""
    having = [generation for generation in generations() if name in paths_of(generation)]
    return having[-1] if having else None


def with_types_of(generation: str, tree: Any) -> Any:
    """The tree as a file of the generation has it: those of v1 know no weak types."""

    def of_leaf(leaf: Any) -> Any:
        return np.asarray(leaf) if getattr(leaf, "weak_type", False) else leaf

    return jax.tree.map(of_leaf, tree) if generation == "v1" else tree


def in_each_generation() -> list[tuple[str, str]]:
    return [(generation, name) for generation in generations() for name in paths_of(generation)]


def test_every_tree_has_a_file_and_every_file_has_a_tree() -> None:
    assert GENERATION.startswith(f"v{VERSION}")
    assert GENERATION in generations()
    assert {name for _, name in in_each_generation()} == TREES.keys(), "see the top of this file"
    assert paths_of("foreign").keys() == FOREIGN.keys()


def test_golden_files_are_small() -> None:
    files = [path for path in GOLDEN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000


@pytest.mark.parametrize(("generation", "name"), sorted(in_each_generation()))
def test_a_golden_file_loads_to_its_tree(generation: str, name: str, tmp_path: Path) -> None:
    path = paths_of(generation)[name]
    options: list[dict[str, Any]] = [{}]
    if OPTIONS.get(name, {}).get("checksum"):
        options.append({"verify": True})
    for each in options:
        tree = TREES[name]()
        assert_same_tree(load(path, name, tmp_path, like=tree, **each), tree)
        if name == "equinox":  # needs like
            continue
        expected = with_types_of(generation, WITHOUT_LIKE.get(name, TREES[name])())
        assert_same_tree(load(path, name, tmp_path, **each), expected)
    if name not in HEADS:
        assert dict(safejax.metadata(path)) == OPTIONS.get(name, {}).get("metadata", {})


@pytest.mark.parametrize("name", TREES)
def test_the_tree_is_written_as_it_was(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Both from the tree and from what is loaded from the file, with node types from `like`."""
    generation = newest_with(name)
    assert generation is not None
    path = paths_of(generation)[name]
    expected = kept(GOLDEN / generation, name)
    tree = TREES[name]()
    loaded = load(path, name, tmp_path, like=tree)
    for each in (tree, loaded):
        found = written(name, each, tmp_path_factory.mktemp(name))
        assert found.keys() == expected.keys()
        for file, data in found.items():
            assert data == expected[file], f"{file} is no longer written alike"


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_program_loads(name: str) -> None:
    tree, adapter = FOREIGN[name]
    path = paths_of("foreign")[name]
    read = safejax.load if adapter is safejax else adapter.deserialize
    assert_same_tree(read(path), tree())
    assert_same_tree(read(path, like=tree()), tree())


# ---- loading does not depend on earlier imports


def describe(node: Any) -> Any:
    """The tree as JSON: containers with their types and keys, leaves with their bits."""
    if isinstance(node, Mapping):
        return [type(node).__name__, [[repr(key), describe(each)] for key, each in node.items()]]
    if isinstance(node, list | tuple):
        return [type(node).__name__, [describe(each) for each in node]]
    node = getattr(node, "value", node)  # variables of objax
    if not hasattr(node, "dtype"):
        return repr(node)
    is_key = jax.dtypes.issubdtype(node.dtype, jax.dtypes.prng_key)
    bits = np.asarray(jax.random.key_data(node) if is_key else node)
    return [str(node.dtype), str(bits.dtype), list(bits.shape), hashlib.sha256(bits).hexdigest()]


FRAMEWORKS = ("flax", "haiku", "objax", "equinox")

PROGRAM = f"""
import hashlib, json, sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safejax

{inspect.getsource(describe)}
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None  # As if it were not installed.
found = {{path: describe(safejax.load(path)) for path in sys.argv[2:]}}
imported = [name for name in {FRAMEWORKS!r} if sys.modules.get(name)]
print(json.dumps([found, imported]))
"""

OF_FRAMEWORKS = {
    "frozen_dict": "flax", "frozen_dict_within": "flax", "haiku": "haiku", "objax": "objax",
}  # fmt: skip
"""Files with containers that are a framework's own, and that our adapter for it builds."""

PATHS = {
    path: name
    for generation in (*generations(), "foreign")
    for name, path in paths_of(generation).items()
    if path.suffix != ".head"
}


def read_in_another_process(paths: list[Path], missing: list[str]) -> tuple[dict[str, Any], Any]:
    """What `load` gives where these frameworks are not installed, and what it imported."""
    done = subprocess.run(
        [
            sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", PROGRAM,
            json.dumps(missing), *map(str, paths),
        ],
        capture_output=True, text=True, check=True, cwd=Path(safejax.__file__).parents[1],
    )  # fmt: skip
    found, imported = json.loads(done.stdout)
    return found, imported


def read_here(path: Path) -> Any:
    return json.loads(json.dumps(describe(safejax.load(path))))


def test_reading_does_not_depend_on_the_adapters_that_were_imported() -> None:
    """(S10)"""
    plain = [path for path, name in PATHS.items() if name not in OF_FRAMEWORKS]
    found, imported = read_in_another_process(plain, [])
    assert found == {str(path): read_here(path) for path in plain}
    assert not imported
    for path, name in PATHS.items():
        if name in OF_FRAMEWORKS:
            found, imported = read_in_another_process([path], [])
            assert found == {str(path): read_here(path)}
            assert OF_FRAMEWORKS[name] in imported


def bits_in(description: Any) -> list[str]:
    if isinstance(description, list):
        return sorted(bits for part in description for bits in bits_in(part))
    return [description] if isinstance(description, str) and len(description) == 64 else []


def test_where_the_framework_is_missing_its_containers_are_dicts() -> None:
    paths = [path for path, name in PATHS.items() if name in OF_FRAMEWORKS]
    found, imported = read_in_another_process(paths, list(FRAMEWORKS))
    assert not imported
    for path in paths:
        assert bits_in(found[str(path)]) == bits_in(read_here(path))
        assert found[str(path)][0] == "dict"
