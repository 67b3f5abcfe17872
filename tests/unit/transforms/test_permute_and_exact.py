"""`permute`, `offset` and `scale`, compared with NumPy; what `drop` restores; losses refused."""

import pickle
from fractions import Fraction
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
from safejax import (
    Leaves,
    NotInvertibleError,
    PrecisionError,
    TransformError,
    chain,
    drop,
    elementwise,
    flatten,
    offset,
    permute,
    scale,
)
from safejax._src.reading.array import ArraySource
from safejax._src.reading.concatenation import concatenation
from safejax._src.reading.gathered import Order, gathered
from safejax._src.reading.pointwise import cast_view
from safejax._src.reading.view import Strided, View
from safejax._src.reading.windows import Window
from safejax.testing import assert_same_bits, indices
from tests.support.leaves import stored

ANY = cast("Any", lambda value: value)  # What type checkers would refuse.

# ---- permute


def halves_to_pairs(size: int) -> list[int]:
    return np.arange(size).reshape(2, -1).T.reshape(-1).tolist()


def test_the_halves_of_each_head_become_pairs_and_a_device_reads_its_heads() -> None:
    heads, size, deep = 8, 16, 6
    w = np.arange(heads * size * deep, dtype=np.float32).reshape(heads * size, deep)
    t = permute("*.q", 0, halves_to_pairs(size))
    expected = w.reshape(heads, 2, size // 2, deep).swapaxes(1, 2).reshape(w.shape)
    mesh = jax.make_mesh((8,), ("x",))
    data = safejax.serialize({"attention": {"q": w}})
    tree = safejax.deserialize(data, transform=t, sharding=NamedSharding(mesh, P("x")))
    leaf = tree["attention"]["q"]
    with safejax.observe_reads() as log:
        placed = leaf.placed()
    # Of each head one run: what it is of is in another order, and nothing else is read.
    assert (log.nbytes, len(log.reads)) == (w.nbytes, heads)
    assert_same_bits(placed, expected)
    with safejax.observe_reads() as log:
        part = np.asarray(safejax.deserialize(data, transform=t)["attention"]["q"][3:40:4, 1])
    assert log.nbytes == part.nbytes
    assert_same_bits(part, np.ascontiguousarray(expected[3:40:4, 1]))
    assert safejax.serialize(tree, transform=t.inverse) == data
    assert pickle.loads(pickle.dumps(t)) == t
    assert repr(t) == "permute('*.q', 0, [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15])"
    assert repr(permute("q", 1, range(99))).endswith("14, 15, … 99 in all])")


@st.composite
def orders(draw: st.DrawFn) -> tuple[View, Any]:
    """A view with elements in another order, several times, and NumPy's."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    model = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    view: View = Strided(ArraySource(model), 0, model.dtype, Window.whole(shape))
    axis = draw(st.integers(0, model.ndim - 1))
    if draw(st.booleans()):
        view, model = concatenation((view, view), axis), np.concatenate([model, model], axis)
    if draw(st.booleans()):
        view, model = cast_view(view, np.dtype("float32")), model.astype(np.float32)
    for _ in range(draw(st.integers(1, 3))):
        axis = draw(st.integers(0, model.ndim - 1))
        order = np.array(draw(st.permutations(range(model.shape[axis]))), np.intp)
        view, model = gathered(view, axis, Order(order)), model.take(order, axis)
        if draw(st.booleans()):
            axes = tuple(draw(st.permutations(range(model.ndim))))
            view, model = view.transpose(axes), model.transpose(axes)
    index = draw(indices(model.shape))
    return view.index(index), model[index if ... in index else (*index, ...)]


@given(case=orders())
def test_any_part_of_any_order_equals_numpys_and_reads_no_more(case: tuple[View, Any]) -> None:
    view, model = case
    assert_same_bits(view.read(), np.array(model, order="C"))
    with safejax.observe_reads() as log:
        view.read()
    assert log.nbytes == model.size * 4


@pytest.mark.parametrize("access", ["map", "read"])
def test_a_stack_in_another_order_from_a_file(access: Any, tmp_path: Path) -> None:
    layers = {f"l{i}": np.arange(24, dtype=np.float32).reshape(4, 6) + 100 * i for i in range(3)}
    safejax.save(layers, tmp_path / "m")
    order = [2, 0, 3, 1]
    t = chain(safejax.stack("l{i}", "l"), permute("l", 1, order), permute("l", 0, [1, 2, 0]))
    leaf = safejax.load(tmp_path / "m", transform=t, access=access)["l"]
    expected = np.stack(list(layers.values()))[[1, 2, 0]][:, order]
    assert_same_bits(leaf.placed(), expected)
    assert safejax.plan(tmp_path / "m", transform=t, access=access).reads.nbytes >= leaf.nbytes


WRONG: list[tuple[Any, str]] = [
    (lambda: permute("w", 0, [0, 2]), "a permutation of 0 to n-1"),
    (lambda: permute("w", 0, []), "a permutation of 0 to n-1"),
    (lambda: permute("w", 0, ANY(3)), "a permutation of 0 to n-1, got 3"),
    (lambda: permute("w", ANY("x"), [0]), "axis to be an int"),
    (lambda: permute(ANY(None), 0, [0]), "a pattern or a function"),
    (lambda: permute("w", 0, [1, 0])(Leaves({"w": np.ones(3)})), r"leaf 'w': expected a multiple"),
    (lambda: permute("w", 1, [1, 0])(Leaves({"w": np.ones(4)})), "an axis of -1 to 0, got 1"),
    (lambda: offset("w", ANY("1")), "a finite float, or an int"),
    (lambda: offset("w", float("nan")), "a finite float, or an int"),
    (lambda: offset("w", 10**400), "an int of at most 128 bits"),
    (lambda: offset("w", 2**53 + 1)(Leaves({"w": np.ones(3)})), "a number that float64 has"),
    (lambda: scale("w", 0), "other than 0"),
    (lambda: scale("w", 0.5)(Leaves({"w": np.ones(3, int)})), "a floating dtype for 0.5, got int"),
    (lambda: scale("w", 2)(Leaves({"w": np.ones(3, bool)})), "expected numbers, got bool"),
    (lambda: offset("w", 2)(Leaves({"w": jax.random.key(0)})), "expected numbers, got typed keys"),
    (lambda: drop("w", inverse=ANY(3)), "mapping from names to leaves, or a function"),
    (lambda: drop("w", inverse={"v": 1}), "expected names that it drops, got 'v'"),
    (lambda: drop("w", inverse={"w": 1}).inverse(Leaves({"w": 2})), "that are free, got 'w'"),
    (lambda: drop("w", inverse=lambda _: {"v": 1}).inverse(Leaves({})), "it drops, got 'v'"),
    (lambda: drop("w", inverse=ANY(lambda _: 3)).inverse(Leaves({})), "names to leaves, got int"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_what_is_wrong_is_an_error_that_says_so(call: Any, message: str) -> None:
    with pytest.raises(TransformError, match=message):
        call()


# ---- offset and scale

DTYPES = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "int32", "uint8", "int64",
          "uint64", "int4"]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_results_are_exact_and_come_back_or_are_refused(dtype: str, data: st.DataObject) -> None:
    floating = "float" in dtype
    bys = [0.5, 0.1, 1e-3] if floating else [2**40, 2**63, 2**70]
    by: Any = data.draw(st.sampled_from([1, 2, -3, 8, *bys]))
    make = data.draw(st.sampled_from([offset, scale]))
    others = (
        [0.5, 0.011, -300.0, 1e-9, 1.5e-323]
        if floating
        else [2**24 if dtype in ("int32", "int64") else 6]
    )
    numbers = st.sampled_from([0, 1, 2, 3, 5, 7, *others])
    values = data.draw(st.lists(numbers, min_size=1, max_size=4))
    array = np.array(values).astype(np.dtype(dtype))
    leaf = make("w", by)(stored({"w": array}))["w"]
    exact = [_exactly(make, value, by) for value in array.tolist()]
    fits = [_holds(value, np.dtype(dtype)) for value in exact]
    if not all(fits):
        with pytest.raises(PrecisionError, match=r"leaf 'w': expected .* to be exact in"):
            np.asarray(leaf)
        return
    result = np.asarray(leaf)
    assert [_fraction(value) for value in result.tolist()] == exact
    back = np.asarray(make("w", by).inverse(Leaves({"w": result}))["w"])
    assert_same_bits(back, array)


def _fraction(value: Any) -> Any:
    return Fraction(float(value)) if not isinstance(value, int) else Fraction(value)


def _exactly(make: Any, value: Any, by: Any) -> Any:
    return _fraction(value) + _fraction(by) if make is offset else _fraction(value) * _fraction(by)


def _holds(value: Any, dtype: Any) -> bool:
    if "int" in dtype.name:
        low, high = (ml_dtypes.iinfo if dtype.name == "int4" else np.iinfo)(dtype).min, 0
        high = (ml_dtypes.iinfo if dtype.name == "int4" else np.iinfo)(dtype).max
        return low <= value <= high
    with np.errstate(all="ignore"):
        near = np.asarray(float(value)).astype(dtype)
    return (
        bool(np.isfinite(near.astype(np.float64))) and _fraction(near.astype(np.float64)) == value
    )


def test_rounding_has_to_be_asked_for() -> None:
    w = np.array([0.01, 3.0], ml_dtypes.bfloat16)
    with pytest.raises(PrecisionError, match=r"0.0100098 \+ 1 to be exact in bfloat16, as 1 of 2"):
        np.asarray(offset("w", 1)(Leaves({"w": w}))["w"])
    rounded = offset("w", 1, exact=False)
    expected = (w.astype(np.float32) + 1).astype(ml_dtypes.bfloat16)
    assert_same_bits(np.asarray(rounded(Leaves({"w": w}))["w"]), expected)
    most = offset("w", ANY(np.int64(100)), exact=False)(Leaves({"w": np.array([100, -3], np.int8)}))
    np.testing.assert_array_equal(np.asarray(most["w"]), np.array([127, 97], np.int8))
    with pytest.raises(NotInvertibleError, match="expected a step with exact results"):
        _ = rounded.inverse
    for t in (offset("w", 1), scale("w", 2.5, must_match=False)):
        assert eval(repr(t)) == t
        assert eval(repr(t.inverse)) == t.inverse


def test_an_inverse_that_loses_low_bits_is_refused() -> None:
    t = elementwise(lambda x: x + 1, "w", inverse=lambda x: x - 1)
    with pytest.raises(TransformError, match=r"leaf 'w': .* what bfloat16 holds, but for 0.011"):
        t(Leaves({"w": jnp.ones(3, jnp.bfloat16)}))
    np.testing.assert_array_equal(np.asarray(t(Leaves({"w": jnp.ones(3)}))["w"]), 2)
    twice = elementwise(lambda x: x * 2, "w", inverse=lambda x: x / 2)
    assert twice(Leaves({"w": jnp.ones(3, jnp.bfloat16)}))["w"].dtype == jnp.bfloat16

    def root(x: Any) -> Any:
        if (x < 0).any():
            raise ValueError("expected no negative numbers")
        return np.sqrt(x)

    roots = elementwise(root, "w", inverse=np.square)
    assert roots(Leaves({"w": jnp.ones(3, jnp.bfloat16)}))["w"].dtype == jnp.bfloat16


# ---- drop, and what it restores


def test_what_was_dropped_is_restored() -> None:
    ids = jnp.arange(4)
    tree = {"a": {"w": jnp.ones(2), "ids": ids}, "b": {"w": jnp.ones(2), "ids": ids}}

    def again(leaves: Leaves) -> dict[str, Any]:
        return {f"{name[0]}.ids": ids for name in leaves}

    data = safejax.serialize(tree)
    for t in (drop("*.ids", inverse=again), drop("*.ids", inverse={"a.ids": ids, "b.ids": ids})):
        loaded = safejax.deserialize(data, transform=t)
        assert sorted(flatten(loaded)) == ["a.w", "b.w"]
        assert safejax.serialize(loaded, transform=t.inverse) == data
        assert t.inverse.inverse == t
        abstract = t.inverse(flatten(safejax.abstract(loaded)))
        assert abstract["a.ids"] == jax.ShapeDtypeStruct((4,), ids.dtype)
    nothing = drop("*.ids", inverse={})
    assert pickle.loads(pickle.dumps(nothing)) == nothing
    assert nothing.inverse(Leaves({"w": 1})) == Leaves({"w": 1})
    assert repr(nothing) == "drop('*.ids', inverse={})"
    assert repr(drop("*.ids", inverse={"a.ids": ids})) == "drop('*.ids', inverse={'a.ids': …})"
    with pytest.raises(NotInvertibleError, match=r"drop\(\.\.\., inverse=\{\}\)"):
        _ = drop("*.ids").inverse


# ---- integers of 64 bits


def test_integers_of_64_bits_are_saved_as_such_again_also_when_they_were_placed() -> None:
    tree = {"ids": np.arange(5), "u": np.arange(3, dtype=np.uint64), "w": np.ones(2, np.float32)}
    data = safejax.serialize(tree)
    t = safejax.rename({"ids": "a.ids", "u": "a.u", "w": "a.w"})
    loaded = safejax.materialize(safejax.deserialize(data, transform=t))
    assert loaded["a"]["ids"].dtype == jnp.int32
    assert safejax.serialize(loaded, transform=t.inverse) == data
    # What is computed from it is JAX's own, and so is what is asked for.
    again = safejax.deserialize(safejax.serialize({"w": loaded["a"]["ids"] + 0}))["w"]
    assert np.asarray(again).dtype == np.int32
    narrow = safejax.cast("int32", source="int64")
    stored = safejax.deserialize(safejax.serialize(loaded, transform=narrow))
    assert np.asarray(stored["a"]["ids"]).dtype == np.int32
