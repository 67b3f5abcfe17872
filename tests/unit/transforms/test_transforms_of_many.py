"""Transforms of several leaves, each compared with NumPy or with a table."""

import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax import (
    EMPTY,
    Leaves,
    NotInvertibleError,
    TransformError,
    cast,
    chain,
    concat,
    drop,
    elementwise,
    encode,
    flatten,
    prefix,
    rename,
    reshape,
    select,
    split,
    stack,
    transpose,
    unstack,
)
from safejax.testing import assert_same_bits
from tests.support.leaves import same, stored

LAYERS = [
    {"w": np.arange(6, dtype=np.float32).reshape(2, 3) + 10 * i, "b": np.int8([i, -i])}
    for i in range(12)
]
"""There are twelve, so that 10 must come after 9 and not after 1."""


# ---- stack


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_numbered_leaves_become_one(axis: int) -> None:
    step = stack("layers.{i}.w", axis=axis)
    leaves = step(select("*.w")(stored({"layers": LAYERS})))
    expected = np.stack([layer["w"] for layer in LAYERS], axis=axis)
    same(leaves, {"layers.w": expected})
    same(step.inverse(leaves), {f"layers.{i}.w": layer["w"] for i, layer in enumerate(LAYERS)})


def test_every_group_that_a_star_matches_is_stacked() -> None:
    tree = {"layers": LAYERS, "head": np.ones(2)}
    leaves = stack("layers.{i}.*")(stored(tree))
    parts = {f"layers.{part}": np.stack([layer[part] for layer in LAYERS]) for part in "wb"}
    same(leaves, {"head": tree["head"], **parts})
    assert safejax.unflatten(leaves)["layers"].keys() == {"w", "b"}
    # The list comes back with its numbers.
    restored = safejax.unflatten(stack("layers.{i}.*").inverse(leaves))
    assert isinstance(restored["layers"], list)
    assert len(restored["layers"]) == 12


NUMBERED: dict[str, tuple[list[str], Any, list[str]]] = {
    "a segment": (["l.0.w", "l.1.w"], stack("l.{i}.*"), ["l.w"]),
    "at the front": (["0.w", "1.w"], stack("{i}.w"), ["w"]),
    "at the end": (["w.0", "w.1"], stack("w.{i}"), ["w"]),
    "within a segment": (["layer_0.w", "layer_1.w"], stack("layer_{i}.*", "layers.*"),
                         ["layers.w"]),
    "one of two numbers": (
        ["b.0.l.0", "b.0.l.1", "b.1.l.0"],
        stack("b.{b}.l.{i}", "b.{b}.l"),
        ["b.0.l", "b.1.l"],
    ),
    "the other of two": (["b.0.l.0", "b.1.l.0"], stack("b.{b}.l.{i}", "l.{i}.b"), ["l.0.b"]),
    "other texts stay": (["l.0.w", "l.norm.w", "w"], stack("l.{i}.*", "stacked.*"),
                         ["stacked.w", "l.norm.w", "w"]),
    "only one": (["l.0.w"], stack("l.{i}.*"), ["l.w"]),
    "any order": (["l.2", "l.0", "l.1"], stack("l.{i}", "l"), ["l"]),
}  # fmt: skip


@pytest.mark.parametrize("case", NUMBERED)
def test_the_number_may_stand_anywhere(case: str) -> None:
    names, step, expected = NUMBERED[case]
    leaves = Leaves({name: np.float32([len(name), at]) for at, name in enumerate(names)})
    stacked = step(leaves)
    assert list(stacked) == expected
    assert dict.keys(dict(step.inverse(stacked))) == leaves.keys()
    same(step.inverse(stacked), dict(leaves))
    if case == "any order":
        assert np.asarray(stacked["l"])[:, 1].tolist() == [1, 2, 0]


