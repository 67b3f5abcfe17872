"""Where JAX checks for the class of its own arrays, a lazy leaf behaves as a plain array does.

JAX's Python code checks `isinstance(x, ArrayImpl)` (or looks up `type(x)` in a table) in about
fifty places, and in some of them passes what matches to C++, which checks the real type. `PLACES`
lists all of them, for the oldest and the newest supported JAX, each with public calls
that reach it, or with the reason why no call with a leaf does. A JAX with a new place fails a test
that names it.
"""

import ast
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import layout, multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.support.argument_table import (
    AUTO,
    DEVICES,
    EXPLICIT,
    PLACEMENTS,
    STATES,
    arrays_in,
    calling,
)
from tests.support.outcomes import difference, is_refusal, outcome

P = PartitionSpec
ROWS: Final = NamedSharding(AUTO, P("x"))
WHOLE: Final = NamedSharding(AUTO, P())
EXPLICIT_COLUMNS: Final = NamedSharding(EXPLICIT, P(None, "x"))
BACKWARDS: Final = NamedSharding(
    jax.make_mesh((2,), ("x",), devices=DEVICES[1::-1], axis_types=(AxisType.Auto,)), P("x")
)
STRUCT: Final = jax.ShapeDtypeStruct((8, 8), np.float32)


class Use(NamedTuple):
    """A public call, and the row of the table of arguments that it is called with."""

    call: Callable[..., Any]
    row: str = "F"


def has(*path: str) -> bool:
    """Whether this JAX has `jax.a.b`; a name that JAX reports as removed does not count."""
    value: Any = jax
    for name in path:
        value = getattr(value, name, None)
    return value is not None


def compiled(struct: Any) -> Callable[[Any], Any]:
    return lambda w: jax.jit(lambda x: x + 1).lower(struct).compile()(w)


def reference(*values: Any) -> Any:
    ref = jax.new_ref(values[0])
    for value in values[1:]:
        ref[...] = value
        jax.ref.addupdate(ref, slice(None), value)
    return ref[...]


def simplified(call: Callable[[], Any]) -> Any:
    """Call with the option by which the constants of a jaxpr become literals."""
    before = jax.config.jax_use_simplified_jaxpr_constants
    jax.config.update("jax_use_simplified_jaxpr_constants", True)
    try:
        return call()
    finally:
        jax.config.update("jax_use_simplified_jaxpr_constants", before)


