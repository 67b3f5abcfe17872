"""Every use of a lazy leaf in JAX and its libraries gives what a plain array gives, bit for bit."""

import contextlib
import importlib.util
import io
import itertools
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import equinox as eqx
import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from safejax._src.arrays import jax_hooks
from safejax._src.arrays.content import key_data_shape, key_dtype
from safejax._src.arrays.jax_private import abstract_value
from safejax._src.arrays.lazy import LazyArray
from safejax._src.arrays.placing import Placement
from safejax._src.leaves.leaf import content_of
from safejax._src.reading.log import observe_reads
from tests.support.leaves import lazy
from tests.support.outcomes import form, is_refusal, outcome

P = PartitionSpec
DEVICES = jax.devices()
AUTO = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
EXPLICIT = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
SQUARE = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit, AxisType.Auto))
HOST = (np.arange(64, dtype=np.float32).reshape(8, 8) - 20.5) / 4
X = jnp.linspace(-1, 1, 64, dtype=jnp.float32).reshape(8, 8)

SHARDINGS: dict[str, NamedSharding | None] = {
    "default": None,
    "auto": NamedSharding(AUTO, P("x")),
    "explicit": NamedSharding(EXPLICIT, P("x")),
    "columns": NamedSharding(EXPLICIT, P(None, "x")),
    "replicated": NamedSharding(AUTO, P()),
    "explicit replicated": NamedSharding(EXPLICIT, P()),
    "square": NamedSharding(SQUARE, P("y", "x")),
}


def put(host: Any, sharding: Any = None) -> jax.Array:
    return jax.device_put(host, sharding)


def lazy_tree(tree: Any) -> Any:
    return jax.tree.map(lazy, tree)


# ---- one trace


_compilations: list[str] = []


def _listen(event: str, _: float, **__: Any) -> None:
    if "backend_compile" in event:
        _compilations.append(event)


# JAX has no public way to remove a listener, so this one stays for all tests.
jax.monitoring.register_event_duration_secs_listener(_listen)


def compilations() -> int:
    return len(_compilations)


@pytest.mark.parametrize("first", ["plain", "lazy"])
@pytest.mark.parametrize("kind", [*SHARDINGS, "key", "keys"])
def test_plain_and_lazy_leaves_share_one_trace_and_one_compilation(kind: str, first: str) -> None:
    if kind in SHARDINGS:
        plain = put(HOST, SHARDINGS[kind])
    elif kind == "key":
        plain = jax.random.key(1)
    else:
        plain = put(jax.random.split(jax.random.key(1), 8), NamedSharding(AUTO, P("x")))
    traces: list[Any] = []

    @jax.jit
    def step(tree: Any) -> Any:
        traces.append(jax.typeof(tree["w"]))
        return jax.tree.map(lambda w: w[None], tree)

    leaf = lazy(plain)
    trees = [{"w": plain}, {"w": leaf}, {"w": plain}, {"w": leaf}, {"w": lazy(plain)}]
    if first == "lazy":
        trees = trees[1:]
    step(trees[0])
    before = compilations()
    results = [step(tree) for tree in trees]
    assert compilations() == before
    assert len(traces) == 1
    assert all(form(result) == form(results[0]) for result in results)
    assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])
    assert traces[0] == jax.typeof(plain)


def test_a_compilation_is_counted() -> None:
    before = compilations()
    jax.jit(lambda x: x * 3 + 1)(X)
    assert compilations() == before + 1


# ---- the first use is inside a trace, by closure


def _shard_map(f: Callable[[Any], Any]) -> Any:
    return jax.shard_map(f, mesh=AUTO, in_specs=P(), out_specs=P(), check_vma=False)(X)


def _custom_vjp(f: Callable[[Any], Any]) -> Any:
    @jax.custom_vjp
    def g(x: Any) -> Any:
        return f(x)

    g.defvjp(lambda x: (f(x), x), lambda x, t: (t * f(x).sum(),))
    return jax.value_and_grad(lambda x: g(x).sum())(X)


def _custom_jvp(f: Callable[[Any], Any]) -> Any:
    g = jax.custom_jvp(lambda x: f(x))
    g.defjvp(lambda primals, tangents: (g(*primals), tangents[0] * f(primals[0]).sum()))
    return jax.jvp(g, (X,), (X,))