ONES = np.ones((2, 3), np.float32)
UNSTACKABLE: dict[str, tuple[dict[str, Any], Any, str]] = {
    "a gap": ({"l.0": 1, "l.2": 1}, stack("l.{i}", "l"), r"numbers 0 to 2, 1 is missing, got 0, 2"),
    "no zero": ({"l.1": 1, "l.2": 1}, stack("l.{i}", "l"), r"0 is missing, got 1, 2"),
    "padding": ({"l.00": 1, "l.01": 1}, stack("l.{i}", "l"), r"leaf 'l\.00'.*got '00'"),
    "shapes": ({"l.0": ONES, "l.1": ONES.T}, stack("l.{i}", "l"),
               r"got float32\[2,3\] for 'l\.0' and float32\[3,2\] for 'l\.1'"),
    "dtypes": ({"l.0": ONES, "l.1": np.ones((2, 3), np.int8)}, stack("l.{i}", "l"),
               r"float32\[2,3\] for 'l\.0' and int8"),
    "stored dtypes": ({"l.0": ONES, "l.1": ONES.astype(np.float64)}, stack("l.{i}", "l"),
                      r"expected one stored dtype|float64\[2,3\] for 'l\.1'"),
    "a scalar": ({"l.0": ONES, "l.1": 1.5}, stack("l.{i}", "l"), r"float 1\.5 for 'l\.1'"),
    "scalars": ({"l.0": 1.5, "l.1": 1.5}, stack("l.{i}", "l"), "expected arrays"),
    "nothing": ({"l.0": None}, stack("l.{i}", "l"), "None for 'l.0'"),
    "the axis": ({"l.0": ONES}, stack("l.{i}", "l", axis=3), r"axis of -3 to 2, got 3"),
    "the negative axis": ({"l.0": ONES}, stack("l.{i}", "l", axis=-4), r"axis of -3 to 2"),
    "a taken name": ({"l.0": ONES, "m": ONES}, stack("l.{i}", "m"), "left alone.*apply to this"),
    "a name the inverse takes": ({"l.0.w": ONES, "l.norm": ONES}, stack("l.{i}.*"),
                                 "leaf 'l.norm'.*give the new leaves other names"),
    "a name of two meanings": ({"1_2.3.0": ONES}, stack("{a}.{b}.{i}", "{a}_{b}"),
                               "got '1_2_3' for .*more specific"),
    "no match": ({"a": ONES}, stack("l.{i}.*"), r"'l\.\{i\}\.\*' to match a leaf"),
    "unstack a scalar": ({"l": 1}, unstack("l", "l.{i}"), "expected an array with an axis"),
    "unstack no axis": ({"l": np.float32(1)}, unstack("l", "l.{i}"),
                        r"axis to unstack, got float32\[\]"),
    "unstack nothing": ({"l": ONES[:0]}, unstack("l", "l.{i}"), "no leaf would remain"),
    "unstack another axis": ({"l": ONES}, unstack("l", "l.{i}", axis=2), "axis of -2 to 1"),
    "unstack to a taken name": ({"l": ONES, "k.1": 1}, unstack("l", "k.{i}"), "'k.1'.*left alone"),
    "unstack to two meanings": ({"x_y": ONES}, unstack("{a}", "{a}_{i}"),
                                "got 'x_y_0' for 'x_y', .*more specific"),
    "unstack no match": ({"a": ONES}, unstack("l", "l.{i}"), "'l' to match a leaf"),
    "split a scalar": ({"a": "text"}, split("a", ["b", "c"]), "expected an array with an axis"),
    "split unevenly": ({"a": ONES}, split("a", ["b", "c"], axis=1),
                       "2 equal parts along axis 1, got the size 3"),
    "split too little": ({"a": ONES}, split("a", ["b", "c"], axis=1, sizes=(1, 1)),
                         r"add up to 3, the size of axis 1, got \[1, 1\], which add up to 2"),
    "split beyond": ({"a": ONES}, split("a", ["b", "c"], axis=2), "axis of -2 to 1, got 2"),
    "split to a taken name": ({"a": ONES, "b": 1}, split("a", ["b", "c"]), "'b'.*left alone"),
    "split to two meanings": ({"1_2.3": ONES}, split("{a}.{b}", ["{a}_{b}", "{a}-{b}"]),
                              "got '1_2_3' for '1_2.3', .*more specific"),
    "split to one name": ({"x-x": ONES}, split("{a}-{b}", ["{a}.{b}", "{b}.{a}"]),
                          "a name for each leaf, got 'x.x' for both 'x-x' and 'x-x'"),
    "split no match": ({"b": ONES}, split("a", ["c", "d"]), "'a' to match a leaf"),
    "concat one missing": ({"a": ONES}, concat(["a", "b"], "c"), "got 'a', and none for 'b'"),
    "concat dtypes": ({"a": ONES, "b": np.ones((2, 3), np.int8)}, concat(["a", "b"], "c"),
                      r"float32\[2,3\] for 'a', int8\[2,3\] for 'b'"),
    "concat shapes": ({"a": ONES, "b": ONES.T}, concat(["a", "b"], "c"),
                      "one shape except for axis 0"),
    "concat other rows": ({"a": ONES, "b": ONES[:1]}, concat(["a", "b"], "c", axis=1),
                          "one shape except for axis 1"),
    "concat unequal": ({"a": ONES, "b": ONES[:1]}, concat(["a", "b"], "c"),
                       r"sizes \[2, 2\] along axis 0, got \[2, 1\]: .*give sizes=\(2, 1\)"),
    "concat other sizes": ({"a": ONES, "b": ONES}, concat(["a", "b"], "c", sizes=(3, 1)),
                           r"sizes \[3, 1\] along axis 0, got \[2, 2\]"),
    "concat a scalar": ({"a": ONES, "b": 1}, concat(["a", "b"], "c"),
                        "leaf 'b': expected an array"),
    "concat no axis": ({"a": np.float32(1), "b": ONES}, concat(["a", "b"], "c"), "leaf 'a'"),
    "concat to a taken name": ({"a": ONES, "b": ONES, "c": 1}, concat(["a", "b"], "c"),
                               "'c'.*left alone"),
    "concat a leaf that is two parts": ({"a.b": ONES}, concat(["a.{i}", "{i}.b"], "{i}"),
                                        r"got 'a\.b', and none for '\{i\}\.b'"),
    "concat to two meanings": ({"1_2.3.k": ONES}, concat(["{a}.{b}.k", "{a}.{b}.v"], "{a}_{b}"),
                               "got '1_2_3' for '1_2.3.k', .*more specific"),
    "concat keys": (
        {name: jax.random.split(jax.random.key(0, impl=kind), 2)
         for name, kind in {"a": "rbg", "b": "unsafe_rbg"}.items()},
        concat(["a", "b"], "c"),
        "expected arrays of one dtype",
    ),
    "concat no match": ({"z": ONES}, concat(["a", "b"], "c"), "'a' to match a leaf"),
    "prefix away": ({"a": 1}, prefix("m").inverse, "begin with 'm.', got 'a'"),
    "prefix away of half a word": ({"mm.a": 1}, prefix("m").inverse, "got 'mm.a'"),
    "prefix away of nothing": ({"m.": 1}, prefix("m").inverse, "got 'm.'"),
    "prefix to metadata": ({"": 1}, prefix("__metadata__"), "which the format reserves"),
    "select nothing": ({"a": 1}, select("a", "b*"), "'b\\*' to match a leaf"),
    "drop nothing": ({"a": 1}, drop("b"), "'b' to match a leaf"),
    "reshape another size": ({"a": ONES}, reshape("a", (4, 2)),
                             r"holds the 6 elements of \[2, 3\], got \[4, 2\]"),
    "reshape no divisor": ({"a": ONES}, reshape("a", (4, -1)), "holds the 6"),
    "reshape another source": ({"a": ONES}, reshape("a", (6,), source=(3, 2)),
                               r"shape \[3, 2\], got \[2, 3\]"),
    "reshape other axes": ({"a": ONES}, reshape("a", (6,), source=(-1,)),
                           r"shape \[-1\], got \[2, 3\]"),
    "reshape nothing": ({"a": ONES}, reshape("b", (6,)), "'b' to match"),
    "elementwise of keys": ({"a": jax.random.key(0)}, elementwise(np.exp, "a"), "got typed keys"),
    "elementwise to one": ({"a": ONES}, elementwise(np.sum, "a"), r"got float32\[\]"),
    "elementwise to a row": ({"a": ONES}, elementwise(np.ravel, "a"), r"got float32\[8\]"),
    "elementwise to text": ({"a": ONES}, elementwise(lambda x: x.astype(str), "a"),
                            "a dtype that JAX"),
    "elementwise of nothing": ({"a": ONES}, elementwise(np.exp, "b"), "'b' to match"),
}  # fmt: skip


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("case", UNSTACKABLE)
def test_leaves_that_cannot_be_stacked_are_named(case: str, lazy: bool) -> None:
    entries, step, message = UNSTACKABLE[case]
    leaves = Leaves(entries)
    leaves = stored(leaves) if lazy else leaves
    with pytest.raises(TransformError, match=message):
        step(leaves)


