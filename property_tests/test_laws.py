"""The six laws of the design, for every public step, over generated trees.

1 round trip, 2 inverse, 3 avals, 4 pushdown, 5 purity, 6 reference. One table has all steps: a
public step that is missing from it fails `test_every_public_step_is_in_the_table`.
"""

import inspect
import typing
from typing import Any

import jax
import numpy as np
import pytest
import safetensors
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.sharding import SingleDeviceSharding

import safejax
from safejax import (
    LazyArray,
    Leaves,
    NotInvertibleError,
    Step,
    chain,
    decode,
    encode,
    flatten,
    unflatten,
)
from safejax._src.dtypes import is_floating
from safejax._src.leaves.leaf import aval_of, is_array, is_weakly_typed
from safejax._src.reading.concatenation import Concatenation
from safejax._src.reading.derived import Derived
from safejax._src.reading.packed import PackedSource
from safejax._src.reading.pointwise import Pointwise
from safejax._src.reading.source import Source
from safejax._src.reading.view import Strided, View
from safejax.testing import (
    arrays,
    assert_reads,
    assert_round_trip,
    assert_same_bits,
    assert_trees_identical,
    indices,
    pytrees,
    scalars,
    shardings,
    transforms,
)
from safejax.testing.strategies import shapes
from tests.support.effort import LARGE

# ---- every step, with the leaves that it is applied to


def named(dtype: Any = None, min_axes: int = 0, max_axes: int = 4) -> st.SearchStrategy[Leaves]:
    """Leaves with a few arrays and a scalar, whose names the steps below match."""
    array = arrays(dtype)
    fitting = shapes(min_axes, max_axes, 32).flatmap(lambda shape: arrays(dtype, shape))
    return st.fixed_dictionaries(
        {"enc.0.kernel": fitting, "enc.1.kernel": fitting, "enc.0.bias": array, "step": scalars()}
    ).map(Leaves)


def _swap(leaves: Leaves) -> Leaves:
    return leaves.replace(dict(reversed(list(leaves.items()))))


def alike(dtypes: tuple[str, ...] = ("float32", "int4", "bfloat16")) -> st.SearchStrategy[Leaves]:
    """Leaves with numbered arrays of one dtype and shape, whose first axis has size 6."""
    trailing = shapes(0, 3, 8)
    same = st.tuples(st.sampled_from(dtypes), trailing, st.integers(1, 3))

    def numbered(drawn: tuple[str, tuple[int, ...], int]) -> st.SearchStrategy[Leaves]:
        dtype, shape, count = drawn
        names = [f"enc.{i}.{part}" for i in range(count) for part in ("k", "v")]
        arrays_of = {name: arrays(dtype, (6, *shape)) for name in names}
        return st.fixed_dictionaries({**arrays_of, "enc.norm": arrays(), "step": scalars()}).map(
            Leaves
        )

    return same.flatmap(numbered)


def key_data(own: tuple[int, ...]) -> st.SearchStrategy[Leaves]:
    """Leaves of raw keys whose data have the trailing axes `own`."""
    raw = shapes(0, 3, 8).flatmap(lambda shape: arrays("uint32", (*shape, *own)))
    return st.fixed_dictionaries({"enc.0.kernel": raw, "enc.1.kernel": raw, "step": scalars()}).map(
        Leaves
    )


