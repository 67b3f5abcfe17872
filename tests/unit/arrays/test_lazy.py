"""A lazy leaf by itself: its facts read nothing, and all else equals the placed array."""

import copy
import math
import operator
import pickle
import rlcompleter
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import basic_indices
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import safejax
from safejax._src.arrays.content import Content, key_array_type
from safejax._src.arrays.forwarding import HANDED_ON, NOT_HANDED_ON
from safejax._src.arrays.lazy import LazyArray
from safejax._src.arrays.precision import NarrowingNotice
from safejax._src.leaves.leaf import content_of, like_leaf
from safejax._src.reading.computed import ComputedSource
from safejax._src.reading.log import observe_reads
from safejax._src.reading.view import Strided
from safejax._src.reading.windows import Window
from safejax.errors import (
    LeafError,
    PlacementError,
    PrecisionWarning,
    ReadError,
    UnsupportedJaxError,
)
from tests.support.effort import LARGE
from tests.support.leaves import host_bytes, is_key, lazy
from tests.support.outcomes import form, is_refusal, outcome

MESH = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
ROWS = NamedSharding(MESH, PartitionSpec("x"))
FLOATS = (np.arange(64, dtype=np.float32).reshape(8, 8) - 20.5) / 4
INTS = np.arange(8, dtype=np.int32)[::-1] % 5

# One array of each kind that behaves differently for users of JAX.
KINDS: dict[str, Callable[[], Any]] = {
    "floats": lambda: jnp.asarray(FLOATS),
    "ints": lambda: jnp.asarray(INTS),
    "scalar": lambda: jnp.float32(2.5),
    "count": lambda: jnp.int32(3),
    "rows": lambda: jax.device_put(FLOATS, ROWS),
    "int rows": lambda: jax.device_put(INTS, ROWS),
    "key": lambda: jax.random.key(7),
    "key rows": lambda: jax.device_put(jax.random.split(jax.random.key(7), 8), ROWS),
}


# ---- known without reading

KNOWN: dict[str, Callable[[Any], Any]] = {
    **{
        name: operator.attrgetter(name)
        for name in (
            "shape", "dtype", "ndim", "size", "nbytes", "itemsize", "weak_type", "sharding",
            "aval", "committed", "is_fully_addressable", "is_fully_replicated",
        )
    },
    "device": lambda x: device(x),
    "devices": lambda x: x.devices(),
    "is_deleted": lambda x: x.is_deleted(),
    "len": len,
    "isinstance": lambda x: isinstance(x, jax.Array),
    "hash": hash,
    "numpy.shape": np.shape,
    "jax.typeof": jax.typeof,
    "jax.tree.structure": lambda x: jax.tree.structure({"a": [x, None]}),
    "jax.tree.map": lambda x: jax.tree.map(lambda y: y.shape, {"a": [x]}),
    "jax.tree.leaves_with_path": lambda x: jax.tree.leaves_with_path({"a": x})[0][0],
    "jax.eval_shape": lambda x: jax.eval_shape(lambda y: (y, y[None]), x),
    "jax.make_jaxpr": lambda x: str(jax.make_jaxpr(lambda y: y[None])(x)),
    "jit.lower": lambda x: jax.jit(lambda y: y[None]).lower(x).as_text(),
    "jit.eval_shape": lambda x: jax.jit(lambda y: y[None]).eval_shape(x),
    "jnp.zeros_like": lambda x: None if is_key(x) else jnp.zeros_like(x),
    "jnp.shape, ndim, size": lambda x: (jnp.shape(x), jnp.ndim(x), jnp.size(x)),
    "jnp.result_type": jnp.result_type,
}  # fmt: skip


def device(x: Any) -> Any:
    # For keys on several devices, JAX returns the sharding of their key data.
    return x.devices() if is_key(x) and len(x.devices()) > 1 else x.device


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", KNOWN)
def test_facts_equal_those_of_the_placed_array_and_read_nothing(name: str, kind: str) -> None:
    plain = KINDS[kind]()
    leaf = lazy(plain)
    with observe_reads() as log:
        got = outcome(KNOWN[name], leaf)
        assert not log.reads
        assert not leaf.is_placed
    assert got == outcome(KNOWN[name], plain)