USES: Final[dict[str, Use]] = {
    # device_put
    "device_put": Use(jax.device_put),
    "device_put, copied": Use(lambda w: jax.device_put(w, may_alias=False)),
    "device_put, donated": Use(lambda w: jax.device_put(w, DEVICES[5], donate=True)),
    "device_put to a device": Use(lambda w: jax.device_put(w, DEVICES[5])),
    "device_put to device 0": Use(lambda w: jax.device_put(w, DEVICES[0])),
    "device_put to device 0, copied": Use(lambda w: jax.device_put(w, DEVICES[0], may_alias=False)),
    "device_put to its sharding": Use(lambda w: jax.device_put(w, w.sharding)),
    "device_put to its sharding, copied": Use(
        lambda w: jax.device_put(w, w.sharding, may_alias=False)
    ),
    "device_put to rows": Use(lambda w: jax.device_put(w, ROWS)),
    "device_put to columns": Use(lambda w: jax.device_put(w, EXPLICIT_COLUMNS)),
    "device_put to devices in another order": Use(lambda w: jax.device_put(w, BACKWARDS)),
    "device_put to its format": Use(lambda w: jax.device_put(w, w.format)),
    "device_put to another layout": Use(
        lambda w: jax.device_put(w, layout.Format(layout.Layout((1, 0)), w.sharding)).format
    ),
    "device_put to the host's memory": Use(lambda w: jax.device_put(w, jax.memory.Space.Host)),
    "device_put to the device's memory": Use(lambda w: jax.device_put(w, jax.memory.Space.Device)),
    "device_put to pinned memory": Use(
        lambda w: jax.device_put(w, w.sharding.with_memory_kind("pinned_host"))
    ),
    "device_put of a tree": Use(
        lambda w, v: jax.device_put([w, {"v": v}, 1, w], [DEVICES[0], ROWS, DEVICES[1], None]),
        "F, V",
    ),
    "device_put, from a sharding": Use(lambda w: jax.device_put(w, DEVICES[1], src=w.sharding)),
    "device_put in jit": Use(
        lambda w: jax.jit(lambda: jax.device_put(w, jax.memory.Space.Device) * 1)()
    ),
    "device_put of a key": Use(lambda k: jax.device_put(k, DEVICES[1]), "K"),
    "device_put of keys": Use(lambda k: jax.device_put(k, ROWS), "Q"),
    # trees that go to C++ as a list
    "block_until_ready": Use(lambda *w: jax.block_until_ready(w)),
    "block_until_ready of two": Use(lambda *w: jax.block_until_ready(w), "F, V"),
    "block_until_ready of many": Use(
        lambda *w: jax.block_until_ready([*w, jnp.ones(3), 1.0, "text"]), "F, V, K, Q, I"
    ),
    "device_get": Use(lambda *w: jax.device_get(w)),
    "device_get of two": Use(lambda *w: jax.device_get(w), "F, V"),
    # arrays made of arrays
    "make_array_from_callback": Use(
        lambda w: jax.make_array_from_callback((8, 8), WHOLE, lambda _: w)
    ),
    "make_array_from_callback, in place": Use(
        lambda w: jax.make_array_from_callback((8, 8), w.sharding, lambda _: w)
    ),
    "make_array_from_callback, parts": Use(
        lambda w: jax.make_array_from_callback((8, 8), ROWS, lambda index: w[index])
    ),
    "make_array_from_process_local_data": Use(
        lambda w: jax.make_array_from_process_local_data(ROWS, w)
    ),
    "full": Use(lambda s: jnp.full((8, 8), s, device=ROWS), "S"),
    "full, on a device": Use(lambda s: jnp.full((8, 8), s, device=DEVICES[5]), "S"),
    "full_like": Use(lambda w, s: jnp.full_like(w, s, device=ROWS), "F, S"),
    "lax.full": Use(lambda s: lax.full((8, 8), s, sharding=ROWS), "S"),
    "lax.full_like": Use(lambda w, s: lax.full_like(w, s), "F, S"),
    "wrap_key_data": Use(jax.random.wrap_key_data, "R"),
    "key": Use(jax.random.key, "N"),
    "raw key": Use(lambda k: jax.random.normal(k, (3,)), "R"),
    # constants
    "closed over": Use(lambda w: jax.jit(lambda: w * 2)()),
    "closed over, a scalar": Use(lambda s: jax.jit(lambda: s * 2)(), "S"),
    "make_jaxpr": Use(lambda w: str(jax.make_jaxpr(lambda: w * 2)())),
    "make_jaxpr, a scalar": Use(lambda s: str(jax.make_jaxpr(lambda: s * 2)()), "S"),
    "grad of closed over": Use(lambda w: jax.grad(lambda x: (x * w).sum())(jnp.ones((8, 8)))),
    "convert_element_type": Use(
        lambda s: jax.jit(lambda: lax.convert_element_type(s, jnp.bfloat16))(), "S"
    ),
    "literals": Use(lambda w: simplified(lambda: jax.jit(lambda: w * 2)())),
    "literals, a scalar": Use(lambda s: simplified(lambda: jax.jit(lambda: s * 2)()), "S"),
    "literals, differentiated": Use(
        lambda w: simplified(lambda: jax.grad(lambda x: (x * w).sum())(jnp.ones((8, 8))))
    ),
    # arguments
    "jit": Use(jax.jit(lambda w: w * 2)),
    "jit, forwarded": Use(jax.jit(lambda w: (w, w))),
    "jit, python's way": Use(
        lambda w: jax.core.eval_jaxpr(jax.make_jaxpr(jnp.sin)(w).jaxpr, [], w)
    ),
    "jit, no type": Use(lambda w: jax.jit(lambda x, y: x)(w, object())),
    "compiled": Use(compiled(STRUCT)),
    "compiled for rows": Use(compiled(STRUCT.update(sharding=ROWS))),
    "compiled for a leaf": Use(lambda w: jax.jit(lambda x: x + 1).lower(w).compile()(w)),
    "compiled for a layout": Use(
        lambda w: (
            jax.jit(lambda x: x + 1, in_shardings=layout.Format(layout.Layout((1, 0)), w.sharding))
            .lower(w)
            .compile()(w)
        )
    ),
    "pmap": Use(lambda w: jax.pmap(lambda x: x * 2)(w.reshape(2, 4, 8))),
    "pmap of a leaf": Use(lambda w: jax.pmap(lambda x: x * 2)(w)),
    "vjp of two": Use(lambda w, v: jax.vjp(lambda x: (x, x), w)[1]((v, v)), "F, F"),
    "export": Use(lambda w: jax.export.export(jax.jit(lambda x: x * 2))(w).call(w)),
    "ShapeDtypeStruct.like": Use(lambda w: jax.ShapeDtypeStruct.like(w)),
    "typeof": Use(lambda w: (jax.typeof(w), jax.eval_shape(lambda x: x, w))),
    "with_layout_constraint": Use(
        lambda w: layout.with_layout_constraint(w, layout.Layout((0, 1)))
    ),
    "with_layout_constraint, its own": Use(
        lambda w: layout.with_layout_constraint(w, w.format.layout)
    ),
    "with_sharding_constraint": Use(lambda w: lax.with_sharding_constraint(w, WHOLE)),
    "reshard": Use(lambda w: jax.sharding.reshard(w, EXPLICIT_COLUMNS)),
    "optimization_barrier": Use(lambda *w: lax.optimization_barrier(w), "F, V"),
    "new_ref": Use(reference, "F, F"),
    "composite": Use(lambda w: lax.composite(lambda x: x * 2, "my.double")(w)),
    "custom_linear_solve": Use(
        lambda a, b: lax.custom_linear_solve(
            lambda x: a @ x, b, lambda _, y: jnp.linalg.solve(a, y)
        ),
        "D, V",
    ),
    "checkpoint": Use(lambda w: jax.checkpoint(lambda x: x * 2)(w)),
    "callbacks": Use(lambda w: jax.pure_callback(lambda x: np.asarray(x) * 2, STRUCT, w)),
    "shard_map": Use(
        lambda w: jax.shard_map(lambda x: x * 2, mesh=AUTO, in_specs=P("x"), out_specs=P("x"))(w)
    ),
    # indices, DLPack, protocols
    "row": Use(lambda w: w[2]),
    "rows": Use(lambda w: w[2:4]),
    "column": Use(lambda w: w[:, 1]),
    "backwards": Use(lambda w: w[::-1]),
    "whole": Use(lambda w: (w[...], w[:], w[:, :])),
    "new axis": Use(lambda w: w[None, 1:3, ..., ::2]),
    "gathered": Use(lambda w, i: w[i], "F, I"),
    "at": Use(lambda w, s: (w.at[1].get(), w.at[1:3].set(s)), "F, S"),
    "iterated": Use(list, "V"),
    "from_dlpack": Use(jnp.from_dlpack),
    "from_dlpack, copied": Use(lambda w: jnp.from_dlpack(w, copy=True)),
    "from_dlpack, moved": Use(lambda w: jnp.from_dlpack(w, device=DEVICES[1])),
    "numpy.from_dlpack": Use(np.from_dlpack),
    "__dlpack_device__": Use(lambda w: w.__dlpack_device__()),
    "__array_module__": Use(lambda w: w.__array_module__((type(w), np.ndarray))),
    # functions for several processes, of which there is one here
    "process_allgather": Use(lambda w: multihost_utils.process_allgather({"w": w})),
    "process_allgather, tiled": Use(lambda w: multihost_utils.process_allgather(w, tiled=True)),
    "broadcast_one_to_all": Use(multihost_utils.broadcast_one_to_all),
    "assert_equal": Use(multihost_utils.assert_equal),
    "host_local_array_to_global_array": Use(
        lambda w: multihost_utils.host_local_array_to_global_array(w, AUTO, P("x"))
    ),
    "global_array_to_host_local_array": Use(
        lambda w: multihost_utils.global_array_to_host_local_array(w, AUTO, P("x"))
    ),
}
# Functions that not every supported version of JAX has.
if has("copy_to_host_async"):
    USES["copy_to_host_async"] = Use(lambda *w: jax.copy_to_host_async(w))
    USES["copy_to_host_async of two"] = Use(lambda *w: jax.copy_to_host_async(w), "F, V")