def flat(leaves: st.SearchStrategy[Leaves]) -> st.SearchStrategy[Leaves]:
    """The same leaves, in which those with a first axis of size 6 have one more axis."""

    def reshaped(_: str, leaf: Any) -> Any:
        return leaf.reshape(6, leaf.size // 6) if leaf.shape[:1] == (6,) else leaf

    return leaves.map(lambda found: found.map(reshaped))


FLOATS = st.sampled_from(["float32", "bfloat16", "float16"])
MATRICES = named("float32", 2, 2) | named("int8", 2, 2)
PAIRS = alike(("int8",))


def joined(k: Any, v: Any) -> Any:
    """Each pair of bytes as one number."""
    return k.astype(np.int16) * 256 + v.view(np.uint8)


def parted(pairs: Any) -> Any:
    return (pairs >> 8).astype(np.int8), (pairs & 255).astype(np.uint8).view(np.int8)


FINITE = alike(("float32",))
# In which every sum and product of the steps below is exact.
NIBBLES = alike(("int4",)).map(
    lambda leaves: leaves.replace(
        {
            name: leaf.astype("int8") if name.endswith((".k", ".v")) else leaf
            for name, leaf in leaves.items()
        }
    )
)


REST = [("enc.norm", "norm"), ("step", "step")]

# The name of a public step, with its cases: the step, leaves that it can be applied to, and whether
# its inverse is exact (None if it has no inverse).
Case = tuple[Step[Any, Any], st.SearchStrategy[Leaves], bool | None]
STEPS: dict[str, list[Case]] = {
    "cast": [
        (safejax.cast("float32", source="bfloat16"), named("bfloat16"), True),
        (safejax.cast("bfloat16", source="float32"), named("float32"), False),
        (safejax.cast("int8", source="float16", where="enc.*"), named("float16"), False),
    ],
    "rename": [
        (safejax.rename({"enc.{i}.kernel": "layers.{i}.w"}), named(), True),
        (safejax.rename({"*.bias": "bias of *", "step": "count"}), named(), True),
    ],
    "transpose": [
        (safejax.transpose("*.kernel"), MATRICES, True),
        (safejax.transpose(lambda name: name.endswith("kernel")), MATRICES, True),
    ],
    "reshape": [
        (safejax.reshape("enc.{i}.*", (2, -1), source=None), alike(), None),
        (safejax.reshape("enc.{i}.k", (3, 2, -1), source=(6, -1)), flat(alike()), True),
        (safejax.reshape("enc.{i}.*", (-1, 2), axis=0), alike(), True),
        (
            chain(
                safejax.transpose("enc.{i}.k"),
                safejax.reshape("enc.{i}.k", (-1, 3, 2), source=(-1, 6)),
            ),
            flat(alike()),
            True,
        ),
    ],
    "stack": [
        (safejax.stack("enc.{i}.*", "stacked.*"), alike(), True),
        (safejax.stack("enc.{i}.k", "k", axis=-1), alike(), True),
        (safejax.stack("enc.{i}.*", "first.*", count=1), alike(), True),
        (safejax.stack(["enc.{i}.k", "enc.{i}.v"], "{i}.kv", axis=1), alike(), True),
    ],
    "unstack": [
        (safejax.unstack("enc.{i}.*", "enc.{i}.{n}.*", axis=0), alike(), True),
        (safejax.unstack("enc.{i}.k", "{i}.{n:int}", start=3, count=6), alike(), True),
        (safejax.unstack("enc.{i}.k", [f"{{i}}.{name}" for name in "abcdef"]), alike(), True),
    ],
    "split": [
        (safejax.split("enc.{i}.k", ["q.{i}", "r.{i}", "s.{i}"]), alike(), True),
        (safejax.split("*.v", ["*.a", "*.b"], sizes=(5, 1)), alike(), True),
    ],
    "concat": [
        (safejax.concat(["enc.{i}.k", "enc.{i}.v"], "{i}.kv"), alike(), True),
        (
            chain(
                safejax.concat(["enc.{i}.v", "enc.{i}.k"], "{i}.kv"), safejax.stack("{i}.kv", "kv")
            ),
            alike(),
            True,
        ),
    ],
    "correspond": [
        (
            safejax.correspond(
                [("enc.{i}.k", "k"), ("enc.{i}.v", "v.{i}"), ("enc.norm", "n"), ("step", "step")]
            ),
            alike(),
            True,
        ),
        (
            safejax.correspond(
                [
                    ("enc.{i}.k", "k", "(h r) d -> d h i r"),
                    ("enc.{i}.v", "{i}.{n}", "n d -> d"),
                    *REST,
                ],
                sizes={"r": 2},
            ),
            flat(alike()),
            True,
        ),
        (
            safejax.correspond(
                [
                    ("enc.{i}.k", ("a.{i}", "b.{i}"), "(x r + y) d -> d x r, d y"),
                    ("enc.{i}.v", ("e", "f"), "(h (1 + 1)) d -> h d, d h"),
                    *REST,
                ],
                sizes={"x": 2, "r": 2},
            ),
            flat(alike()),
            True,
        ),
        (
            safejax.correspond(
                [(("enc.{i}.k", "enc.{i}.v"), "{i+1}", "n d, n d -> (n + n) d"), *REST],
            ),
            flat(alike()),
            True,
        ),
    ],
    "select": [(safejax.select("*.0.*", "step"), named(), None)],
    "drop": [
        (safejax.drop("*.0.*"), named(), None),
        (safejax.drop("*", "!enc.*", inverse={"step": 3}), named(), False),
        (safejax.drop("*.bias", inverse={}, must_match=False), named(), False),
    ],
    "merge": [
        (
            safejax.merge(
                {"{i}.kv": ["enc.{i}.k", "enc.{i}.v"]},
                joined,
                axes="..., ... -> ...",
                inverse=parted,
            ),
            PAIRS,
            True,
        ),
        (safejax.merge({"{i}": ["enc.{i}.v"]}, np.isfinite, axes="... -> ..."), FINITE, None),
    ],
    "offset": [
        (safejax.offset("*.k", 3), NIBBLES, True),
        (safejax.offset("*.k", 0.5, exact=False), alike(("float32", "bfloat16")), None),
    ],
    "scale": [
        (safejax.scale("*.k", 4), NIBBLES, True),
        (safejax.scale("*.k", 0.1, exact=False), alike(("float32",)), None),
    ],
    "permute": [
        (safejax.permute("enc.{i}.*", 0, (2, 0, 1)), alike(), True),
        (
            safejax.permute(("enc.{i}.k", "!enc.1.*"), 0, (5, 3, 4, 0, 2, 1), must_match=False),
            alike(),
            True,
        ),
        (
            chain(
                safejax.stack("enc.{i:int}.{p:k|v}", "{p}"),
                safejax.permute("{p:k|v}", 1, (1, 0)),
                safejax.cast("bfloat16", source="float32", where="k"),
            ),
            alike(("float32",)),
            False,
        ),
    ],
    "prefix": [(safejax.prefix("model"), named(), True)],
    "tie": [
        (safejax.tie({"head": "enc.0.bias", "dec.{i}.w": "enc.{i}.kernel"}), named(), True),
        (safejax.tie({"count": "step"}), named(), True),
    ],
    "keys": [
        (chain(wraps := safejax.keys("enc.*.kernel"), wraps.inverse), key_data((2,)), True),
        (chain(wraps := safejax.keys("*.kernel", impl="rbg"), wraps.inverse), key_data((4,)), True),
    ],
    "pad": [
        (safejax.pad("enc.{i}.*", axis=0, to=9, source=6), alike(), True),
        (safejax.pad("enc.{i}.k", axis=0, to=7, value=1), alike(), None),
    ],
    "crop": [(safejax.crop("enc.{i}.*", axis=0, to=4), alike(), None)],
    "elementwise": [
        (safejax.elementwise(np.negative, "*.k", inverse=np.negative), alike(("int8",)), True),
        (safejax.elementwise(np.isfinite, "enc.*.v"), alike(("float32",)), None),
    ],
    "step": [(safejax.step(_swap, _swap), named(), True)],
    "chain": [
        (chain(), named(), True),
        (
            chain(safejax.rename({"enc.*": "dec.*"}), safejax.transpose("dec.*.kernel")),
            MATRICES,
            True,
        ),
        (
            chain(safejax.transpose("enc.0.kernel"), safejax.cast("float16", source="float32")),
            named("float32", 2, 2),
            False,
        ),
    ],
}
# These do not return Leaves; their laws are stated separately below.
ENDS = {"flatten", "unflatten", "encode", "decode"}

CASES = [
    pytest.param(step, leaves, exact, id=repr(step))
    for cases in STEPS.values()
    for step, leaves, exact in cases
]
# For each of many steps: a fourth of what is tried elsewhere where much is tried.
TRIES = settings(max_examples=100 if LARGE else 10)

every_step = pytest.mark.parametrize(("step", "leaves", "exact"), CASES)


def test_every_public_step_is_in_the_table() -> None:
    def is_step(value: Any) -> bool:
        if isinstance(value, Step):
            return True
        made = inspect.signature(value).return_annotation if inspect.isfunction(value) else None
        made = typing.get_origin(made) or made
        return inspect.isclass(made) and issubclass(made, Step)

    public = {name for name in safejax.__all__ if is_step(getattr(safejax, name))}
    assert public == STEPS.keys() | ENDS


def same(actual: Leaves, expected: Leaves, step: Step[Any, Any] | None = None) -> None:
    # What is made of several leaves takes the place of the first one.
    gathers = any(
        word in repr(step) for word in ("stack(", "concat(", "split(", "correspond(", "merge(")
    )
    in_order = sorted if gathers else list
    assert in_order(actual) == in_order(expected)
    # A cast keeps NaNs but not their payloads; all other steps keep every bit.
    alike = one_nan if "cast(" in repr(step) else lambda leaf: leaf
    for name, leaf in expected.items():
        assert_same_bits(alike(actual[name]), alike(leaf), name)


def one_nan(leaf: Any) -> Any:
    """The leaf with the same bit pattern for all NaNs."""
    if not is_plain(leaf) or not is_floating(np.asarray(leaf).dtype):
        return leaf
    host = np.asarray(leaf)
    with np.errstate(invalid="ignore"):  # NumPy warns about signalling NaNs.
        return np.where(np.isnan(host), np.asarray(np.nan, host.dtype), host)


# ---- 1 round trip


@given(tree=pytrees())
def test_unflatten_gives_back_what_was_flattened(tree: Any) -> None:
    assert_trees_identical(unflatten(flatten(tree)), tree)


@given(tree=pytrees())
def test_decode_gives_back_what_was_encoded(tree: Any) -> None:
    leaves = flatten(tree)
    decoded = decode(encode(leaves))
    assert decoded.keys() == leaves.keys()
    for name, leaf in leaves.items():
        assert_same_bits(decoded[name], leaf, name)
    assert encode(decoded) == encode(leaves)


@given(tree=pytrees())
def test_a_tree_survives_the_file(tree: Any) -> None:
    assert_round_trip(tree)


# ---- 2 inverse


@every_step
@TRIES
@given(data=st.data())
def test_the_inverse_undoes_the_step(
    step: Step[Any, Any], leaves: st.SearchStrategy[Leaves], exact: bool | None, data: st.DataObject
) -> None:
    before = data.draw(leaves)
    there = step(before)
    if exact is None:
        with pytest.raises(NotInvertibleError, match="expected a"):
            assert step.inverse
        return
    back = step.inverse(there)
    same(step(back), there, step)
    if exact:
        same(back, before, step)
    assert step.inverse.inverse == step


@given(data=st.data())
def test_any_chain_can_be_undone_after_a_save_and_a_load(data: st.DataObject) -> None:
    before = flatten(data.draw(pytrees()))
    step = data.draw(transforms(before))
    there = step(before)
    stored = decode(encode(there))
    same(by_name(step(step.inverse(stored))), by_name(there), step)
    same(by_name(step.inverse(stored)), by_name(step.inverse(there)), step)
    if "cast(" not in repr(step):
        same(by_name(step.inverse(stored)), by_name(before), step)


@given(tree=pytrees())
def test_a_tree_moves_whole_below_a_prefix_and_back(tree: Any) -> None:
    data = safejax.serialize(tree)
    stored = safejax.deserialize(data)
    below = safejax.deserialize(data, transform=safejax.prefix("net"))
    assume("net." not in flatten({"net": stored}))  # `prefix` gives the key '' the name `net`.
    assert_trees_identical(below, {"net": stored})
    above = safejax.prefix("net").inverse
    assert_trees_identical(safejax.deserialize(safejax.serialize(below), transform=above), stored)


def by_name(leaves: Leaves) -> Leaves:
    """The leaves in the order of their names, because a file has its own order."""
    return leaves.replace({name: leaves[name] for name in sorted(leaves)})


# ---- 3 avals


@every_step
@TRIES
@given(data=st.data())
def test_abstract_leaves_get_the_avals_that_arrays_get(
    step: Step[Any, Any], leaves: st.SearchStrategy[Leaves], exact: bool | None, data: st.DataObject
) -> None:
    before = data.draw(leaves)
    abstract = before.map(
        lambda _, leaf: jax.ShapeDtypeStruct(
            leaf.shape, np.asarray(leaf).dtype, weak_type=is_weakly_typed(leaf)
        )
    )
    there = step(before)
    for name, leaf in step(abstract).items():
        if is_array(leaf):
            assert isinstance(leaf, jax.ShapeDtypeStruct)
            placed = jax.dtypes.canonicalize_dtype(leaf.dtype)
            assert (leaf.shape, placed) == (aval_of(there[name]).shape, aval_of(there[name]).dtype)
            assert np.asarray(there[name]).shape == leaf.shape
            assert np.asarray(there[name]).dtype == leaf.dtype
            assert is_weakly_typed(there[name]) == leaf.weak_type


# ---- 4 pushdown


@every_step
@TRIES
@given(data=st.data())
def test_a_part_of_a_result_reads_only_its_own_bytes(
    step: Step[Any, Any], leaves: st.SearchStrategy[Leaves], exact: bool | None, data: st.DataObject
) -> None:
    before = data.draw(leaves)
    there = step(decode(encode(before)))
    for name, leaf in there.items():
        if not is_array(leaf):
            continue
        index = data.draw(indices(leaf.shape))
        closed = index if ... in index else (*index, ...)
        expected = np.asarray(step(before)[name])[closed]
        with safejax.observe_reads() as log:
            part = leaf[index]
            assert log.nbytes == 0
            read = np.asarray(part)
        assert_same_bits(read, expected, name)
        width, source = stored(leaf)
        if isinstance(source, PackedSource):
            # Two elements share a byte, so that a run may begin and end within one.
            assert log.nbytes <= 2 * expected.size
        elif "pad(" in repr(step):
            # What is added is in no file.
            assert log.nbytes <= expected.size * width
        else:
            assert log.nbytes == expected.size * width


def stored(leaf: LazyArray) -> tuple[int, Source]:
    """The number of bytes that an element of a leaf takes in its sources, and the first of them."""
    return _stored(leaf.content.view)


def _stored(view: View) -> tuple[int, Source]:
    if isinstance(view, Pointwise):
        return _stored(view.operand)
    if isinstance(view, Concatenation):
        return _stored(view.parts[0])
    assert isinstance(view, Strided)
    if isinstance(view.source, Derived):
        widths, sources = zip(*map(_stored, view.source.operands), strict=True)
        return sum(widths), sources[0]
    return view.dtype.itemsize, view.source


# ---- 5 purity


@every_step
@TRIES
@given(data=st.data())
def test_steps_read_nothing_and_change_no_argument(
    step: Step[Any, Any], leaves: st.SearchStrategy[Leaves], exact: bool | None, data: st.DataObject
) -> None:
    before = data.draw(leaves)
    stored = decode(encode(before))
    with safejax.observe_reads() as log:
        there = step(stored)
        assert repr(there)
        assert exact is None or repr(chain(step, step.inverse))
        assert log.nbytes == 0
    assert step == step
    same(stored, decode(encode(before)))


@given(tree=pytrees())
def test_saving_changes_nothing_in_the_tree(tree: Any) -> None:
    before = [np.array(leaf).tobytes() for leaf in jax.tree.leaves(tree) if is_plain(leaf)]
    structure = jax.tree.structure(tree)
    safejax.serialize(tree, transform=safejax.cast("float32", must_match=False))
    after = [np.array(leaf).tobytes() for leaf in jax.tree.leaves(tree) if is_plain(leaf)]
    assert (after, jax.tree.structure(tree)) == (before, structure)


def is_plain(leaf: Any) -> bool:
    return is_array(leaf) and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)


