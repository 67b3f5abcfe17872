"""`merge`: each result compared with NumPy's, and what is read for a part of it."""

import pickle
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax import Leaves, NotInvertibleError, TransformError, chain, flatten, merge
from safejax._src.reading.array import ArraySource
from safejax._src.reading.merged import Axis, AxisMap, MergedSource
from safejax._src.reading.view import Strided, View
from safejax._src.reading.windows import Window
from safejax.testing import assert_same_bits, indices

ANY = cast("Any", lambda value: value)  # What type checkers would refuse.
FP8 = ml_dtypes.float8_e4m3fn
RANDOM = np.random.default_rng(18)


def scaled(q: Any, scale: Any) -> Any:
    """The weights of blocks of 4 by 4 with a scale for each of them."""
    each = np.repeat(np.repeat(scale, 4, axis=0), 4, axis=1)
    return q.astype(np.float32) * each[: q.shape[0], : q.shape[1]]


def quantized(w: Any) -> Any:
    """Blocks of 4 by 4, each by a power of two that its largest value becomes about 1 with."""
    rows, columns = -(-w.shape[0] // 4), -(-w.shape[1] // 4)
    padded = np.zeros((rows * 4, columns * 4), np.float32)
    padded[: w.shape[0], : w.shape[1]] = np.abs(w)
    most = padded.reshape(rows, 4, columns, 4).max(axis=(1, 3))
    scale = np.exp2(np.ceil(np.log2(np.where(most == 0, 1, most)))).astype(np.float32)
    each = np.repeat(np.repeat(scale, 4, axis=0), 4, axis=1)[: w.shape[0], : w.shape[1]]
    return (w / each).astype(FP8), scale


BLOCKS = merge({"*.w": ["*.w", "*.scale"]}, scaled, axes="i j, i/4 j/4 -> i j", inverse=quantized)


def fp8(rows: int, columns: int) -> dict[str, Any]:
    scales = np.exp2(RANDOM.integers(-3, 4, (-(-rows // 4), -(-columns // 4))))
    weights = RANDOM.integers(-8, 9, (rows, columns)) / 8
    weights[::4, ::4] = 1  # The largest of its block, so that it can be quantized exactly.
    return {"w": weights.astype(FP8), "scale": scales.astype(np.float32)}


@pytest.mark.parametrize("shape", [(8, 12), (10, 7), (3, 2), (16, 1)])
def test_weights_with_a_scale_for_each_block(shape: tuple[int, int]) -> None:
    tree = {"a": {"mlp": fp8(*shape)}, "norm": {"g": jnp.ones(3)}}
    expected = scaled(q=tree["a"]["mlp"]["w"], scale=tree["a"]["mlp"]["scale"])
    data = safejax.serialize(tree)
    loaded = safejax.deserialize(data, transform=BLOCKS)
    leaf = loaded["a"]["mlp"]["w"]
    assert set(loaded["a"]["mlp"]) == {"w"}
    assert (leaf.shape, leaf.dtype) == (shape, jnp.float32)
    assert_same_bits(np.asarray(leaf), expected)
    for index in [(0,), (slice(4, 8),), (slice(1, 6), slice(None, None, -2)), (-1, ...)]:
        assert_same_bits(np.asarray(leaf[index]), np.asarray(expected[index]))
    assert_same_bits(leaf.placed(), expected)
    assert safejax.serialize(loaded, transform=BLOCKS.inverse) == data


def test_a_device_reads_only_the_blocks_of_its_part() -> None:
    tree = {"mlp": fp8(64, 32)}
    mesh = jax.make_mesh((2, 4), ("x", "y"))
    data = safejax.serialize(tree)
    leaf = safejax.deserialize(data, transform=BLOCKS, sharding=NamedSharding(mesh, P("x", "y")))
    with safejax.observe_reads() as log:
        placed = leaf["mlp"]["w"].placed()
    assert log.nbytes == 64 * 32 + 16 * 8 * 4
    assert_same_bits(placed, scaled(tree["mlp"]["w"], tree["mlp"]["scale"]))
    whole = safejax.deserialize(data, transform=BLOCKS)["mlp"]["w"]
    for index, blocks in [
        ((slice(0, 4), slice(0, 4)), 1),
        ((slice(3, 5), slice(0, 4)), 2),
        ((5,), 8),
        ((slice(None, None, 63), 0), 16),  # What lies between is read, too: blocks are ranges.
        ((slice(0, 0),), 0),
    ]:
        with safejax.observe_reads() as log:
            part = np.asarray(whole[index])
        assert log.nbytes == blocks * (16 + 4)
        assert_same_bits(part, np.asarray(scaled(tree["mlp"]["w"], tree["mlp"]["scale"])[index]))


_POSITIVE = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_FP4 = np.concatenate([_POSITIVE, -_POSITIVE])


def from_mxfp4(blocks: Any, scales: Any) -> Any:
    """Two elements in each byte, the lower half first; a power of two for 32 of them."""
    halves = np.stack([blocks & 15, blocks >> 4], -1).reshape(*blocks.shape[:-1], 32)
    values = np.ldexp(_FP4[halves], (scales.astype(np.int32) - 127)[..., None])
    return values.reshape(*values.shape[:-2], -1).astype(ml_dtypes.bfloat16)


def test_blocks_of_mxfp4_transposed_onto_a_mesh() -> None:
    blocks = RANDOM.integers(0, 256, (4, 6, 8, 16)).astype(np.uint8)
    scales = RANDOM.integers(120, 134, (4, 6, 8)).astype(np.uint8)
    t = chain(
        merge({"*": ["*_blocks", "*_scales"]}, from_mxfp4, axes="e o i/32 b, e o i/32 -> e o i"),
        safejax.transpose("*", axes=(0, 2, 1)),
    )
    expected = from_mxfp4(blocks, scales).swapaxes(-1, -2)
    mesh = jax.make_mesh((2, 4), ("x", "y"))
    data = safejax.serialize({"up_blocks": blocks, "up_scales": scales})
    tree = safejax.deserialize(data, transform=t, sharding=NamedSharding(mesh, P("x", "y")))
    assert tree["up"].shape == (4, 256, 6)
    with safejax.observe_reads() as log:
        placed = tree["up"].placed()
    assert_same_bits(placed, np.ascontiguousarray(expected))
    assert log.nbytes == blocks.nbytes + scales.nbytes


def with_lora(w: Any, b: Any, a: Any) -> Any:
    return w + 2 * (b @ a)


def test_a_lora_is_merged_and_a_part_reads_its_rows_and_columns() -> None:
    # Whole numbers, so that the order of a sum does not matter.
    tree: dict[str, Any] = {
        "w": RANDOM.integers(-8, 9, (12, 10)).astype(np.float32),
        "lora": {
            "A": RANDOM.integers(-8, 9, (3, 10)).astype(np.float32),
            "B": RANDOM.integers(-8, 9, (12, 3)).astype(np.float32),
        },
    }
    expected = tree["w"] + 2 * (tree["lora"]["B"] @ tree["lora"]["A"])
    t = merge({"w": ["w", "lora.B", "lora.A"]}, with_lora, axes="i j, i r, r j -> i j")
    leaf = safejax.deserialize(safejax.serialize(tree), transform=t)["w"]
    with safejax.observe_reads() as log:
        part = np.asarray(leaf[2:4, ::3])
    assert log.nbytes == 4 * (2 * 4 + 2 * 3 + 3 * 4)
    assert_same_bits(part, np.ascontiguousarray(expected[2:4, ::3]))
    assert_same_bits(leaf.placed(), expected)


def test_axes_that_must_be_whole_and_new_ones() -> None:
    g, v = np.full((4, 1), 2, np.float32), np.full((4, 9), 3, np.float32)

    def normed(g: Any, v: Any) -> Any:
        return g * v / np.linalg.norm(v, axis=1, keepdims=True)

    t = merge({"w": ["g", "v"]}, normed, axes="o 1, o _ -> o _")
    leaf = t(flatten({"g": g, "v": v}))["w"]
    assert_same_bits(np.asarray(leaf[1:3, 4:]), np.full((2, 5), 2 / 3, np.float32))
    with pytest.raises(TransformError, match="on each block of 1 along 'i' by itself"):
        merge({"w": ["g", "v"]}, normed, axes="o 1, o i -> o i")(flatten({"g": g, "v": v}))
    # An axis that only the result has.
    bits = merge({"b": ["g"]}, lambda g: np.unpackbits(g[..., None], axis=-1), axes="... -> ... k")
    made = bits(flatten({"g": np.array([[3, 128]], np.uint8)}))["b"]
    assert made.shape == (1, 2, 8)
    assert np.asarray(made[0, :, -1]).tolist() == [1, 0]


def test_without_axes_whole_leaves_are_read_once_for_all_devices() -> None:
    def sorted_sum(a: Any, b: Any) -> Any:
        return np.sort((a + b).reshape(-1)).reshape(a.shape)

    a, b = (RANDOM.integers(0, 99, (8, 4)).astype(np.float32) for _ in range(2))
    t = merge({"c": ["a", "b"]}, sorted_sum)
    mesh = jax.make_mesh((8,), ("x",))
    data = safejax.serialize({"a": a, "b": b})
    leaf = safejax.deserialize(data, transform=t, sharding=NamedSharding(mesh, P("x")))["c"]
    with safejax.observe_reads() as log:
        placed = leaf.placed()
    assert_same_bits(placed, sorted_sum(a, b))
    assert log.nbytes == a.nbytes + b.nbytes

    def joined(a: Any, b: Any) -> Any:
        return np.concatenate([a, b]).astype(np.float16)

    t = merge({"c": ["a", "b"]}, joined, aval=lambda a, b: jax.ShapeDtypeStruct((16, 4), "float16"))
    leaf = safejax.deserialize(data, transform=t)["c"]
    assert_same_bits(np.asarray(leaf[3:12]), joined(a, b)[3:12])
    wrong = merge({"c": ["a", "b"]}, joined)(flatten({"a": a, "b": b}))["c"]
    with pytest.raises(TransformError, match=r"return float32\[8, 4\] for .* got float16\[16, 4\]"):
        np.asarray(wrong)


@pytest.mark.parametrize("access", ["map", "read", "copy"])
def test_files_that_are_read_in_requests_give_the_same(access: Any, tmp_path: Path) -> None:
    tree = {f"l{i}": fp8(12, 8) for i in range(3)}
    safejax.save(tree, tmp_path / "m.safetensors")
    t = chain(BLOCKS, safejax.stack("l{i}.w", "w"), safejax.cast("bfloat16"))
    loaded = safejax.materialize(
        safejax.load(tmp_path / "m.safetensors", transform=t, access=access)
    )
    expected = np.stack([scaled(each["w"], each["scale"]) for each in tree.values()])
    assert_same_bits(loaded["w"], expected.astype(ml_dtypes.bfloat16))
    plan = safejax.plan(tmp_path / "m.safetensors", transform=t, access=access)
    assert plan.reads.nbytes >= 3 * (12 * 8 + 3 * 2 * 4)


def test_large_results_are_made_a_part_at_a_time() -> None:
    shapes: list[tuple[int, ...]] = []

    def function(q: Any, scale: Any) -> Any:
        shapes.append(q.shape)
        return scaled(q, scale)

    q = RANDOM.integers(-8, 9, (4099, 1024)).astype(FP8)
    scale = np.exp2(RANDOM.integers(-3, 4, (1025, 256))).astype(np.float32)
    t = merge({"w": ["q", "s"]}, function, axes="i j, i/4 j/4 -> i j")
    leaf = t(flatten({"q": q, "s": scale}))["w"]
    shapes.clear()
    assert_same_bits(np.asarray(leaf), scaled(q, scale))
    assert len(shapes) == 5
    assert {rows % 4 for rows, _ in shapes[:-1]} == {0}


# ---- any window, compared with NumPy


@st.composite
def chains(draw: st.DrawFn) -> tuple[View, Any]:
    """A view of what a function makes of blocks, after steps that move it, and NumPy's."""
    rows, columns, deep = (draw(st.integers(1, 9)) for _ in range(3))
    step = draw(st.sampled_from([1, 2, 3]))
    fine = np.arange(rows * columns * deep, dtype=np.int32).reshape(rows, columns, deep)
    coarse = np.arange(-(-rows // step) * columns, dtype=np.int32).reshape(-1, columns) * 1000

    def function(operands: Any, axes: AxisMap) -> Any:
        fine, coarse = operands
        assert fine.shape[0] == axes.sizes["i"]
        return [fine + np.repeat(coarse, step, axis=0)[: fine.shape[0], :, None]]

    operands = tuple(
        Strided(ArraySource(array), 0, array.dtype, Window.whole(array.shape))
        for array in (fine, coarse)
    )
    i, j, k = Axis("i"), Axis("j"), Axis("k")
    axes = AxisMap(
        ((i, j, k), (Axis("i", step), j)), ((i, j, k),), {"i": rows, "j": columns, "k": deep}
    )
    source = MergedSource(operands, axes, function, 0, fine.shape, "merged")
    view: Any = Strided(source, 0, fine.dtype, Window.whole(fine.shape))
    (model,) = function((fine, coarse), axes)
    for _ in range(draw(st.integers(0, 5))):
        match draw(st.sampled_from(["index", "transpose", "reshape", "expand"])):
            case "index":
                index = draw(indices(model.shape))
                view = view.index(index)
                model = model[index if ... in index else (*index, ...)]
            case "transpose":
                order = tuple(draw(st.permutations(range(model.ndim))))
                view, model = view.transpose(order), model.transpose(order)
            case "reshape" if model.size:
                shape = draw(
                    st.sampled_from(
                        [(model.size,), (-1, model.shape[-1] if model.ndim else 1), (1, -1)]
                    )
                )
                model = model.reshape(shape)
                view = view.reshape(model.shape)
            case _ if model.ndim < 6:
                axis = draw(st.integers(0, model.ndim))
                view, model = view.expand(axis), np.expand_dims(model, axis)
            case _:
                pass
    return view, model


@given(case=chains())
def test_any_part_equals_numpys(case: tuple[View, Any]) -> None:
    view, model = case
    assert_same_bits(view.read(), np.array(model, order="C"))
    with safejax.observe_reads() as log:
        view.read()
    if not view.has_barrier:
        assert view.cost().nbytes == 0  # Arrays in memory cost nothing; the log counts them.
        assert (log.nbytes == 0) == (model.size == 0)


# ---- names


def test_what_has_the_new_name_already_is_kept_and_all_that_lack_a_part_are_named() -> None:
    once = merge({"*.w": ["*.w", "*.scale"]}, scaled, axes="i j, i/4 j/4 -> i j")
    tree = {"a": fp8(4, 4), "norm": {"w": jnp.ones(3)}}
    made = once(flatten(tree))
    assert list(made) == ["a.w", "norm.w"]
    assert made["norm.w"] is tree["norm"]["w"]
    with pytest.raises(TransformError, match=r"'norm.w': expected leaves that are left alone"):
        BLOCKS(flatten(tree))
    many = {f"l{i}": {"scale": jnp.ones((1, 1))} for i in range(20)}
    with pytest.raises(TransformError) as caught:
        once(flatten({**tree, **many}))
    assert "'l0.w' has 'l0.scale', and none for '*.w'" in str(caught.value)
    assert "; and 12 more: " in str(caught.value)
    with pytest.raises(TransformError, match="matches none"):
        once(flatten({"norm": tree["norm"]}))


def test_it_is_a_value() -> None:
    again = pickle.loads(pickle.dumps(BLOCKS))
    assert again == BLOCKS
    assert again.inverse.inverse == BLOCKS
    assert repr(BLOCKS) == (
        "merge({'*.w': ['*.w', '*.scale']}, scaled, axes='i j, i/4 j/4 -> i j', inverse=quantized)"
    )
    assert repr(BLOCKS.inverse) == f"{BLOCKS!r}.inverse"
    with pytest.raises(NotInvertibleError, match="expected a function that takes the result apart"):
        _ = merge({"w": ["a", "b"]}, scaled).inverse


WRONG: list[tuple[Any, str]] = [
    (lambda: merge(ANY([]), scaled), "expected a mapping of new names"),
    (lambda: merge({"a": "b"}, scaled), "expected a list of templates for 'a', got 'b'"),
    (lambda: merge({"a": []}, scaled), "expected a list of templates"),
    (lambda: merge({"a.{i}": ["b.{j}"]}, scaled), "expected the same placeholders"),
    (lambda: merge({"a": ["b", "b"]}, scaled), "expected each template once"),
    (lambda: merge({"a": ["b"], "c": ["d", "e"]}, scaled), "as many leaves in each list"),
    (lambda: merge({"a": ["b"]}, ANY(3)), "expected a function, got 3"),
    (lambda: merge({"a": ["b"]}, ANY(None)), "expected a function, got None"),
    (lambda: merge({"a": ["b"]}, scaled, inverse=scaled), "expected axes with an inverse"),
    (lambda: merge({"a": ["b"]}, scaled, axes="i"), "axes of 1 leaves and, after an arrow"),
    (lambda: merge({"a": ["b"]}, scaled, axes="i, j -> i"), "axes of 1 leaves"),
    (lambda: merge({"a": ["b"]}, scaled, axes="i/0 -> i"), "names of axes, .* got 'i/0'"),
    (lambda: merge({"a": ["b"]}, scaled, axes="i i -> i"), "each name once in a leaf"),
    (lambda: merge({"a": ["b"]}, scaled, axes="i ... -> i"), r"'\.\.\.' in front"),
    (lambda: merge({"a": ["b"]}, scaled, axes="i -> ... i"), r"'\.\.\.' on the left"),
    (lambda: merge({"a": ["b"]}, scaled, axes=ANY(3)), "axes to be a string"),
    (lambda: merge({"a": ["b"]}, scaled, axes="i -> i", aval=abs), "axes or aval, got both"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "message"), WRONG)
def test_a_wrong_specification_is_an_error_when_it_is_built(build: Any, message: str) -> None:
    with pytest.raises(TransformError, match=message):
        build()


UNFIT: dict[str, tuple[Any, Any, str]] = {
    "too few axes": ("i j, i/4 -> i j", (np.ones((8, 8)), np.ones((2, 2))), "expected 1 axes"),
    "another size": (
        "i j, i/4 j/4 -> i j",
        (np.ones((8, 8)), np.ones((2, 3))),
        "expected 2 for 'j/4', since 'j' is 8, got",
    ),
    "no 1": ("i j, 1 1 -> i j", (np.ones((8, 8)), np.ones((2, 2))), "expected size 1 where '1 1'"),
    "keys": ("i j, _ -> i j", (np.ones((8, 8)), jax.random.split(jax.random.key(0))), "of numbers"),
    "a scalar": ("i j, _ -> i j", (np.ones((8, 8)), 3), "array of numbers, got int 3"),
    "another shape": (
        "i j, _ _ -> i",
        (np.ones((8, 8), np.float32), np.ones((2, 2), np.float32)),
        r"return float32\[2\] for .*, got float32\[2, 8\]",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_leaves_that_do_not_fit_are_an_error_that_names_them(case: str) -> None:
    axes, (a, b), message = UNFIT[case]

    def function(a: Any, b: Any) -> Any:
        return a

    with pytest.raises(TransformError, match=message) as caught:
        merge({"w": ["a", "b"]}, function, axes=axes)(Leaves({"a": a, "b": b}))
    assert str(caught.value).startswith("leaf '")


def test_an_error_of_the_function_names_the_leaf_and_one_that_mixes_blocks_is_refused() -> None:
    leaves = Leaves({"a": np.ones((8, 8)), "b": np.ones((2, 2))})

    def raises(a: Any, b: Any) -> Any:
        raise ValueError("no")

    with pytest.raises(TransformError, match=r"leaf 'w': .* it raised ValueError: no"):
        merge({"w": ["a", "b"]}, raises, axes="i j, i/4 j/4 -> i j")(leaves)
    with pytest.raises(TransformError, match=r"each block of 4 along 'i' by itself.*write _ for"):
        merge({"w": ["a", "b"]}, lambda a, b: a - a.mean(0), axes="i j, i/4 j/4 -> i j")(leaves)
    with pytest.raises(TransformError, match="return 2 arrays, got 1"):
        merge(
            {"w": ["a", "b"]}, scaled, axes="i j, i/4 j/4 -> i j", inverse=lambda w: (w,)
        ).inverse(Leaves({"w": np.ones((4, 4))}))
    with pytest.raises(TransformError, match="a dtype that JAX has"):
        merge({"w": ["a"]}, lambda a: a.astype(str), axes="... -> ...")(leaves)
    with pytest.raises(TransformError, match=r"aval to return a jax\.ShapeDtypeStruct, got 3"):
        merge({"w": ["a"]}, lambda a: a, aval=lambda a: 3)(leaves)
