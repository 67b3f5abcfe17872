"""`cast`, `rename` and `transpose`, each compared with NumPy or with a table."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from safejax import (
    EMPTY,
    LazyArray,
    LeafError,
    Leaves,
    NotInvertibleError,
    TransformError,
    cast,
    chain,
    deserialize,
    flatten,
    observe_reads,
    rename,
    serialize,
    transpose,
)
from safejax.testing import ALL_DTYPES, assert_same_bits
from tests.support.leaves import stored

MATRIX = (np.arange(12, dtype=np.float32).reshape(3, 4) - 5) / 3
CUBE = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
KEY = jax.random.key(1)


def dtypes_of(leaves: Leaves) -> dict[str, str]:
    return {name: np.asarray(leaf).dtype.name for name, leaf in leaves.items()}


# ---- cast: which leaves

FLOATING = {
    "float16", "float32", "float64", "bfloat16", "float4_e2m1fn", "float6_e2m3fn",
    "float6_e3m2fn", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn",
    "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
}  # fmt: skip


@pytest.mark.parametrize("target", ["bfloat16", "float32", "float16", "float8_e4m3fn", "float64"])
def test_cast_applies_to_floating_leaves_only(target: str) -> None:
    # There are no casts between float8_e8m0fnu and the other float8 dtypes.
    chosen = [dtype for dtype in ALL_DTYPES if "float8" not in target or "e8m0" not in dtype.name]
    entries: dict[str, Any] = {dtype.name: np.ones((2, 2), dtype) for dtype in chosen}
    others = {"key": KEY, "int": 3, "float": 0.5, "str": "x", "none": None, "empty": EMPTY}
    leaves = cast(target)(Leaves({**entries, **others}))
    for name, array in entries.items():
        if name in FLOATING - {target}:
            assert leaves[name].content.view.dtype == target
        else:
            assert leaves[name] is array
    for name, leaf in others.items():
        assert leaves[name] is leaf


@pytest.mark.parametrize("source", ALL_DTYPES, ids=str)
def test_cast_with_a_source_applies_to_that_dtype_only(source: np.dtype[Any]) -> None:
    target = "int8" if source != np.int8 else "int16"
    entries = {dtype.name: np.ones(2, dtype) for dtype in ALL_DTYPES}
    step = cast(target, source=source)
    # The inverse would make the source's dtype of a leaf that has the target's already.
    with pytest.raises(
        TransformError, match=rf"leaf '{target}': expected leaves of {source.name}, "
    ):
        step(Leaves(entries))
    del entries[target]
    leaves = step(Leaves({**entries, "key": KEY}))
    changed = {name for name in entries if leaves[name] is not entries[name]}
    assert changed == {source.name}
    assert leaves["key"] is KEY
    assert leaves[source.name].content.view.dtype == target


WHERES: dict[str, tuple[Any, set[str]]] = {
    "all": (None, {"a.w", "a.b", "b.w"}),
    "a pattern": ("*.w", {"a.w", "b.w"}),
    "a segment": ("{i}.b", {"a.b"}),
    "one name": ("a.w", {"a.w"}),
    "a function": (lambda name: name < "a.c", {"a.b"}),
}


@pytest.mark.parametrize("where", WHERES)
def test_where_restricts_a_cast_further(where: str) -> None:
    chosen, expected = WHERES[where]
    leaves = Leaves(dict.fromkeys(["a.w", "a.b", "b.w"], MATRIX))
    given = cast("bfloat16", where=chosen)(leaves)
    assert list(given) == list(leaves)
    assert {name for name, dtype in dtypes_of(given).items() if dtype == "bfloat16"} == expected


@pytest.mark.parametrize("make", [lambda **more: cast("bfloat16", where="*.kernel", **more),
                                  lambda **more: cast("bfloat16", where=lambda name: False, **more),
                                  lambda **more: transpose("*.kernel", **more),
                                  lambda **more: rename({"*.kernel": "*.v"}, **more)])  # fmt: skip
def test_a_pattern_that_matches_nothing_is_an_error(make: Any) -> None:
    leaves = Leaves({f"layers.{i}.w": MATRIX for i in range(9)})
    with pytest.raises(TransformError) as caught:
        make()(leaves)
    message = str(caught.value)
    assert message.startswith("expected ")
    assert message.endswith(f"; in {make()!r}")
    assert "matches none of the 9 leaves ('layers.0.w', " in message
    assert "must_match=False" in message
    assert dict(make(must_match=False)(leaves)) == dict(leaves)
    with pytest.raises(TransformError, match="none at all"):
        make()(Leaves({}))


def test_cast_does_not_change_leaves_that_have_the_dtype() -> None:
    leaves = stored({"w": MATRIX})
    assert cast("float32")(leaves)["w"] is leaves["w"]


# ---- cast: values

PAIRS = [
    ("float32", "bfloat16"), ("float32", "float16"), ("float32", "float8_e4m3fn"),
    ("float32", "float8_e5m2"), ("float32", "float4_e2m1fn"), ("float32", "float64"),
    ("bfloat16", "float32"), ("bfloat16", "float16"), ("float16", "bfloat16"),
    ("float64", "bfloat16"), ("float64", "float32"), ("float8_e4m3fn", "float32"),
    ("float32", "int32"), ("float32", "int8"), ("float32", "bool"), ("int32", "float32"),
    ("int64", "int32"), ("int32", "int4"), ("bool", "uint8"), ("uint8", "bool"),
    ("float32", "complex64"), ("complex64", "complex128"), ("int4", "int8"), ("uint32", "bfloat16"),
]  # fmt: skip
SPECIAL = [0.0, -0.0, 1.0, -1.5, 0.1, 2.5, 3.5, 1e-8, 1e8, 3e38, 448.0, 464.0, 465.0, 65519.0,
           65520.0, np.inf, -np.inf, np.nan, 1e-45, 127.5, -128.0]  # fmt: skip


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_values_are_converted_as_numpy_converts_them(source: str, target: str) -> None:
    with np.errstate(all="ignore"):
        array = np.asarray(SPECIAL).astype(np.dtype(source))
        expected = array.astype(np.dtype(target))
    leaf = cast(target, source=source)(stored({"w": array}))["w"]
    assert_same_bits(np.asarray(leaf), expected)
    # A placed leaf has the values that the host computed, not those that a device would compute.
    with jax.enable_x64(True):
        placed = cast(target, source=source)(stored({"w": array}))["w"].placed()
        assert_same_bits(placed, expected)


def test_a_cast_from_complex_warns_as_numpy_does() -> None:
    there = cast("complex64", source="float32")
    back = there.inverse(there(stored({"w": MATRIX})))["w"]
    with pytest.warns(np.exceptions.ComplexWarning):
        assert_same_bits(np.asarray(back), MATRIX)


def test_two_casts_do_not_fuse_across_a_lossy_one() -> None:
    narrow = chain(cast("bfloat16"), cast("float32"))
    expected = MATRIX.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert (expected != MATRIX).any()
    assert_same_bits(np.asarray(narrow(stored({"w": MATRIX}))["w"]), expected)


@pytest.mark.parametrize(
    ("source", "target"), [("int4", "uint4"), ("float8_e4m3fn", "float8_e8m0fnu")]
)
def test_casts_between_dtypes_without_a_conversion_are_errors(source: str, target: str) -> None:
    leaves = stored({"w": np.ones(2, np.dtype(source))})
    with pytest.raises(TransformError, match=rf"leaf 'w': .* converts to {target}, got {source}"):
        cast(target, source=source)(leaves)
    by_float = chain(cast("float32", source=source), cast(target, source="float32"))
    assert np.asarray(by_float(leaves)["w"]).astype(np.float32).tolist() == [1, 1]


WRONG_CASTS: dict[str, tuple[Callable[[], Any], str]] = {
    "to an int": (lambda: cast("int8"), r"cast\('int8'\): expected a floating dtype.*source="),
    "to a bool": (lambda: cast(bool), "expected a floating dtype"),
    "to complex": (lambda: cast("complex64"), "expected a floating dtype"),
    "to None": (lambda: cast(None), "expected dtype to be a dtype that JAX has, got None"),
    "to a word": (lambda: cast("float7"), "a dtype that JAX has, got 'float7'"),
    "to strings": (lambda: cast("U3"), "a dtype that JAX has"),
    "to objects": (lambda: cast(object), "a dtype that JAX has"),
    "to a struct": (lambda: cast([("x", "f4")]), "a dtype that JAX has"),
    "to nothing": (lambda: cast({}), "a dtype that JAX has"),
    "to a date": (lambda: cast("M8[s]"), "a dtype that JAX has"),
    "to big-endian": (lambda: cast(">f4"), "a dtype that JAX has"),
    "to longdouble": (lambda: cast(np.longdouble), "a dtype that JAX has"),
    "from a word": (lambda: cast("int8", source="x"), "expected source to be a dtype that JAX has"),
    "from a key": (lambda: cast("int8", source=KEY.dtype), "expected source to be a dtype"),
    "where a number": (lambda: cast("float16", where=3), "expected a pattern or a function"),
    "where a wrong pattern": (lambda: cast("float16", where="{"), "pattern '{'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_CASTS)
def test_a_cast_is_checked_when_it_is_made(case: str) -> None:
    make, message = WRONG_CASTS[case]
    with pytest.raises(TransformError, match=message):
        make()


@pytest.mark.parametrize(
    "dtype",
    ["bfloat16", jnp.bfloat16, ml_dtypes.bfloat16, np.dtype("bfloat16"), jnp.dtype("bfloat16")],
)
def test_a_dtype_is_anything_that_jax_accepts(dtype: Any) -> None:
    assert cast(dtype) == cast("bfloat16")


def test_a_cast_has_an_inverse_if_it_knows_its_source() -> None:
    there = cast("bfloat16", source="float32", where="*.w", must_match=False)
    assert there.inverse == cast("float32", source="bfloat16", where="*.w", must_match=False)
    with pytest.raises(NotInvertibleError, match="source='float32'"):
        _ = cast("bfloat16").inverse


# ---- rename

RENAMED: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    # The templates, and names with what they become.
    "one name": ({"a": "b"}, {"a": "b", "a.x": "a.x", "aa": "aa"}),
    "segments": ({"encoder.layer.{i}.{what}": "layers.{i}.{what}"},
                 {"encoder.layer.10.w": "layers.10.w", "encoder.layer.x.b": "layers.x.b",
                  "encoder.layer.1.2.w": "encoder.layer.1.2.w",
                  "encoder.layer..w": "encoder.layer..w"}),
    "turned round": ({"{a}.{b}": "{b}.{a}"}, {"x.y": "y.x", "x.x": "x.x", "x": "x"}),
    "one twice": ({"{a}-{a}": "twice.{a}"}, {"x-x": "twice.x", "x-y": "x-y"}),
    "a star": ({"model.*": "*"}, {"model.a.b": "a.b", "model.": ""}),
    "two stars": ({"*.attn.*": "*/attn/*"}, {"l.0.attn.q.w": "l.0/attn/q.w"}),
    "the first that matches": ({"a.w": "first", "*.w": "*.kernel"},
                               {"a.w": "first", "b.w": "b.kernel"}),
    "braces": ({"a{{0}}": "b{{{{"}, {"a{0}": "b{{"}),
    "unicode": ({"é.{i}": "🦎.{i}"}, {"é.0": "🦎.0"}),
    "to itself": ({"a.{i}": "a.{i}"}, {"a.0": "a.0"}),
    "exchanged": ({"a": "b", "b": "a"}, {"a": "b", "b": "a"}),
    "in a ring": ({"a": "b", "b": "c", "c": "a"}, {"a": "b", "b": "c", "c": "a"}),
    "an empty star": ({"*x": "*y"}, {"x": "y", "ax": "ay"}),
    "the empty name": ({"": "root"}, {"": "root"}),
    "dots": ({"a.b": "a/b"}, {"a.b": "a/b"}),
}  # fmt: skip


@pytest.mark.parametrize("case", RENAMED)
def test_names_become_what_the_templates_say(case: str) -> None:
    templates, names = RENAMED[case]
    leaves = Leaves({name: number for number, name in enumerate(names)}, metadata={"k": "v"})
    step = rename(templates)
    renamed = step(leaves)
    assert list(renamed.items()) == [(new, number) for number, new in enumerate(names.values())]
    assert dict(renamed.metadata) == {"k": "v"}
    again = step.inverse(renamed)
    assert list(again.items()) == list(leaves.items())
    assert step.inverse.inverse == step


CLASHES: dict[str, tuple[dict[str, str], list[str], list[str]]] = {
    # The templates, the names, and parts of the error.
    "two to one": ({"a.{i}": "c.{i}"}, ["a.0", "c.0"], ["'c.0'", "'a.0'"]),
    "two templates to one": ({"a.{i}": "c.{i}", "b.*": "c.*"}, ["a.0", "b.0"], ["'c.0'", "'b.0'"]),
    "onto a scalar": ({"w": "step"}, ["step", "w"], ["'step'", "'w'"]),
    "would not return": ({"a.*": "*"}, ["a.x", "y"], ["'y'", "maps to 'a.y'"]),
    "would return elsewhere": ({"{a}{{{b}": "{b}.{a}"}, ["x{y", "p.q"], ["'p.q'", "maps to"]),
    "to the format's own": ({"*": "__metadata__*"}, [""], ["__metadata__"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CLASHES)
def test_names_that_clash_or_cannot_be_renamed_back_are_errors(case: str) -> None:
    templates, names, told = CLASHES[case]
    leaves = Leaves({name: number for number, name in enumerate(names)})
    with pytest.raises(TransformError) as caught:
        rename(templates)(leaves)
    for part in told:
        assert part in str(caught.value)


WRONG_RENAMES: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "expected at least one template"),
    "pairs": ([("a", "b")], "expected a mapping of templates"),
    "a number": ({"a": 3}, "expected templates to be strings, got 3"),
    "other placeholders": ({"a.{i}": "b.{j}"}, "expected the same placeholders"),
    "a placeholder too few": ({"a.{i}": "b"}, "expected the same placeholders"),
    "a star too many": ({"a": "b*"}, "expected the same placeholders"),
    "half a brace": ({"a{": "b"}, "pattern 'a{'"),
    "two in a row": ({"{a}{b}": "{a}.{b}"}, "expected text between two placeholders"),
    "one new name for two": (
        {"a": "c", "b": "c"},
        "expected a new name for each template, got 'c'",
    ),
}


@pytest.mark.parametrize("case", WRONG_RENAMES)
def test_a_rename_is_checked_when_it_is_made(case: str) -> None:
    templates, message = WRONG_RENAMES[case]
    with pytest.raises(TransformError, match=message):
        rename(templates)


def test_strict_requires_a_template_for_every_name() -> None:
    step = rename({"a.{i}": "b.{i}"}, strict=True)
    assert list(step(Leaves({"a.0": 1}))) == ["b.0"]
    with pytest.raises(TransformError, match="template for every leaf, 'x' matches none"):
        step(Leaves({"a.0": 1, "x": 2}))
    assert step.inverse == rename({"b.{i}": "a.{i}"}, strict=True)


def test_every_template_must_match() -> None:
    with pytest.raises(TransformError, match=r"expected 'z\.\{i\}' to match a leaf"):
        rename({"a": "b", "z.{i}": "y.{i}"})(Leaves({"a": 1}))
    # A template whose names an earlier one always takes is told as that.
    with pytest.raises(
        TransformError, match=r"'a' to match a leaf of its own, but '\*', which comes"
    ):
        rename({"*": "x*", "a": "b"})(Leaves({"a": 1}))


def test_values_and_containers_stay() -> None:
    tree = {"a": [MATRIX, None, {}, "x"]}
    renamed = rename({"a.{i}": "b.{i}"})(flatten(tree))
    assert renamed["b.0"] is MATRIX
    assert (renamed["b.1"], renamed["b.2"], renamed["b.3"]) == (None, EMPTY, "x")


# ---- transpose


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("place", [False, True])
def test_axes_are_permuted_as_numpy_permutes_them(axes: Any, place: bool) -> None:
    step = transpose("w", axes=axes)
    leaf = step(stored({"w": CUBE}))["w"]
    expected = CUBE.transpose(axes)
    assert leaf.shape == expected.shape
    assert_same_bits(leaf.placed() if place else np.asarray(leaf), expected)
    back = step.inverse(Leaves({"w": leaf}))["w"]
    assert_same_bits(np.asarray(back), CUBE)


def test_without_axes_only_matrices_are_transposed_and_the_inverse_does_it_again() -> None:
    step = transpose("*")
    assert step.inverse == step
    assert step(Leaves({"w": np.zeros((2, 3))}))["w"].shape == (3, 2)
    with pytest.raises(TransformError, match=r"got the shape \[2, 3, 4, 5\].* \(0, 1, 3, 2\)"):
        step(Leaves({"w": np.zeros((2, 3, 4, 5))}))


def test_the_axes_of_key_data_are_not_transposed() -> None:
    keys = jax.random.split(KEY, (2, 3))
    leaf = transpose("k")(stored({"k": keys}))["k"]
    assert leaf.shape == (3, 2)
    assert_same_bits(leaf.placed(), keys.T)
    leaf = transpose("k", axes=(1, 0))(Leaves({"k": keys}))["k"]
    assert_same_bits(leaf, keys.T)


WRONG_AXES: list[tuple[Any, Any, str]] = [
    (None, (3,), "expected 2 axes, got the shape [3]"),
    (None, (), "expected 2 axes, got the shape []"),
    ((1, 0), (2, 3, 4), "expected 2 axes, got the shape [2, 3, 4]"),
    ((0,), (), "expected 1 axes"),
]


@pytest.mark.parametrize(("axes", "shape", "message"), WRONG_AXES)
def test_a_leaf_with_another_number_of_axes_is_an_error_that_names_it(
    axes: Any, shape: Any, message: str
) -> None:
    with pytest.raises(TransformError) as caught:
        transpose("*", axes=axes)(Leaves({"n": 3, "m.w": np.zeros(shape)}))
    assert "leaf 'm.w': " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("axes", [(0, 0), (1, 2), (-1, 0), (0.0, 1.0), "01", 3, (), (None,)])
def test_axes_are_a_permutation(axes: Any) -> None:
    with pytest.raises(TransformError, match="expected axes to be a permutation"):
        transpose("*", axes=axes)


def test_transpose_requires_a_pattern() -> None:
    with pytest.raises(TransformError, match="expected a pattern or a function"):
        transpose(None)
    with pytest.raises(TransformError, match="expected a pattern or a function"):
        transpose(3)


def test_scalars_that_a_pattern_matches_stay() -> None:
    leaves = Leaves({"w": MATRIX, "n": 3, "s": "x", "none": None})
    given = transpose("*")(leaves)
    assert [given[name] for name in ("n", "s", "none")] == [3, "x", None]


# ---- common to all of them

ALL_STEPS = [
    cast("bfloat16"), cast("bfloat16", source="float32"), rename({"w": "v"}),
    transpose("w"), transpose("w", axes=(1, 0)),
    chain(rename({"w": "w"}), cast("float16"), transpose("w")),
]  # fmt: skip


@pytest.mark.parametrize("step", ALL_STEPS, ids=repr)
def test_nothing_is_read_and_no_argument_changes(step: Any) -> None:
    leaves = stored({"w": MATRIX})
    plain = Leaves({"w": MATRIX.copy()}, metadata={"k": "v"})
    with observe_reads() as log:
        (there,) = step(leaves).values()
        (other,) = step(plain).values()
        assert repr(there)
        assert isinstance(there, LazyArray)
        assert not log.reads
    assert isinstance(other, LazyArray) or other is plain["w"]
    assert not leaves["w"].is_placed
    assert_same_bits(plain["w"], MATRIX)
    assert list(leaves) == ["w"]
    assert dict(plain.metadata) == {"k": "v"} == dict(step(plain).metadata)


@pytest.mark.parametrize("step", ALL_STEPS, ids=repr)
@pytest.mark.parametrize("make", [
    lambda: MATRIX, lambda: jnp.asarray(MATRIX), lambda: stored({"w": MATRIX})["w"],
    lambda: np.asfortranarray(MATRIX), lambda: MATRIX.astype(">f4"),
    lambda: jax.device_put(MATRIX, jax.devices()[2]),
], ids=["numpy", "jax", "lazy", "Fortran", "big-endian", "committed"])  # fmt: skip
def test_every_kind_of_array_gets_the_aval_that_an_abstract_leaf_gets(step: Any, make: Any) -> None:
    (aval,) = step(Leaves({"w": jax.ShapeDtypeStruct((3, 4), np.float32)})).values()
    (leaf,) = step(Leaves({"w": make()})).values()
    assert isinstance(aval, jax.ShapeDtypeStruct)
    assert (leaf.shape, leaf.dtype.newbyteorder("=")) == (aval.shape, aval.dtype)
    (expected,) = step(stored({"w": MATRIX})).values()
    assert_same_bits(np.asarray(leaf), np.asarray(expected))


def test_a_part_after_a_chain_reads_only_its_bytes() -> None:
    big = np.arange(64 * 32, dtype=np.float32).reshape(64, 32)
    step = chain(rename({"w": "v"}), transpose("v"), cast("bfloat16"), transpose("v", axes=(1, 0)),
                 transpose("v"))  # fmt: skip
    leaf = step(stored({"w": big}))["v"]
    expected = big.T.astype(ml_dtypes.bfloat16)
    for index in [(3,), (slice(None), 5), (slice(8, 16), slice(None, None, 4)), (-1, ..., 2)]:
        with observe_reads() as log:
            part = leaf[index]
            assert log.nbytes == 0
            read = np.asarray(part)
            assert log.nbytes == read.size * 4
        assert_same_bits(read, np.asarray(expected[index]))


@pytest.mark.parametrize("spec", [PartitionSpec("x"), PartitionSpec(None, "x"), PartitionSpec()])
def test_a_shard_after_a_chain_reads_only_its_bytes(spec: PartitionSpec) -> None:
    mesh = jax.make_mesh((8,), ("x",))
    big = np.arange(64 * 32, dtype=np.float32).reshape(64, 32)
    step = chain(rename({"w": "v"}), transpose("v"), cast("bfloat16"))
    leaf = deserialize(serialize({"w": big}), transform=step, sharding=NamedSharding(mesh, spec))[
        "v"
    ]
    with observe_reads() as log:
        placed = leaf.placed()
        assert log.nbytes == big.nbytes
        assert len(log.reads) == (8 if spec else 1)
    assert_same_bits(placed, big.T.astype(ml_dtypes.bfloat16))
    for shard in placed.addressable_shards:
        assert_same_bits(shard.data, big.T.astype(ml_dtypes.bfloat16)[shard.index])


def test_a_tracer_is_an_error_that_names_the_leaf() -> None:
    def function(x: Any) -> Any:
        with pytest.raises(LeafError, match=r"leaf 'w': .* tracer"):
            transpose("*")(Leaves({"w": x}))
        return x

    jax.jit(function)(MATRIX)