if has("device_put_sharded"):
    USES["device_put_sharded"] = Use(
        lambda *w: jax.device_put_sharded(list(w), DEVICES[:2]), "F, F"
    )
    USES["device_put_sharded, keys"] = Use(
        lambda *k: jax.device_put_sharded(list(k), DEVICES[:2]), "K, K"
    )
    USES["device_put_replicated"] = Use(lambda w: jax.device_put_replicated(w, DEVICES[:2]))
    USES["device_put_replicated, a key"] = Use(
        lambda k: jax.device_put_replicated(k, DEVICES[:2]), "K"
    )
if not has("ShapeDtypeStruct", "like"):
    del USES["ShapeDtypeStruct.like"]

# The pmap of JAX 0.8 makes a new axis name for every call, so two results never compare equal.
NEVER_EQUAL = {"pmap", "pmap of a leaf"} if jax.__version_info__ < (0, 9) else set[str]()

# Functions that need a plain array by design: C++ checks the real type, and no Python function of
# JAX is called before.
LEFT_OVER: Final[dict[str, Use]] = {
    "make_array_from_single_device_arrays": Use(
        lambda w: jax.make_array_from_single_device_arrays(w.shape, w.sharding, [w])
    ),
}


@pytest.mark.parametrize("name", [name for name in USES if name not in NEVER_EQUAL])
def test_a_leaf_gives_the_result_of_the_plain_array(name: str) -> None:
    call, row = USES[name]
    refused: list[Any] = []
    for placement in PLACEMENTS:
        expected = outcome(calling(call, row, placement, "plain"))
        refused += [expected] if is_refusal(expected) else []
        for state in STATES[: 3 if arrays_in(row) > 1 else 2]:
            got = outcome(calling(call, row, placement, state))
            assert difference(expected, got) is None, (placement, state, expected, got)
    # Otherwise one refusal would be compared with another.
    assert len(refused) < len(PLACEMENTS) or name == "jit, no type", refused[0]