# Calls of `f`, a function of an array that closes over the leaf.
TRACES: dict[str, Callable[[Callable[[Any], Any]], Any]] = {
    "jit": lambda f: jax.jit(f)(X),
    "jit of jit": lambda f: jax.jit(lambda x: jax.jit(f)(x) + 1)(X),
    "lower and compile": lambda f: jax.jit(f).lower(X).compile()(X),
    "make_jaxpr": lambda f: jax.core.eval_jaxpr(
        (jaxpr := jax.make_jaxpr(f)(X)).jaxpr, jaxpr.consts, X
    ),
    "eval_shape": lambda f: [jax.eval_shape(f, X), f(X)][1],
    "vmap": lambda f: jax.vmap(lambda x: f(x * X))(jnp.arange(3.0)),
    "scan": lambda f: lax.scan(lambda c, _: (f(c), c.sum()), X, None, length=2),
    "scan over xs": lambda f: lax.scan(lambda c, x: (c, f(x * c)), X, jnp.arange(3.0)),
    "associative_scan": lambda f: lax.associative_scan(lambda a, b: f(a) + b, jnp.stack([X, X])),
    "map": lambda f: lax.map(lambda x: f(x * X), jnp.arange(2.0)),
    "while_loop": lambda f: lax.while_loop(
        lambda c: c[0] < 2, lambda c: (c[0] + 1, f(c[1])), (0, X)
    ),
    "while_loop's condition": lambda f: lax.while_loop(
        lambda c: c[0] * f(c[1]).sum() ** 2 < 2, lambda c: (c[0] + 1, c[1]), (0.0, X)
    ),
    "fori_loop": lambda f: lax.fori_loop(0, 2, lambda _, c: f(c), X),
    "cond": lambda f: lax.cond(X[0, 0] < 0, f, lambda x: x + 0 * f(x), X),
    "switch": lambda f: lax.switch(jnp.int32(1), [lambda x: x, f], X),
    "grad": lambda f: jax.grad(lambda x: (f(x) ** 2).sum())(X),
    "hessian": lambda f: jax.hessian(lambda x: (f(x * X) ** 2).sum())(2.0),
    "jvp": lambda f: jax.jvp(f, (X,), (X,)),
    "vjp": lambda f: jax.vjp(f, X)[1](jax.vjp(f, X)[0]),
    "linearize": lambda f: jax.linearize(f, X)[1](X),
    "checkpoint": lambda f: jax.grad(lambda x: jax.checkpoint(f)(x).sum())(X),
    "custom_vjp": _custom_vjp,
    "custom_jvp": _custom_jvp,
    "shard_map": _shard_map,
    "jit of grad of scan of vmap": lambda f: jax.jit(
        jax.grad(
            lambda x: lax.scan(
                lambda c, y: (c, jax.vmap(lambda z: f(z * c))(y)), x, jnp.ones((2, 2))
            )[1].sum()
        )
    )(X),
}
# How the leaf is used there.
USES: dict[str, Callable[[Any, Any], Any]] = {
    "argument": lambda w, x: x + jnp.sin(w) @ jnp.asarray(w),
    "method": lambda w, x: x * w.T.sum(0) + w.mean(),
    "part": lambda w, x: x * w[2] + w[:, 1:2] + w[x.shape[0] - 1, 0],
    "gathered": lambda w, x: x + w[jnp.int32(x[0, 0] * 0 + 3)],
    "updated": lambda w, x: x + w.at[0, 0].set(x[0, 0]),
    "tree": lambda w, x: jax.tree.map(jnp.add, [w], [x])[0],
}  # fmt: skip


@pytest.mark.parametrize("trace", TRACES)
def test_first_use_inside_a_trace_places_a_concrete_array(trace: str) -> None:
    _check_first_use(TRACES[trace], lambda w, x: x * w + w[2], put(HOST))


@pytest.mark.parametrize("trace", ["jit", "grad", "vmap"])
@pytest.mark.parametrize("use", USES)
def test_every_kind_of_first_use_inside_a_trace(use: str, trace: str) -> None:
    _check_first_use(TRACES[trace], USES[use], put(HOST))


