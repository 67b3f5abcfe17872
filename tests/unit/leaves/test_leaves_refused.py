"""Leaves that no file can hold: the error has one remedy for each kind, and the remedy works."""

import collections
import datetime
import decimal
import enum
import fractions
import pathlib
import re
import types
import uuid
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.spatial.transform
from PIL import Image

import safejax
from safejax import LeafError
from tests.support.leaves import host_bytes

Color = enum.Enum("Color", {"RED": 3})
Rank = enum.IntEnum("Rank", {"FIRST": 1})
Record = np.dtype([("a", "i4"), ("b", "f4")])


class Tensor:
    """What a torch tensor has of what the remedy names."""

    __module__ = "torch"

    def detach(self) -> "Tensor":
        return self

    cpu = detach

    def numpy(self) -> Any:
        return np.arange(3.0)


class Celsius(float):
    """A float of another type, which would come back as a float."""


MASKED = np.ma.masked_array([1.0, 2.0], [False, True])

# The leaf, the remedy in its message, and what that gives once it is stored.
REMEDIES: dict[str, tuple[Any, str, Any]] = {
    "bytes": (b"ab", "numpy.frombuffer(x, numpy.uint8)", np.frombuffer(b"ab", np.uint8)),
    "bytearray": (bytearray(b"a"), "numpy.frombuffer(x, numpy.uint8)", np.uint8([97])),
    "enum": (Color["RED"], "x.value", 3),
    "int enum": (Rank["FIRST"], "x.value", 1),
    "float": (Celsius(2.5), "float(x)", 2.5),
    "datetime": (datetime.datetime(2026, 1, 2), "str(x)", "2026-01-02 00:00:00"),
    "date": (datetime.date(2026, 1, 2), "str(x)", "2026-01-02"),
    "path": (pathlib.PurePosixPath("a/b"), "str(x)", "a/b"),
    "decimal": (decimal.Decimal("1.10"), "str(x)", "1.10"),
    "fraction": (fractions.Fraction(1, 3), "str(x)", "1/3"),
    "uuid": (uuid.UUID(int=1), "str(x)", str(uuid.UUID(int=1))),
    "set": ({3, 1}, "sorted(x)", [1, 3]),
    "frozenset": (frozenset("ab"), "sorted(x)", ["a", "b"]),
    "range": (range(2), "list(x)", [0, 1]),
    "mapping": (types.MappingProxyType({"a": 1}), "dict(x)", {"a": 1}),
    "counter of words": (collections.UserDict({"a": 1}), "dict(x)", {"a": 1}),
    "slice": (slice(1, 3), "(x.start, x.stop, x.step)", (1, 3, None)),
    "image": (Image.new("L", (2, 2)), "numpy.asarray(x)", np.zeros((2, 2), np.uint8)),
    "sparse": (
        scipy.sparse.csr_array(np.float32([[0, 2], [0, 0]])),
        "x.toarray()",
        np.float32([[0, 2], [0, 0]]),
    ),
    "sparse coordinates": (
        scipy.sparse.coo_matrix(np.int8([[0, 2]])),
        "x.toarray()",
        np.int8([[0, 2]]),
    ),
    "tensor": (Tensor(), "x.detach().cpu().numpy()", np.arange(3.0)),
    "objects": (np.array([1, 2], object), "numpy.asarray(x.tolist())", np.array([1, 2])),
    "objects of kinds": (np.array(["a", 2], object), "x.tolist()", ["a", 2]),
    "masked": (MASKED, "x.filled(0)", np.array([1.0, 0.0])),
    "mask": (MASKED, "numpy.ma.getmaskarray(x)", np.array([False, True])),
    "strings": (np.array(["a", "b"]), "numpy.asarray(x).tolist()", ["a", "b"]),
    "a string": (np.str_("ab"), "numpy.asarray(x).tolist()", "ab"),
    "byte strings": (np.array([b"a"]), "numpy.asarray(numpy.char.decode(x)).tolist()", ["a"]),
    "times": (np.array(["2020"], "M8[Y]"), "x.astype(numpy.int64)", np.array([50])),
    "void": (np.void(b"ab"), "numpy.frombuffer(x, numpy.uint8)", np.frombuffer(b"ab", np.uint8)),
    "float0": (np.zeros(2, jax.dtypes.float0), "numpy.zeros(x.shape)", np.zeros(2)),
    "dtype": (np.dtype("float32"), "str(x)", "float32"),
    "fields": (
        np.array([(1, 2.0)], Record),
        "{name: x[name] for name in x.dtype.names}",
        {"a": np.int32([1]), "b": np.float32([2])},
    ),
    "long": (np.longdouble([1.5]), "x.astype(numpy.float64)", np.array([1.5])),
    "long complex": (np.clongdouble([1j]), "x.astype(numpy.complex128)", np.array([1j])),
}