@pytest.mark.parametrize("make", [
    lambda **more: stack("x.{i}", "y", **more), lambda **more: unstack("x", "y.{i}", **more),
    lambda **more: split("x", ["y", "z"], **more), lambda **more: concat(["x", "y"], "z", **more),
    lambda **more: select("x", **more), lambda **more: drop("x", **more),
    lambda **more: reshape("x", (2,), **more), lambda **more: elementwise(np.exp, "x", **more),
])  # fmt: skip
def test_a_pattern_may_match_nothing_if_that_is_allowed(make: Callable[..., Any]) -> None:
    leaves = Leaves({"a": 1})
    step = make(must_match=False)
    assert dict(step(leaves)) == ({} if repr(step).startswith("select") else {"a": 1})
    assert "must_match=False" in repr(step)
    assert step != make()


@pytest.mark.parametrize("make", [
    lambda **more: stack("x.{i}", "y", **more), lambda **more: unstack("x", "y.{i}", **more),
    lambda **more: split("x", ["y", "z"], **more), lambda **more: concat(["x", "y"], "z", **more),
    lambda **more: reshape("x", (2,), source=(1, 2), **more), lambda **more: transpose("x", **more),
    lambda **more: elementwise(np.negative, "x", inverse=np.negative, **more),
    lambda **more: rename({"x": "y"}, **more),
    lambda **more: cast("int8", source="int4", where="x", **more),
])  # fmt: skip
def test_the_pattern_of_the_inverse_may_match_nothing_if_that_is_allowed(
    make: Callable[..., Any],
) -> None:
    leaves = Leaves({"a": 1})
    assert dict(make(must_match=False).inverse(leaves)) == {"a": 1}
    with pytest.raises(TransformError, match="to match a leaf"):
        make().inverse(leaves)