@pytest.mark.parametrize("trace", ["jit", "grad", "scan"])
@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_first_use_of_a_sharded_leaf_inside_a_trace(kind: str, trace: str) -> None:
    plain = put(HOST, SHARDINGS[kind])
    with jax.set_mesh(plain.sharding.mesh):
        _check_first_use(TRACES[trace], lambda w, x: x * w.sum() + w.mean(), plain)


def _check_first_use(
    trace: Callable[[Callable[[Any], Any]], Any], use: Callable[[Any, Any], Any], plain: Any
) -> None:
    expected = form(trace(partial(use, plain)))
    leaf = lazy(plain)
    assert form(trace(partial(use, leaf))) == expected
    assert leaf._placed is None or type(leaf._placed) is type(plain)
    assert form(leaf) == form(plain)
    assert form(leaf + 1) == form(plain + 1)


# ---- under every mode

MODES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "debug_nans": lambda: jax.debug_nans(True),
    "debug_infs": lambda: jax.debug_infs(True),
    "disable_jit": jax.disable_jit,
    "transfer_guard": lambda: jax.transfer_guard("disallow"),
    "transfer_guard explicit": lambda: jax.transfer_guard("disallow_explicit"),
    "checking_leaks": jax.checking_leaks,
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "x64": lambda: jax.enable_x64(True),
    "not x64": lambda: jax.enable_x64(False),
    "default_device": lambda: jax.default_device(DEVICES[3]),
    "matmul precision": lambda: jax.default_matmul_precision("float32"),
    "mesh": lambda: jax.set_mesh(EXPLICIT),
    "ensure_compile_time_eval": jax.ensure_compile_time_eval,
}
NOTHING_FINITE = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 2.0], np.float32)


IN_MODES: dict[str, Callable[[Any], Any]] = {
    "eager": lambda w: w,
    "argument": lambda w: jax.jit(lambda y: y)(w),
    "closure": lambda w: jax.jit(lambda: jnp.stack([w, w]))(),
    "operator": lambda w: w > w,
    "method": lambda w: w.reshape(2, 3),
    "device_put": lambda w: jax.device_put(w, DEVICES[2]),
}


@pytest.mark.parametrize("use", IN_MODES)
@pytest.mark.parametrize("mode", MODES)
def test_first_use_under_a_mode(mode: str, use: str) -> None:
    plain = put(NOTHING_FINITE)
    with MODES[mode]():
        expected = outcome(IN_MODES[use], plain)
    leaf = lazy(NOTHING_FINITE)
    with MODES[mode]():
        if use == "eager":
            # The mode must not affect placing, since plain arrays are placed before it begins.
            assert type(leaf.placed()) is type(plain)
        else:
            assert outcome(IN_MODES[use], leaf) == expected
    assert form(leaf) == form(plain)


@pytest.mark.parametrize("option", ["jax_debug_nans", "jax_disable_jit", "jax_debug_infs"])
def test_first_use_under_a_mode_of_the_whole_process(option: str) -> None:
    plain = put(NOTHING_FINITE)
    leaf = lazy(NOTHING_FINITE)
    before = getattr(jax.config, option)
    jax.config.update(option, True)
    try:
        leaf.placed()
    finally:
        jax.config.update(option, before)
    assert form(leaf) == form(plain)


def test_the_transfer_guard_of_the_whole_process_does_not_prevent_placing() -> None:
    leaf = lazy(HOST)
    jax.config.update("jax_transfer_guard", "disallow")
    try:
        leaf.placed()
    finally:
        jax.config.update("jax_transfer_guard", None)
    assert form(leaf) == form(put(HOST))


def test_a_leaf_goes_to_the_default_device_of_the_time_when_it_was_made() -> None:
    with jax.default_device(DEVICES[3]):
        there = lazy(HOST)
        expected = put(HOST)
    here = lazy(HOST)
    with jax.default_device(DEVICES[5]):
        assert here.placed().devices() == {DEVICES[0]}
    assert there.devices() == {DEVICES[3]}
    assert form(there) == form(expected)
    assert not there.placed().committed
    assert form(there + X) == form(expected + X)


SETTINGS: dict[str, Callable[[Callable[[], None]], Any]] = {
    "jit": lambda check: jax.jit(lambda x: (check(), x)[1])(X),
    "vmap": lambda check: jax.vmap(lambda x: (check(), x)[1])(X),
    "grad": lambda check: jax.grad(lambda x: (check(), x)[1])(1.0),
    "shard_map": lambda check: _shard_map(lambda x: (check(), x)[1]),
    "explicit mesh": lambda check: check(),
}