# ---- 6 reference


@given(tree=pytrees())
def test_the_reference_reader_reads_what_safejax_writes(tree: Any) -> None:
    leaves = flatten(tree)
    data = encode(leaves)
    read = dict(safetensors.deserialize(data))
    wanted = {name: leaf for name, leaf in leaves.items() if is_array(leaf)}
    assert read.keys() == wanted.keys()
    for name, leaf in decode(data).items():
        if not is_array(leaf) or leaf.content.view.dtype.name == "float4_e2m1fn":
            continue
        host = leaf.content.view.read()
        assert bytes(read[name]["data"]) == np.ascontiguousarray(host).tobytes()


@given(data=st.data())
def test_placing_reads_each_distinct_shard_once(data: st.DataObject) -> None:
    shape = data.draw(shapes())
    array = data.draw(arrays("float32", shape) | arrays("int8", shape))
    sharding = data.draw(shardings(shape))
    blob = safejax.serialize({"w": array})
    tree = safejax.deserialize(blob, sharding=sharding)
    assert_reads(tree, array.nbytes)
    placed = safejax.deserialize(blob, sharding=sharding)["w"].placed()
    assert placed.sharding.is_equivalent_to(sharding, len(shape))
    assert_same_bits(placed, array)
    for shard in placed.addressable_shards:
        assert np.asarray(shard.data).tobytes() == np.asarray(array)[shard.index].tobytes()
    if isinstance(sharding, SingleDeviceSharding):
        assert placed.devices() == sharding.device_set