# ---- split and concat


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
@pytest.mark.parametrize("sizes", [None, (4, 1, 1), (1, 2, 3)])
def test_parts_equal_those_of_numpy(axis: int, sizes: tuple[int, ...] | None) -> None:
    fused = np.arange(36, dtype=np.int16).reshape(6, 6)
    step = split("{i}.qkv", ["{i}.q", "{i}.k", "{i}.v"], axis=axis, sizes=sizes)
    leaves = step(stored({"0": {"qkv": fused}, "1": {"qkv": fused.T.copy()}, "norm": ONES}))
    ends = np.cumsum(sizes or (2, 2, 2))[:-1]
    expected = {
        f"{i}.{part}": array
        for i, whole in enumerate((fused, fused.T))
        for part, array in zip("qkv", np.split(whole, ends, axis), strict=True)
    }
    same(leaves, {**expected, "norm": ONES})
    same(step.inverse(leaves), {"0.qkv": fused, "1.qkv": fused.T, "norm": ONES})
    assert step.inverse.inverse == step


def test_keys_are_stacked_split_and_reshaped_without_the_axes_of_their_data() -> None:
    keys = {f"k.{i}": jax.random.split(jax.random.key(i), 4) for i in range(3)}
    stacked = stack("k.{i}", "k", axis=-1)(stored(keys))
    expected = jnp.stack(list(keys.values()), axis=-1)
    same(stacked, {"k": expected})
    same(split("k", ["a", "b"], axis=-1, sizes=(1, 2))(stacked),
         {"a": expected[:, :1], "b": expected[:, 1:]})  # fmt: skip
    same(reshape("k", (2, -1))(stacked), {"k": expected.reshape(2, 6)})
    same(unstack("k", "k.{i}", axis=1)(stacked), keys)


# ---- reshape