@pytest.mark.parametrize("kind", [*SHARDINGS, "key"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_leaf_made_inside_a_trace_equals_one_made_outside(setting: str, kind: str) -> None:
    plain = jax.random.key(1) if kind == "key" else put(HOST, SHARDINGS[kind])
    content = content_of(plain)
    assert content is not None
    made: list[LazyArray] = []

    def make() -> None:
        # An earlier test may have filled the caches.
        for cached in (abstract_value, key_dtype, key_data_shape):
            cached.cache_clear()
        placement = Placement(plain.sharding, True) if plain.committed else None
        made.append(LazyArray(content, "w", placement))

    with jax.set_mesh(EXPLICIT) if setting == "explicit mesh" else contextlib.nullcontext():
        SETTINGS[setting](make)
    assert made[0].aval == jax.typeof(plain)
    assert made[0].aval.sharding == jax.typeof(plain).sharding
    assert form(made[0]) == form(plain)


# ---- as an argument

ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "jit": jax.jit(lambda w: w * 2),
    "jit, by keyword": lambda w: jax.jit(lambda *, w: w * 2)(w=w),
    "jit, in a tree": lambda w: jax.jit(lambda t: t["a"][0] + t["b"])({"a": [w], "b": w}),
    "jit, with shardings": lambda w: jax.jit(
        lambda y: y * 2, in_shardings=w.sharding, out_shardings=w.sharding
    )(w),
    "jit, compiled before": lambda w: jax.jit(lambda y: y * 2).lower(w).compile()(w),
    "grad": jax.grad(lambda w: (w**2).sum()),
    "value_and_grad": jax.value_and_grad(lambda w: (w**3).sum()),
    "grad, in a tree": lambda w: jax.grad(lambda t: (t["a"] * t["b"]).sum())({"a": w, "b": w}),
    "jacfwd": lambda w: jax.jacfwd(lambda y: y.sum(0))(w),
    "jvp": lambda w: jax.jvp(jnp.sin, (w,), (w,)),
    "vjp": lambda w: jax.vjp(jnp.sin, w)[1](w),
    "linearize": lambda w: jax.linearize(jnp.sin, w)[1](w),
    "linear_transpose": lambda w: jax.linear_transpose(lambda y: y * 2, w)(w),
    "vmap": jax.vmap(lambda w: w * 2),
    "vmap over columns": jax.vmap(lambda w: w * 2, in_axes=1, out_axes=1),
    "vmap, unmapped": lambda w: jax.vmap(lambda x, y: x * y.sum(), in_axes=(0, None))(X, w),
    "scan, carried": lambda w: lax.scan(lambda c, _: (c * 2, None), w, None, length=2)[0],
    "scan, over": lambda w: lax.scan(lambda c, y: (c, y * 2), 0.0, w)[1],
    "cond": lambda w: lax.cond(True, lambda y: y * 2, lambda y: y, w),
    "while_loop": lambda w: lax.while_loop(lambda c: c[1] < 2, lambda c: (c[0] * 2, c[1] + 1),
                                           (w, 0))[0],
    "fori_loop": lambda w: lax.fori_loop(0, 2, lambda _, c: c * 2, w),
    "checkpoint": lambda w: jax.grad(lambda y: jax.checkpoint(jnp.sin)(y).sum())(w),
    "pure_callback": lambda w: jax.pure_callback(
        lambda y: np.asarray(y) * 2, jax.ShapeDtypeStruct((8, 8), jnp.float32), w
    ),
    "named_call": lambda w: jax.named_call(lambda y: y * 2, name="n")(w),
    "block_until_ready": jax.block_until_ready,
    "device_get": jax.device_get,
    "device_put": lambda w: jax.device_put(w),
    "device_put to a device": lambda w: jax.device_put(w, DEVICES[3]),
    "device_put to its device": lambda w: jax.device_put(w, DEVICES[0]),
    "device_put to a sharding": lambda w: jax.device_put(w, SHARDINGS["columns"]),
    "device_put to its sharding": lambda w: jax.device_put(w, w.sharding),
    "device_put of a tree": lambda w: jax.device_put({"a": w, "b": 1}, SHARDINGS["replicated"]),
    "device_put, copied": lambda w: jax.device_put(w, DEVICES[0], may_alias=False),
    "device_put inside jit": jax.jit(lambda w: jax.device_put(w, DEVICES[0])),
    "stop_gradient": lax.stop_gradient,
    "with_sharding_constraint": lambda w: lax.with_sharding_constraint(w, SHARDINGS["auto"]),
    "constraint inside jit": lambda w: jax.jit(
        lambda y: lax.with_sharding_constraint(y, SHARDINGS["auto"])
    )(w),
    "shard_map": lambda w: jax.shard_map(
        lambda y: y * 2, mesh=AUTO, in_specs=P("x"), out_specs=P("x")
    )(w),
    "tree.map": lambda w: jax.tree.map(lambda x, y: x + y, {"a": w}, {"a": w}),
    "tree.reduce": lambda w: jax.tree.reduce(jnp.add, [w, w, w]),
    "asarray": jnp.asarray,
    "array": jnp.array,
    "asarray, other dtype": lambda w: jnp.asarray(w, jnp.bfloat16),
    "copy": jnp.copy,
    "concatenate": lambda w: jnp.concatenate([w, X, w]),
    "stack": lambda w: jnp.stack([w, w]),
    "where": lambda w: jnp.where(w > 0, w, X),
    "einsum": lambda w: jnp.einsum("ij,kj->ik", w, w),
    "einsum, attention": lambda w: jnp.einsum("bhd,bkd->bhk", w[None], w[None]),
    "matmul": lambda w: jnp.matmul(w, X) @ w,
    "dot_general": lambda w: lax.dot_general(w, w, (((1,), (0,)), ((), ()))),
    "zeros_like": lambda w: jnp.zeros_like(w) + jnp.ones_like(w),
    "full_like": lambda w: jnp.full_like(w, 3),
    "clip by": lambda w: jnp.clip(X, w, w + 1),
    "sort": jnp.sort,
    "top_k": lambda w: lax.top_k(w, 2),
    "cumsum": lambda w: jnp.cumsum(w, axis=1),
    "pad": lambda w: jnp.pad(w, 1),
    "roll": lambda w: jnp.roll(w, 1),
    "dynamic_slice": lambda w: lax.dynamic_slice(w, (1, 2), (3, 3)),
    "dynamic_update_slice": lambda w: lax.dynamic_update_slice(X, w[:2, :2], (1, 1)),
    "norm": jnp.linalg.norm,
    "softmax": jax.nn.softmax,
    "one_hot": lambda w: jax.nn.one_hot(w[0].astype(int), 4),
    "convolve": lambda w: jnp.convolve(w[0], w[1]),
    "permutation": lambda w: jax.random.permutation(jax.random.key(0), w),
    "choice": lambda w: jax.random.choice(jax.random.key(0), w, (2,)),
    "broadcast_to": lambda w: jnp.broadcast_to(w, (2, 8, 8)),
    "apply_along_axis": lambda w: jnp.apply_along_axis(lambda r: r.sum(), 0, w),
    "at.set": lambda w: w.at[0].set(1.5),
    "at.add of a leaf": lambda w: X.at[0].add(w[0]),
    "at.set with a leaf": lambda w: X.at[:].set(w),
    "index of another": lambda w: X[(w[0] * 0).astype(int)],
    "array_equal": lambda w: jnp.array_equal(w, w),
    "numpy.testing": lambda w: np.testing.assert_array_equal(w, w) or 0,
    "numpy ufunc": lambda w: np.add(w, 1),
    "numpy, plain left": lambda w: HOST + w,
    "numpy, plain right": lambda w: w + HOST,
    "list of scalars": lambda w: [float(v) for v in w[0]],
    "jnp.array of a list": lambda w: jnp.array([w, w]),
    "export": lambda w: jax.export.export(jax.jit(lambda y: y * 2))(w).call(w),
    "ravel_pytree": lambda w: jax.flatten_util.ravel_pytree({"a": w, "b": w})[0],
}  # fmt: skip


@pytest.mark.parametrize("use", ARGUMENTS)
def test_an_argument_gives_what_the_plain_array_gives(use: str) -> None:
    plain = put(HOST)
    expected = outcome(ARGUMENTS[use], plain)
    assert outcome(ARGUMENTS[use], lazy(HOST)) == expected
    assert not is_refusal(expected), f"{use} is no use of a plain array: {expected}"


SHARDED = [
    "jit", "jit, with shardings", "jit, compiled before", "grad", "vmap", "scan, carried",
    "device_put", "device_put to a device", "device_put to a sharding", "device_get",
    "device_put to its sharding", "device_put of a tree", "device_put inside jit",
    "with_sharding_constraint", "constraint inside jit", "shard_map", "block_until_ready",
    "asarray", "concatenate", "where", "einsum", "zeros_like", "stop_gradient", "at.set",
    "jnp.array of a list", "sort", "tree.map", "numpy ufunc",
]  # fmt: skip


@pytest.mark.parametrize("use", SHARDED)
@pytest.mark.parametrize("kind", ["explicit", "square"])
def test_a_sharded_argument_gives_what_the_plain_array_gives(kind: str, use: str) -> None:
    plain = put(HOST, SHARDINGS[kind])
    assert outcome(ARGUMENTS[use], lazy(plain)) == outcome(ARGUMENTS[use], plain)


def test_sharded_uses_succeed_for_plain_arrays() -> None:
    # Otherwise the test above could compare one refusal with another.
    plain = put(HOST, SHARDINGS["auto"])
    refused = [use for use in SHARDED if is_refusal(outcome(ARGUMENTS[use], plain))]
    assert refused == []


def test_a_leaf_of_another_mesh_is_refused_as_the_plain_array_is() -> None:
    one, other = (
        SHARDINGS["auto"],
        NamedSharding(
            jax.make_mesh((4,), ("x",), devices=DEVICES[4:], axis_types=(AxisType.Auto,)), P("x")
        ),
    )
    plain, elsewhere = put(HOST, one), put(HOST, other)
    expected = outcome(jnp.add, plain, elsewhere)
    assert expected[:2] == ("raised", ValueError)
    assert outcome(jnp.add, lazy(plain), lazy(elsewhere)) == expected


@pytest.mark.parametrize("donated", ["auto", "explicit", "default"])
def test_donation_frees_the_array_and_the_next_use_reads_again(donated: str) -> None:
    plain = put(HOST, SHARDINGS[donated])
    leaf = lazy(plain)
    step = jax.jit(lambda w: w + 1, donate_argnums=0)
    with observe_reads() as log:
        for times in range(1, 3):
            assert form(step(leaf)) == form(plain + 1)
            assert log.nbytes == times * HOST.nbytes
            assert not leaf.is_placed
    assert form(leaf) == form(plain)


# Functions that access the internals of an array, and therefore need a plain one.
DEEPER: dict[str, Callable[[Any], Any]] = {
    # From Python 3.12 on, a class that is written in Python can offer a buffer.
    **({"memoryview": memoryview} if sys.version_info < (3, 12) else {}),
    "make_array_from_single_device_arrays": lambda w: jax.make_array_from_single_device_arrays(
        w.shape, w.sharding, [w]
    ),
    "tree_deserialise_leaves": lambda w: eqx.tree_deserialise_leaves(_serialised(w), w),
}


def _serialised(array: Any) -> io.BytesIO:
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, array)
    file.seek(0)
    return file