@pytest.mark.parametrize("kind", KINDS)
def test_repr_shows_the_state_and_reads_nothing(kind: str) -> None:
    leaf = lazy(KINDS[kind](), "layers.0.w")
    with observe_reads() as log:
        assert repr(leaf) == f"LazyArray({leaf.aval.str_short()}, name='layers.0.w', unread)"
        assert not log.reads
    leaf.placed()
    assert repr(leaf) == f"LazyArray({leaf.aval.str_short()}, name='layers.0.w', placed)"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_is_an_unread_leaf_of_its_own(
    copied: Callable[[LazyArray], LazyArray], kind: str
) -> None:
    leaf = lazy(KINDS[kind]())
    with observe_reads() as log:
        twin = copied(leaf)
        assert type(twin) is LazyArray
        assert (twin.aval, twin.sharding, twin.committed) == (
            leaf.aval, leaf.sharding, leaf.committed,
        )  # fmt: skip
        assert not log.reads
    assert form(twin) == form(KINDS[kind]())
    assert not leaf.is_placed


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "bool", "int8", "complex64", "float8_e4m3fn", "int4", "uint2"]
)
@pytest.mark.parametrize("shape", [(), (0,), (8,), (8, 3), (8, 0, 2), (8, 3, 5)])
def test_the_format_of_an_unread_leaf_equals_that_of_the_placed_array(
    shape: tuple[int, ...], dtype: str
) -> None:
    host = np.zeros(shape, jnp.dtype(dtype))
    for sharding in (None, *([ROWS] if shape[:1] == (8,) else [])):
        plain = jax.device_put(host, sharding)
        leaf = lazy(plain)
        assert leaf.format == plain.format
        # JAX 0.8 places elements smaller than a byte in another layout than it reports beforehand.
        assert not leaf.is_placed or dtype in ("int4", "uint2")


def test_keys_have_no_format() -> None:
    assert not hasattr(lazy(jax.random.key(0)), "format")


def test_a_leaf_supports_weak_references() -> None:
    leaf = lazy(FLOATS)
    reference = weakref.ref(leaf)
    assert reference() is leaf
    del leaf
    assert reference() is None


# ---- all else equals the placed array

PUBLIC = sorted(
    {
        name
        for array in (jnp.zeros(()), jax.random.key(0))
        for name in dir(type(array))
        if not name.startswith("_")
    }
)
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "addressable_data": (0,), "argpartition": (1,), "astype": ("int16",), "clip": (1, 3),
    "choose": ([10, 11, 12, 13, 14],), "compress": (np.arange(8) % 3 == 0, 0), "dot": (INTS,),
    "repeat": (2,), "reshape": ((-1, 1),), "searchsorted": (3,), "swapaxes": (0, -1),
    "take": (np.array([1, 0]),), "to_device": (jax.devices()[3],), "view": ("uint8",),
}  # fmt: skip
# Names whose values differ from array to array, with what can be compared about them.
COMPARED: dict[str, Callable[[Any], Any]] = {
    "at": lambda x: [x.at[0].set(x[1]), x.at[-1].get()],
    "device": device,
    "traceback": lambda x: type(x.traceback),
    "unsafe_buffer_pointer": lambda x: type(x.unsafe_buffer_pointer()),
    "unsafe_raw_buffer": lambda x: type(x.unsafe_raw_buffer()),
    "format": lambda x: (x.placed() if isinstance(x, LazyArray) else x).format,
    "pprint": lambda x: callable(x.pprint),
}
# JAX has the first three only to refuse them, and argpartition fails on JAX 0.8.
REFUSED_BY_JAX = {"device_buffer", "device_buffers", "flat", "argpartition"}


def use(name: str) -> Callable[[Any], Any]:
    def call(x: Any) -> Any:
        value = getattr(x, name)
        return value(*ARGUMENTS.get(name, ())) if callable(value) else value

    return COMPARED.get(name, call)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_attributes_give_what_the_placed_array_gives(name: str) -> None:
    given = False
    for kind in ("floats", "ints", "scalar", "rows", "key", "key rows"):
        make = KINDS[kind]
        expected = outcome(use(name), make())
        assert outcome(use(name), lazy(make())) == expected, kind
        given |= not is_refusal(expected)
    assert given or name in REFUSED_BY_JAX


