"""Flatten, unflatten, and matching with `like`."""

import dataclasses
import warnings
from collections import OrderedDict
from typing import Any, NamedTuple

import chex
import flax.core
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from safejax import (
    LazyArray,
    LeafError,
    Leaves,
    MismatchError,
    PartialLoadWarning,
    ShardingError,
    TransformError,
    cast,
    flatten,
    observe_reads,
    unflatten,
)
from safejax._src.leaves.flatten import assemble
from safejax.testing import ALL_DTYPES, assert_same_bits, assert_trees_identical
from tests.support.leaves import stored

DEVICES = jax.devices()
MESH = Mesh(np.asarray(DEVICES), ("x",))
ROWS = NamedSharding(MESH, PartitionSpec("x"))
ALL = NamedSharding(MESH, PartitionSpec())
ON_3 = SingleDeviceSharding(DEVICES[3])


class Pair(NamedTuple):
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    w: Any
    b: Any
    name: str = dataclasses.field(default="linear", metadata={"static": True})


@flax.struct.dataclass
class Flaxen:
    w: Any
    n: Any
    act: str = flax.struct.field(pytree_node=False, default="relu")


@chex.dataclass
class Chexed:
    w: Any
    n: Any


def joined(leaves: Leaves, **options: Any) -> Any:
    return assemble(leaves, file="m.safetensors", **options)


PARAMS = {"dense": {"w": jnp.arange(12.0).reshape(4, 3), "b": np.arange(3, dtype=np.int8)}}


# ---- flatten and unflatten


def test_flatten_keeps_the_leaf_objects() -> None:
    leaves = flatten(PARAMS)
    assert list(leaves) == ["dense.b", "dense.w"]
    assert leaves["dense.w"] is PARAMS["dense"]["w"]
    assert leaves["dense.b"] is PARAMS["dense"]["b"]
    assert unflatten(leaves)["dense"]["b"] is PARAMS["dense"]["b"]


NODES: dict[str, Any] = {
    "namedtuple": Pair(jnp.ones(2), [1, None]),
    "registered dataclass": Layer(jnp.ones(2), None),
    "flax dataclass": Flaxen(jnp.ones(2), 3, "gelu"),
    "chex dataclass": Chexed(w=jnp.ones(2), n=3),
    "FrozenDict": flax.core.freeze({"b": {"w": jnp.ones(2)}, "a": 1}),
    "OrderedDict": OrderedDict([("b", jnp.ones(2)), ("a", {})]),
    "adam": optax.adam(1e-3).init(PARAMS["dense"]),
    "a chain": optax.chain(optax.clip(1.0), optax.adamw(0.1), optax.ema(0.9)).init(PARAMS["dense"]),
    "masked": optax.masked(optax.adam(1e-3), {"w": True, "b": False}).init(PARAMS["dense"]),
    "hyperparameters": optax.inject_hyperparams(optax.sgd)(0.1, momentum=0.9).init(PARAMS["dense"]),
    "multi steps": optax.MultiSteps(optax.adam(1e-3), 2).init(PARAMS["dense"]),
    "partition": optax.partition(
        {"a": optax.adam(1e-3), "b": optax.sgd(0.1)}, {"w": "a", "b": "b"}
    ).init(PARAMS["dense"]),
    "train state": TrainState.create(apply_fn=len, params=PARAMS["dense"], tx=optax.adam(1e-3)),
}  # fmt: skip


@pytest.mark.parametrize("node", NODES)
def test_nodes_of_every_type_come_back_in_process(node: str) -> None:
    assert_trees_identical(unflatten(flatten(NODES[node])), NODES[node])


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("abstractly", [False, True])
def test_nodes_of_every_type_come_back_with_like(node: str, abstractly: bool) -> None:
    tree = NODES[node]
    like = tree
    if abstractly:
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            if hasattr(leaf, "shape") else leaf,
            tree,
        )  # fmt: skip
    again = unflatten(stored(tree), like=like)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    assert_trees_identical(again, tree)
    assert_trees_identical(unflatten(like=like)(stored(tree)), tree)