COLUMNS = "{name: x[name].to_numpy() for name in x.columns}"

# The package, an expression for the leaf, the remedy, and what that gives once it is stored.
OF_PACKAGES: dict[str, tuple[str, str, str, Any]] = {
    "pandas series": ("pandas", "Series([1.5, 2])", "x.to_numpy()", np.array([1.5, 2])),
    "pandas index": ("pandas", "RangeIndex(2)", "x.to_numpy()", np.array([0, 1])),
    "pandas integers": ("pandas", "array([1], dtype='Int8')", "x.to_numpy()", np.int8([1])),
    "pandas frame": (
        "pandas",
        "DataFrame({'a': [2**53 + 1], 'b': [0.5]})",
        COLUMNS,
        {"a": np.array([2**53 + 1]), "b": np.array([0.5])},
    ),
    "pandas time": ("pandas", "Timestamp('2020')", "str(x)", "2020-01-01 00:00:00"),
    "polars series": ("polars", "Series([True])", "x.to_numpy()", np.array([True])),
    "polars frame": (
        "polars",
        "DataFrame({'a': [2**53 + 1], 'b': [0.5]})",
        COLUMNS,
        {"a": np.array([2**53 + 1]), "b": np.array([0.5])},
    ),
    "polars query": (
        "polars",
        "LazyFrame({'a': [1]})",
        "x.collect()",
        None,
    ),
    "tensorflow": ("tensorflow", "constant([1.5])", "x.numpy()", np.float32([1.5])),
    "torch": ("torch", "ones(2)", "x.detach().cpu().numpy()", np.ones(2, np.float32)),
    "torch bfloat16": (
        "torch",
        "ones(2).bfloat16()",
        "jax.numpy.from_dlpack(x)",
        jnp.ones(2, jnp.bfloat16),
    ),
}


@pytest.mark.parametrize("kind", OF_PACKAGES)
def test_the_remedy_for_an_object_of_a_package_works(kind: str) -> None:
    package, made, remedy, expected = OF_PACKAGES[kind]
    module = pytest.importorskip(package, reason=f"needs pip install {package}")
    leaf = eval(f"module.{made}", {"module": module})
    with pytest.raises(LeafError, match=r"^leaf 'a\.x': expected ") as caught:
        safejax.serialize({"a": {"x": leaf}})
    assert remedy in str(caught.value)
    given = eval(remedy, {"numpy": np, "jax": jax, "x": leaf})
    if expected is None:  # One more remedy follows.
        with pytest.raises(LeafError, match=re.escape(COLUMNS)):
            safejax.serialize(given)
    else:
        loaded = safejax.deserialize(safejax.serialize({"x": given}))["x"]
        assert jax.tree.all(jax.tree.map(_same, loaded, expected)) or _same(loaded, expected)


def test_a_remedy_is_for_what_has_its_method() -> None:
    turn = scipy.spatial.transform.Rotation.identity()
    assert not hasattr(turn, "toarray")
    with pytest.raises(LeafError, match=r"^leaf 'x': expected ") as caught:
        safejax.serialize({"x": turn})
    assert "toarray" not in str(caught.value)
    assert "leave it out" in str(caught.value)


def _same(found: Any, expected: Any) -> bool:
    if isinstance(found, jax.Array):
        return np.asarray(found).dtype == expected.dtype and host_bytes(found) == host_bytes(
            expected
        )
    return type(found) is type(expected) and found == expected


@pytest.mark.parametrize("kind", REMEDIES)
def test_the_remedy_for_a_leaf_works(kind: str) -> None:
    leaf, remedy, expected = REMEDIES[kind]
    with pytest.raises(LeafError, match=r"^leaf 'a\.x': expected ") as caught:
        safejax.serialize({"a": {"x": leaf}})
    assert remedy.replace("filled(0)", "filled(value)") in str(caught.value)
    assert "convert it" not in str(caught.value)
    given = eval(remedy, {"numpy": np, "x": leaf})
    loaded = safejax.deserialize(safejax.serialize({"x": given}))["x"]
    assert jax.tree.all(jax.tree.map(_same, loaded, expected)) or _same(loaded, expected)