DUNDERS = sorted(
    set(dir(type(jnp.zeros(()))))
    - set(dir(object))
    - {name for name in dir(type(jnp.zeros(()))) if not name.startswith("__")}
    # These have tests of their own below.
    - {*NOT_HANDED_ON, "__array__", "__buffer__", "__copy__", "__cuda_array_interface__",
       "__deepcopy__", "__getitem__"}
)  # fmt: skip
COMPARISONS = ["__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"]
BINARY = [
    name
    for name in (*DUNDERS, *COMPARISONS)
    if hasattr(operator, name.replace("__r", "__", 1) if name.startswith("__r") else name)
    and name not in {"__neg__", "__pos__", "__abs__", "__invert__", "__index__", "__contains__",
                     "__setitem__", "__call__"}
] + ["__divmod__", "__rdivmod__"]  # fmt: skip
OTHER_DUNDERS: dict[str, Callable[[Any], Any]] = {
    "__bool__": bool,  # Of a key, JAX 0.8 has no such method.
    "__dlpack__": lambda x: np.from_dlpack(x),
    "__round__": lambda x: [round(x), round(x, 1)],
    "__iter__": list,
    "__reversed__": lambda x: list(reversed(x)),
    "__contains__": lambda x: 2.5 in x,
    "__setitem__": lambda x: operator.setitem(x, 0, 1),
    "__array_module__": lambda x: x.__array_module__((jax.Array,)),
}


@pytest.mark.parametrize("name", sorted({*DUNDERS, *COMPARISONS} - set(BINARY)))
def test_special_methods_give_what_the_placed_array_gives(name: str) -> None:
    def call(x: Any) -> Any:
        value = getattr(x, name)
        return value() if callable(value) else value

    call = OTHER_DUNDERS.get(name, call)
    for kind, make in KINDS.items():
        assert outcome(call, lazy(make())) == outcome(call, make()), kind