@pytest.mark.parametrize("use", DEEPER)
def test_functions_that_need_a_plain_array_refuse_a_lazy_leaf(use: str) -> None:
    leaf = lazy(HOST)
    with pytest.raises((TypeError, RuntimeError), match="LazyArray"):
        DEEPER[use](leaf)
    DEEPER[use](leaf.placed())


# ---- keys


def of_each(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda k: jax.vmap(f)(k) if k.shape else f(k)


KEYS: dict[str, Callable[[Any], Any]] = {
    "split": of_each(jax.random.split),
    "normal": of_each(lambda k: jax.random.normal(k, (3,))),
    "fold_in": of_each(lambda k: jax.random.fold_in(k, 3)),
    "key_data": jax.random.key_data,
    "key_impl": lambda k: hash(jax.random.key_impl(k)),
    "clone": jax.random.clone,
    "equal": lambda k: k == k,
    "jit": jax.jit(lambda k: k),
    "jit key_data": jax.jit(jax.random.key_data),
    "reshape": lambda k: k.reshape(-1, 1),
    "stack": lambda k: jnp.stack([k, k]),
    "where": lambda k: jnp.where(True, k, k),
    "scan": lambda k: lax.scan(lambda c, _: (c, None), k, None, length=2)[0],
    "closure": lambda k: jax.jit(lambda: jax.random.key_data(k))(),
    "wrap": lambda k: jax.random.wrap_key_data(jax.random.key_data(k), impl=jax.random.key_impl(k)),
    "device_put": lambda k: jax.device_put(k, DEVICES[2]),
    "device_put to a sharding": lambda k: jax.device_put(k, NamedSharding(AUTO, P())),
    "block_until_ready": jax.block_until_ready,
    "tree": lambda k: jax.tree.map(lambda x: x, {"k": k}),
}


OF_EVERY_IMPL = ("split", "normal", "fold_in", "key_data", "equal", "jit", "wrap", "closure")


@pytest.mark.parametrize(
    ("impl", "use"),
    [("threefry2x32", use) for use in KEYS]
    + [(impl, use) for impl in ("rbg", "unsafe_rbg") for use in OF_EVERY_IMPL],
)
def test_keys_give_what_plain_keys_give(impl: str, use: str) -> None:
    key = jax.random.key(42, impl=impl)
    keys = jax.random.split(key, 8)
    sharded = [put(keys, NamedSharding(AUTO, P("x")))] if impl == "threefry2x32" else []
    for plain in (key, keys, *sharded):
        expected = outcome(KEYS[use], plain)
        assert outcome(KEYS[use], lazy(plain)) == expected
        assert not is_refusal(expected)


@pytest.mark.parametrize("spec", [P("x"), P(), P("y", "x"), P(None, ("x", "y")), P(("y", "x"))])
def test_keys_on_a_two_dimensional_mesh_are_placed_as_jax_places_them(spec: PartitionSpec) -> None:
    sharding = NamedSharding(SQUARE, spec)
    plain = put(jax.random.split(jax.random.key(0), (8, 8)), sharding)
    leaf = lazy(plain)
    assert leaf.aval == jax.typeof(plain)
    with observe_reads() as log:
        placed = leaf.placed()
        pieces = len({str(index) for index in sharding.devices_indices_map((8, 8)).values()})
        assert len(log.reads) == pieces
        assert log.nbytes == 8 * 64
    assert form(placed) == form(plain)
    assert placed.sharding == plain.sharding
    for mine, theirs in zip(placed.addressable_shards, plain.addressable_shards, strict=True):
        assert (mine.device, mine.index) == (theirs.device, theirs.index)
        assert form(mine.data) == form(theirs.data)


# ---- the libraries


def params() -> dict[str, Any]:
    return {"dense": {"b": put(HOST[0]), "w": put(HOST)}, "scale": put(np.float32(2))}


def loss(tree: Any) -> jax.Array:
    return ((X @ tree["dense"]["w"] + tree["dense"]["b"]) * tree["scale"]).mean()


def optax_steps(tree: Any) -> Any:
    optimizer = optax.adam(1e-2)
    state = optimizer.init(tree)
    for _ in range(2):
        updates, state = optimizer.update(jax.grad(loss)(tree), state, tree)
        tree = optax.apply_updates(tree, updates)
    return tree, state


def chex_assertions(tree: Any) -> Any:
    chex.assert_trees_all_equal(tree, params())
    chex.assert_trees_all_close(params(), tree)
    chex.assert_trees_all_equal_shapes_and_dtypes(tree, params())
    chex.assert_tree_all_finite(tree)
    chex.assert_shape(tree["dense"]["w"], (8, 8))
    chex.assert_type(tree["dense"]["w"], jnp.float32)
    chex.assert_rank(tree["scale"], 0)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(tree, jax.tree.map(lambda x: x + 1, params()))
    return tree


def train_state(tree: Any) -> Any:
    state = TrainState.create(apply_fn=loss, params=tree, tx=optax.sgd(0.1, momentum=0.9))
    for _ in range(2):
        state = state.apply_gradients(grads=jax.grad(loss)(state.params))
    return state.params, state.opt_state, state.step


def frozen(tree: Any) -> Any:
    return flax.core.unfreeze(flax.core.freeze(tree))


class Net(nnx.Module):
    def __init__(self, w: Any, b: Any) -> None:
        self.w = nnx.Param(w)
        self.b = nnx.Param(b)

    def __call__(self, x: Any) -> Any:
        return x @ self.w + self.b


def nnx_module(tree: Any) -> Any:
    net = Net(tree["dense"]["w"], tree["dense"]["b"])
    out = nnx.jit(lambda m, x: m(x))(net, X)
    grads = nnx.grad(lambda m: m(X).sum())(net)
    graph, state = nnx.split(net)
    merged = nnx.merge(graph, state)
    return out, net(X), jax.tree.leaves(grads), jax.tree.leaves(state), merged(X)


class Linear(eqx.Module):
    weight: jax.Array
    bias: jax.Array
    name: str = eqx.field(static=True, default="linear")

    def __call__(self, x: Any) -> Any:
        return self.weight @ x + self.bias


def equinox_module(tree: Any) -> Any:
    module = Linear(tree["dense"]["w"], tree["dense"]["b"])
    assert all(map(eqx.is_array, jax.tree.leaves(module)))
    assert all(map(eqx.is_inexact_array, jax.tree.leaves(module)))
    arrays, rest = eqx.partition(module, eqx.is_array)
    assert jax.tree.leaves(rest) == []
    out = eqx.filter_jit(lambda m, x: m(x))(eqx.combine(arrays, rest), X)
    grads = eqx.filter_grad(lambda m: m(X).sum())(module)
    updated = eqx.apply_updates(module, grads)
    surgery = eqx.tree_at(lambda m: m.bias, module, tree["dense"]["w"][0])
    vmapped = eqx.filter_vmap(module)(X)
    assert eqx.tree_equal(module, module)
    return out, module(X), grads, updated, surgery, vmapped


LIBRARIES = {
    f.__name__: f
    for f in (
        optax_steps, chex_assertions, train_state, frozen, nnx_module, equinox_module,
    )
}  # fmt: skip


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_treat_a_lazy_tree_as_a_plain_one(library: str) -> None:
    expected = form(LIBRARIES[library](params()))
    assert form(LIBRARIES[library](lazy_tree(params()))) == expected


@pytest.mark.parametrize("library", ["optax_steps", "train_state", "equinox_module"])
def test_libraries_treat_a_sharded_lazy_tree_as_a_plain_one(library: str) -> None:
    tree = jax.device_put(params(), SHARDINGS["replicated"])
    expected = form(LIBRARIES[library](tree))
    assert form(LIBRARIES[library](lazy_tree(tree))) == expected


# ---- a JAX that lacks the hooks

HOOKS = ("_register_aval", "_register_canonicalizer", "_register_dispatch")
OTHER_HOOKS = ("_register_device_put", "_register_adder")


@pytest.mark.parametrize(
    "missing",
    [
        *(subset for size in (1, 2, 3) for subset in itertools.combinations(HOOKS, size)),
        *((name,) for name in OTHER_HOOKS),
    ],
    ids=lambda names: " ".join(name.removeprefix("_register_") for name in names),
)
def test_a_jax_without_a_hook_imports_and_names_the_remedy(
    missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any) -> None:
        raise ImportError("this JAX has no such table")

    # The JAX that is installed has the hooks.
    for name in missing:
        monkeypatch.setattr(jax_hooks, name, gone)
    # A second copy of the module, which registers itself with the remaining hooks.
    spec = importlib.util.find_spec("safejax._src.arrays.lazy")
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "safejax._src.arrays.lazy", copy)
    spec.loader.exec_module(copy)
    content = content_of(HOST)
    uses: list[Callable[[Any], Any]] = [
        jax.jit(lambda x: x), jnp.sin, jax.grad(jnp.sum), jax.vmap(lambda x: x), jax.device_put,
        lambda x: x + 1, lambda x: X + x, lambda x: x.T,
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(Exception, match=r"safejax\.materialize\(tree\) first"):
            use(copy.LazyArray(content, "w"))
    leaf = copy.LazyArray(content, "w")
    assert (leaf.shape, leaf.dtype, np.asarray(leaf).tobytes()) == (
        (8, 8), np.float32, HOST.tobytes(),
    )  # fmt: skip