RESHAPED: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "flat": ((2, 3, 4), (-1,)), "to heads": ((4, 6), (4, 2, 3)), "from heads": ((4, 2, 3), (4, 6)),
    "one axis": ((6,), (6,)), "new axes": ((6,), (1, 6, 1)), "to a scalar": ((1, 1), ()),
    "empty": ((0, 3), (3, 0)), "empty and told": ((0, 3), (-1, 3)), "a scalar": ((), (1,)),
}  # fmt: skip


@pytest.mark.parametrize("case", RESHAPED)
def test_shapes_equal_those_of_numpy(case: str) -> None:
    before, after = RESHAPED[case]
    array = np.arange(np.prod(before), dtype=np.float32).reshape(before)
    leaves = reshape("a", after)(stored(Leaves({"a": array, "s": 3})))
    same(leaves, {"a": array.reshape(after), "s": 3})


def test_the_import_of_attention_reads_only_its_heads() -> None:
    """`W.T.reshape(in, heads, dim)` is a window on the stored `W`, and so is each head."""
    w = np.arange(8 * 24, dtype=np.float32).reshape(24, 8)
    step = chain(transpose("w"), reshape("w", (-1, 4, 6), source=(-1, 24)))
    leaf = step(stored(Leaves({"w": w})))["w"]
    with safejax.observe_reads() as log:
        assert np.array_equal(np.asarray(leaf[:, 1]), w.T.reshape(8, 4, 6)[:, 1])
    assert log.nbytes == w.nbytes // 4
    same(step.inverse(step(Leaves({"w": w}))), {"w": w})


def test_a_reshape_that_needs_a_copy_reads_the_whole() -> None:
    w = np.arange(24, dtype=np.float32).reshape(4, 6)
    leaf = chain(transpose("w"), reshape("w", (-1,)))(stored(Leaves({"w": w})))["w"]
    with safejax.observe_reads() as log:
        assert np.asarray(leaf[:2]).tolist() == w.T.reshape(-1)[:2].tolist()
    assert log.nbytes == w.nbytes


# ---- elementwise


def double(array: Any) -> Any:
    return array * 2


def half(array: Any) -> Any:
    return array / 2


def test_a_function_is_applied_where_the_pattern_says() -> None:
    step = elementwise(double, "*.w", inverse=half)
    leaves = step(stored({"layers": LAYERS[:2]}))
    expected = {f"layers.{i}.w": layer["w"] * 2 for i, layer in enumerate(LAYERS[:2])}
    same(leaves, {**expected, "layers.0.b": LAYERS[0]["b"], "layers.1.b": LAYERS[1]["b"]})
    same(step.inverse(leaves), dict(flatten({"layers": LAYERS[:2]})))
    assert repr(step) == "elementwise(double, '*.w', inverse=half)"
    assert step == elementwise(double, "*.w", inverse=half) != elementwise(double, "*.w")
    with pytest.raises(NotInvertibleError, match="a function that reverses it"):
        assert elementwise(double, "*.w").inverse


@pytest.mark.parametrize(
    ("function", "dtype"),
    [(jnp.tanh, "float32"), (np.isnan, "bool"), (lambda x: x.astype("bfloat16"), "bfloat16"),
     (lambda x: x.view(np.uint32), "uint32"), (lambda x: x + 1j, "complex64")],
)  # fmt: skip
def test_the_dtype_is_found_by_calling_the_function(function: Any, dtype: str) -> None:
    array = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    leaf = elementwise(function, "a")(stored(Leaves({"a": array})))["a"]
    assert leaf.dtype.name == dtype
    with safejax.observe_reads() as log:
        part = np.asarray(leaf[1, ::2])
    assert log.nbytes == 32
    assert_same_bits(part, np.asarray(function(array[1, ::2])))
    assert_same_bits(leaf.placed(), np.asarray(function(array)))


def test_calling_the_function_to_find_the_dtype_gives_no_warning() -> None:
    leaf = elementwise(lambda x: 1 / (x - 1), "a")(stored(Leaves({"a": 3 * ONES})))["a"]
    assert_same_bits(leaf, ONES / 2)