class Stranger:
    """A type that JAX does not know, with its own result for every operator."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def _answer(self: Stranger, other: Any) -> str:
    return f"the stranger's answer to {type(self).__name__}"


for _name in BINARY:
    setattr(Stranger, _name, _answer)
STRANGER = Stranger()

# The other operand, and the kinds of leaves that are combined with it; compiling takes the time.
OTHERS: dict[str, tuple[Callable[[Any], Any], tuple[str, ...]]] = {
    "plain": (lambda plain: plain, ("floats", "ints", "rows")),
    "lazy": (lazy, ("floats", "ints", "rows")),
    "numpy": (np.asarray, ("floats", "ints")),
    "uncommitted": (lambda plain: jnp.asarray(np.asarray(plain)), ("rows",)),
    "int": (lambda _: 2, ("floats", "ints")),
    "float": (lambda _: 1.5, ("count",)),
    "numpy scalar": (lambda _: np.int32(2), ("ints",)),
    "stranger": (lambda _: STRANGER, ("floats", "rows")),
    "string": (lambda _: "no", ("floats", "rows")),
    "nothing": (lambda _: None, ("floats", "rows")),
}


def with_right(function: Callable[[Any, Any], Any], right: Any) -> Callable[[Any], Any]:
    return lambda x: function(x, right)


def with_left(function: Callable[[Any, Any], Any], left: Any) -> Callable[[Any], Any]:
    return lambda x: function(left, x)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", BINARY)
def test_operators_give_what_the_placed_array_gives(name: str, other: str) -> None:
    direct = operator.methodcaller
    function = getattr(operator, name, divmod if name == "__divmod__" else None)
    make, kinds = OTHERS[other]
    for kind in kinds:
        plain = KINDS[kind]()
        mine = make(plain)
        theirs = plain if other == "lazy" else mine
        expected = outcome(direct(name, theirs), plain)
        assert outcome(direct(name, mine), lazy(plain)) == expected, kind
        if function is not None:
            for order in (with_right, with_left):
                expected = outcome(order(function, theirs), plain)
                assert outcome(order(function, mine), lazy(plain)) == expected, kind


@pytest.mark.parametrize("call", [operator.eq, operator.ne, operator.add, operator.lt])
@pytest.mark.parametrize("kind", ["key", "key rows"])
def test_operators_of_keys_give_what_placed_keys_give(
    call: Callable[[Any, Any], Any], kind: str
) -> None:
    plain = KINDS[kind]()
    expected = outcome(lambda x: call(x, plain), plain)
    assert outcome(lambda x: call(x, plain), lazy(plain)) == expected
    assert outcome(lambda x: call(plain, x), lazy(plain)) == expected
    assert outcome(lambda x: call(x, lazy(plain)), lazy(plain)) == expected


BUILTINS: dict[str, Callable[[Any], Any]] = {
    "int": int, "float": float, "complex": complex, "bool": bool, "index": operator.index,
    "round": round, "abs": abs, "floor": math.floor, "divmod": lambda x: divmod(x, 2),
    "range": lambda x: list(range(x)), "subscript": lambda x: "abcdefgh"[x], "not": operator.not_,
    "format": lambda x: f"{x:.3f}", "format to hex": lambda x: f"{x:x}", "hex": hex,
    "max": lambda x: max(x), "sum": lambda x: sum(x, 0), "sorted": lambda x: sorted(x)[:2],
    "in": lambda x: 3 in x, "tuple": tuple, "enumerate": lambda x: list(enumerate(x)),
    "pow": lambda x: pow(x, 2), "unpacked": lambda x: [*x], "map": lambda x: list(map(float, x)),
    "float of each": lambda x: [float(v) for v in x], "math.sqrt": math.sqrt,
    "augmented": lambda x: operator.iadd(x, 1), "match": lambda x: isinstance(x, jax.Array),
}  # fmt: skip


@pytest.mark.parametrize("name", BUILTINS)
def test_builtins_treat_a_leaf_as_the_placed_array(name: str) -> None:
    results = {kind: outcome(BUILTINS[name], KINDS[kind]()) for kind in ("scalar", "count", "ints")}
    for kind, expected in results.items():
        found = outcome(BUILTINS[name], lazy(KINDS[kind]()))
        if name.startswith("format") and is_refusal(expected):  # A leaf says more.
            found, expected = found[:2], expected[:2]
        assert found == expected, kind
    assert not all(map(is_refusal, results.values())) or name == "floor"


def test_every_special_method_of_an_array_is_listed_as_forwarded_or_not() -> None:
    # A new protocol of Python or JAX fails here before it can change a result.
    special = {
        name
        for kind in ("floats", "key")
        for name in dir(type(KINDS[kind]()))
        if name.startswith("__")
    }
    undecided = special - HANDED_ON - NOT_HANDED_ON.keys() - set(dir(object)) - set(vars(LazyArray))
    assert undecided == set()
    assert HANDED_ON.isdisjoint(NOT_HANDED_ON)
    assert all(NOT_HANDED_ON.values())


def test_special_methods_that_are_not_forwarded_are_not_the_placed_arrays() -> None:
    array_type = type(jnp.zeros(()))
    for name in NOT_HANDED_ON.keys() & set(dir(array_type)):
        own = getattr(LazyArray, name, None)
        inherited = getattr(jax.Array, name, None)
        assert own is None or own is inherited or own is not getattr(array_type, name), name
        assert own is inherited or not isinstance(own, property), name


NEVER = ["__jax_array__", "__cuda_array_interface__", "__array_struct__", "__array_interface__"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_leaf_has_the_attributes_that_the_placed_array_has(kind: str) -> None:
    plain = KINDS[kind]()
    leaf = lazy(plain)
    for name in (*PUBLIC, *NEVER, "no_such_name", "_no_such_name", "__no_such_name__"):
        has = with_right(hasattr, name)
        assert outcome(has, leaf) == outcome(has, plain), name


def public(names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_user_sees_the_names_of_an_array_and_two_more(kind: str) -> None:
    plain = KINDS[kind]()
    leaf = lazy(plain)
    key_array_type.cache_clear()
    with observe_reads() as log:
        # Within a trace too, in which JAX computes nothing by itself.
        found: list[list[str]] = []
        jax.make_jaxpr(lambda: found.append(dir(leaf)))()
        (seen,) = found
    assert public(seen) == public(dir(plain)) | {"name", "is_placed"}
    assert all(hasattr(type(leaf), name) for name in seen)
    assert not log.reads
    assert not leaf.is_placed
    leaf.placed()
    assert dir(leaf) == seen


@pytest.mark.parametrize("kind", KINDS)
def test_a_shell_completes_the_names_without_placing(kind: str) -> None:
    leaf = lazy(KINDS[kind]())
    with observe_reads() as log:
        completer = rlcompleter.Completer({"leaf": leaf})
        for name in ("is_placed", "name", "addressable_shards", "sharding"):
            assert completer.complete(f"leaf.{name[:-1]}", 0) == f"leaf.{name}"
    assert not log.reads
    assert not leaf.is_placed


def test_protocols_by_which_libraries_would_bypass_a_leaf_are_absent() -> None:
    # Libraries look these up on the type, and would convert a leaf before it could be placed.
    assert not {*NEVER, "__del__"} - {"__cuda_array_interface__"} & set(dir(LazyArray))


@pytest.mark.parametrize("kind", KINDS)
def test_a_leaf_is_unhashable(kind: str) -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(lazy(KINDS[kind]()))


@pytest.mark.parametrize("kind", ["floats", "ints", "rows"])
def test_iteration_ends_and_yields_the_rows(kind: str) -> None:
    plain = KINDS[kind]()
    assert form(list(lazy(plain))) == form(list(plain))
    assert list(map(host_bytes, reversed(lazy(plain)))) == list(map(host_bytes, reversed(plain)))
    first, *_ = lazy(plain)
    assert form(first) == form(next(iter(plain)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_leaf_pickles_as_the_placed_array(kind: str) -> None:
    plain = KINDS[kind]()
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        expected = outcome(pickle.loads, pickle.dumps(plain, protocol))
        assert outcome(pickle.loads, pickle.dumps(lazy(plain), protocol)) == expected
        assert not is_refusal(expected)


@pytest.mark.parametrize("kind", ["floats", "ints", "scalar", "rows"])
def test_numpy_reads_a_leaf_without_placing_it(kind: str) -> None:
    plain = KINDS[kind]()
    leaf = lazy(plain)
    assert form(np.asarray(leaf)) == form(np.asarray(plain))
    assert form(np.asarray(leaf, np.float64)) == form(np.asarray(plain, np.float64))
    with pytest.raises(ValueError, match="copy"):
        np.array(leaf, np.complex64, copy=False)
    mine = np.array(leaf)
    mine[...] = 0
    assert form(np.asarray(leaf)) == form(np.asarray(plain))
    assert not leaf.is_placed
    assert form(np.add(leaf, np.asarray(plain))) == form(np.add(plain, np.asarray(plain)))
    assert form(np.stack([leaf, leaf])) == form(np.stack([plain, plain]))


def test_numpy_cannot_convert_keys_as_jax_cannot() -> None:
    key = jax.random.key(3)
    assert outcome(np.asarray, lazy(key)) == outcome(np.asarray, key)
    assert is_refusal(outcome(np.asarray, key))


# ---- a part is read as a part


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_basic_index_reads_only_its_own_bytes(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(8, 8), (3, 1, 4), (5,), (), (2, 0, 3)]))
    host = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    index = data.draw(basic_indices(shape, allow_newaxis=False))
    expected = host[index]
    with observe_reads() as log:
        leaf = lazy(host)
        part = leaf[index]
        assert type(part) is LazyArray
        assert (part.shape, part.committed) == (expected.shape, False)
        assert not log.reads
        assert form(np.asarray(part)) == form(np.asarray(expected))
        assert log.nbytes == expected.nbytes


INDEXED = {
    **KINDS,
    "committed": lambda: jax.device_put(FLOATS, jax.devices()[3]),
    "keys": lambda: jax.random.split(jax.random.key(7), 8),
}


@pytest.mark.parametrize(
    ("kind", "index", "nbytes"),
    [
        ("floats", 3, 32),
        ("floats", np.int64(-1), 32),
        ("floats", (2, 5), 4),
        ("floats", (slice(None), 1), 32),
        ("floats", (slice(6, None, -2), slice(0, 2)), 4 * 2 * 4),
        ("floats", slice(4, 4), 0),
        ("floats", slice(100, -100, -3), 3 * 32),
        ("floats", (..., np.uint8(7)), 32),
        ("floats", (), 256),
        ("floats", ..., 256),
        ("scalar", (), 4),
        ("scalar", ..., 4),
        ("rows", 3, 32),
        ("rows", (slice(None), slice(2, 4)), 64),
        ("rows", (..., 5), 32),
        ("rows", slice(None), 256),
        ("rows", slice(2, 6), 128),
        ("rows", (slice(None, None, -1), slice(None, None, -1)), 256),
        ("committed", 3, 32),
        ("committed", ..., 256),
        ("committed", (slice(None), slice(2, 4)), 64),
        ("committed", slice(4, 4), 0),
        ("keys", 3, 8),
        ("keys", slice(1, None, 3), 24),
        ("keys", (..., -1), 8),
        ("key", ..., 8),
        ("key rows", ..., 64),
    ],
)
def test_an_index_reads_its_own_bytes_and_gives_what_a_plain_array_gives(
    kind: str, index: Any, nbytes: int
) -> None:
    plain = INDEXED[kind]()
    with observe_reads() as log:
        part = lazy(plain)[index]
        assert type(part) is LazyArray
        assert not log.reads
        values = part.placed()
        assert log.nbytes == nbytes
    expected = plain[index]
    assert form(values) == form(expected)
    known = {name: outcome(KNOWN[name], part) for name in ("aval", "committed", "sharding")}
    assert known == {name: outcome(KNOWN[name], values) for name in known}


INDICES: list[Any] = [
    0, -1, ..., slice(None), (), slice(1, 3), slice(0, 8), slice(-8, 99), slice(None, None, 2),
    slice(None, None, -1), slice(7, None, -1), slice(6, 1, -2), slice(5, 5), (slice(None), 0),
    (slice(None), slice(2, 6)), (slice(None), slice(None, None, -1)), (3, 4), (0, slice(None)),
    (slice(2, 4), 1), (slice(None, None, -1), 0), (..., 0), (slice(0, 1), slice(0, 1)),
]  # fmt: skip
MESHES = {
    "auto": jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,)),
    "explicit": jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,)),
    "square": jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2),
    "explicit square": jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2),
    "mixed": jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit, AxisType.Auto)),
    "one": jax.make_mesh((1,), ("x",), devices=jax.devices()[2:3], axis_types=(AxisType.Auto,)),
    "explicit one": jax.make_mesh(
        (1,), ("x",), devices=jax.devices()[2:3], axis_types=(AxisType.Explicit,)
    ),
}
SPECS = [(), ("x",), (None, "x"), ("x", None), ("x", "y"), ("y",), (None, ("x", "y")), ("y", "x")]


@pytest.mark.parametrize("mesh", MESHES)
def test_a_part_of_a_leaf_on_a_mesh_is_where_jax_puts_it(mesh: str) -> None:
    names = set(MESHES[mesh].axis_names)
    specs = [spec for spec in SPECS if set(jax.tree.leaves(spec)) <= names]
    compared = read_in_part = 0
    for number, spec in enumerate(specs):
        plain = jax.device_put(FLOATS, NamedSharding(MESHES[mesh], PartitionSpec(*spec)))
        # JAX compiles a program for each index: by default each spec has every fourth one.
        for index in INDICES if LARGE else INDICES[number % 4 :: 4]:
            expected = outcome(operator.itemgetter(index), plain)
            leaf = lazy(plain)
            got = outcome(operator.itemgetter(index), leaf)
            assert got == expected, (spec, index)
            compared += 1
            read_in_part += not leaf.is_placed
    assert compared >= (4 if LARGE else 1) * len(INDICES)
    # On a mesh with both types of axes, only the result for whole axes is known without placing.
    assert read_in_part >= (compared // 8 if mesh == "mixed" else compared // 3)


def test_a_part_of_an_uncommitted_leaf_is_computed_on_the_default_device() -> None:
    plain, third = jnp.asarray(FLOATS), jax.devices()[3]
    for index in INDICES:
        leaf = lazy(plain)
        # The family of the rows must not remember the default device of this moment.
        leaf[0].placed()
        with jax.default_device(third):
            assert form(leaf[index]) == form(plain[index]), index


@pytest.mark.parametrize("kind", ["floats", "ints", "scalar", "rows", "key rows"])
@pytest.mark.parametrize(
    "index",
    [
        100, -100, (0, 100), (0, 0, 0), (0, 0, 0, 0), (..., ...), None, (None, 0), True, False,
        [0, 2], np.array([1, 1]), np.array(2), np.array([True] * 8), (slice(None), [3, 1]),
        (INTS, INTS), 1.5, "name", slice(None, None, 0), slice(1.0, 2.0), slice("a"), np.bool_(1),
        (slice(0, np.int64(5)), None), (slice(np.array(1), 3),),
    ],
    ids=repr,
)  # fmt: skip
def test_any_other_index_gives_what_the_placed_array_gives(index: Any, kind: str) -> None:
    plain = KINDS[kind]()
    expected = outcome(lambda x: x[index], plain)
    assert outcome(lambda x: x[index], lazy(plain)) == expected
    assert outcome(lambda x: x.at[index].get(), lazy(plain)) == outcome(
        lambda x: x.at[index].get(), plain
    )


@pytest.mark.parametrize("wrap", [lambda x: x, jnp.asarray, lazy])
def test_lazy_leaves_and_arrays_index_lazy_leaves(wrap: Callable[[Any], Any]) -> None:
    plain = KINDS["floats"]()
    index = wrap(INTS)
    expected = plain[INTS]
    assert form(lazy(plain)[index]) == form(expected)
    assert form(plain[index]) == form(expected)
    assert form(lazy(plain)[index, 0]) == form(plain[INTS, 0])
    assert form(lazy(plain)[..., index]) == form(plain[..., INTS])
    assert form(lazy(plain)[wrap(np.array(2))]) == form(plain[np.array(2)])
    assert form(lazy(plain)[wrap(np.array(2)) : 5]) == form(plain[2:5])
    assert form(jnp.take(plain, index, axis=0)) == form(jnp.take(plain, INTS, axis=0))


def test_indexing_a_placed_leaf_gives_what_the_placed_array_gives() -> None:
    leaf = lazy(KINDS["rows"]())
    placed = leaf.placed()
    with observe_reads() as log:
        assert form(leaf[2:6]) == form(placed[2:6])
        assert type(leaf[2:6]) is type(placed)
        assert not log.reads


def test_a_part_of_a_part_reads_only_its_own_bytes() -> None:
    with observe_reads() as log:
        part = lazy(FLOATS)[2:6][:, ::2][1]
        assert not log.reads
        assert form(np.asarray(part)) == form(FLOATS[3, ::2])
        assert log.nbytes == 16


# ---- placed once, and again after the array was deleted


def test_threads_that_use_one_leaf_place_it_once() -> None:
    host = np.ones((256, 256), np.float32)
    for _ in range(5):
        leaf = lazy(host)
        gate = threading.Barrier(16)
        got: list[jax.Array] = []

        def touch(leaf: LazyArray = leaf, gate: Any = gate, got: Any = got) -> None:
            gate.wait()
            got.append(leaf.placed())

        threads = [threading.Thread(target=touch) for _ in range(16)]
        with observe_reads() as log:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert log.nbytes == host.nbytes
        assert len(got) == 16
        assert all(array is got[0] for array in got)


@pytest.mark.parametrize("kind", KINDS)
def test_a_deleted_leaf_is_placed_again(kind: str) -> None:
    plain = KINDS[kind]()
    leaf = lazy(plain)
    leaf.delete()
    first = leaf.placed()
    leaf.delete()
    assert first.is_deleted()
    assert not leaf.is_placed
    assert not leaf.is_deleted()
    assert form(leaf) == form(plain)
    assert leaf.placed() is leaf.placed()


@pytest.mark.parametrize("kind", ["floats", "ints", "rows", "int rows"])
def test_a_donated_leaf_is_placed_again(kind: str) -> None:
    plain = KINDS[kind]()
    expected = form(plain * 2)
    leaf = lazy(plain)
    double = jax.jit(lambda x: x * 2, donate_argnums=0)
    for _ in range(3):
        assert form(double(leaf)) == expected
        assert not leaf.is_placed
    assert form(leaf) == form(KINDS[kind]())


def test_using_a_placed_leaf_does_not_place_it_again() -> None:
    leaf = lazy(FLOATS)
    with observe_reads() as log:
        jax.block_until_ready((leaf + 1, leaf.sum(), jnp.sin(leaf), leaf[0], leaf.T))
        # leaf[0] comes after the values have been placed, and it reads nothing either.
        assert log.nbytes == FLOATS.nbytes


# ---- errors while placing


def failing(error: Exception, size: int = 4) -> LazyArray:
    def compute() -> np.ndarray:
        raise error

    source = ComputedSource(compute, "failing", immutable=True)
    view = Strided(source, 0, np.dtype(np.float32), Window.whole((size,)))
    return LazyArray(Content(view), "layers.3.bias")


TOUCHES: list[Callable[[Any], Any]] = [
    lambda x: x.placed(), lambda x: x + 1, lambda x: 1 + x, lambda x: x.T, lambda x: x.sum(),
    lambda x: hasattr(x, "tolist"), lambda x: hasattr(x, "no_such_name") or x.T,
    lambda x: list(x), jnp.sin, jax.jit(lambda x: x), jax.device_put, jax.block_until_ready,
    pickle.dumps,
]  # fmt: skip


@pytest.mark.parametrize("touch", TOUCHES)
def test_an_attribute_error_while_placing_does_not_look_like_a_missing_attribute(
    touch: Callable[[Any], Any],
) -> None:
    leaf = failing(AttributeError("'NoneType' object has no attribute 'seek'"))
    with pytest.raises(PlacementError, match=r"'layers\.3\.bias'.*'seek'") as caught:
        touch(leaf)
    assert isinstance(caught.value.__cause__, AttributeError)


@pytest.mark.parametrize("touch", TOUCHES)
def test_an_error_while_placing_reaches_the_caller_and_leaves_the_leaf_unplaced(
    touch: Callable[[Any], Any],
) -> None:
    error = ReadError("m.safetensors: cut short")
    leaf = failing(error)
    for _ in range(2):
        with pytest.raises(ReadError) as caught:
            touch(leaf)
        assert caught.value is error
    assert not leaf.is_placed


@pytest.mark.parametrize("touch", TOUCHES)
def test_using_a_leaf_on_a_jax_without_the_hooks_is_an_error_with_the_remedy(
    touch: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The installed JAX has the hooks.
    monkeypatch.setattr("safejax._src.arrays.lazy._MISSING", ("dispatch",))
    with pytest.raises(UnsupportedJaxError, match=r"'a\.b'.*dispatch.*safejax\.materialize"):
        touch(lazy(FLOATS, "a.b"))


def test_on_a_jax_without_the_hooks_shapes_are_known_and_materialize_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The JAX that is installed has the hooks.
    monkeypatch.setattr("safejax._src.arrays.lazy._MISSING", ("abstract values", "dispatch"))
    leaf = lazy(FLOATS)
    assert leaf.shape == (8, 8)
    assert form(np.asarray(leaf)) == form(FLOATS)
    assert form(safejax.materialize({"w": leaf})["w"]) == form(jnp.asarray(FLOATS))


# ---- the content of an array


def test_content_of_knows_shape_dtype_and_key_implementation() -> None:
    for kind, make in KINDS.items():
        plain = make()
        content = content_of(plain)
        assert content is not None
        assert content.shape == plain.shape, kind
        assert (content.key is not None) == is_key(plain)
    key = content_of(jax.random.key(0, impl="rbg"))
    assert key is not None
    assert (key.key, key.view.dtype, key.view.shape) == ("rbg", np.uint32, (4,))
    leaf = lazy(FLOATS)
    assert content_of(leaf) is leaf.content
    for other in (1, 2.5, "text", None, [1]):
        assert content_of(other) is None
    for scalar in (np.float32(1), np.int8(3)):
        content = content_of(scalar)
        assert content is not None
        assert form(content.view.read()) == form(np.asarray(scalar))


def test_content_of_an_array_in_another_byte_order_is_in_native_order() -> None:
    content = content_of(FLOATS.astype(">f4").T)
    assert content is not None
    assert form(content.view.read()) == form(np.ascontiguousarray(FLOATS.T))


def test_content_of_a_tracer_is_refused() -> None:
    with pytest.raises(LeafError, match="tracer"):
        jax.jit(content_of)(jnp.ones(3))


@pytest.mark.parametrize("impl", [None, "threefry2x32", "rbg", "unsafe_rbg"])
def test_an_abstract_leaf_has_content_that_cannot_be_read(impl: str | None) -> None:
    dtype = np.dtype(np.float32) if impl is None else jax.random.key(0, impl=impl).dtype
    abstract = jax.ShapeDtypeStruct((3, 2), dtype)
    content = content_of(abstract)
    assert content is not None
    assert (content.shape, content.key) == ((3, 2), impl)
    assert LazyArray(content, "w").aval.update(sharding=None) == jax.typeof(abstract)
    with pytest.raises(ReadError, match="abstract"):
        LazyArray(content, "w").placed()


def test_like_leaf_keeps_the_kind_of_leaf_and_returns_the_leaf_if_nothing_differs() -> None:
    leaf = lazy(KINDS["rows"]())
    assert like_leaf(leaf, leaf.content, "w") is leaf
    content = content_of(INTS)
    assert content is not None
    other = like_leaf(leaf, content, "v")
    assert type(other) is LazyArray
    assert (other.name, other.shape, other.committed) == ("v", (8,), False)
    assert like_leaf(jax.ShapeDtypeStruct((1,), np.int8), content, "v") == jax.ShapeDtypeStruct(
        (8,), np.int32
    )
    key = content_of(jax.random.key(0))
    assert key is not None
    abstract = like_leaf(jax.ShapeDtypeStruct((1,), np.int8), key, "v")
    assert (abstract.shape, abstract.dtype) == ((), jax.random.key(0).dtype)
    assert form(like_leaf(FLOATS, content, "v")) == form(jnp.asarray(INTS))


def test_one_notice_is_given_once() -> None:
    notice = NarrowingNotice()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in "vwx":
            notice.give(name, np.dtype(np.float64), np.dtype(np.float32))
    assert [warning.category for warning in caught] == [PrecisionWarning]
    assert "'v' is stored as float64 and placed as float32" in str(caught[0].message)
