"""What compiled functions do with leaves that are not placed: all of a call are read at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax.testing import assert_trees_identical
from tests.support.servers import HttpServer

COUNT = 50


def host() -> dict[str, Any]:
    return {f"{n:02}": np.full((8, 4), n, np.float32) for n in range(COUNT)}


def remote(server: HttpServer, **options: Any) -> Any:
    server.files["/m.safetensors"] = safejax.serialize(host())
    tree = safejax.load(f"{server.url}/m.safetensors", **options)
    server.clear()
    return tree


def lazy(**options: Any) -> Any:
    return safejax.deserialize(safejax.serialize(host()), **options)


def placed(tree: Any) -> int:
    return sum(leaf.is_placed for leaf in jax.tree.leaves(tree))


def double(tree: Any) -> Any:
    return jax.tree.map(lambda x: x * 2, tree)


def in_a_jitted_function(tree: Any) -> Any:
    return jax.jit(double)(tree)


def ahead_of_time(tree: Any) -> Any:
    return jax.jit(double).lower(tree).compile()(tree)


def donated(tree: Any) -> Any:
    return jax.jit(double, donate_argnums=0)(tree)


def with_others(tree: Any) -> Any:
    tree, other = dict(tree), jnp.ones(3)
    return jax.jit(lambda tree, other, number: (double(tree), other + number)[0])(tree, other, 4)


CALLS = [in_a_jitted_function, ahead_of_time, donated, with_others]


@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_all_leaves_of_a_call_are_requested_together(
    server: HttpServer, call: Callable[[Any], Any], is_sharded: bool
) -> None:
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    options = {"sharding": NamedSharding(mesh, P("x"))} if is_sharded else {}
    tree = remote(server, **options)
    got = call(tree)
    assert len(server.requests) == 1
    assert_trees_identical(got, double(safejax.materialize(lazy(**options))))
    again = call(tree)  # What was donated is placed again, at once too.
    assert len(server.requests) == 1 + (call is donated)
    assert_trees_identical(again, got)


def test_what_a_function_ignores_is_read_at_its_second_call() -> None:
    first = jax.jit(lambda tree: tree["03"] + 1)
    tree = lazy()
    assert float(first(tree)[0, 0]) == 4
    assert placed(tree) == 1
    assert float(first(tree)[0, 0]) == 4
    assert placed(tree) == COUNT


def test_a_leaf_that_is_given_twice_is_read_once() -> None:
    data = safejax.serialize(host())
    with safejax.observe_reads() as log:
        tree = safejax.deserialize(data)
        leaf = tree["07"]
        total = jax.jit(lambda tree: sum(x.sum() for x in tree))([leaf, leaf, tree["01"]])
    assert float(total) == 32 * (7 + 7 + 1)
    assert log.nbytes == 2 * leaf.nbytes


def test_keys_and_leaves_of_64_bits_go_along() -> None:
    with jax.enable_x64(True):
        tree = {"key": jax.random.key(3), "wide": jnp.arange(4, dtype=jnp.int64), **host()}
        leaves = safejax.deserialize(safejax.serialize(tree))
        function = jax.jit(lambda t: (jax.random.bits(t["key"]), t["wide"] + 2**40, t["09"]))
        assert_trees_identical(function(leaves), function(tree))
        assert leaves["wide"].is_placed


def test_under_other_transformations_values_are_the_same() -> None:
    inner = jax.jit(double)

    def loss(tree: Any) -> Any:
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(inner(tree)))

    expected = jax.grad(loss)(host())
    assert_trees_identical(jax.grad(loss)(lazy()), expected)
    assert_trees_identical(jax.jit(jax.grad(loss))(lazy()), expected)
    rows = jax.vmap(inner)
    assert_trees_identical(rows(lazy()), rows(host()))
    with jax.disable_jit():
        assert_trees_identical(inner(lazy()), double(safejax.materialize(lazy())))
    with jax.debug_nans(True):
        assert_trees_identical(inner(lazy()), double(safejax.materialize(lazy())))


def test_an_error_names_the_leaf_and_the_next_call_reads_again(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safejax._src.reading.patience import Patience

    # A private name, since what fails for good would take seconds.
    monkeypatch.setattr("safejax._src.reading.patience.PATIENCE", Patience(pause=0.001))
    tree = remote(server)
    server.fault = lambda _: "403"
    with pytest.raises(safejax.ReadError, match=r"403") as raised:
        in_a_jitted_function(tree)
    assert raised.value.__notes__[0] == f"while placing leaf '00' and {COUNT - 1} more"
    server.fault = lambda _: None
    server.clear()
    assert_trees_identical(in_a_jitted_function(tree), double(safejax.materialize(lazy())))
    assert len(server.requests) == 1


def test_after_a_call_that_cannot_be_traced_all_leaves_are_requested_together(
    server: HttpServer,
) -> None:
    tree = remote(server)
    with pytest.raises((TypeError, ValueError), match=r"shape"):
        jax.jit(lambda tree: double(tree)["00"] + jnp.ones(3))(tree)
    assert len(server.requests) == placed(tree) == 0
    assert_trees_identical(in_a_jitted_function(tree), double(safejax.materialize(lazy())))
    assert len(server.requests) == 1


def test_a_function_that_ignores_all_leaves_has_fast_calls_in_the_end() -> None:
    tree, function = lazy(), jax.jit(lambda tree, x: x + 1)
    for _ in range(5):
        function(tree, 1.0)
    assert placed(tree) == COUNT


def test_leaves_that_are_narrowed_give_their_notice() -> None:
    with jax.enable_x64(True):
        data = safejax.serialize({"a": np.ones(3), "b": np.zeros(2)})
    tree = safejax.deserialize(data)
    with pytest.warns(safejax.PrecisionWarning, match=r"'a'"):
        jax.jit(double)(tree)
