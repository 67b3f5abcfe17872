"""`keys`, `tie`, `pad` and `crop`; and what a pattern that matches nothing should have been."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import safejax
from safejax import (
    Leaves,
    NotInvertibleError,
    Transform,
    TransformError,
    cast,
    chain,
    crop,
    drop,
    flatten,
    keys,
    pad,
    rename,
    select,
    tie,
)
from safejax.testing import assert_trees_identical
from tests.support.leaves import through_file

EMBED = jnp.arange(20, dtype=jnp.bfloat16).reshape(5, 4)


# ---- keys


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_raw_keys_become_typed_keys_and_back(impl: str) -> None:
    typed = jax.random.split(jax.random.key(7, impl=impl), 3)
    raw = jax.random.key_data(typed)
    wraps = keys("rng", impl=impl)
    assert_trees_identical(through_file({"rng": raw}, wraps), {"rng": typed})
    assert_trees_identical(through_file({"rng": typed}, wraps.inverse), {"rng": raw})
    assert_trees_identical(through_file({"rng": raw}, chain(wraps, wraps.inverse)), {"rng": raw})
    leaf = through_file({"rng": raw}, wraps)["rng"]
    with safejax.observe_reads() as log:
        one = leaf[1]
        assert log.nbytes == 0
        np.testing.assert_array_equal(jax.random.key_data(one), raw[1])
        assert log.nbytes == raw[1].nbytes
    assert eval(repr(wraps)) == wraps
    assert eval(repr(wraps.inverse)) == wraps.inverse


def test_raw_keys_match_a_like_of_typed_ones() -> None:
    state = {"rng": jax.random.key(3), "w": EMBED}
    old = safejax.serialize({"rng": jax.random.PRNGKey(3), "w": EMBED})
    assert_trees_identical(safejax.deserialize(old, like=state, transform=keys("rng")), state)


KEY_FAULTS = {
    "floats": (jnp.ones(2), r"uint32 of a shape that ends in \[2\], got float32\[2\]"),
    "another width": (np.ones(4, np.uint32), r"got uint32\[4\]"),
    "a scalar": (np.uint32(1), r"got uint32\[\]"),
    "typed already": (jax.random.key(0), "got typed keys of threefry2x32"),
}


@pytest.mark.parametrize("fault", KEY_FAULTS)
def test_what_is_no_key_data_is_refused(fault: str) -> None:
    leaf, message = KEY_FAULTS[fault]
    with pytest.raises(TransformError, match=rf"leaf 'rng': expected key data, .*{message}"):
        keys("rng")(Leaves({"rng": leaf}))


def test_what_is_no_such_key_is_refused_by_the_inverse() -> None:
    with pytest.raises(TransformError, match="expected typed keys of threefry2x32, got keys of rb"):
        keys("rng").inverse(Leaves({"rng": jax.random.key(0, impl="rbg")}))
    with pytest.raises(TransformError, match="got an array without keys"):
        keys("rng").inverse(Leaves({"rng": jnp.ones(2)}))
    with pytest.raises(TransformError, match="expected impl to be one of 'threefry2x32', 'rbg'"):
        keys("rng", impl="philox")


# ---- tie


def test_a_tied_leaf_is_stored_once() -> None:
    tree = {"embed": {"weight": EMBED}, "head": {"weight": EMBED}}
    tied = tie({"head.weight": "embed.weight"})
    data = safejax.serialize(tree, transform=tied.inverse)
    assert list(safejax.decode(data)) == ["embed.weight"]
    loaded = safejax.deserialize(data, like=tree, transform=tied)
    assert_trees_identical(loaded, tree)
    assert loaded["embed"]["weight"] is not loaded["head"]["weight"]
    donated = jax.jit(lambda one, other: (one * 2, other * 2), donate_argnums=(0, 1))
    both = safejax.materialize(loaded)
    for doubled in donated(both["embed"]["weight"], both["head"]["weight"]):
        np.testing.assert_array_equal(np.asarray(doubled), np.asarray(EMBED * 2))


def test_equal_values_in_two_arrays_are_tied_and_others_are_not() -> None:
    tied = tie({"head": "embed"})
    equal = {"embed": EMBED, "head": np.asarray(EMBED).copy()}
    assert list(tied.inverse(flatten(equal))) == ["embed"]
    loaded = safejax.decode(safejax.serialize(equal))
    assert list(tied.inverse(loaded)) == ["embed"]
    others = [EMBED.at[4, 3].add(1), EMBED.astype("float32"), EMBED[:4], 3, jax.random.key(0)]
    for other in others:
        with pytest.raises(TransformError, match=r"leaf 'head': expected the values of 'embed'"):
            tied.inverse(Leaves({"embed": EMBED, "head": other}))
    nan = np.asarray([np.nan, -0.0], np.float32)
    assert list(tied.inverse(Leaves({"embed": nan, "head": nan.copy()}))) == ["embed"]
    with pytest.raises(TransformError, match="would be lost"):
        tied.inverse(Leaves({"embed": np.zeros(2, "f4"), "head": -np.zeros(2, "f4")}))
    assert list(tied.inverse(Leaves({"embed": 1, "head": 1}))) == ["embed"]
    with pytest.raises(TransformError, match="would be lost"):
        tied.inverse(Leaves({"embed": 1, "head": True}))


def test_templates_tie_layer_by_layer() -> None:
    tied = tie({"decoder.{i}.w": "encoder.{i}.w"})
    leaves = Leaves({"encoder.0.w": EMBED, "encoder.1.w": EMBED + 1, "b": 1})
    there = tied(leaves)
    assert list(there) == ["encoder.0.w", "encoder.1.w", "b", "decoder.0.w", "decoder.1.w"]
    assert there["decoder.1.w"].name == "decoder.1.w"
    assert list(tied.inverse(there)) == list(leaves)
    assert eval(repr(tied)) == tied
    assert eval(repr(tied.inverse)) == tied.inverse


@pytest.mark.parametrize(
    "names",
    [
        {"a": "b", "b": "a"},
        {"b": "a", "c": "b"},
        {"a.{i}.w": "b.{i}.w", "b.{j}.w": "a.{j}.w"},
    ],
    ids=str,
)
def test_a_second_name_is_not_what_another_is_tied_to(names: dict[str, str]) -> None:
    """(issue 18: the inverse removed both)"""
    with pytest.raises(TransformError, match=r"expected .* to be stored.*the inverse would remove"):
        tie(names)
    assert tie({"b": "a", "c": "a"}).inverse(Leaves({"a": 1, "b": 1, "c": 1})) == Leaves({"a": 1})


def test_templates_that_remove_what_they_keep_are_at_fault_when_they_are_applied() -> None:
    swapped = tie({"a.{i}": "{i}.a"})
    with pytest.raises(TransformError, match=r"'a\.a'.*removed, too: make the templates"):
        swapped.inverse(Leaves({"a.a": 1}))
    with pytest.raises(TransformError, match="new name"):
        swapped(Leaves({"a.a": 1}))


def test_abstract_leaves_are_tied() -> None:
    abstract = Leaves({"embed": jax.ShapeDtypeStruct((2,), jnp.float32)})
    tied = tie({"head": "embed"})
    assert tied(abstract)["head"] == abstract["embed"]
    assert list(tied.inverse(tied(abstract))) == ["embed"]


TIE_FAULTS: dict[str, tuple[Any, str]] = {
    "one name": ({"a": "a"}, "expected two names, got 'a' for 'a', which is the same"),
    "nothing": ({}, "expected a mapping"),
    "a list": (["a"], "expected a mapping"),
    "other placeholders": (
        {"a.{i}": "b"},
        r"expected the same placeholders.* got \['i'\] and \[\]",
    ),
    "no string": ({"a": 1}, "expected templates to be strings"),
}


@pytest.mark.parametrize("fault", TIE_FAULTS)
def test_a_tie_that_is_none_is_refused(fault: str) -> None:
    names, message = TIE_FAULTS[fault]
    with pytest.raises(TransformError, match=message):
        tie(names)


def test_a_tie_that_does_not_fit_is_refused() -> None:
    with pytest.raises(TransformError, match="expected 'head' to be a new name"):
        tie({"head": "embed"})(Leaves({"embed": 1, "head": 2}))
    with pytest.raises(TransformError, match="expected 'embed' to match a leaf"):
        tie({"head": "embed"})(Leaves({"w": 1}))
    with pytest.raises(TransformError, match="expected 'head' to match a leaf"):
        tie({"head": "embed"}).inverse(Leaves({"embed": 1}))
    assert list(tie({"head": "e"}, must_match=False)(Leaves({"w": 1}))) == ["w"]


# ---- pad and crop


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("value", [0, 2.5, -1, float("inf")])
def test_pad_is_that_of_numpy(axis: int, value: float) -> None:
    size = EMBED.shape[axis]
    grown = pad("embed", axis=axis, to=size + 3, value=value, source=size)
    widths = [(0, 3 if at == axis % 2 else 0) for at in (0, 1)]
    expected = np.pad(np.asarray(EMBED), widths, constant_values=np.asarray(value, EMBED.dtype))
    leaf = through_file({"embed": EMBED}, grown)["embed"]
    np.testing.assert_array_equal(np.asarray(leaf), expected)
    np.testing.assert_array_equal(np.asarray(leaf[4:6, 1]), expected[4:6, 1])
    back = through_file({"embed": expected}, grown.inverse)
    np.testing.assert_array_equal(np.asarray(back["embed"]), np.asarray(EMBED))
    assert eval(repr(grown), {"inf": value, "pad": pad}) == grown


def test_what_is_cropped_is_not_read() -> None:
    leaf = through_file({"embed": EMBED}, crop("embed", axis=0, to=2))["embed"]
    with safejax.observe_reads() as log:
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(EMBED)[:2])
    assert log.nbytes == 2 * 4 * 2


def test_padding_is_in_no_plan_and_shards_where_rows_did_not_divide() -> None:
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    data = safejax.serialize({"embed": EMBED})
    grown = pad("embed", axis=0, to=8)
    leaf = safejax.deserialize(data, transform=grown, sharding=sharding)["embed"]
    with safejax.observe_reads() as log:
        leaf.block_until_ready()
    assert log.nbytes == EMBED.nbytes
    np.testing.assert_array_equal(np.asarray(leaf)[:5], np.asarray(EMBED))
    assert not np.asarray(leaf)[5:].any()


PAD_FAULTS: dict[str, tuple[Transform, Any, str]] = {
    "larger": (pad("w", axis=0, to=3), EMBED, r"size of at most 3 of axis 0, got \[5, 4\].*crop"),
    "smaller": (crop("w", axis=1, to=9), EMBED, r"size of at least 9 of axis 1, got .*pad"),
    "another size": (pad("w", axis=0, to=9, source=6), EMBED, "expected the size 6 of axis 0"),
    "no such axis": (pad("w", axis=2, to=9), EMBED, "expected an axis of -2 to 1, got 2"),
    "a value too large": (pad("w", axis=0, to=9, value=300), np.ones(3, np.int8),
                          "expected a value that int8 holds, got 300"),
    "a fraction": (pad("w", axis=0, to=9, value=0.5), np.ones(3, np.int32), "int32 holds, got 0.5"),
    "keys": (pad("w", axis=0, to=9), jax.random.split(jax.random.key(0), 3), "got typed keys"),
}  # fmt: skip


@pytest.mark.parametrize("fault", PAD_FAULTS)
def test_a_leaf_that_cannot_be_padded_is_named(fault: str) -> None:
    step, leaf, message = PAD_FAULTS[fault]
    with pytest.raises(TransformError, match=rf"leaf 'w': .*{message}"):
        step(Leaves({"w": leaf}))


def test_sizes_that_are_none_are_refused() -> None:
    for arguments in ({"to": -1}, {"to": 2.5}, {"to": None}, {"to": 3, "source": "a"}):
        with pytest.raises(TransformError, match="expected to and source to be sizes of an axis"):
            pad("w", axis=0, **arguments)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TransformError, match="expected source to be at most to"):
        pad("w", axis=0, to=3, source=4)
    with pytest.raises(TransformError, match="expected source to be at least to"):
        crop("w", axis=0, to=4, source=3)
    with pytest.raises(TransformError, match="expected value to be a number, got 'x'"):
        pad("w", axis=0, to=3, value="x")  # pyright: ignore[reportArgumentType]
    with pytest.raises(NotInvertibleError, match="for example source=2"):
        assert pad("w", axis=0, to=3).inverse
    assert pad("w", axis=0, to=5, source=5)(Leaves({"w": EMBED}))["w"] is EMBED


# ---- cast, and patterns that match nothing


@pytest.mark.parametrize(
    ("short", "name"),
    [("bf16", "bfloat16"), ("BF16", "bfloat16"), ("fp16", "float16"), ("f16", "float16"),
     ("fp32", "float32"), ("f32", "float32"), ("F8_E4M3", "float8_e4m3fn")],
)  # fmt: skip
def test_short_names_of_dtypes(short: str, name: str) -> None:
    assert cast(short) == cast(name)
    assert cast("float64", source=short) == cast("float64", source=name)


NAMES = {
    "params.encoder.attn.kernel": 1, "params.encoder.attn.bias": 2, "params.head.kernel": 3,
    "layers.0.w": 4, "layers.11.w": 5, "opt_state.mu": 6,
}  # fmt: skip
REMEDIES = {
    "params": "params.*",
    "kernel": "*.kernel",
    "attn": "*.attn.*",
    "state": "*state*",
    r"^layers\.[0-9]+\.w$": "layers.*.w",
    r"layers\.\d+\.w": "layers.*.w",
    r"params\..*": "params.*",
    "(.*)kernel": "*kernel",
    "opt_state.mu.*": "opt_state.mu",
    "*.params.head.kernel": "params.head.kernel",
    "layers.{i}.x": None,
    "params.encodr.attn.bias": "params.encoder.attn.bias",
}


@pytest.mark.parametrize("pattern", REMEDIES)
def test_a_pattern_that_matches_nothing_has_a_remedy_that_works(pattern: str) -> None:
    leaves, remedy = Leaves(NAMES), REMEDIES[pattern]
    with pytest.raises(TransformError) as caught:
        select(pattern)(leaves)
    message = str(caught.value)
    assert "to match a leaf, it matches none of the 6 leaves" in message
    told = re.search(r"(?:write|is it) '([^']*)'", message)
    if remedy is None:
        assert told is None
        return
    assert told is not None
    assert told[1] == remedy
    assert len(select(told[1])(leaves)) > 0


@pytest.mark.parametrize(
    ("rules", "written", "renamed"),
    [
        ({"head": "top"}, {"*.head.*": "*.top.*"}, "params.top.kernel"),
        ({"params": "p"}, {"params.*": "p.*"}, "p.head.kernel"),
        ({"mu": "mean"}, {"*.mu": "*.mean"}, "opt_state.mean"),
        ({"opt_state.{a}.*": "opt.{a}.*"}, None, None),
    ],
)
def test_the_remedy_for_a_name_in_the_middle_has_both_templates(
    rules: dict[str, str], written: dict[str, str] | None, renamed: str | None
) -> None:
    leaves = Leaves(NAMES)
    with pytest.raises(TransformError) as caught:
        rename(rules)(leaves)
    told = re.search(r"write ('[^']*': '[^']*'), which matches", str(caught.value))
    if written is None:
        assert told is None
        return
    assert told is not None
    assert eval(f"{{{told[1]}}}") == written
    assert renamed in rename(written)(leaves)


def test_every_step_that_takes_a_pattern_has_the_remedy() -> None:
    leaves = Leaves({"a.kernel": EMBED})
    for step in (
        cast("float32", where="kernel"), drop("kernel"), rename({"kernel": "w"}),
        safejax.transpose("kernel"), safejax.reshape("kernel", (-1,)),
        safejax.stack("kernel.{i}", "w"), safejax.split("kernel", ["a", "b"]),
        safejax.unstack("kernel", "{n}"), safejax.elementwise(np.negative, "kernel"),
    ):  # fmt: skip
        with pytest.raises(TransformError, match=r"expected 'kernel.*' to match a leaf"):
            step(leaves)