@pytest.mark.parametrize("behind", [False, True])
def test_a_function_may_use_other_leaves_of_the_tree(behind: bool) -> None:
    scales = stored({"scale": np.float32([2, 3, 4])})
    tree: dict[str, Any] = dict(scales)

    def scaled(array: Any) -> Any:
        return array * np.asarray(tree["scale"].placed()).sum()

    steps = [elementwise(scaled, "*")]
    if behind:
        steps += [transpose("*"), reshape("*", (-1,))]
    weights = {f"w{number}": ONES * number for number in range(5)}
    tree |= chain(*steps)(stored(weights))
    tree["scale"].delete()  # It was placed when the function was called to find the dtype.
    placed: list[Any] = []
    thread = threading.Thread(target=lambda: placed.append(safejax.materialize(tree)), daemon=True)
    thread.start()
    thread.join(60)
    assert placed, "it waits for itself"
    assert placed[0]["w2"].sum() == 2 * 9 * ONES.size


def test_later_results_of_a_function_are_checked_too() -> None:
    def to_float64_if_there_are_many(array: Any) -> Any:
        return array if array.size < 9 else array.astype(np.float64)

    many = Leaves({"a": np.ones((3, 3), np.float32)})
    leaf = elementwise(to_float64_if_there_are_many, "a")(stored(many))["a"]
    with pytest.raises(TransformError, match=r"expected the function to return float32.*float64"):
        np.asarray(leaf)
    leaf = elementwise(lambda x: x[:2], "a")(stored(many))["a"]
    with pytest.raises(TransformError, match=r"leaf 'a'.*float32\[3, 3\] for .*\[2, 3\]"):
        np.asarray(leaf)


# ---- select, drop, prefix


def test_leaves_are_selected_or_dropped() -> None:
    tree = {"params": {"w": ONES, "b": 1}, "opt": {"mu": {"w": ONES}}, "step": 3, "none": {}}
    leaves = stored(tree)
    assert list(select("params.*", "step")(leaves)) == ["params.w", "params.b", "step"]
    assert list(drop("params.*", "step")(leaves)) == ["opt.mu.w", "none"]
    assert list(select(lambda name: name.endswith("w"))(leaves)) == ["opt.mu.w", "params.w"]
    assert safejax.unflatten(select("none")(leaves)) == {"none": {}}
    assert select("params.*")(leaves).metadata == leaves.metadata
    for step in (select("*"), drop("*")):
        with pytest.raises(NotInvertibleError):
            assert step.inverse
    assert repr(select("a", "b.*")) == "select('a', 'b.*')"
    assert repr(drop("a", must_match=False)) == "drop('a', must_match=False)"


def test_only_what_is_selected_is_read_and_checked(tmp_path: Any) -> None:
    path = tmp_path / "m.safetensors"
    safejax.save({"params": {"w": ONES}, "opt": {"mu": ONES}}, path)
    with safejax.observe_reads() as log:
        tree = safejax.load(path, transform=select("params.*"), like={"params": {"w": ONES}})
        safejax.materialize(tree)
    assert log.nbytes == ONES.nbytes


def test_names_get_a_prefix_and_lose_it_again() -> None:
    leaves = stored({"encoder": {"w": ONES}, "": 1})
    below = prefix("model")(leaves)
    assert list(below) == ["model.encoder.w", "model"]
    same(prefix("model").inverse(below), dict(leaves))
    assert repr(prefix("model").inverse) == "prefix('model').inverse"
    assert prefix("model").inverse.inverse == prefix("model")
    assert safejax.unflatten(prefix("a.b")(flatten(ONES))).keys() == {"a"}


# ---- all together


CHAIN = chain(
    rename({"encoder.layer.{i}.att.qkv": "layers.{i}.qkv", "encoder.layer.{i}.*.weight":
            "layers.{i}.*.kernel"}),
    split("layers.{i}.qkv", ["layers.{i}.q", "layers.{i}.k", "layers.{i}.v"], sizes=(8, 2, 2)),
    transpose("layers.*"),
    reshape("layers.{i}.q", (-1, 4, 2), source=(-1, 8)),
    stack("layers.{i}.*"),
    cast("bfloat16", source="float32", where="layers.mlp*"),
    prefix("model"),
)  # fmt: skip
STORED = {
    f"encoder.layer.{i}.{name}": np.random.default_rng(i).random(shape, np.float32)
    for i in range(3)
    for name, shape in {"att.qkv": (12, 16), "mlp.weight": (8, 16)}.items()
}