@pytest.mark.parametrize("name", LEFT_OVER)
def test_functions_that_need_a_plain_array_refuse_a_leaf_and_name_its_class(name: str) -> None:
    call, row = LEFT_OVER[name]
    assert not is_refusal(outcome(calling(call, row, "default", "plain")))
    for state in ("unread", "placed"):
        with pytest.raises(TypeError, match="LazyArray"):
            calling(call, row, "default", state)()


# ---- the places

PROCESSES: Final = "only between several processes"
PUT: Final = ("device_put", "device_put, copied", "device_put to rows", "device_put of a tree")
LISTS: Final = ("block_until_ready", "block_until_ready of two", "block_until_ready of many")
CALLBACK: Final = (
    "make_array_from_callback", "make_array_from_callback, in place",
    "make_array_from_callback, parts",
)  # fmt: skip
CONSTANTS: Final = ("closed over", "make_jaxpr", "literals", "literals, differentiated")
CALLS: Final = ("jit", "compiled", "device_put to rows", "jit, python's way")

# By file and function: the calls that reach the place, or why no call does.
PLACES: Final[dict[str, tuple[str, ...] | str]] = {
    "_src/ad_util.py:add_impl": ("vjp of two",),
    "_src/api.py:_cpp_pmap": ("pmap", "pmap of a leaf"),
    "_src/api.py:_infer_src_sharding": (*PUT, "device_put in jit", "device_put, from a sharding"),
    "_src/api.py:block_until_ready": LISTS,
    "_src/api.py:copy_to_host_async": ("device_get of two", "copy_to_host_async of two"),
    "_src/api.py:device_put_replicated": ("device_put_replicated",),
    "_src/api.py:device_put_sharded": ("device_put_sharded",),
    "_src/array.py:_array_shard_arg": CALLS,
    "_src/array.py:_token_shard_arg": "is for tokens",
    "_src/array.py:make_array_from_callback": CALLBACK,
    "_src/array.py:make_array_from_single_device_arrays": "is LEFT_OVER",
    "_src/array.py:shard_device_array": CALLS,
    "_src/array.py:shard_sharded_device_array_slow_path": CALLS,
    "_src/core.py:Literal": CONSTANTS,
    "_src/core.py:ShapeDtypeStruct": ("ShapeDtypeStruct.like",),
    "_src/core.py:is_literalable": CONSTANTS,
    "_src/dispatch.py:_batched_device_put_impl": PROCESSES,
    "_src/dispatch.py:_device_put_sharding_impl": (*PUT, "device_put to devices in another order"),
    "_src/dispatch.py:_different_device_order_reshard": (
        "device_put to devices in another order",
    ),
    "_src/dlpack.py:_to_dlpack": ("numpy.from_dlpack",),
    "_src/dlpack.py:to_dlpack": ("from_dlpack", "from_dlpack, copied", "from_dlpack, moved"),
    "_src/dtypes.py:canonicalize_value": CALLS,
    "_src/interpreters/pxla.py:ExecuteReplicated": CALLS,
    "_src/interpreters/pxla.py:MeshExecutable": ("compiled", "compiled for a leaf"),
    "_src/interpreters/pxla.py:_emap_impl": ("pmap",),
    "_src/interpreters/pxla.py:_shard_np_array": "is for arrays of NumPy's",
    "_src/interpreters/pxla.py:batched_device_put": (*PUT, *CALLBACK),
    "_src/interpreters/pxla.py:check_array_xla_sharding_layout_match": (
        "compiled", "compiled for rows", "compiled for a layout",
    ),
    "_src/interpreters/pxla.py:shard_args": CALLS,
    "_src/lax/lax.py:_convert_elt_type_folding_rule": ("convert_element_type",),
    "_src/lax/lax.py:full": ("full", "full, on a device", "full_like", "lax.full"),
    "_src/numpy/array_methods.py:__array_module__": ("__array_module__",),
    "_src/numpy/indexing.py:NDIndexer": ("row", "rows", "column", "backwards", "at"),
    "_src/numpy/indexing.py:_attempt_rewriting_take_via_slice": ("row", "rows", "column", "at"),
    "_src/pjit.py:_get_fastpath_data": ("jit", "jit, forwarded"),
    "_src/pjit.py:_layout_constraint_impl": ("with_layout_constraint",),
    "_src/pjit.py:_run_python_pjit": ("jit, no type",),
    "_src/pmap.py:global_array_to_host_local_array": PROCESSES,
    "_src/pmap.py:host_local_array_to_global_array": PROCESSES,
    "_src/prng.py:KeyTyRules": ("device_put_replicated, a key",),
    "_src/prng.py:PRNGKeyArray": ("wrap_key_data", "key"),
    "_src/random/prng.py:KeyTyRules": "only device_put_replicated of JAX 0.8 asks it",
    "_src/random/prng.py:PRNGKeyArray": ("wrap_key_data", "key"),
    "experimental/multihost_utils.py:_handle_array_process_allgather": (
        "process_allgather", "process_allgather, tiled",
    ),
    "experimental/multihost_utils.py:assert_equal": ("assert_equal",),
    "experimental/multihost_utils.py:global_array_to_host_local_array_impl": (
        "global_array_to_host_local_array",
    ),
    "experimental/multihost_utils.py:host_local_array_to_global_array_impl": (
        "host_local_array_to_global_array",
    ),
}  # fmt: skip