FIELDS: dict[str, Any] = {
    "namedtuple": {"first": np.ones(2, "f4"), "second": [1, None]},
    "registered dataclass": {"w": np.ones(2, "f4"), "b": None},
    "flax dataclass": {"w": np.ones(2, "f4"), "n": 3},
    "chex dataclass": {"w": np.ones(2, "f4"), "n": 3},
    "OrderedDict": NODES["OrderedDict"],
    "adam": [
        {"count": np.int32(0),
         **{m: {"b": np.zeros(3, "i1"), "w": np.zeros((4, 3), "f4")} for m in ("mu", "nu")}},
        {},
    ],
}  # fmt: skip
FIELDS["adam"] = tuple(FIELDS["adam"])


@pytest.mark.parametrize("node", FIELDS)
def test_nodes_come_back_as_dicts_of_their_fields_without_like(node: str) -> None:
    again = unflatten(stored(NODES[node]))
    assert jax.tree.structure(again) == jax.tree.structure(FIELDS[node])
    for leaf, expected in zip(jax.tree.leaves(again), jax.tree.leaves(FIELDS[node]), strict=True):
        assert_same_bits(leaf, expected)


def test_static_parts_come_from_like() -> None:
    again = unflatten(stored(Flaxen(jnp.ones(2), 3, "gelu")), like=Flaxen(jnp.zeros(2), 0, "tanh"))
    assert again.act == "tanh"
    assert again.n == 3


REFUSED = [object(), b"x", np.str_("x"), {1}, len, np.array(["x"]), np.datetime64("2020")]


@pytest.mark.parametrize("leaf", REFUSED, ids=lambda leaf: type(leaf).__name__)
def test_flatten_refuses_anything_but_a_leaf_and_names_it(leaf: Any) -> None:
    with pytest.raises(LeafError, match=r"leaf 'a\.0'"):
        flatten({"a": [leaf]})
    with pytest.raises(LeafError, match=r"leaf 'a\.0'"):
        unflatten(Leaves({}), like={"a": [leaf]})


def test_the_callers_tree_does_not_change() -> None:
    tree = {"a": [np.ones(2), None, {}], "b": OrderedDict(z=1, y=2)}
    before = jax.tree.structure(tree), [id(leaf) for leaf in jax.tree.leaves(tree)]
    leaves = flatten(tree)
    unflatten(leaves, like=tree)
    unflatten(cast("bfloat16")(leaves))
    assert (jax.tree.structure(tree), [id(leaf) for leaf in jax.tree.leaves(tree)]) == before
    assert tree["a"][0].tolist() == [1, 1]
    assert tree["a"][2] == {}


@pytest.mark.parametrize("wrong", [{"a": 1}, 3, "x", b"x", [1]])
def test_unflatten_accepts_only_leaves(wrong: Any) -> None:
    with pytest.raises(TypeError, match="unflatten: expected Leaves, got"):
        unflatten(wrong)


def test_names_that_contradict_each_other() -> None:
    with pytest.raises(TransformError, match=r"^leaves: leaf 'k\.k.*at most 500 nested containers"):
        unflatten(Leaves({".".join("k" * 501): 1}))


# ---- steps


def test_unflatten_is_a_step() -> None:
    assert flatten.inverse == unflatten
    assert unflatten.inverse == flatten
    like = {"a": 1}
    assert unflatten(like=like) == unflatten(like=like)
    assert unflatten(like=like) != unflatten(like={"a": 1})
    assert unflatten(like=like).inverse == flatten
    assert unflatten(like=like)(Leaves({"a": 2})) == {"a": 2}
    assert unflatten(like=like)(Leaves({"b": 2}), like={"b": 1}) == {"b": 2}


# ---- what like accepts

KEY = jax.random.key(3)
F32 = jax.ShapeDtypeStruct((), "float32")
I32 = jax.ShapeDtypeStruct((), "int32")