@pytest.mark.parametrize(
    "leaf",
    [len, np, jnp.sin, lambda x: x, dict],
    ids=["built-in", "module", "compiled function", "function", "class"],
)
def test_what_computes_is_left_out_or_saved_by_equinox(leaf: Any) -> None:
    with pytest.raises(LeafError, match=r"leave it out of the tree.*safejax\.equinox"):
        safejax.serialize({"x": leaf})


def test_functions_in_a_model_are_no_leaves_for_the_adapter() -> None:
    equinox = pytest.importorskip("equinox")
    adapter = pytest.importorskip("safejax.equinox")
    model = equinox.nn.MLP(2, 2, 2, 1, key=jax.random.key(0))
    with pytest.raises(LeafError, match=r"safejax\.equinox"):
        safejax.serialize(model)
    same = adapter.deserialize(adapter.serialize(model), like=model)
    assert same.activation == model.activation


def test_an_unknown_object_is_told_how_to_become_a_container() -> None:
    class State:
        def __init__(self, w: Any) -> None:
            self.w = w

    state = State(jnp.ones(2))
    with pytest.raises(LeafError, match=r"jax\.tree_util\.register_dataclass") as caught:
        safejax.serialize({"x": state})
    assert re.search(r"got .*State: ", str(caught.value))


# ---- arrays that are deleted or referred to


def test_a_reference_is_stored_as_what_it_holds() -> None:
    """(R7)"""
    ref, key = jax.new_ref(jnp.arange(3.0)), jax.new_ref(jax.random.key(3))
    ref[0] = 7.0
    data = safejax.serialize({"w": ref, "key": key})
    ref[0] = 8.0
    loaded = safejax.deserialize(data)
    assert loaded["w"].tolist() == [7, 1, 2]
    assert jax.random.key_data(loaded["key"]).tolist() == [0, 3]
    assert safejax.abstract({"w": ref}) == {"w": jax.ShapeDtypeStruct((3,), "float32")}
    like = safejax.deserialize(data, like={"w": ref, "key": key})
    assert like["w"].tolist() == [7, 1, 2]
    cast = safejax.serialize({"w": ref}, transform=safejax.cast("bfloat16"))
    assert safejax.deserialize(cast)["w"].dtype == jnp.bfloat16


def test_variables_of_nnx_that_are_references_are_stored() -> None:
    """(R7)"""
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    stored = safejax.serialize(nnx.state(model))
    referred = jax.tree.map(jax.new_ref, nnx.state(model))
    assert safejax.serialize(referred) == stored


def test_an_array_that_is_donated_while_it_is_saved_is_named_with_a_remedy(tmp_path: Any) -> None:
    """(R17)"""
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = {"first": jnp.zeros(3), "second": jnp.ones((256, 256))}

    def donate(done: int, total: int) -> None:
        del done, total
        if not state["second"].is_deleted():
            step(state)

    path = tmp_path / "m.safetensors"
    with pytest.raises(LeafError, match=r"^leaf '(first|second)': .*deleted, or donated") as caught:
        safejax.save(state, path, progress=donate)
    assert not path.exists()
    remedy = "jax.tree.map(jax.numpy.copy, tree)"
    assert remedy in str(caught.value)
    state = {"first": jnp.zeros(3), "second": jnp.ones((256, 256))}
    whole = {**state, "key": jax.random.key(0)}
    safejax.save(eval(remedy, {"jax": jax, "tree": whole}), path, progress=donate)
    assert safejax.load(path)["second"].sum() == 256 * 256


def test_an_array_that_is_deleted_before_its_view_is_placed_is_named() -> None:
    array = jnp.arange(4.0)
    leaves = safejax.cast("bfloat16")(safejax.Leaves({"w": array}))
    array.delete()
    with pytest.raises(LeafError, match="deleted, or donated") as caught:
        safejax.materialize(leaves["w"])
    assert "leaf 'w'" in caught.value.__notes__[0]
    for gone in (array, jax.random.key(0)):
        gone.delete() if not gone.is_deleted() else None
        with pytest.raises(LeafError, match=r"leaf 'w': .*deleted, or donated"):
            safejax.cast("bfloat16")(safejax.Leaves({"w": gone}))