# Code that gets no leaves, or that this project does not support.
_NOT_LOOKED_AT: Final = (
    "_src/earray.py", "_src/internal_test_util", "_src/pallas", "_src/test_util.py", "_src/tpu",
    "experimental/array_serialization", "experimental/colocated_python", "experimental/jax2tf",
    "experimental/mosaic", "experimental/pallas",
)  # fmt: skip
_TABLES: Final = frozenset({
    "ArrayImpl", "_HANDLED_ARRAY_TYPES", "_JAX_ARRAY_TYPES", "_foldable_types", "array_types",
    "canonicalize_value_handlers", "literalable_types", "raw_jaxval_adders", "shard_arg_handlers",
})  # fmt: skip
_TO_NATIVE: Final = ("batched_", "reorder_shards", "execute_sharded", "buffer_to_dlpack")


def _names(node: ast.AST) -> set[str]:
    return {
        child.id if isinstance(child, ast.Name) else child.attr
        for child in ast.walk(node)
        if isinstance(child, ast.Name | ast.Attribute)
    }


def _asks(node: ast.AST) -> bool:
    """Whether the node checks for the class of arrays, or passes arrays to C++."""
    if isinstance(node, ast.Call):
        function = node.func
        name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
        if name in {"isinstance", "issubclass"}:
            return bool(_names(node.args[1]) & _TABLES)
        if name == "get":
            return bool(_names(function) & _TABLES)
        return name.startswith(_TO_NATIVE) and isinstance(function, ast.Attribute)
    if isinstance(node, ast.Compare):
        return any(_names(right) & _TABLES for right in node.comparators)
    return (
        isinstance(node, ast.Subscript)
        and isinstance(node.ctx, ast.Load)
        and bool(_names(node.value) & (_TABLES - {"ArrayImpl"}))
    )