def test_a_foreign_checkpoint_is_imported_and_exported_again() -> None:
    leaves = CHAIN(stored(Leaves(STORED)))
    assert {name: leaf.shape for name, leaf in leaves.items()} == {
        "model.layers.q": (3, 16, 4, 2), "model.layers.k": (3, 16, 2),
        "model.layers.v": (3, 16, 2), "model.layers.mlp.kernel": (3, 16, 8),
    }  # fmt: skip
    q = np.stack([STORED[f"encoder.layer.{i}.att.qkv"][:8].T.reshape(16, 4, 2) for i in range(3)])
    assert_same_bits(leaves["model.layers.q"], q)
    exact = chain(*(step for step in CHAIN.steps if "cast" not in repr(step)))
    back = exact.inverse(exact(stored(Leaves(STORED))))
    same(back, STORED)
    assert encode(back) == encode(Leaves(STORED))


@pytest.mark.parametrize("spec", [P("x"), P(None, "x"), P(None, None, "x")])
def test_a_shard_reads_exactly_its_bytes(spec: P) -> None:
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    data = encode(Leaves(STORED))

    def split_if_it_can(name: str, aval: Any) -> NamedSharding:
        sharding = NamedSharding(mesh, spec)
        try:
            sharding.shard_shape(aval.shape)
        except ValueError:
            sharding = NamedSharding(mesh, P(None, "x"))
        return sharding

    tree = safejax.deserialize(data, transform=CHAIN, sharding=split_if_it_can)
    for leaf in jax.tree.leaves(tree):
        stored_width = 4
        with safejax.observe_reads() as log:
            leaf.placed()
        assert log.nbytes == leaf.size * stored_width
        shard = leaf.addressable_shards[0]
        with safejax.observe_reads() as log:
            part = np.asarray(safejax.decode(data) and leaf.content.view.index(shard.index).read())
        assert log.nbytes == part.size * stored_width


def test_abstract_leaves_are_stacked_and_split_like_arrays() -> None:
    avals = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in STORED.items()}
    leaves = CHAIN(Leaves(avals))
    for name, leaf in CHAIN(stored(Leaves(STORED))).items():
        assert isinstance(leaves[name], jax.ShapeDtypeStruct)
        assert (leaves[name].shape, leaves[name].dtype) == (leaf.shape, leaf.dtype)
    aval = jax.ShapeDtypeStruct((2, 3), "float32")
    for mixed in ({"l.0": aval, "l.1": ONES}, {"l.0": ONES, "l.1": aval}):
        for step in (stack("l.{i}", "l"), concat(["l.0", "l.1"], "l")):
            (made,) = step(Leaves(mixed)).values()
            assert isinstance(made, jax.ShapeDtypeStruct)
            assert made.size == 12


@pytest.mark.parametrize("step", [
    stack("k.{i}", "k", axis=-1), split("k.0", ["a", "b"]), concat(["k.0", "k.1"], "k"),
    unstack("k.0", "x.{i}"), reshape("k.0", (1, 4)), transpose("k.1", axes=(0,)),
], ids=repr)  # fmt: skip
@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_abstract_keys_get_the_avals_that_keys_get(step: Any, implementation: str) -> None:
    keys = {f"k.{i}": jax.random.split(jax.random.key(i, impl=implementation), 4) for i in (0, 1)}
    avals = Leaves({name: jax.ShapeDtypeStruct(key.shape, key.dtype) for name, key in keys.items()})
    there = step(avals)
    for name, leaf in step(Leaves(keys)).items():
        assert isinstance(there[name], jax.ShapeDtypeStruct)
        assert (there[name].shape, there[name].dtype) == (leaf.shape, leaf.dtype)


def test_scalars_and_empty_containers_do_not_change() -> None:
    leaves = Leaves({"a": 1, "b": None, "c": EMPTY, "w": ONES})
    for step in (reshape("*", (3, 2)), elementwise(np.negative, "*")):
        changed = step(leaves)
        assert {name: changed[name] for name in "abc"} == {"a": 1, "b": None, "c": EMPTY}