def sds(*shape: int, dtype: Any = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


ACCEPTED: dict[str, tuple[Any, Any]] = {
    # The stored leaf, and the leaf of like.
    "64 bits as 32": (np.ones(2), sds(2)),
    "32 bits as 64": (np.ones(2, np.float32), sds(2, dtype="float64")),
    "64-bit ints": (np.ones(2, np.int64), jnp.ones(2, jnp.int32)),
    "int as int": (3, 5),
    "bool as bool": (True, False),
    "float as float": (0.5, 1.0),
    "string as string": ("gelu", "relu"),
    "complex as complex": (1j, 0j),
    "none": (None, None),
    "empty": ({}, ()),
    "0-d array for an int": (np.int32(7), 3),
    "0-d bfloat16 for a float": (jnp.bfloat16(7), 0.1),
    "0-d bool for a bool": (np.bool_(True), False),
    "0-d float for an int": (np.float32(1.5), 3),
    "int for a 0-d int": (3, I32),
    "int for a 0-d int8": (-128, sds(dtype="int8")),
    "int for a 0-d float": (3, F32),
    "int for a 0-d int4": (-8, sds(dtype="int4")),
    "bool for a 0-d bool": (True, sds(dtype="bool")),
    "float for a 0-d float32": (0.1, F32),
    "float for a 0-d bfloat16, exact": (0.5, sds(dtype="bfloat16")),
    "nan for a 0-d float": (float("nan"), F32),
    "inf for a 0-d bfloat16": (float("inf"), sds(dtype="bfloat16")),
    "complex for a 0-d complex": (1 + 2j, sds(dtype="complex64")),
    "key": (KEY, sds(dtype=KEY.dtype)),
    "keys": (jax.random.split(KEY, 3), jax.random.split(KEY, 3)),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_like_accepts(case: str) -> None:
    found, expected = ACCEPTED[case]
    leaf = unflatten(stored({"w": found}), like={"w": expected})["w"]
    if hasattr(expected, "shape"):
        assert isinstance(leaf, LazyArray)
        assert leaf.shape == expected.shape
        if hasattr(found, "shape"):
            assert_same_bits(leaf, found)
        else:
            assert leaf.dtype == expected.dtype
            rounded = np.asarray(found).astype(expected.dtype)
            assert np.asarray(leaf).tobytes() == rounded.tobytes()
    elif hasattr(found, "shape"):
        assert_same_bits(leaf, found)
    elif found == {}:
        assert leaf == ()
    else:
        assert_same_bits(leaf, found)


MISMATCHED: dict[str, tuple[Any, Any, str]] = {
    # The stored leaf, the leaf of like, and the rest of the report.
    "dtype": (jnp.ones((4, 3), jnp.bfloat16), sds(4, 3),
              "expected float32[4,3] from like, got bfloat16[4,3]; "
              "pass transform=cast('float32', where='a.w')"),
    "to an int": (np.ones(2, np.float32), sds(2, dtype="int32"),
                  "expected int32[2] from like, got float32[2]; "
                  "pass transform=cast('int32', source='float32', where='a.w')"),
    "from an int of 64 bits": (np.ones(2, np.int64), sds(2),
                               "expected float32[2] from like, got int32[2]; "
                               "pass transform=cast('float32', source='int64', where='a.w')"),
    "shape": (np.ones((3, 4), np.float32), sds(4, 3),
              "expected float32[4,3] from like, got float32[3,4]; pass a transform that makes"),
    "0-d and 1": (np.ones(1, np.float32), F32, "expected float32[] from like, got float32[1]"),
    "key for bits": (KEY, sds(2, dtype="uint32"), "expected uint32[2] from like, got key<fry>[]"),
    "bits for a key": (jax.random.key_data(KEY), KEY, "expected key<fry>[] from like, got uint32"),
    "another key": (jax.random.key(1, impl="rbg"), KEY, "got key<rbg>[]; to keep that of like"),
    "array for none": (np.ones(2, np.float32), None, "expected None from like, got float32[2]"),
    "none for an array": (None, sds(2), "expected float32[2] from like, got None"),
    "array for empty": (np.ones(2, np.float32), {}, "expected an empty container from like"),
    "empty for none": ({}, None, "expected None from like, got an empty container"),
    "none for empty": (None, {}, "expected an empty container from like, got None"),
    "array for a scalar": (np.ones(1, np.float32), 3, "expected int 3 from like, got float32[1]"),
    "array for a string": (np.float32(1), "relu", "expected str 'relu' from like, got float32[]"),
    "key for a scalar": (KEY, 3, "expected int 3 from like, got key<fry>[]"),
    "int for a float": (3, 0.1, "expected float 0.1 from like, got int 3"),
    "bool for an int": (True, 3, "expected int 3 from like, got bool True"),
    "string for an int": ("x", 3, "expected int 3 from like, got str 'x'"),
    "none for an int": (None, 3, "expected int 3 from like, got None"),
    "string for an array": ("x", F32, "expected float32[] from like, got str 'x'"),
    "int for a vector": (3, sds(1), "expected float32[1] from like, got int 3"),
    "int for a key": (3, KEY, "expected key<fry>[] from like, got int 3"),
    "float for a 0-d int": (3.0, I32, "expected int32[] from like, got float 3.0"),
    "bool for a 0-d int": (True, I32, "expected int32[] from like, got bool True"),
    "int for a 0-d bool": (1, sds(dtype="bool"), "expected bool[] from like, got int 1"),
    "complex for a 0-d float": (1j, F32, "expected float32[] from like, got complex 1j"),
    "too large an int": (2**40, I32, "expected int32[] from like, got int 1099511627776"),
    "an int that wraps": (300, sds(dtype="int8"), "expected int8[] from like, got int 300"),
    "an int of 4 bits that wraps": (8, sds(dtype="int4"), "expected int4[] from like, got int 8"),
    "huge": (2**200, I32, "expected int32[] from like, got int 0x1000"),
    "an int that rounds": (2**24 + 1, F32, "expected float32[] from like, got int 16777217"),
    "a float that rounds": (0.1, sds(dtype="bfloat16"), "expected bfloat16[] from like, got float"),
    "a float that overflows": (1e300, F32, "expected float32[] from like, got float 1e+300"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISMATCHED)
def test_what_like_does_not_accept(case: str) -> None:
    found, expected, message = MISMATCHED[case]
    with pytest.raises(MismatchError) as caught:
        joined(stored({"a": {"w": found}}), like={"a": {"w": expected}})
    first, line = str(caught.value).split("\n  ")
    assert first.startswith("m.safetensors: 1 leaf does not match like, which has 1")
    assert line.startswith("mismatched 'a.w': ")
    assert message in line
    assert line.count(";") == 1  # every line ends in a remedy


@pytest.mark.parametrize(
    "case", [name for name, case in MISMATCHED.items() if "transform=" in case[2]]
)
def test_the_cast_that_a_report_suggests_helps(case: str) -> None:
    found, expected, _ = MISMATCHED[case]
    leaves = stored({"a{": {"w": found}})
    with pytest.raises(MismatchError) as caught:
        joined(leaves, like={"a{": {"w": expected}})
    call = str(caught.value).rpartition("transform=")[2]
    leaf = joined(eval(call, {"cast": cast})(leaves), like={"a{": {"w": expected}})["a{"]["w"]
    assert leaf.dtype == expected.dtype


def test_one_report_names_every_mismatch() -> None:
    tree = {
        "a": np.ones((2, 3), "f4"),
        "b": np.ones(2, "f4"),
        "c": 1,
        "d": np.ones(1, "f4"),
        "e": [],
    }
    like = {"a": sds(3, 2), "b": sds(2, dtype="bfloat16"), "c": 2, "x": sds(5), "y": [None, {}, 7]}
    with pytest.raises(MismatchError) as caught:
        joined(stored(tree), like=like)
    assert str(caught.value).splitlines() == [
        "m.safetensors: 5 leaves do not match like, which has 7:",
        "  mismatched 'a': expected float32[3,2] from like, got float32[2,3]; pass a transform "
        "that makes it so, or correct like",
        "  mismatched 'b': expected bfloat16[2] from like, got float32[2]; pass "
        "transform=cast('bfloat16', where='b')",
        "  missing 'x': expected float32[5] from like, there is none; give an array in like, and "
        "pass strict=False",
        "  missing 'y.2': expected int 7 from like, there is none; pass strict=False to keep "
        "that of like",
        "  unexpected 'd': expected none from like, got float32[1]; pass strict=False to ignore it",
    ]


def test_like_matches_names_not_containers() -> None:
    leaves = stored({"l": [jnp.ones(2), jnp.zeros(2)]})
    like = {"l": {"0": sds(2), "1": sds(2)}}
    again = unflatten(leaves, like=like)
    assert isinstance(again["l"], dict)
    assert np.asarray(again["l"]["0"]).tolist() == [1, 1]
    foreign = Leaves({"l.0": leaves["l.0"], "l.1": leaves["l.1"]})
    again = unflatten(foreign, like={"l": (sds(2), sds(2))})
    assert isinstance(again["l"], tuple)
    again = unflatten(foreign, like={"l": {0: sds(2), 1: sds(2)}})
    assert list(again["l"]) == [0, 1]
    again = unflatten(foreign, like={"l.0": sds(2), "l.1": sds(2)})
    assert list(again) == ["l.0", "l.1"]


def test_none_in_like_need_not_be_stored() -> None:
    assert unflatten(Leaves({"a": 1}), like={"a": 2, "b": None, "c": [(), {}]}) == {
        "a": 1, "b": None, "c": [(), {}],
    }  # fmt: skip


def test_matching_reads_nothing() -> None:
    leaves = stored(PARAMS)
    with observe_reads() as log:
        again = joined(leaves, like=PARAMS, sharding=ALL)
        repr(again)
        with pytest.raises(MismatchError):
            joined(leaves, like={"dense": {"w": sds(1), "x": sds(2)}})
        assert not log.reads
    assert not again["dense"]["w"].is_placed


# ---- like with strict=False


def test_strict_false_takes_missing_leaves_from_like_and_warns() -> None:
    leaves = stored({"body": {"w": jnp.ones(2)}, "old": jnp.ones(3), "older": 1})
    head, count = np.full(3, 7.0), 5
    like = {"body": {"w": sds(2)}, "head": {"w": head, "n": count}, "none": None}
    with pytest.warns(PartialLoadWarning) as caught:
        tree = joined(leaves, like=like, strict=False)
    assert [str(warning.message) for warning in caught] == [
        "m.safetensors: 2 missing, taken from like: 'head.n', 'head.w'; "
        "2 unexpected, not loaded: 'old', 'older'"
    ]
    assert tree["head"]["w"] is head
    assert tree["head"]["n"] == 5
    assert list(tree) == ["body", "head", "none"]
    assert isinstance(tree["body"]["w"], LazyArray)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": sds(2)}, "m.safetensors: 1 unexpected, not loaded: 'b'"),
        ({"a": sds(2), "b": 1, "c": 2}, "m.safetensors: 1 missing, taken from like: 'c'"),
    ],
)
def test_strict_false_warns_of_only_missing_or_only_unexpected_leaves(
    like: Any, message: str
) -> None:
    leaves = stored({"a": jnp.ones(2), "b": 1})
    with pytest.warns(PartialLoadWarning) as caught:
        joined(leaves, like=like, strict=False)
    assert [str(warning.message) for warning in caught] == [message]


def test_strict_false_does_not_warn_where_everything_matches() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        joined(stored(PARAMS), like=PARAMS, strict=False)


def test_strict_false_still_refuses_mismatched_leaves() -> None:
    leaves = stored({"a": np.ones(2, "f4")})
    with pytest.raises(MismatchError, match="1 leaf does not match") as caught:
        joined(leaves, like={"a": sds(3), "b": np.ones(2)}, strict=False)
    assert "missing" not in str(caught.value)
    with pytest.raises(
        MismatchError, match=r"missing 'b': .* there is none; give an array in like"
    ):
        joined(leaves, like={"a": sds(2), "b": sds(2)}, strict=False)


def test_leaves_taken_from_like_have_the_requested_sharding_too() -> None:
    leaves = stored({"body": jnp.ones(8)})
    head = np.arange(8)
    like = {"body": sds(8), "head": head, "on 3": jax.device_put(jnp.ones(8), DEVICES[3])}
    with pytest.warns(PartialLoadWarning):
        tree = joined(leaves, like=like, strict=False, sharding=ROWS)
    assert [leaf.sharding for leaf in jax.tree.leaves(tree)] == [ROWS] * 3
    assert np.asarray(tree["head"]).tolist() == list(range(8))
    assert like["head"] is head
    for spelling in ({"body": ROWS, "head": None, "on 3": None},
                     lambda name, aval: ROWS if name == "body" else None):  # fmt: skip
        with pytest.warns(PartialLoadWarning):
            tree = joined(leaves, like=like, strict=False, sharding=spelling)
        assert tree["head"] is head
        assert tree["on 3"] is like["on 3"]
        assert tree["body"].sharding == ROWS


# ---- which sharding a leaf has

COMMITTED = jax.device_put(jnp.ones(8), ROWS)
LIKES: dict[str, tuple[Any, Any]] = {
    # The leaf of like, and the sharding that it requests.
    "committed": (COMMITTED, ROWS),
    "committed to a device": (jax.device_put(jnp.ones(8), DEVICES[3]), ON_3),
    "abstract": (jax.ShapeDtypeStruct((8,), "float32", sharding=ROWS), ROWS),
    "abstract without": (sds(8), None),
    "uncommitted": (jnp.ones(8), None),
    "lazy": (stored({"w": jnp.ones(8)})["w"], None),
    "lazy and bound": (joined(stored({"w": jnp.ones(8)}), sharding=ROWS)["w"], ROWS),
}


@pytest.mark.parametrize("case", LIKES)
def test_the_argument_takes_precedence_over_like_and_like_over_the_default(case: str) -> None:
    expected, own = LIKES[case]
    leaves, like = stored({"w": jnp.ones(8)}), {"w": expected}
    leaf = joined(leaves, like=like)["w"]
    default = SingleDeviceSharding(DEVICES[0])
    assert (leaf.sharding, leaf.committed) == ((own, True) if own else (default, False))
    for spelling in (ALL, {"w": ALL}, lambda name, aval: ALL):
        leaf = joined(leaves, like=like, sharding=spelling)["w"]
        assert (leaf.sharding, leaf.committed) == (ALL, True)
    for spelling in ({"w": None}, lambda name, aval: None, None):
        leaf = joined(leaves, like=like, sharding=spelling)["w"]
        assert leaf.sharding == (own or default)


def test_a_sharding_of_like_must_divide() -> None:
    with pytest.raises(ShardingError, match="leaf 'w': expected a sharding that divides"):
        joined(
            stored({"w": jnp.ones(7)}),
            like={"w": jax.ShapeDtypeStruct((7,), "float32", sharding=ROWS)},
        )
    # It does not count where the argument has another sharding.
    joined(
        stored({"w": jnp.ones(7)}),
        like={"w": jax.ShapeDtypeStruct((7,), "float32", sharding=ROWS)},
        sharding=ALL,
    )


def test_leaves_that_are_not_from_files_go_to_their_devices_too() -> None:
    leaves = Leaves({"jax": jnp.ones(8), "np": np.arange(8), "abstract": sds(8), "n": 3})
    tree = joined(leaves, sharding=ROWS)
    assert tree["jax"].sharding == ROWS
    assert isinstance(tree["np"], LazyArray)
    assert tree["np"].sharding == ROWS
    assert tree["abstract"] == jax.ShapeDtypeStruct((8,), "float32", sharding=ROWS)
    assert tree["n"] == 3
    assert leaves["jax"].sharding == SingleDeviceSharding(DEVICES[0])


def test_without_a_sharding_leaves_stay_the_same_objects() -> None:
    leaves = Leaves({"jax": jnp.ones(8), "np": np.ones(8)})
    tree = joined(leaves)
    assert tree["jax"] is leaves["jax"]
    assert tree["np"] is leaves["np"]


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_every_dtype_matches_itself_in_like(dtype: np.dtype[Any]) -> None:
    leaves = stored({"w": np.zeros((2, 3), dtype)})
    for like in (np.zeros((2, 3), dtype), jax.ShapeDtypeStruct((2, 3), dtype), leaves["w"]):
        assert_same_bits(unflatten(leaves, like={"w": like})["w"], np.zeros((2, 3), dtype))


def test_x64_decides_which_dtypes_match() -> None:
    with jax.enable_x64(True), pytest.raises(MismatchError, match="got float32"):
        joined(stored({"w": np.ones(2, "f4")}), like={"w": sds(2, dtype="float64")})