def _places_in(tree: ast.AST, name: str = "") -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        inside = name
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inside = name or node.name
        if inside and inside != "ArrayImpl" and _asks(node):
            yield inside
        yield from _places_in(node, inside)


def places() -> Iterator[str]:
    """The places in the installed JAX, named as in `PLACES`."""
    root = os.path.dirname(inspect.getfile(jax))
    for folder, _, files in os.walk(root):
        for file in files:
            path = os.path.join(folder, file)
            relative = os.path.relpath(path, root)
            if not file.endswith(".py") or relative.startswith(_NOT_LOOKED_AT):
                continue
            with open(path, encoding="utf-8") as stream:
                text = stream.read()
            if any(word in text for word in (*_TABLES, *_TO_NATIVE)):
                yield from {f"{relative}:{name}" for name in _places_in(ast.parse(text))}


def test_every_place_of_this_jax_is_listed() -> None:
    found = set(places())
    assert found - set(PLACES) == set()
    assert len(found) >= 35


def test_every_place_in_the_list_exists() -> None:
    known = set(USES) | {
        "ShapeDtypeStruct.like", "copy_to_host_async of two", "device_put_replicated",
        "device_put_replicated, a key", "device_put_sharded",
    }  # fmt: skip
    named = {use for uses in PLACES.values() if not isinstance(uses, str) for use in uses}
    assert named - known == set()
